"""The table of weights that others published: their accuracy here, as the paper prints it, and as their authors say."""

from pathlib import Path

import pandas as pd

from workflow.campaign.config import FILES, Config, ConfigError, nearest
from workflow.paper import printed, results, sheet
from workflow.paper.results import Records
from workflow.paper.tables import below, difference, marked, number, or_dash

COLUMNS = [
    *("model", "published_by", "weights", "top1", "top1_paper", "printed_in", "top1_delta", "top1_authors"),
    *("top1_delta_authors", "top5", "val_images", "evaluation", "run", "to_evaluate", "source", "flags"),
]
HEAD = [
    *("model", "published by", "weights", "evaluated here: top-1 %", "printed: top-1 %", "here - printed"),
    *("its authors say: top-1 %", "here - authors", "notes"),
]
WORDS = 3  # columns of it that hold words


def published(records: Records) -> tuple[pd.DataFrame, sheet.Sheet]:
    """Return the table as its CSV has it, and for people."""
    frame = frame_of(records)
    return frame, sheet_of(frame, records)


# -- the CSV --------------------------------------------------------------------------------


def frame_of(records: Records) -> pd.DataFrame:
    """Return a line for all weights in items.yaml (`published`), then one for all others that the setting names."""
    config = records.config
    by_run, by_authors = printed.by_run(config), said_by_authors(config)
    contents = {name_of(record["spec"]): record for record in records.of_kind("evaluate")}
    given = named(config, records.setting)
    lines = []
    for name, entry in (config.items["published"] | others(config, given)).items():
        line = {"evaluation": name, "run": entry["run"], "model": printed.label(config, entry["run"])}
        line |= {"published_by": entry.get("by"), "top1_authors": by_authors.get(name)}
        known = by_run.get(entry["run"], {})
        if "top1" in known:
            line |= {"top1_paper": known["top1"], "printed_in": known["source"], "source": "paper"}
        flags = [entry["remark"]] if "remark" in entry else []
        if name in contents:
            line |= measured(contents[name], config)
            flags += line["flags"]
        elif name in given:
            flags.append("not evaluated yet")
        else:
            line["to_evaluate"] = f"{name}: {template(entry)}"
            flags.append(f"no file is given: {entry['file']}")
        line["top1_delta"] = difference(line.get("top1"), line.get("top1_paper"))
        line["top1_delta_authors"] = difference(line.get("top1"), line["top1_authors"])
        lines.append(line | {"flags": "; ".join(flags) or None})
    return sheet.with_counts(pd.DataFrame(lines, columns=COLUMNS))


def named(config: Config, setting: str) -> dict[str, str]:
    """Return the run of each of the setting's `evaluations` and, called `checkpoints.<run>`, of its `checkpoints`."""
    scale = config.settings[setting]
    runs = {name: entry["run"] for name, entry in scale.get("evaluations", {}).items()}
    return runs | {f"checkpoints.{run}": run for run in scale.get("checkpoints", {})}


def name_of(spec: dict) -> str:
    """Return what `named` calls the evaluation of a spec."""
    return spec.get("evaluation", f"checkpoints.{spec['run']}")


def others(config: Config, given: dict[str, str]) -> dict[str, dict]:
    """Return entries like those of items.yaml for the other weights that a setting names."""
    return {name: {"run": run} for name, run in given.items() if name not in config.items["published"]}


def measured(record: dict, config: Config) -> dict:
    """Return what a record says of the weights."""
    checkpoint = record["spec"]["checkpoint"]
    accuracy = results.accuracy([record], config)
    return {
        "weights": checkpoint.get("timm") or Path(checkpoint["file"]).name,
        "top1": accuracy.top1,
        "top5": record["results"].get("top5"),
        "val_images": accuracy.val_images,
        "source": f"measured ({accuracy.sources[0]})",
        "flags": list(accuracy.flags),
    }


def template(entry: dict) -> str:
    """Return the entry in settings.yaml that evaluates a file of these weights."""
    parts = [f"run: {entry['run']}"]
    if "kwargs" in entry:
        kwargs = ", ".join(f"{name}: {value}" for name, value in entry["kwargs"].items())
        parts.append(f"kwargs: {{{kwargs}}}")
    parts.append("checkpoint: {file: <path>, sha256: <what sha256sum says>}")
    return f"{{{', '.join(parts)}}}"


def said_by_authors(config: Config) -> dict[str, float]:
    """Return the accuracy that those who published the weights say they have, by evaluation.

    Raises ConfigError where the file names an evaluation that items.yaml does not have.
    """
    path = printed.FOLDER / "published.csv"
    said = pd.read_csv(path).set_index("evaluation")["top1"].to_dict()
    for name in said:
        if name not in config.items["published"]:
            known = nearest(name, config.items["published"])
            raise ConfigError(f"{path} names {name!r}, which {FILES['items']} (published) does not have{known}")
    return said


# -- for people -----------------------------------------------------------------------------


def sheet_of(frame: pd.DataFrame, records: Records) -> sheet.Sheet:
    """Return the table for people; below it how missing files are named, and the flags as notes."""
    notes = list(dict.fromkeys(frame["flags"].dropna()))
    lines = []
    for _, line in frame.iterrows():
        cells = [or_dash(line[name]) for name in ("model", "published_by", "weights")]
        cells += [number(line, "top1", 2), number(line, "top1_paper", 1), number(line, "top1_delta", 2)]
        cells += [number(line, "top1_authors", 1), number(line, "top1_delta_authors", 2)]
        cells.append("" if pd.isna(line["flags"]) else str(notes.index(line["flags"]) + 1))
        lines.append(cells)
    return sheet.Sheet(HEAD, lines, left=WORDS, remarks=remarks(frame, records), notes=notes)


def brief_of(frame: pd.DataFrame) -> sheet.Sheet:
    """Return what a terminal shows of the table's CSV: the weights that were evaluated."""
    measured = frame[frame["top1"].notna()]
    lines = []
    for _, line in measured.iterrows():
        cells = [marked(or_dash(line["model"]), line), or_dash(line["published_by"]), number(line, "top1", 2)]
        cells += [number(line, "top1_paper", 1), number(line, "top1_delta", 2)]
        cells += [number(line, "top1_authors", 1), number(line, "top1_delta_authors", 2)]
        lines.append(cells)
    head = ["model", "published by", "top-1 %", "printed: top-1 %", "here - printed", "its authors say: top-1 %"]
    head.append("here - authors")
    texts = [f"evaluated on {images} validation images" for images in measured["val_images"].unique()]
    if frame["to_evaluate"].notna().any():
        texts.append("how to evaluate files that are not given is in the CSV, column `to_evaluate`")
    return sheet.Sheet(head, lines, left=2, remarks=[*texts, *below(frame, measured)])


def remarks(frame: pd.DataFrame, records: Records) -> list[str]:
    """Say on which images the weights were evaluated, and what to write for those that are missing."""
    data = records.config.settings[records.setting]["data"]["name"]
    texts = []
    for images in frame["val_images"].dropna().unique():
        texts.append(f"evaluated on {images} validation images of {data}, resized and cropped as the run's recipe says")
    if not texts:
        texts.append("nothing of it was evaluated: all numbers are printed, by the paper or by the weights' authors")
    missing = frame["to_evaluate"].dropna()
    if not missing.empty:
        place = f"workflow/config/settings.yaml, {records.setting}.evaluations"
        texts.append(f"to evaluate a file that is not given, download it and name it in {place}:")
        texts += [f"`{entry}`" for entry in missing]
    return texts
