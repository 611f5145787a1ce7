"""From records to the paper's tables: measured beside printed, and never one for the other.

`python -m workflow.paper.tables --root results/demo --output results/demo/table1.csv` writes the
CSV and, beside it, the same as Markdown; one called *.partial.csv is made from whatever records
exist.
"""

import argparse
import sys
from pathlib import Path

import pandas as pd

from workflow import records
from workflow.campaign import Config, ConfigError
from workflow.paper import columns, markdown
from workflow.paper.columns import Records

PRINTED = records.ROOT / "results" / "paper"
PERCENT_TOLERANCE = 0.15  # of a printed percentage from the printed img/s, in points
# how a row is called; a percentage that the paper prints is over that row of the same backbone
NAMES = {
    "table1": ["method", "backbone", "resolution"],
    "table2": ["model", "resolution"],
    "table3": ["strategy", "backbone"],
    "table4": ["strategy", "backbone"],
    "tableS1": ["method", "backbone", "resolution", "batch_size"],
}
MEASURED = [
    "top1", "top1_paper", "top1_gain", "top1_gain_paper", "throughput", "throughput_paper",
    "speedup_pct", "ceiling_macs_pct", "ceiling_roofline_pct", "speedup_pct_paper",
    "speedup_delta", "macs_g", "params_m", "params_m_paper", "out_of_memory",
    "out_of_memory_paper", "memory_gib", "resolution", "batch_size", "timed_batch_size",
    "precision", "mode", "device", "seeds", "source", "flags", "run",
]  # fmt: skip
ONLY = {"params_m_paper": ["table2"], "out_of_memory": ["tableS1"],
        "out_of_memory_paper": ["tableS1"], "memory_gib": ["tableS1"],
        "timed_batch_size": ["tableS1"]}  # fmt: skip


def columns_of(table: str) -> list[str]:
    """A table's columns: its names, then what is measured and what is printed of each row."""
    rest = [name for name in MEASURED if table in ONLY.get(name, [table])]
    return [*NAMES[table], *(name for name in rest if name not in NAMES[table])]


def read_printed(table: str) -> pd.DataFrame:
    """What the paper prints, its rows called as ours are."""
    printed = pd.read_csv(PRINTED / f"{table}.csv")
    return printed.rename(columns={"method": "strategy"} if "strategy" in NAMES[table] else {})


def make(table: str, found: Records) -> pd.DataFrame:
    """Every printed row in the paper's order, and beside it what was measured of it."""
    printed, names = read_printed(table), NAMES[table]
    wanted, rows = found.wanted(table), []
    config_rows = found.config.items["tables"][table]
    entries = {tuple(row[name] for name in names): row for row in config_rows}
    for line in printed.to_dict("records"):
        key = tuple(line[name] for name in names)
        entry = entries.pop(key, None)
        row = printed_columns(line, entry and printed_dense(found.config, entry), names)
        if entry:
            measured = columns.measured(entry, found, wanted)
            flags = filter(None, (row["flags"], measured.pop("flags", None)))
            row |= {**measured, "flags": "; ".join(flags) or None}
            row["speedup_delta"] = delta(row.get("speedup_pct"), row["speedup_pct_paper"])
        rows.append(row)
    for key, entry in entries.items():  # which the paper has not
        if measured := columns.measured(entry, found, wanted):
            row = dict(zip(names, key, strict=True)) | measured
            same = [i for i, one in enumerate(rows) if one["backbone"] == row["backbone"]]
            rows.insert(same[-1] + 1, row)
    frame = pd.DataFrame(rows).reindex(columns=columns_of(table))
    whole = {"batch_size", "timed_batch_size"} & set(frame.columns)
    return frame.astype(dict.fromkeys(whole, "Int64"))


def printed_dense(config: Config, row: dict) -> dict | None:
    """What some table prints of the dense model that a row of items.yaml is timed against; of a
    dense row itself, nothing."""
    dense = config.items["sections"][row["section"]][0]
    if row["run"] == dense:
        return None
    for table, rows in config.items["tables"].items():
        printed, names = read_printed(table), NAMES[table]
        for other in rows:
            same = printed[(printed[names] == [other[name] for name in names]).all(axis=1)]
            if other["run"] == dense and not same[["top1", "throughput"]].isna().to_numpy().any():
                return same.iloc[0].to_dict()
    return None


def delta(measured: float | None, printed: float | None) -> float | None:
    known = measured is not None and printed is not None and not pd.isna(printed)
    return measured - printed if known else None


def printed_columns(line: dict, base: dict | None, names: list) -> dict:
    """What the paper prints of a row, and what follows from it and the dense row `base`; flagged
    where its percentage is not that of its img/s."""
    derived = base is not None and columns.speedup_pct(line["throughput"], base["throughput"])
    shown = line.get("speedup_pct", derived if base is not None else None)
    slip = base is not None and abs(derived - shown) > PERCENT_TOLERANCE
    row = {name: line[name] for name in names}
    row |= {
        "top1_paper": line["top1"],
        "top1_gain_paper": None if base is None else line["top1"] - base["top1"],
        "throughput_paper": line["throughput"],
        "speedup_pct_paper": shown,
        "source": "paper",
        "flags": f"printed {shown} % but its img/s give {derived:.1f} %" if slip else None,
    }
    for name in ("params_m", "out_of_memory"):
        if name in line:
            row[f"{name}_paper"] = line[name]
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", required=True, help="the setting's results folder")
    parser.add_argument("--output", required=True, type=Path, help="<table>[.partial].csv")
    arguments = parser.parse_args()
    table, *partial = arguments.output.stem.split(".")
    try:
        found = Records(Config.load(), arguments.root, partial=bool(partial))
        frame = make(table, found).round(3)
    except (records.RecordError, ConfigError) as error:
        sys.exit(f"ERROR: {error}")
    markdown.write(arguments.output, frame, markdown.text(frame, NAMES[table]))


if __name__ == "__main__":
    main()
