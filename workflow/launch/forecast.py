"""What jobs to come will cost, from step times and speeds that were measured here; always an estimate.

Estimated are trainings, and evaluations of methods off the shelf.
"""

import statistics
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from workflow.campaign.config import Config
from workflow.campaign.kinds import job_folder
from workflow.campaign.targets import split_root
from workflow.storage import attempts, journal
from workflow.storage.files import read_json

LAYERWISE = 2 / 3  # of a training, before its schedule becomes stage-wise
# what an estimate is based on
EPOCHS = "epochs of the run or another seed"
DENSE = "epochs of the dense model, which takes about as long"
STEPS = "measured steps"
SCALED = "other rows' steps, scaled by MACs"
SPEEDS = "images/s of the dense model, which is the slowest, without loading"
# what an estimate is of
TRAINING, EVALUATION = "training(s)", "evaluation(s)"
# why there is none, and what would give one
NOTHING = "no step was measured yet"
NO_SPEED = "its dense model was not timed yet"
UNCOUNTED = "the images are not counted yet"
REMEDIES = {
    NOTHING: "targets like results/training/deit_small/cuda-paper-fp16.json measure those of a benchmark group",
    NO_SPEED: "targets like results/throughput/deit_small/cuda-paper-fp32-b256.json time a benchmark group",
    UNCOUNTED: "the target data.json of the same results folder counts them",
}


@dataclass(frozen=True)
class Cost:
    """Device-hours that a job still needs, None if nothing was measured, and the basis: one of the above."""

    path: str
    hours: float | None
    device: str
    basis: str
    what: str = TRAINING


# -- what a user reads ----------------------------------------------------------------------------


def by_target(costs: list[Cost], needed: dict[str, list[str]]) -> list[str]:
    """Return the summaries of the targets, whose records are `needed`, and of jobs that no target needs.

    A job that several targets need is counted in each; a last line then counts all together.
    """
    groups = {target: [cost for cost in costs if cost.path in paths] for target, paths in needed.items()}
    others = [cost for cost in costs if not any(cost.path in paths for paths in needed.values())]
    groups["other targets" if needed else "these targets"] = others
    groups = {name: group for name, group in groups.items() if group}
    lines = [line for name, group in groups.items() for line in _estimates(name, group)]
    if len(groups) > 1:
        lines += _estimates("all together", costs)
    return [*lines, *_unknown(costs)]


def _estimates(name: str, costs: list[Cost]) -> Iterator[str]:
    """Yield the hours of a group of jobs, one line for each kind of device."""
    for device in ("GPU", "machine"):
        known = [cost for cost in costs if cost.hours is not None and cost.device == device]
        if known:
            hours = sum(cost.hours for cost in known)
            amount = f"{hours:,.0f}" if hours >= 10 else f"{hours:.2f}"
            counts = Counter(cost.basis for cost in known)
            bases = "; ".join(
                f"{counts[basis]} from {basis}" for basis in (EPOCHS, DENSE, STEPS, SCALED, SPEEDS) if counts[basis]
            )
            yield f"Estimate, {name}: {_count(known)}, about {amount} {device}-hours ({bases})."


def _count(costs: list[Cost]) -> str:
    """Say how many trainings and evaluations these are."""
    counts = Counter(cost.what for cost in costs)
    return " and ".join(f"{counts[what]} {what}" for what in (TRAINING, EVALUATION) if counts[what])


def _unknown(costs: list[Cost]) -> Iterator[str]:
    """Yield for which jobs there is no estimate, and what would give one."""
    for reason, remedy in REMEDIES.items():
        unknown = [cost for cost in costs if cost.hours is None and cost.basis == reason]
        runs = [job_folder(cost.path).name for cost in unknown]
        if runs:
            names = ", ".join(runs[:4]) + (", ..." if len(runs) > 4 else "")
            yield f"No estimate for {_count(unknown)} ({names}): {reason}; {remedy}."


# -- estimates ------------------------------------------------------------------------------------


def of_jobs(config: Config, records: dict[str, dict]) -> list[Cost]:
    """Return the costs of the trainings, and of methods off the shelf, among the records; their specs are by path."""
    forecasts: dict[str, Forecast] = {}
    costs = []
    for path, spec in records.items():
        if spec["kind"] in ("train", "offtheshelf"):
            root = split_root(config, path)[1]
            if root not in forecasts:
                forecasts[root] = Forecast(config, root)
            of = forecasts[root].of_training if spec["kind"] == "train" else forecasts[root].of_evaluation
            costs.append(of(path, spec))
    return costs


class Forecast:
    """What was measured below one results folder, and what follows from it for a job."""

    def __init__(self, config: Config, root: str, setting: str | None = None):
        self.root = Path(root)
        setting = setting or config.setting_of(root)  # the folder may be another clone's
        data = config.settings[setting]["data"]
        splits = read_json(self.root / "data.json").get("results", {}).get("splits", {})
        # the record may be of another split; the YAML's then is counted anew before any training
        self.images = splits.get(data["train"], {}).get("images", data.get("train_images"))
        self.val_images = splits.get(data["val"], {}).get("images")
        # steps are measured at the paper's size, so they say nothing of a shrunk setting's
        shrunk = config.settings[setting]["shrink"]
        self.steps = {} if shrunk else dict(_measured_steps(self.root))
        self.speeds = {} if shrunk else dict(_measured_speeds(self.root))
        self.macs_g = dict(_measured_macs(self.root))

    def of_training(self, path: str, spec: dict) -> Cost:
        """Estimate from the epochs of the row's trainings or of the dense model that it starts from, from its measured
        steps, or from those of another row.
        """
        cost = _from_epochs(path, spec) or _from_dense(path, spec)
        if cost is not None:
            return cost
        row = spec["row"]
        if row in self.steps:
            return self._from_steps(path, spec, row, 1.0, STEPS)
        others = [other for other in self.steps if other in self.macs_g]
        if row in self.macs_g and others:
            # the nearest in size: the larger a model, the better it fills a device
            near = min(others, key=lambda other: abs(self.macs_g[other] - self.macs_g[row]))
            return self._from_steps(path, spec, near, self.macs_g[row] / self.macs_g[near], SCALED)
        return Cost(path, None, "", NOTHING)

    def of_evaluation(self, path: str, spec: dict) -> Cost:
        """Estimate from the dense model's images/s: each model of the spec evaluates all validation images once."""
        if spec["run"] not in self.speeds:
            return Cost(path, None, "", NO_SPEED, EVALUATION)
        if self.val_images is None:
            return Cost(path, None, "", UNCOUNTED, EVALUATION)
        images_per_s, device = self.speeds[spec["run"]]
        hours = len(spec["models"]) * self.val_images / images_per_s / 3600
        return Cost(path, hours, device, SPEEDS, EVALUATION)

    def _from_steps(self, path: str, spec: dict, row: str, factor: float, basis: str) -> Cost:
        if self.images is None:
            return Cost(path, None, "", UNCOUNTED)
        image_s, device = self.steps[row]
        hours = factor * image_s * self.images * spec["recipe"]["epochs"] / 3600
        return Cost(path, hours, device, basis)


def _from_epochs(path: str, spec: dict) -> Cost | None:
    """Estimate from epochs of this run or another seed's; this run's finished epochs are not paid again."""
    own = job_folder(path)
    seeds = [own, *own.parent.glob(f"{spec['row']}-s[0-9]*"), own.parent / spec["row"]]
    return _from_folders(path, spec, seeds, spec["model"], EPOCHS)


def _from_dense(path: str, spec: dict) -> Cost | None:
    """Estimate from epochs of the model that a run starts from, if it is the same one without a method."""
    dense = {"name": spec["model"]["name"], "kwargs": spec["model"]["kwargs"]}
    if spec.get("start", {}).get("model") != dense:
        return None
    folder = job_folder(path).parent / spec["start"]["run"]
    return _from_folders(path, spec, [folder], dense, DENSE)


def _from_folders(path: str, spec: dict, folders: list[Path], model: dict, basis: str) -> Cost | None:
    """Estimate from the first of the folders that has epochs of the model on the spec's images."""
    own = job_folder(path)
    wanted = {"model": model, "data": spec["data"]}
    for folder in folders:
        for attempt in attempts.all_of(folder):
            epochs = journal.epochs(attempt.journal)
            epochs = [epoch for epoch in epochs if "epoch_s" in epoch]  # one whose metrics were lost has no time
            known = read_json(attempt.folder / "spec.json")
            if not epochs or any(known.get(key) != value for key, value in wanted.items()):
                continue
            finished = epochs[-1]["epoch"] if folder == own and known == spec else 0
            resources = read_json(attempt.folder / "job.json").get("resources", {})
            devices = max(1, resources.get("gpus", 0))
            epoch_s = statistics.median(epoch["epoch_s"] for epoch in epochs)
            hours = (spec["recipe"]["epochs"] - finished) * epoch_s * devices / 3600
            return Cost(path, hours, "GPU" if resources.get("gpus") else "machine", basis)
    return None


def _measured_steps(root: Path) -> Iterator[tuple[str, tuple[float, str]]]:
    """Yield (row, (seconds per image, device)) from the folder's training costs.

    Loading is left out, and the largest batch that fitted counts. A GPU's come last, and replace the others.
    """
    records = [read_json(path) for path in sorted(root.glob("training/*/*.json"))]
    records = [record for record in records if record.get("results")]
    for record in sorted(records, key=lambda record: record["spec"]["device"] == "cuda"):
        device = "GPU" if record["spec"]["device"] == "cuda" else "machine"
        for method in record["results"]["methods"]:
            sizes = [size for size in method["sizes"] if "step_s_first" in size]
            if sizes:
                size = max(sizes, key=lambda size: size["batch_size"])
                step_s = LAYERWISE * size["step_s_first"] + (1 - LAYERWISE) * size["step_s_last"]
                yield method["run"], (step_s / size["batch_size"], device)


def _measured_speeds(root: Path) -> Iterator[tuple[str, tuple[float, str]]]:
    """Yield (row, (images/s, device)) from the folder's measurements of one batch size.

    The slowest comes last, as an estimate should rather be too long; a GPU's replace a CPU's.
    """
    timed = []
    for path in sorted(root.glob("throughput/*/*.json")):
        record = read_json(path)
        for method in record.get("results", {}).get("methods", []):
            if method.get("images_per_s"):
                on_gpu = record["spec"]["device"] == "cuda"
                timed.append((on_gpu, -method["images_per_s"], method["run"]))
    for on_gpu, slowness, run in sorted(timed):
        yield run, (-slowness, "GPU" if on_gpu else "machine")


def _measured_macs(root: Path) -> Iterator[tuple[str, float]]:
    """Yield (row, MACs in 1e9) from the measurements of throughput and training."""
    for pattern in ("throughput/*/*.json", "training/*/*.json"):
        for path in root.glob(pattern):
            for method in read_json(path).get("results", {}).get("methods", []):
                yield method["run"], method["macs_g"]
