"""What the paper prints (results/paper/): its tables as they stand, and by run; what its text says
of a figure's points.
"""

import pandas as pd

from workflow.campaign.config import Config
from workflow.storage import records

FOLDER = records.ROOT / "results" / "paper"
# how a row is called
NAMES = {
    "table1": ["method", "backbone", "resolution"],
    "table2": ["model", "resolution"],
    "table3": ["strategy", "backbone"],
    "table4": ["strategy", "backbone"],
    "tableS1": ["method", "backbone", "resolution", "batch_size"],
}


def key(table: str, row: dict) -> tuple:
    """A row's names."""
    return tuple(row[name] for name in NAMES[table])


def read(table: str) -> pd.DataFrame:
    """A table, its rows called as ours are."""
    printed = pd.read_csv(FOLDER / f"{table}.csv")
    return printed.rename(columns={"method": "strategy"} if "strategy" in NAMES[table] else {})


def by_run(config: Config) -> dict[str, dict]:
    """What is printed of each run's row, and where (`source`); where several tables show a run, the
    first that has the value."""
    found: dict[str, dict] = {}
    for table, rows in config.items["tables"].items():
        lines = {key(table, line): line for line in read(table).to_dict("records")}
        for row in rows:
            line = lines.get(key(table, row), {})
            known = {name: value for name, value in line.items() if not pd.isna(value)}
            known |= {"source": f"Table {table.removeprefix('table')}"} if known else {}
            found[row["run"]] = known | found.get(row["run"], {})
    return found


def by_x(figure: str) -> dict[str, dict]:
    """What the text says of a figure's points, by their `x` as text."""
    path = FOLDER / f"{figure}.csv"
    if not path.exists():
        return {}
    return pd.read_csv(path, dtype={"x": str}).set_index("x").to_dict("index")
