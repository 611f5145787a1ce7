"""From records to the paper's tables: measured beside printed, and never one for the other.

`python -m workflow.paper.tables --root results/demo --output results/demo/table1.csv`; an output
called *.partial.csv is made from whatever records exist.
"""

import argparse
import sys
from pathlib import Path

import pandas as pd

from workflow import records
from workflow.campaign import Config, ConfigError
from workflow.paper import columns
from workflow.paper.columns import Records

PRINTED = records.ROOT / "results" / "paper"
PERCENT_TOLERANCE = 0.15  # of a printed percentage from the printed img/s, in points
TABLE1_COLUMNS = [
    "method", "backbone", "resolution", "top1", "top1_paper", "throughput", "throughput_paper",
    "speedup_pct", "ceiling_macs_pct", "ceiling_roofline_pct", "speedup_pct_paper", "macs_g",
    "params_m", "batch_size", "precision", "mode", "device",
    "seeds", "source", "flags", "run",
]  # fmt: skip


def table1(found: Records) -> pd.DataFrame:
    """Table 1: every printed row in the paper's order, and beside it what was measured of it."""
    printed = pd.read_csv(PRINTED / "table1.csv")
    wanted = found.config.settings[found.setting]["measure"]
    entries = {
        (row["backbone"], row["method"], row["resolution"]): row
        for row in found.config.items["table1"]
        if found.partial or row["section"] in wanted
    }
    rows = []
    for line in printed.to_dict("records"):
        row = printed_columns(line, printed)
        entry = entries.pop((line["backbone"], line["method"], line["resolution"]), None)
        if entry:
            measured = columns.measured(entry["run"], entry["section"], found)
            flags = filter(None, (row["flags"], measured.pop("flags", None)))
            row |= {**measured, "flags": "; ".join(flags) or None}
        rows.append(row)
    for entry in entries.values():  # which the paper has not
        if row := extra_row(entry, found):
            same = [i for i, other in enumerate(rows) if other["backbone"] == row["backbone"]]
            rows.insert(same[-1] + 1, row)
    frame = pd.DataFrame(rows).reindex(columns=TABLE1_COLUMNS)
    return frame.astype({"batch_size": "Int64"})


def extra_row(entry: dict, found: Records) -> dict | None:
    """A row that the paper has not, if it was measured."""
    measured = columns.measured(entry["run"], entry["section"], found)
    names = {key: entry[key] for key in ("backbone", "method", "resolution")}
    return names | measured if measured else None


def printed_columns(line: dict, printed: pd.DataFrame) -> dict:
    """What the paper prints of a row, flagged where its percentage is not that of its img/s."""
    same = (printed["backbone"] == line["backbone"]) & (printed["resolution"] == line["resolution"])
    baseline = printed[same & (printed["method"] == "Baseline")]["throughput"].item()
    derived = columns.speedup_pct(line["throughput"], baseline)
    slip = abs(derived - line["speedup_pct"]) > PERCENT_TOLERANCE
    return {
        "method": line["method"],
        "backbone": line["backbone"],
        "resolution": line["resolution"],
        "top1_paper": line["top1"],
        "throughput_paper": line["throughput"],
        "speedup_pct_paper": line["speedup_pct"],
        "source": "paper",
        "flags": f"printed {line['speedup_pct']} % but its img/s give {derived:.1f} %"
        if slip
        else None,
    }


TABLES = {"table1": table1}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", required=True, help="the setting's results folder")
    parser.add_argument("--output", required=True, type=Path)
    arguments = parser.parse_args()
    name, *partial = arguments.output.stem.split(".")
    try:
        found = Records(Config.load(), arguments.root, partial=bool(partial))
        frame = TABLES[name](found)
    except (records.RecordError, ConfigError) as error:
        sys.exit(f"ERROR: {error}")
    beside = arguments.output.with_name(f".{arguments.output.name}")
    frame.round(3).to_csv(beside, index=False)
    beside.replace(arguments.output)


if __name__ == "__main__":
    main()
