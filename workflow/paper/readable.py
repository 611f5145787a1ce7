"""A compiled table for people: which number was trained, timed or printed, doubts as footnotes."""

import re
from collections.abc import Callable

import pandas as pd

from workflow.paper.sheet import Sheet

Cell = Callable[[pd.Series], str]
EPOCHS = re.compile(r"; epochs of [^;)]*")


def number(column: str, digits: int) -> Cell:
    def shown(row: pd.Series) -> str:
        value = row.get(column)
        return "-" if value is None or pd.isna(value) else f"{value:.{digits}f}"

    return shown


def accuracy(row: pd.Series) -> str:
    """Top-1, and of how many seeds it is the mean if of more than one."""
    value, seeds = number("top1", 2)(row), row.get("seeds")
    if pd.isna(seeds) or seeds == 1:
        return value
    return f"{value} (n={seeds}, sd {row['top1_sd']:.2f})"


def speedup(row: pd.Series) -> str:
    """In per cent, with its 95 % interval."""
    value = number("speedup_pct", 1)(row)
    if value == "-":
        return value
    low, high = (number(f"speedup_pct_{end}", 0)(row) for end in ("low", "high"))
    return f"{value} ({low} to {high})"


def ceilings(row: pd.Series) -> str:
    both = [number(f"ceiling_{name}_pct", 1)(row) for name in ("macs", "roofline")]
    return "-" if both == ["-", "-"] else " / ".join(both)


def fits(row: pd.Series) -> str:
    """Whether a training step fits into memory, and how much it needs."""
    if pd.isna(row.get("out_of_memory")):
        return "-"
    said = "out of memory" if row["out_of_memory"] else "fits"
    if pd.isna(row.get("memory_gib")):  # nobody knows how much it would have been
        return said
    return f"{said}, {row['memory_gib']:.1f} GiB"


def printed_fit(row: pd.Series) -> str:
    out = row["out_of_memory_paper"]
    return "-" if pd.isna(out) else "out of memory" if out else "fits"


# heading, cell, and the column that must be there
HEADS: list[tuple[str, Cell, str]] = [
    ("trained here: top-1 %", accuracy, "top1"),
    ("over the dense", number("top1_gain", 2), "top1_gain"),
    ("printed: top-1 %", number("top1_paper", 1), "top1_paper"),
    ("top-1, here - printed", number("top1_delta", 1), "top1_delta"),
    ("printed: over the dense", number("top1_gain_paper", 1), "top1_gain_paper"),
    ("timed here: images/s", number("throughput", 1), "throughput"),
    ("speed-up %", speedup, "speedup_pct"),
    ("ceiling by MACs / roofline", ceilings, "ceiling_macs_pct"),
    ("G MACs", number("macs_g", 2), "macs_g"),
    ("M parameters", number("params_m", 1), "params_m_paper"),
    ("printed (V100): images/s", number("throughput_paper", 0), "throughput_paper"),
    ("printed: speed-up %", number("speedup_pct_paper", 1), "speedup_pct_paper"),
    ("speed-up, here - printed", number("speedup_delta", 1), "speedup_delta"),
    ("printed: M parameters", number("params_m_paper", 1), "params_m_paper"),
    ("a training step", fits, "memory_gib"),
    ("printed: a training step", printed_fit, "out_of_memory_paper"),
]


def of_table(frame: pd.DataFrame, names: list[str]) -> Sheet:
    """The table and, below it, where its measured numbers come from and what to beware of.

    `names`: the columns that say which row it is. What speeds were measured at is a column where
    it is not the same for all.
    """
    differ = [name for name in conditions(frame) if frame[name].nunique() > 1]
    heads = [head for head in HEADS if head[2] in frame.columns]
    notes = list(dict.fromkeys(frame["flags"].dropna()))
    rows = []
    for _, row in frame.iterrows():
        note = "" if pd.isna(row["flags"]) else str(notes.index(row["flags"]) + 1)
        cells = [cell(row) for _, cell, _ in heads]
        cells += ["-" if pd.isna(row[name]) else str(row[name]) for name in differ]
        rows.append([*(str(row[name]) for name in names), *cells, note])
    head = [*names, *(name for name, _, _ in heads), *differ, "notes"]
    words = sum(frame[name].dtype == object or str(frame[name].dtype) == "str" for name in names)
    return Sheet(head, rows, left=words, remarks=sources(frame), notes=notes)


def conditions(frame: pd.DataFrame) -> list[str]:
    """The columns that say how a speed was measured."""
    batch = "timed_batch_size" if "timed_batch_size" in frame else "batch_size"
    return ["device", "mode", "precision", batch]


def sources(frame: pd.DataFrame) -> list[str]:
    """Where measured numbers come from, and how the speeds were measured."""
    measured = frame[frame["source"] != "paper"]
    if measured.empty:
        return ["Nothing of it was measured: all numbers are printed in the paper."]
    timed = measured[measured["throughput"].notna()]
    # each training took its own time, which the CSV tells of each row
    found = list(dict.fromkeys(EPOCHS.sub("", source) for source in measured["source"]))
    if measured["top1"].notna().any():
        found.append("accuracies are of one seed where no n stands beside them")
    found.append("over the dense: the dense model, or LeViT, that a row is timed in turns with")
    if len(timed):
        found.append(
            "speed-up: the median of the ratios to that model's speed just before and after each "
            "turn, with its 95 % interval; not the quotient of the two images/s"
        )
    found.append("printed speed-up: as the printed images/s have it")
    for values, _ in timed.groupby(conditions(frame), sort=False):
        device, mode, precision, size = values
        found.append(f"timed on {device}: mode {mode}, {precision}, batch {size}")
    return found
