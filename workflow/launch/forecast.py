"""What trainings to come will cost, from step times that were measured here; always an estimate."""

import json
import statistics
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from workflow.campaign import specs
from workflow.campaign.config import Config
from workflow.campaign.kinds import job_folder
from workflow.campaign.targets import split_root
from workflow.storage import journal

LAYERWISE = 2 / 3  # of a training, before its schedule becomes stage-wise
EPOCHS, STEPS = "epochs of the run or another seed", "measured steps"
SCALED = "other rows' steps, scaled by MACs"
NOTHING, UNCOUNTED = "no step was measured yet", "the images are not counted yet"
REMEDIES = {
    NOTHING: "targets like results/training/deit_small/cuda-paper-fp16.json measure a section's",
    UNCOUNTED: "the target data.json of the same results folder counts them",
}


@dataclass(frozen=True)
class Cost:
    """Device-hours that a training still needs, None if nothing was measured, and on what basis:
    one of the above."""

    path: str
    hours: float | None
    device: str
    basis: str


class Forecast:
    """What was measured below one results folder, and what follows from it for a training."""

    def __init__(self, config: Config, root: str):
        self.root = Path(root)
        setting = config.setting_of(root)
        data = config.settings[setting]["data"]
        counted = _read(self.root / "data.json").get("results", {}).get("splits", {})
        # of another split before the YAML was changed: it is counted anew before any training
        self.images = counted.get(data["train"], {}).get("images", data.get("train_images"))
        # steps are measured at the paper's size, so they say nothing of a shrunk setting's
        shrunk = config.settings[setting]["shrink"]
        self.steps = {} if shrunk else dict(_measured_steps(self.root))
        self.macs_g = dict(_measured_macs(self.root))

    def of(self, path: str, spec: dict) -> Cost:
        """From the epochs of the row's trainings, its measured steps, or those of another row."""
        if found := _from_epochs(path, spec):
            return found
        row = spec["row"]
        if row in self.steps:
            return self._from_steps(path, spec, row, 1.0, STEPS)
        others = [one for one in self.steps if one in self.macs_g]
        if row in self.macs_g and others:
            # the nearest in size: the larger a model, the better it fills a device
            near = min(others, key=lambda one: abs(self.macs_g[one] - self.macs_g[row]))
            return self._from_steps(path, spec, near, self.macs_g[row] / self.macs_g[near], SCALED)
        return Cost(path, None, "", NOTHING)

    def _from_steps(self, path: str, spec: dict, row: str, factor: float, basis: str) -> Cost:
        if self.images is None:
            return Cost(path, None, "", UNCOUNTED)
        image_s, device = self.steps[row]
        hours = factor * image_s * self.images * spec["recipe"]["epochs"] / 3600
        return Cost(path, hours, device, basis)


def _measured_steps(root: Path) -> Iterator[tuple[str, tuple[float, str]]]:
    """Of each row in the folder's training costs: seconds per image and device, without loading, at
    the largest batch that fitted. A GPU's come last, and count."""
    records = [_read(path) for path in sorted(root.glob("training/*/*.json"))]
    records = [record for record in records if record.get("results")]
    for record in sorted(records, key=lambda one: one["spec"]["device"] == "cuda"):
        device = "GPU" if record["spec"]["device"] == "cuda" else "machine"
        for method in record["results"]["methods"]:
            sizes = [size for size in method["sizes"] if "step_s_first" in size]
            if sizes:
                size = max(sizes, key=lambda one: one["batch_size"])
                step_s = LAYERWISE * size["step_s_first"] + (1 - LAYERWISE) * size["step_s_last"]
                yield method["run"], (step_s / size["batch_size"], device)


def _measured_macs(root: Path) -> Iterator[tuple[str, float]]:
    """Rows and their MACs in 1e9, from the measurements of throughput and training."""
    for pattern in ("throughput/*/*.json", "training/*/*.json"):
        for path in root.glob(pattern):
            for method in _read(path).get("results", {}).get("methods", []):
                yield method["run"], method["macs_g"]


def _from_epochs(path: str, spec: dict) -> Cost | None:
    """Of this run or another seed's; its own finished epochs are not paid again."""
    mine = job_folder(path)
    seeds = [mine, *mine.parent.glob(f"{spec['row']}-s[0-9]*"), mine.parent / spec["row"]]
    for folder in seeds:
        for attempt in sorted(folder.glob("attempts/*"), key=_number, reverse=True):
            epochs = [
                epoch for epoch in journal.epochs(attempt / "journal.jsonl") if "epoch_s" in epoch
            ]  # one whose metrics were lost has no time
            known = _read(attempt / "spec.json")
            alike = all(known.get(key) == spec[key] for key in ("model", "data"))
            if epochs and alike:
                going_on = folder == mine and known == spec
                left = spec["recipe"]["epochs"] - (epochs[-1]["epoch"] if going_on else 0)
                resources = _read(attempt / "job.json").get("resources", {})
                devices = max(1, resources.get("gpus", 0))
                epoch_s = statistics.median(epoch["epoch_s"] for epoch in epochs)
                kind = "GPU" if resources.get("gpus") else "machine"
                return Cost(path, left * epoch_s * devices / 3600, kind, EPOCHS)
    return None


def by_target(costs: list[Cost], wanted: dict[str, list[str]]) -> list[str]:
    """The summaries of the targets, whose records are `wanted`, and of what stands in none.

    What several need is counted in each; they then end with all together.
    """
    others = [cost for cost in costs if not any(cost.path in paths for paths in wanted.values())]
    parts = {target: [cost for cost in costs if cost.path in paths] for target, paths in wanted.items()}
    parts["other targets" if wanted else "these targets"] = others
    parts = {name: part for name, part in parts.items() if part}
    lines = [line for name, part in parts.items() for line in estimates(name, part)]
    if len(parts) > 1:
        lines += estimates("all together", costs)
    return [*lines, *unknown(costs)]


def estimates(what: str, costs: list[Cost]) -> Iterator[str]:
    for device in ("GPU", "machine"):
        known = [cost for cost in costs if cost.hours is not None and cost.device == device]
        if known:
            hours = sum(cost.hours for cost in known)
            amount = f"{hours:,.0f}" if hours >= 10 else f"{hours:.2f}"
            counted = Counter(cost.basis for cost in known)
            bases = "; ".join(f"{counted[one]} from {one}" for one in (EPOCHS, STEPS, SCALED)
                              if counted[one])  # fmt: skip
            yield (f"Estimate, {what}: {len(known)} training(s), about {amount} {device}-hours "
                   f"({bases}).")  # fmt: skip


def unknown(costs: list[Cost]) -> Iterator[str]:
    """For which trainings there is no estimate, and what would give one."""
    for reason, remedy in REMEDIES.items():
        names = [Path(one.path).parent.name for one in costs
                 if one.hours is None and one.basis == reason]  # fmt: skip
        if names:
            named = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
            yield f"No estimate for {len(names)} training(s) ({named}): {reason}; {remedy}."


def of_trainings(config: Config, records: dict[str, dict]) -> list[Cost]:
    """The costs of the trainings among the records, by path."""
    known: dict[str, Forecast] = {}
    costs = []
    for path, spec in records.items():
        if spec["kind"] == "train":
            root = split_root(config, path)[1]
            known[root] = known.get(root) or Forecast(config, root)
            costs.append(known[root].of(path, spec))
    return costs


def _number(attempt: Path) -> int:
    return int(attempt.name) if attempt.name.isdigit() else 0


def _read(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except (OSError, json.JSONDecodeError):
        return {}


def is_current(path: str, spec: dict) -> bool:
    """Whether the record lies there and is of this spec."""
    return _read(Path(path)).get("spec_hash") == specs.spec_hash(spec)
