"""The table of dense prediction: how well every patch is predicted from a trained model, and from it with fewer MACs.

It is made of a record for each of the setting's dense models.
"""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats

from workflow.campaign.config import Config
from workflow.paper import results, sheet
from workflow.paper.results import Records
from workflow.paper.tables import below, change_cell, marked, number, or_dash
from workflow.storage import provenance

DENSE, EMBEDDING, EVO = "dense", "embedding", "evo"  # the models of a record that are not matched
NAMES = {DENSE: "dense", EMBEDDING: "patch embedding alone"}
COLUMNS = [
    *("host", "method", "strength", "macs_g", "macs_vs_evo_pct", "accuracy", "accuracy_change", "accuracy_change_low"),
    *("accuracy_change_high", "accuracy_kept_pct", "accuracy_with_image", "accuracy_background", "scenes", "patches"),
    *("resolution", "source", "flags"),
]
HEAD = [
    *("model", "method", "strength", "G MACs", "patches right %", "change, points", "of the dense model's %"),
    *("right where an image is %", "right in the background %", "notes"),
]
WORDS = 3  # columns of it that hold words
NOTHING = "Nothing of it was measured."


def dense(records: Records) -> tuple[pd.DataFrame, sheet.Sheet]:
    """Return the table as its CSV has it, and for people."""
    contents = records.of_kind("dense_prediction")
    frame = frame_of(contents, records.config)
    return frame, sheet_of(frame, contents)


# -- the CSV --------------------------------------------------------------------------------


def frame_of(contents: list[dict], config: Config) -> pd.DataFrame:
    """Return a line for each model of each record."""
    lines = [line_of(record, method, config) for record in contents for method in record["results"]["methods"]]
    frame = pd.DataFrame(lines, columns=COLUMNS)
    return frame.astype({"scenes": "Int64", "patches": "Int64", "resolution": "Int64"})


def line_of(record: dict, method: dict, config: Config) -> dict:
    """Return what a record says of one model."""
    spec, values = record["spec"], record["results"]
    line: dict = {"host": results.host_name(spec, config), "method": NAMES.get(method["run"])}
    line |= {name: values[name] for name in ("scenes", "patches", "resolution")}
    line["source"] = f"measured ({results.describe_training(record, config)})"
    if method["method"] is not None:
        line["method"] = config.items["offtheshelf"][method["method"]]["method"]
        line["strength"] = describe(method["kwargs"])
    if method["refused"] is not None:
        return line | {"flags": f"not possible: {method['refused']}"}
    by_run = {other["run"]: other for other in values["methods"]}
    line["macs_g"] = method["macs_g"]
    line["macs_vs_evo_pct"] = 100 * (method["macs_g"] / by_run[EVO]["macs_g"] - 1)
    patches, with_image = values["patches"], values["patches_with_image"]
    line["accuracy"] = share(method["right"], patches)
    line["accuracy_with_image"] = share(method["right_with_image"], with_image)
    in_background = [
        right - covered for right, covered in zip(method["right"], method["right_with_image"], strict=True)
    ]
    line["accuracy_background"] = share(in_background, patches - with_image)
    right = by_run[DENSE]["right"]
    line["accuracy_kept_pct"] = 100 * line["accuracy"] / share(right, patches)
    if method["run"] != DENSE:
        change, low, high = paired_change(right, method["right"], patches)
        line |= {"accuracy_change": change, "accuracy_change_low": low, "accuracy_change_high": high}
    flags = [] if method["converged"] else ["the probe was not fitted to the end"]
    flags += provenance.flags(record)
    return line | {"flags": "; ".join(flags) or None}


def share(right: Sequence[int], patches: int) -> float:
    """Return the share, in %, of patches that are right, from their number in each scene; a scene has `patches`."""
    return 100 * sum(right) / (len(right) * patches)


def paired_change(before: Sequence[int], after: Sequence[int], patches: int) -> tuple[float, float, float]:
    """Return by how many points accuracy changes between two models on the same scenes, and its 95 % interval.

    The numbers are of right patches in each scene, and a scene has `patches`. Patches of a scene are not independent,
    but scenes show different images, so the interval is Student's t over the scenes' own changes, as is a jackknife's.
    """
    changes = 100 * (np.array(after) - np.array(before)) / patches
    error = changes.std(ddof=1) / math.sqrt(len(changes))
    half = float(stats.t.ppf(0.975, len(changes) - 1)) * error
    return changes.mean(), changes.mean() - half, changes.mean() + half


def describe(kwargs: dict) -> str | None:
    """Return a method's strength in words; where the last blocks merge fewer patches, both numbers."""
    merges = kwargs.get("r")
    if merges is None:
        return ", ".join(f"{name}={value}" for name, value in kwargs.items()) or None
    fewest, most = min(merges), max(merges)
    return f"r={most}" if fewest == most else f"r={most}, in the last {merges.count(fewest)} blocks {fewest}"


# -- for people -----------------------------------------------------------------------------


def sheet_of(frame: pd.DataFrame, contents: list[dict]) -> sheet.Sheet:
    """Return the table for people; below it what was predicted, and the flags as notes."""
    notes = list(dict.fromkeys(frame["flags"].dropna()))
    lines = []
    for _, line in frame.iterrows():
        cells = [line["host"], line["method"], or_dash(line["strength"]), number(line, "macs_g", 4)]
        cells += [
            number(line, "accuracy", 2),
            change_cell(line, "accuracy_change"),
            number(line, "accuracy_kept_pct", 1),
        ]
        cells += [number(line, "accuracy_with_image", 2), number(line, "accuracy_background", 2)]
        cells.append("" if pd.isna(line["flags"]) else str(notes.index(line["flags"]) + 1))
        lines.append(cells)
    return sheet.Sheet(HEAD, lines, left=WORDS, remarks=remarks(contents, frame), notes=notes)


def brief_of(frame: pd.DataFrame) -> sheet.Sheet:
    """Return what a terminal shows of the table's CSV; a method that is not possible was asked for, and is shown."""
    lines = []
    for _, line in frame.iterrows():
        cells = [line["host"], marked(line["method"], line), or_dash(line["strength"]), number(line, "macs_g", 4)]
        cells += [number(line, "accuracy", 1), change_cell(line, "accuracy_change", 1)]
        lines.append([*cells, number(line, "accuracy_kept_pct", 1)])
    head = ["model", "method", "strength", "G MACs", "patches\nright %", "change, points\n(interval)"]
    head.append("of the dense\nmodel's %")
    scenes = frame.dropna(subset=["scenes"])[["scenes", "patches"]].drop_duplicates()
    texts = [f"tested on {line.scenes} scenes of {line.patches} patches" for line in scenes.itertuples()]
    return sheet.Sheet(head, lines, left=WORDS, remarks=[*texts, *below(frame, frame)])


def remarks(contents: list[dict], frame: pd.DataFrame) -> list[str]:
    """Say which scenes were predicted by which models, and how the numbers are meant."""
    if not contents:
        return [NOTHING]
    texts = [f"{host}: {text}" for host, text in dict(zip(frame["host"], frame["source"], strict=True)).items()]
    for host, record in zip(frame["host"].unique(), contents, strict=True):
        plan, values = record["spec"]["scenes"], record["results"]
        texts.append(
            f"{host}: probes fitted to {values['train_scenes']} scenes of training images and tested "
            f"on {values['scenes']} of validation images; a scene has {plan['side']} x {plan['side']} cells, "
            f"{plan['empty']} of them empty, {values['resolution']} px and {values['patches']} patches, and its images "
            f"are of {len(values['classes'])} classes"
        )
    texts.append("change: of the patches that are right, less the dense model's, with its 95 % interval over scenes")
    return texts
