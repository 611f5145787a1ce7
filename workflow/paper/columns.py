"""What records say of one row: accuracy, speed, where both come from, and what to beware of."""

import statistics
from pathlib import Path

import numpy as np
import pandas as pd

from workflow.campaign import benchmarks, specs
from workflow.campaign.config import Config, run_name
from workflow.paper import training_costs
from workflow.paper.found import interval
from workflow.storage import provenance, records

FULL_SIZE = "the paper's model"


class Records:
    """A setting's records by what they are of; `partial` takes a missing or old one for absent."""

    def __init__(self, config: Config, root: str, partial: bool):
        self.config, self.root, self.partial = config, root, partial
        self.setting = config.setting_of(root)

    def _read(self, path: str, spec: dict) -> dict | None:
        try:
            return records.read(path, specs.spec_hash(spec))
        except records.RecordError:
            if self.partial:
                return None
            raise

    def wanted(self, table: str) -> dict:
        """Which of the table's sections are trained, with how many seeds, and which timed;
        `partial` looks for all."""
        wanted = self.config.wanted(self.setting, table)
        every = self.config.sections_of(table)
        return wanted | ({"train": every, "time": every, "seeds": None} if self.partial else {})

    def trained(self, row: str, seeds: int | None = None) -> list[dict]:
        """The records of a row's seeds, or of so many of them."""
        names = [run_name(row, seed) for seed in self.config.seeds(row)[:seeds]]
        found = (
            self._read(
                f"{self.root}/runs/{name}/train.json",
                specs.train_spec(self.config, self.setting, name),
            )
            for name in names
        )
        return [record for record in found if record is not None]

    def throughput(self, section: str) -> dict | None:
        """The record of the point of measurement that the setting's tables show."""
        point = benchmarks.throughput_configuration(self.config, self.setting, section)
        return self._read(
            benchmarks.throughput_path(self.root, section, point),
            benchmarks.throughput_spec(self.config, self.setting, section, point),
        )

    def training_cost(self, section: str) -> dict | None:
        """The record of what a training step of the section's models costs."""
        point = benchmarks.training_cost_configuration(self.config, self.setting)
        return self._read(
            benchmarks.training_cost_path(self.root, section, point),
            benchmarks.training_cost_spec(self.config, self.setting, section, point),
        )

    def curves(self, name: str) -> dict | None:
        """The record of a look into a trained model, without its arrays.

        Raises RecordError also for one of older code, whose curves have no intervals.
        """
        path = specs.analysis_path(self.root, name)
        record = self._read(path, specs.analysis_spec(self.config, self.setting, name))
        if record and "half_widths" not in record["results"]:
            if self.partial:
                return None
            raise records.RecordError(
                f"{path} was made by older code, without intervals; make it again by adding "
                f"--forcerun {path} to snakemake's command."
            )
        return record

    def analysis(self, name: str) -> tuple[dict, dict[str, np.ndarray]]:
        """The record of a look into a trained model, and its arrays.

        Raises RecordError unless it is of the current spec and the arrays are those it names.
        """
        path = Path(specs.analysis_path(self.root, name))
        spec = specs.analysis_spec(self.config, self.setting, name)
        record = records.read(path, specs.spec_hash(spec))
        named = record["results"]["arrays"]
        arrays = path.parent / named["path"]
        if not arrays.exists() or records.sha256(arrays) != named["sha256"]:
            raise records.RecordError(
                f"{arrays} is missing or not the file that {path} names; make both again by adding "
                f"--forcerun {path} to snakemake's command."
            )
        with np.load(arrays, allow_pickle=False) as stored:
            return record, dict(stored)


def speedup_pct(rate: float, baseline: float) -> float:
    return 100 * (rate / baseline - 1)


def measured(row: dict, found: Records, wanted: dict) -> dict:
    """The columns of a row of items.yaml that was trained or timed; {} where it was neither.

    `source` says where the numbers come from, `flags` what to beware of.
    """
    run, section, cost, speed = row["run"], row["section"], {}, {}
    if section in wanted["time"]:
        speed = speed_columns(run, section, found)
        if "batch_size" in row:  # of a training: the one that was timed is another
            speed = {f"timed_{k}" if k == "batch_size" else k: v for k, v in speed.items()}
            cost = training_costs.columns(row, found.training_cost(section))
    parts = [cost, speed]
    # where a row's batch does not fit, the model was trained with smaller ones: another row's
    if section in wanted["train"] and not cost.get("out_of_memory"):
        parts.insert(0, trained_columns(run, section, found, wanted["seeds"]))
    values, said, flags = joined(parts)
    return values | {"source": f"measured ({said})", "flags": flags} if said else {}


def trained_columns(run: str, section: str, found: Records, seeds: int | None = None) -> dict:
    """Top-1 over the row's seeds, and how far it is above the section's dense model."""
    trained = found.trained(run, seeds)
    if not trained:
        return {}
    dense = found.config.items["sections"][section][0]
    base = found.trained(dense, seeds) if run != dense else []
    part = accuracy(trained, found.config)
    done = next((one for one in trained if "history" in one["results"]), trained[0])
    part["said"] += describe_epochs(done, base)
    gain = part["top1"] - mean_top1(base) if base else None
    return part | {"top1_gain": gain, "run": run}


def mean_top1(trained: list[dict]) -> float:
    return statistics.mean(record["results"]["top1"] for record in trained)


def accuracy(trained: list[dict], config: Config) -> dict:
    """Of the records of a row's seeds: top-1 in %, its mean, standard deviation (of two or more)
    and 95 % interval; where it comes from and what to beware of."""
    top1, images = [one["results"]["top1"] for one in trained], trained[0]["results"]["val_images"]
    low, high = interval(top1, images)
    ways = dict.fromkeys(describe_training(record, config) for record in trained)
    left_out = sum(len(record["results"].get("deviations", [])) for record in trained)
    flags = [f"{left_out} training steps left out, their loss not finite"] * bool(left_out)
    flags += dict.fromkeys(flag for one in trained for flag in [*provenance.flags(one), *lost_flags(one)])
    return {
        "top1": mean_top1(trained),
        "top1_sd": statistics.stdev(top1) if len(top1) > 1 else None,
        "top1_low": low,
        "top1_high": high,
        "seeds": len(top1),
        "val_images": images,
        "said": [f"top1: {'; '.join(ways)}"],
        "flags": flags,
    }


def lost_flags(record: dict) -> list[str]:
    """Which epochs' lines a crash took from a training's journal."""
    results, run, flags = record["results"], record["spec"]["run"], []
    lost = results.get("lost_epochs", [])
    if lost:
        flags.append(f"the metrics of {run}'s epochs {', '.join(map(str, lost))} are lost")
    if restored := [epoch for epoch in results.get("restored_epochs", []) if epoch not in lost]:
        flags.append(f"{run}'s journal has lost epochs {', '.join(map(str, restored))}, restored "
                     "from the checkpoint")  # fmt: skip
    return flags


def joined(parts: list[dict]) -> tuple[dict, str | None, str | None]:
    """The columns of all parts; where their numbers come from and what to beware of, as one text
    each."""
    said, flags = ([text for part in parts for text in part.get(key, [])]
                   for key in ("said", "flags"))  # fmt: skip
    both = {key: value for part in parts for key, value in part.items()}
    values = {key: value for key, value in both.items() if key not in ("said", "flags")}
    return values, "; ".join(said) or None, "; ".join(dict.fromkeys(flags)) or None


def speed_columns(run: str, section: str, found: Records) -> dict:
    """Images/s, the speed-up over the section's first model, and its two ceilings."""
    record = found.throughput(section)
    if record is None:
        return {}
    methods = {method["run"]: method for method in record["results"]["methods"]}
    method, baseline = methods[run], record["results"]["methods"][0]
    row = {key: method[key] for key in ("macs_g", "params_m", "resolution")}
    row |= {key: record["spec"][key] for key in ("batch_size", "precision", "mode")}
    row |= {"device": record["results"]["device"], "run": run}
    flags = [f"profile={method['profile']}"] if method.get("profile") else []
    if why := benchmarks.no_speed(method):
        flags.append(why)
    else:
        row["throughput"] = method["images_per_s"]
        if method is not baseline and method["speedup"] is not None:
            ends = zip(("", "_low", "_high"), (method["speedup"], *method["speedup_interval"]),
                       strict=True)  # fmt: skip
            row |= {f"speedup_pct{end}": 100 * (ratio - 1) for end, ratio in ends}
            row |= {f"ceiling_{name}_pct": 100 * (ratio - 1)
                    for name, ratio in method["ceilings"].items()}  # fmt: skip
        why = [*method["suspect"], *record["results"]["suspect"]]
        flags += [f"suspect: {', '.join(why)}"] if why else []
    flags += provenance.flags(record)
    size = f"the paper's model at full size, {method['weights']} weights"
    said = [f"throughput, macs_g, params_m: {size}, {method['resolution']} px"]
    if "macs_per_image" in method:
        spread = method["macs_per_image"]
        said.append(f"macs_g: mean of {spread['images']} images, sd {spread['sd_g']:.3f}")
    return {**row, "said": said, "flags": flags}


def timed_on(frame: pd.DataFrame) -> str:
    """How the speeds of a table's or a figure's rows were measured, and how many are suspect."""
    shown = frame[frame["throughput"].notna()]
    if shown.empty:
        return ""
    names = ("device", "mode", "precision", "batch_size")
    device, mode, precision, size = ("/".join(shown[name].astype(str).unique()) for name in names)
    doubts = shown["flags"].fillna("").str.contains("suspect").sum()
    said = f"{device}, {mode}, {precision}, batch {size}"
    return said + (f"; {doubts} of {len(shown)} suspect" if doubts else "")


def describe_epochs(record: dict, dense: list[dict]) -> list[str]:
    """How long an epoch's training steps take; beside the dense row's, where it was trained on the
    same device, and beside the MACs of both."""
    seconds = mean_seconds(record)
    if seconds is None:  # its weights were given
        return []
    said = f"epochs of {seconds:.1f} s"
    place = ("device", "world_size")
    dense_seconds = mean_seconds(dense[0]) if dense else None
    if dense_seconds is None or dense[0]["spec"] == record["spec"]:
        return [said]
    if any(dense[0]["provenance"][key] != record["provenance"][key] for key in place):
        return [said]
    other = dense[0]["results"]
    faster = dense_seconds / seconds
    fewer = other["macs_g"] / record["results"]["macs_g"]
    return [f"{said}, the dense one's over this {faster:.2f}, its MACs over these {fewer:.2f}"]


def mean_seconds(record: dict) -> float | None:
    """How long an epoch's steps took, of the epochs whose metrics are known; None if of none."""
    history = record["results"].get("history", [])
    known = [epoch["train_s"] for epoch in history if "train_s" in epoch]
    return statistics.mean(known) if known else None


def describe_training(record: dict, config: Config) -> str:
    """On what, and at which size, an accuracy was reached."""
    spec, results = record["spec"], record["results"]
    size = describe_size(spec, config)
    if spec["kind"] == "evaluate":
        given = spec["checkpoint"].get("file") or spec["checkpoint"]["timm"]
        size += f" with the weights of {Path(given).name}"
    return f"{size} on {spec['data']['name']}, {results['val_images']} validation images"


def describe_size(spec: dict, config: Config) -> str:
    """Whether a spec's model has the paper's size or a setting's."""
    full = specs.model_of(config, spec["row"])["kwargs"]
    kwargs = spec["model"]["kwargs"]
    if {k: v for k, v in kwargs.items() if k != "num_classes"} == full:
        return FULL_SIZE
    if "img_size" not in kwargs:
        return "a reduced model"
    return f"a reduced model at {kwargs['img_size']} px, width {kwargs.get('embed_dim')}"
