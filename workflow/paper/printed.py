"""What the paper prints (results/paper/): its tables by row and by run, and its text on figures.

A table's printed numbers are in results/paper/<table>.csv. Its rows are called by the keys that the rows of
items.yaml have in addition to `run` and `section`, such as method, backbone and resolution.
"""

import pandas as pd

from workflow.campaign.config import FILES, Config, ConfigError
from workflow.storage import records

FOLDER = records.ROOT / "results" / "paper"
DATA = "imagenet"  # on which the printed accuracies were reached
OF_A_RUN = ("top1", "throughput", "params_m")  # printed values that are the same wherever a run is shown


def names(config: Config, table: str) -> list[str]:
    """Return the columns by which a table's rows are called."""
    return [key for key in config.items["tables"][table][0] if key not in ("run", "section")]


def read(config: Config, table: str) -> dict[tuple, dict]:
    """Return a printed table's rows, as values by column, by what they are called.

    A value that is not printed is absent; a table that the paper does not have has no rows. Raises ConfigError where
    the file is missing or lacks a row's name.
    """
    if table in config.items["ours"]:
        return {}
    path = FOLDER / f"{table}.csv"
    if not path.exists():
        raise ConfigError(
            f"{path} is missing: it holds what the paper prints in {table} of {FILES['items']}. If the paper does not "
            "have this table, name it in `ours` there."
        )
    frame = pd.read_csv(path)
    rows = {}
    for name in names(config, table):
        if name not in frame:
            raise ConfigError(f"{path} lacks the column {name!r}, by which {FILES['items']} calls the rows of {table}.")
    for line in frame.to_dict("records"):
        key = tuple(line[name] for name in names(config, table))
        rows[key] = {name: value for name, value in line.items() if not pd.isna(value)}
    return rows


def columns(config: Config, table: str) -> list[str]:
    """Return the columns of a printed table; none of a table that the paper does not have."""
    if table in config.items["ours"]:
        return []
    return list(pd.read_csv(FOLDER / f"{table}.csv", nrows=0))


def by_run(config: Config) -> dict[str, dict]:
    """Return what is printed of each run: top1, throughput, params_m, and the first table (`source`) that shows it.

    Raises ConfigError where two tables print different values of one run.
    """
    runs: dict[str, dict] = {}
    for table in sorted(config.items["tables"]):
        lines = read(config, table)
        for row in config.items["tables"][table]:
            line = lines.get(tuple(row[name] for name in names(config, table)))
            if line is None:
                continue
            known = runs.setdefault(row["run"], {"source": f"Table {table.removeprefix('table')}"})
            for name in OF_A_RUN:
                if name in line and known.setdefault(name, line[name]) != line[name]:
                    raise ConfigError(
                        f"{FOLDER / table}.csv prints {name} {line[name]} of {row['run']}, but {known['source']} "
                        f"prints {known[name]}; correct one of them."
                    )
    return runs


def by_x(figure: str) -> dict[str, dict]:
    """Return what the paper's text says of a figure's points, by their `x` as text."""
    path = FOLDER / f"{figure}.csv"
    if not path.exists():
        return {}
    return pd.read_csv(path, dtype={"x": str}).set_index("x").to_dict("index")


def label(config: Config, run: str) -> str:
    """Return what the tables call a run; a run that no table shows keeps its own name."""
    for table, rows in config.items["tables"].items():
        for row in rows:
            if row["run"] == run:
                resolution = row.get("resolution", 224)
                return _name(row, names(config, table)) + (f" at {resolution} px" if resolution != 224 else "")
    return run


def _name(row: dict, called: list[str]) -> str:
    if "model" in row:
        return row["model"]
    if "strategy" in row:
        return f"{row['backbone']} ({row['strategy']})"
    if "method" in row:
        name = row["backbone"] if row["method"] == "Baseline" else f"{row['method']} on {row['backbone']}"
        return f"{name} ({row['protocol']} recipe)" if "protocol" in row else name
    return ", ".join(str(row[name]) for name in called)
