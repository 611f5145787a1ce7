"""From records to the paper's tables: measured beside printed, and never one for the other.

`python -m workflow.paper.tables --root results/demo --output results/demo/table1.csv`; an output
called *.partial.csv is made from whatever records exist.
"""

import argparse
import statistics
import sys
from pathlib import Path

import pandas as pd

from workflow import records, runs
from workflow.campaign import Config, ConfigError, run_name

PRINTED = records.ROOT / "results" / "paper"
PERCENT_TOLERANCE = 0.15  # of a printed percentage from the printed img/s, in points
STEADY = 0.1  # how far apart the quartiles of a speed-up may lie, as a share of it
TABLE1_COLUMNS = [
    "method", "backbone", "resolution", "top1", "top1_paper", "throughput", "throughput_paper",
    "speedup_pct", "speedup_pct_paper", "macs_g", "params_m", "batch_size", "precision", "mode",
    "device", "seeds", "source", "flags", "run",
]  # fmt: skip


def speedup_pct(rate: float, baseline: float) -> float:
    return 100 * (rate / baseline - 1)


class Records:
    """A setting's records by what they are of; `partial` takes a missing or old one for absent."""

    def __init__(self, config: Config, root: str, partial: bool):
        self.config, self.root, self.partial = config, root, partial
        self.setting = config.setting_of(root)

    def _read(self, path: str, spec: dict) -> dict | None:
        try:
            return records.read(path, runs.spec_hash(spec))
        except records.RecordError:
            if self.partial:
                return None
            raise

    def trained(self, row: str) -> list[dict]:
        """The records of a row's seeds."""
        names = [run_name(row, seed) for seed in self.config.seeds(row)]
        found = (
            self._read(
                f"{self.root}/runs/{name}/train.json",
                runs.train_spec(self.config, self.setting, name),
            )
            for name in names
        )
        return [record for record in found if record is not None]

    def throughput(self, section: str) -> dict | None:
        """The record of the point of measurement that the setting's tables show."""
        point = runs.throughput_point(self.config, self.setting)
        return self._read(
            runs.throughput_path(self.root, section, point),
            runs.throughput_spec(self.config, self.setting, section, point),
        )


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
            measured = measured_columns(entry, found)
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
    measured = measured_columns(entry, found)
    names = {key: entry[key] for key in ("backbone", "method", "resolution")}
    return names | measured if measured else None


def printed_columns(line: dict, printed: pd.DataFrame) -> dict:
    """What the paper prints of a row, flagged where its percentage is not that of its img/s."""
    same = (printed["backbone"] == line["backbone"]) & (printed["resolution"] == line["resolution"])
    baseline = printed[same & (printed["method"] == "Baseline")]["throughput"].item()
    derived = speedup_pct(line["throughput"], baseline)
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


def measured_columns(entry: dict, found: Records) -> dict:
    """What our records say of a row; {} where there is none."""
    row, said, flags = {}, [], []
    if trained := found.trained(entry["run"]):
        accuracies = [record["results"]["top1"] for record in trained]
        row |= {
            "top1": statistics.mean(accuracies),
            "seeds": describe_seeds(accuracies),
            "run": entry["run"],
        }
        said.append(f"top1: {describe_training(trained[0], found.config)}")
        dense = found.config.items["sections"][entry["section"]][0]
        said += describe_epochs(trained[0], found.trained(dense))
        left_out = sum(len(record["results"].get("deviations", [])) for record in trained)
        flags += [f"{left_out} training steps left out, their loss not finite"] * bool(left_out)
    if record := found.throughput(entry["section"]):
        methods = {method["run"]: method for method in record["results"]["methods"]}
        method, baseline = methods[entry["run"]], record["results"]["methods"][0]
        row |= {key: method[key] for key in ("macs_g", "params_m", "resolution")}
        row |= {key: record["spec"][key] for key in ("batch_size", "precision", "mode")}
        row |= {
            "throughput": method["images_per_s"],
            "device": record["results"]["device"],
            "run": entry["run"],
        }
        if method is not baseline:
            row["speedup_pct"] = speedup_pct(method["images_per_s"], baseline["images_per_s"])
        profile = f"profile={method['profile']}" if method.get("profile") else None
        flags += filter(None, (profile, unsteady(method)))
        size = f"the paper's model at full size, {method['weights']} weights"
        said.append(f"throughput, macs_g, params_m: {size}, {method['resolution']} px")
        if "macs_per_image" in method:
            spread = method["macs_per_image"]
            said.append(f"macs_g: mean of {spread['images']} images, sd {spread['sd_g']:.3f}")
    if not said:
        return {}
    return row | {"source": f"measured ({'; '.join(said)})", "flags": "; ".join(flags) or None}


def describe_epochs(record: dict, dense: list[dict]) -> list[str]:
    """How long an epoch's training steps take; beside the dense row's, where it was trained on the
    same device, and beside the MACs of both."""
    history = record["results"].get("history")
    if history is None:  # its weights were given
        return []
    seconds = statistics.mean(epoch["train_s"] for epoch in history)
    said = f"epochs of {seconds:.1f} s"
    place = ("device", "world_size")
    if not dense or "history" not in dense[0]["results"] or dense[0]["spec"] == record["spec"]:
        return [said]
    if any(dense[0]["provenance"][key] != record["provenance"][key] for key in place):
        return [said]
    other = dense[0]["results"]
    faster = statistics.mean(epoch["train_s"] for epoch in other["history"]) / seconds
    fewer = other["macs_g"] / record["results"]["macs_g"]
    return [f"{said}, the dense one's over this {faster:.2f}, its MACs over these {fewer:.2f}"]


def unsteady(method: dict) -> str | None:
    """A flag where the speed-up varied between rounds: something else used the device."""
    low, high = method["speedup_quartiles"]
    if high - low <= STEADY * method["speedup"]:
        return None
    return f"suspect: speed-up between {low:.2f} and {high:.2f} in half of the rounds"


def describe_seeds(accuracies: list[float]) -> str:
    if len(accuracies) == 1:
        return "n=1"
    return f"n={len(accuracies)}, sd {statistics.stdev(accuracies):.2f}"


def describe_training(record: dict, config: Config) -> str:
    """On what, and at which size, an accuracy was reached."""
    spec, results = record["spec"], record["results"]
    full = runs.model_of(config, spec["row"])["kwargs"]
    shrunk = {k: v for k, v in spec["model"]["kwargs"].items() if k != "num_classes"} != full
    size = "a reduced model" if shrunk else "the paper's model"
    if shrunk and "img_size" in spec["model"]["kwargs"]:
        kwargs = spec["model"]["kwargs"]
        size += f" at {kwargs['img_size']} px, width {kwargs.get('embed_dim')}"
    if spec["kind"] == "evaluate":
        given = spec["checkpoint"].get("file") or spec["checkpoint"]["timm"]
        size += f" with the weights of {Path(given).name}"
    return f"{size} on {spec['data']['name']}, {results['val_images']} validation images"


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
