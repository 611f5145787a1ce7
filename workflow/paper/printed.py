"""What the paper prints: its tables as they stand (results/paper/), and by run."""

import pandas as pd

from workflow import records
from workflow.campaign import Config

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
    """What is printed of each run's row; where several tables show a run, the first that has the
    value."""
    found: dict[str, dict] = {}
    for table, rows in config.items["tables"].items():
        lines = {key(table, line): line for line in read(table).to_dict("records")}
        for row in rows:
            line = lines.get(key(table, row), {})
            known = {name: value for name, value in line.items() if not pd.isna(value)}
            found[row["run"]] = known | found.get(row["run"], {})
    return found
