"""From records to the paper's tables: measured beside printed, and never one for the other.

`python -m workflow.paper.tables --root results/demo --output results/demo/table1.csv` writes the
CSV and, beside it, the same as Markdown and as a page; one called *.partial.csv is made from
whatever records exist.
"""

import sys
from pathlib import Path

import pandas as pd

from workflow import command_line
from workflow.campaign.config import Config, ConfigError
from workflow.paper import columns, printed, readable, sheet
from workflow.paper.columns import Records
from workflow.storage import records

PERCENT_TOLERANCE = 0.15  # of a printed percentage from the printed img/s, in points
MEASURED = [
    "top1", "top1_sd", "top1_low", "top1_high", "top1_paper", "top1_delta", "top1_gain",
    "top1_gain_paper", "throughput",
    "throughput_paper", "speedup_pct", "speedup_pct_low", "speedup_pct_high", "ceiling_macs_pct",
    "ceiling_roofline_pct", "speedup_pct_paper", "speedup_delta", "macs_g", "params_m",
    "params_m_paper",
    "out_of_memory", "out_of_memory_paper", "memory_gib", "resolution", "batch_size",
    "timed_batch_size", "precision", "mode", "device", "seeds", "source", "flags", "run",
]  # fmt: skip
QUOTED = "the paper quotes the printed accuracy from the model's authors"
ONLY = {"params_m_paper": ["table2"], "out_of_memory": ["tableS1"],
        "out_of_memory_paper": ["tableS1"], "memory_gib": ["tableS1"],
        "timed_batch_size": ["tableS1"]}  # fmt: skip


def columns_of(table: str) -> list[str]:
    """A table's columns: its names, then what is measured and what is printed of each row."""
    rest = [name for name in MEASURED if table in ONLY.get(name, [table])]
    return [*printed.NAMES[table], *(name for name in rest if name not in printed.NAMES[table])]


def make(table: str, found: Records) -> pd.DataFrame:
    """Every printed row in the paper's order, and beside it what was measured of it."""
    names, wanted, rows = printed.NAMES[table], found.wanted(table), []
    known, sections = printed.by_run(found.config), found.config.items["sections"]
    entries = {printed.key(table, row): row for row in found.config.items["tables"][table]}
    for line in printed.read(table).to_dict("records"):
        entry = entries.pop(printed.key(table, line), None)
        dense = entry and sections[entry["section"]][0]
        base = None if not entry or entry["run"] == dense else known.get(dense)
        row = printed_columns(line, base, names)
        if entry:
            measured = columns.measured(entry, found, wanted)
            flags = filter(None, (row["flags"], measured.pop("flags", None)))
            row |= {**measured, "flags": "; ".join(flags) or None}
            row["top1_delta"] = delta(row.get("top1"), row["top1_paper"])
            row["speedup_delta"] = delta(row.get("speedup_pct"), row["speedup_pct_paper"])
        rows.append(row)
    for key, entry in entries.items():  # which the paper has not
        if measured := columns.measured(entry, found, wanted):
            row = dict(zip(names, key, strict=True)) | measured
            first = names[0]  # backbone, or model: it comes after the others of its kind
            same = [i for i, one in enumerate(rows) if one[first] == row[first]]
            rows.insert(same[-1] + 1 if same else len(rows), row)
    frame = pd.DataFrame(rows).reindex(columns=columns_of(table))
    whole = {"batch_size", "timed_batch_size", "resolution", "seeds"} & set(frame.columns)
    return frame.astype(dict.fromkeys(whole, "Int64"))


def delta(measured: float | None, shown: float | None) -> float | None:
    known = measured is not None and shown is not None and not pd.isna(shown)
    return measured - shown if known else None


def printed_columns(line: dict, base: dict | None, names: list) -> dict:
    """What the paper prints of a row, and what follows from it and `base`, what it prints of the
    model that the row is timed against: the speed-up is that of the images/s, flagged where another
    percentage is printed."""
    derived = base and columns.speedup_pct(line["throughput"], base["throughput"])
    shown = line.get("speedup_pct", derived)
    flags = None
    if base is not None and abs(derived - shown) > PERCENT_TOLERANCE:
        flags = f"printed {shown} % but its img/s give {derived:.1f} %"
    elif line.get("quoted") is True:
        flags = QUOTED
    row = {name: line[name] for name in names}
    row |= {
        "top1_paper": line["top1"],
        "top1_gain_paper": None if base is None else line["top1"] - base["top1"],
        "throughput_paper": line["throughput"],
        "speedup_pct_paper": derived,
        "source": "paper",
        "flags": flags,
    }
    for name in ("params_m", "out_of_memory"):
        if name in line:
            row[f"{name}_paper"] = line[name]
    return row


def main() -> None:
    parser = command_line.parser(__doc__)
    parser.add_argument("--root", required=True, help="the setting's results folder")
    parser.add_argument("--output", required=True, type=Path, help="<table>[.partial].csv")
    arguments = parser.parse_args()
    table, *partial = arguments.output.stem.split(".")
    try:
        found = Records(Config.load(), arguments.root, partial=bool(partial))
        frame = make(table, found).round(3)
    except (records.RecordError, ConfigError) as error:
        sys.exit(f"ERROR: {error}")
    sheet.write(arguments.output, frame, readable.of_table(frame, printed.NAMES[table]))


if __name__ == "__main__":
    command_line.run(main, in_clone=True)
