"""The table of methods that reduce trained dense models as they are, from a record for each of these models."""

import pandas as pd

from workflow.campaign.config import Config
from workflow.paper import results, sheet
from workflow.paper.results import NOT_TIMED, Records
from workflow.paper.tables import (
    CEILINGS,
    INTERVAL,
    below,
    ceilings_cell,
    change_cell,
    conditions,
    marked,
    number,
    or_dash,
    speedup_cell,
)

DENSE = "dense"
COLUMNS = [
    *("host", "method", "strength", "applied", "top1", "top1_low", "top1_high", "top1_change", "top1_change_low"),
    *("top1_change_high", "changed_pct", "val_images", "macs_g", "throughput", "speedup_pct", "speedup_pct_low"),
    *("speedup_pct_high", "ceiling_macs_pct", "ceiling_roofline_pct", "resolution", "batch_size", "precision", "mode"),
    *("device", "source", "flags"),
]
OF_SPEED = (
    *("throughput", "macs_g", "speedup_pct", "speedup_pct_low", "speedup_pct_high", "ceiling_macs_pct"),
    *("ceiling_roofline_pct", "resolution", "batch_size", "precision", "mode", "device"),
)
HEAD = [
    *("model", "method", "strength", "top-1 %", "change, points", "predictions changed %", "G MACs", "images/s"),
    *("speed-up %", "ceiling by MACs / roofline", "notes"),
]
WORDS = 3  # columns of it that hold words
NOTHING = "Nothing of it was measured."


def offtheshelf(records: Records) -> tuple[pd.DataFrame, sheet.Sheet]:
    """Return the table as its CSV has it, and for people."""
    contents = records.of_kind("offtheshelf")
    frame = frame_of(contents, records.config)
    return frame, sheet_of(frame)


# -- the CSV --------------------------------------------------------------------------------


def frame_of(contents: list[dict], config: Config) -> pd.DataFrame:
    """Return a line for each dense model, followed by one for each strength of each method."""
    lines = [line_of(record, method, config) for record in contents for method in record["results"]["methods"]]
    return sheet.with_counts(pd.DataFrame(lines, columns=COLUMNS))


def line_of(record: dict, method: dict, config: Config) -> dict:
    """Return what a record says of a method at one strength, or of the dense model."""
    spec, images = record["spec"], record["results"]["val_images"]
    line = {"host": results.host_name(spec, config), "method": DENSE, "val_images": images}
    line["source"] = f"measured ({results.describe_training(record, config)})"
    is_dense = method["method"] is None
    if not is_dense:
        asked = next(model["kwargs"] for model in spec["models"] if model["run"] == method["run"])
        line["method"] = config.items["offtheshelf"][method["method"]]["method"]
        line["strength"] = describe(asked)
        line["applied"] = describe(method["kwargs"])
    if "top1" not in method:
        return line | {"flags": f"not possible: {method['refused']}"}
    line["top1"] = method["top1"]
    line["top1_low"], line["top1_high"] = results.interval([method["top1"]], images)
    if not is_dense:
        change, low, high = results.paired_change(method["worse"], method["better"], images)
        line |= {"top1_change": change, "top1_change_low": low, "top1_change_high": high}
        line["changed_pct"] = 100 * method["changed"] / images
    speed = results.speed(record, method["run"]) if "weights" in method else NOT_TIMED
    line |= {name: getattr(speed, name) for name in OF_SPEED}
    line["flags"] = "; ".join(speed.flags) or None
    return line


def describe(kwargs: dict) -> str:
    """Return a method's strength in words, such as "keep_ratio=0.9"."""
    return ", ".join(f"{name}={value}" for name, value in kwargs.items())


# -- for people -----------------------------------------------------------------------------


def sheet_of(frame: pd.DataFrame) -> sheet.Sheet:
    """Return the table for people; below it what was reduced, how it was timed, and the flags as notes."""
    notes = list(dict.fromkeys(frame["flags"].dropna()))
    lines = []
    for _, line in frame.iterrows():
        cells = [
            line["host"],
            line["method"],
            strength_cell(line),
            number(line, "top1", 2),
            change_cell(line, "top1_change"),
        ]
        cells += [number(line, "changed_pct", 1), number(line, "macs_g", 3), number(line, "throughput", 1)]
        cells += [speedup_cell(line), ceilings_cell(line)]
        cells.append("" if pd.isna(line["flags"]) else str(notes.index(line["flags"]) + 1))
        lines.append(cells)
    return sheet.Sheet(HEAD, lines, left=WORDS, remarks=remarks(frame), notes=notes)


def brief_of(frame: pd.DataFrame) -> sheet.Sheet:
    """Return what a terminal shows of the table's CSV; a method that is not possible was asked for, and is shown."""
    lines = []
    for _, line in frame.iterrows():
        cells = [line["host"], marked(line["method"], line), or_dash(line["strength"])]
        cells += [number(line, "top1", 1), change_cell(line, "top1_change", 1)]
        lines.append([*cells, speedup_cell(line), ceilings_cell(line)])
    head = ["model", "method", "strength", "top-1", "change, points\n(interval)", INTERVAL, CEILINGS]
    return sheet.Sheet(head, lines, left=WORDS, remarks=[*remarks(frame), *below(frame, frame)])


def strength_cell(line: pd.Series) -> str:
    """Show how strongly a method reduces, and by which arguments if those are others."""
    if pd.isna(line["strength"]) or line["strength"] == line["applied"]:
        return or_dash(line["strength"])
    return f"{line['strength']}, here {line['applied']}"


def remarks(frame: pd.DataFrame) -> list[str]:
    """Say what was reduced and evaluated, and how the numbers are meant."""
    if frame.empty:
        return [NOTHING]
    texts = [f"{host}: {text}" for host, text in dict(zip(frame["host"], frame["source"], strict=True)).items()]
    texts += [
        "no method was trained for it",
        "intervals are 95 %, over images that all models of a host share",
        "speed-up: the median of the ratios to the dense model's speed just before and after each round, with its 95 % "
        "interval; speeds are of the models that were evaluated, with the same weights, on validation images",
    ]
    return texts + conditions(frame)
