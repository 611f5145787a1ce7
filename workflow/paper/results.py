"""A setting's results: its records, and what they say of one row: accuracy, speed, memory of a training step."""

import base64
import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats

from workflow.campaign import benchmarks, kinds, specs
from workflow.campaign.config import HOST, Config, run_name
from workflow.storage import provenance, records, warnings
from workflow.storage.warnings import Warning

FULL_SIZE = "the paper's model"
ONE_SEED = "one seed: the intervals leave out chance in training"
IMAGES = {"imagenet": "ImageNet", "cifar10": "CIFAR-10"}  # what people call data sets
NORMAL = 1.96  # standard errors on either side that hold 95 %


class Records:
    """The records of a setting; with `partial`, one that is missing or outdated counts as absent.

    `root` is the setting's results folder, or the folder of its committed records.
    """

    def __init__(self, config: Config, root: str, partial: bool):
        self.config, self.root, self.partial = config, root, partial
        self.setting = config.setting_of(root)

    def path(self, record: kinds.Record) -> Path:
        """Return where a record of the setting is below the root."""
        return Path(self.root, Path(record.path).relative_to(self.config.settings[self.setting]["results"]))

    def _read(self, record: kinds.Record) -> dict | None:
        """Return a record's content, or None if it may be absent and is. Raises RecordError otherwise."""
        try:
            return records.read(self.path(record), record.hash)
        except records.RecordError:
            if self.partial:
                return None
            raise

    def requested(self, item: str) -> dict:
        """Return which groups of a table or figure are trained (with how many seeds) and which are timed.

        With `partial` all of them, since whatever exists is shown.
        """
        if self.partial:
            groups = self.config.sections_of(item, self.setting)
            return {"train": groups, "time": groups, "seeds": None}
        return self.config.request(self.setting, item)

    def trained(self, row: str, seeds: int | None = None) -> list[dict]:
        """Return the records of a row's trainings: of the seeds that an item with this number asks for, or of all."""
        names = [run_name(row, seed) for seed in self.config.requested_seeds(self.setting, row, seeds)]
        trainings = [self._read(kinds.record(self.config, "train", self.setting, run=name)) for name in names]
        return [content for content in trainings if content is not None]

    def throughput(self, group: str) -> dict | None:
        """Return the record of a benchmark group's images/s, in the setting's own configuration."""
        return self._read(kinds.throughput_record(self.config, self.setting, group))

    def training_cost(self, group: str) -> dict | None:
        """Return the record of what a training step of the group's models costs."""
        return self._read(kinds.training_cost_record(self.config, self.setting, group))

    def of_kind(self, kind: str) -> list[dict]:
        """Return the records of all jobs of a kind that the setting has."""
        contents = [self._read(record) for record in kinds.records_of(self.config, kind, self.setting)]
        return [content for content in contents if content is not None]

    def curves(self, name: str) -> dict | None:
        """Return the record of an analysis, without its arrays.

        Raises RecordError also for a record of older code, whose curves have no intervals.
        """
        path = self.path(self._analysis(name))
        content = self._read(self._analysis(name))
        if content and "half_widths" not in content["results"]:
            if self.partial:
                return None
            raise records.RecordError(
                f"{path} was made by older code, without intervals; make it again by adding "
                f"--forcerun {path} to snakemake's command."
            )
        return content

    def analysis(self, name: str) -> tuple[dict, dict[str, np.ndarray]]:
        """Return the record of an analysis and its arrays.

        Raises RecordError unless the record has the current spec and the arrays are those that it names.
        """
        path = self.path(self._analysis(name))
        content = records.read(path, self._analysis(name).hash)
        file = content["results"]["arrays"]
        arrays = path.parent / file["path"]
        if not arrays.exists() or records.sha256(arrays) != file["sha256"]:
            raise records.RecordError(
                f"{arrays} is missing or not the file that {path} names; make both again by adding "
                f"--forcerun {path} to snakemake's command."
            )
        with np.load(arrays, allow_pickle=False) as stored:
            return content, dict(stored)

    def _analysis(self, name: str) -> kinds.Record:
        return kinds.record(self.config, "analysis", self.setting, analysis=name)


# -- accuracy -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Accuracy:
    """Top-1 in % over a row's seeds: mean, standard deviation (of two or more) and 95 % interval.

    `best` is the mean of the seeds' best epochs, `data` the name of the images, `sources` says what was trained on
    them, `flags` what a reader should know. NOT_TRAINED has nothing.
    """

    top1: float | None = None
    sd: float | None = None
    low: float | None = None
    high: float | None = None
    best: float | None = None
    seeds: int | None = None
    val_images: int | None = None
    data: str | None = None
    sources: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()


NOT_TRAINED = Accuracy()


def accuracy(trained: list[dict], config: Config) -> Accuracy:
    """Return the accuracy over the records of a row's seeds."""
    if not trained:
        return NOT_TRAINED
    top1 = [record["results"]["top1"] for record in trained]
    best = [record["results"].get("best_top1") for record in trained]
    images = trained[0]["results"]["val_images"]
    low, high = interval(top1, images)
    ways = dict.fromkeys(describe_training(record, config) for record in trained)
    flags = []
    left_out = sum(len(record["results"].get("deviations", [])) for record in trained)
    if left_out:
        flags.append(f"{left_out} training steps left out, their loss not finite")
    for record in trained:
        flags += provenance.flags(record)
        flags += lost_epochs(record)
    return Accuracy(
        top1=statistics.mean(top1),
        sd=statistics.stdev(top1) if len(top1) > 1 else None,
        low=low,
        high=high,
        best=statistics.mean(best) if None not in best else None,
        seeds=len(top1),
        val_images=images,
        data=trained[0]["spec"]["data"]["name"],
        sources=(f"top1: {'; '.join(ways)}",),
        flags=tuple(dict.fromkeys(flags)),
    )


def interval(values: list[float], images: int) -> tuple[float, float]:
    """Return the 95 % interval of the mean accuracy, in %, of several seeds on a test set.

    It follows from the seeds' spread by Student's t. Below three seeds it is at least as wide as Wilson's interval for
    that share of the images.
    """
    mean, seeds, spread = statistics.mean(values), len(values), 0.0
    if seeds > 1:
        spread = statistics.stdev(values) / math.sqrt(seeds)
    if seeds > 2:
        half = float(stats.t.ppf(0.975, seeds - 1)) * spread
        return max(0.0, mean - half), min(100.0, mean + half)
    right = stats.binomtest(round(mean / 100 * images), images)
    low, high = (100 * end for end in right.proportion_ci(0.95, method="wilson"))
    half = NORMAL * spread
    return min(low, max(0.0, mean - half)), max(high, min(100.0, mean + half))


def are_within(low: Iterable[float], high: Iterable[float]) -> bool:
    """Return whether one value is within all intervals, so that differences between their middles may be chance."""
    return max(low) <= min(high)


def describe_doubt(accuracies: Iterable[Accuracy]) -> str:
    """Say in a line for a figure why differences between accuracies may be chance, or "" where it has no need to."""
    known = [accuracy for accuracy in accuracies if accuracy.top1 is not None]
    if len(known) < 2:
        return ""
    seeds = sorted({accuracy.seeds for accuracy in known})
    if are_within([accuracy.low for accuracy in known], [accuracy.high for accuracy in known]):
        return f"differences are within the intervals ({describe_sample(known)})"
    return ONE_SEED if seeds == [1] else ""


def describe_sample(accuracies: Iterable[Accuracy]) -> str:
    """Say how many seeds and validation images accuracies are of: "1 seed, 599 images"."""
    known = [accuracy for accuracy in accuracies if accuracy.top1 is not None]
    seeds = "/".join(str(count) for count in sorted({accuracy.seeds for accuracy in known}))
    images = "/".join(str(count) for count in sorted({accuracy.val_images for accuracy in known}))
    return f"{seeds} {'seed' if seeds == '1' else 'seeds'}, {images} images"


def lost_epochs(record: dict) -> list[str]:
    """Return sentences on the epochs whose lines a crash took from a training's journal."""
    results, run = record["results"], record["spec"]["run"]
    lost = results.get("lost_epochs", [])  # of older records; a checkpoint now restores all
    restored = [epoch for epoch in results.get("restored_epochs", []) if epoch not in lost]
    sentences = []
    if lost:
        sentences.append(f"the metrics of {run}'s epochs {', '.join(map(str, lost))} are lost")
    if restored:
        epochs = ", ".join(map(str, restored))
        sentences.append(f"{run}'s journal has lost epochs {epochs}, restored from the checkpoint")
    return sentences


def describe_training(record: dict, config: Config) -> str:
    """Say on which data and at which size an accuracy was reached."""
    spec, results = record["spec"], record["results"]
    size = describe_size(spec, config)
    if "checkpoint" in spec:
        weights = spec["checkpoint"].get("file") or spec["checkpoint"]["timm"]
        size += f" with the weights of {Path(weights).name}"
    return f"{size} on {spec['data']['name']}, {results['val_images']} validation images"


def host_name(spec: dict, config: Config) -> str:
    """Return what tables call a dense model that methods reduce: its row, or the name of a setting's own host."""
    return spec["model"]["name"] if config.is_of_host(spec["row"]) else spec["run"]


def describe_size(spec: dict, config: Config) -> str:
    """Say whether a spec's model has the paper's size or a setting's, and which arguments an evaluation gives it."""
    if config.is_of_host(spec["row"]):
        return _describe_host(spec, config)
    evaluations = config.settings[spec["setting"]].get("evaluations", {})
    given = evaluations.get(spec.get("evaluation"), {}).get("kwargs", {})
    paper = specs.model_of(config, spec["row"])["kwargs"]
    kwargs = spec["model"]["kwargs"]
    if kwargs | {"num_classes": None} == paper | given | {"num_classes": None}:
        values = ", ".join(f"{name}={value}" for name, value in given.items())
        return f"the model of {spec['row']} with {values}" if given else FULL_SIZE
    if "img_size" not in kwargs:
        return "a reduced model"
    return f"a reduced model at {kwargs['img_size']} px, width {kwargs.get('embed_dim')}"


def _describe_host(spec: dict, config: Config) -> str:
    """Say which model a row of a setting's own host is of, and of the host itself whether it was fine-tuned."""
    name, scale = spec["model"]["name"], config.settings[spec["setting"]]
    if spec["row"] != HOST or HOST in scale.get("checkpoints", {}):
        return name
    pretrained = specs.host_checkpoint(scale)
    weights = Path(pretrained["file"]).name if "file" in pretrained else pretrained["timm"]
    return f"{name}, fine-tuned from {weights} without any reduction,"


def count_epochs(run: str, setting: str, config: Config) -> str:
    """Say for how many epochs a run was trained in all: "300+30" after a start of 300, "300 of 600" for half of the
    authors' number.
    """
    row, _ = config.split_run(run)
    if row in config.settings[setting].get("checkpoints", {}):
        return "given weights"
    epochs = specs.recipe_of(config, setting, row)["epochs"]
    text = str(epochs)
    authors = config.runs[row].get("authors_epochs")
    if authors is not None and epochs == specs.recipe_of(config, None, row)["epochs"]:
        text += f" of {authors}"
    start = config.runs[row].get("start")
    return text if start is None else f"{count_epochs(start, setting, config)}+{text}"


def describe_epoch_time(trained: list[dict], dense: list[dict]) -> str | None:
    """Say how long an epoch of training steps takes, from the records of a row and of its dense model.

    Where both were trained on the same device, add the ratios of their times and of their MACs. Return None for weights
    that were not trained here.
    """
    record = next((record for record in trained if "history" in record["results"]), trained[0])
    seconds = epoch_seconds(record)
    if seconds is None:
        return None
    text = f"epochs of {seconds:.1f} s"
    dense_seconds = epoch_seconds(dense[0]) if dense else None
    if dense_seconds is None or dense[0]["spec"] == record["spec"]:
        return text
    if any(dense[0]["provenance"][key] != record["provenance"][key] for key in ("device", "world_size")):
        return text
    faster = dense_seconds / seconds
    fewer = dense[0]["results"]["macs_g"] / record["results"]["macs_g"]
    return f"{text}, the dense one's over this {faster:.2f}, its MACs over these {fewer:.2f}"


def epoch_seconds(record: dict) -> float | None:
    """Return the mean time of an epoch's steps over the epochs whose metrics are known, or None."""
    history = record["results"].get("history", [])
    known = [epoch["train_s"] for epoch in history if "train_s" in epoch]
    return statistics.mean(known) if known else None


# -- changes of accuracy on the same images -------------------------------------------------


@dataclass(frozen=True)
class Change:
    """By how many points top-1 is above another row's.

    Where both rows' records say which of the same images were right, it is the mean over the `seeds` that both have,
    with its 95 % interval (`seed_paired_change`). NOT_COMPARED has nothing.
    """

    points: float | None = None
    low: float | None = None
    high: float | None = None
    seeds: int | None = None
    val_images: int | None = None


NOT_COMPARED = Change()


def paired(trained: list[dict], others: list[dict]) -> Change | None:
    """Return the change of top-1 from the `others`, records of one row's seeds, to the `trained`, those of another row.

    Return None where no seed has records of both rows that say which of the same images were right.
    """
    other_of = {record["spec"]["seed"]: record["results"] for record in others}
    by_split: dict[tuple[str, int], list[np.ndarray]] = {}  # images may be others from seed to seed
    for record in trained:
        values, other = record["results"], other_of.get(record["spec"]["seed"], {})
        if "right" not in values or "right" not in other:  # older records
            continue
        split = (values["val_listing"], values["val_images"])
        if split == (other["val_listing"], other["val_images"]):
            by_split.setdefault(split, []).append(right_images(values) - right_images(other))
    if not by_split:
        return None
    changes = np.stack(max(by_split.values(), key=len))
    seeds, images = changes.shape
    return Change(*seed_paired_change(changes), seeds, images)


def right_images(values: dict) -> np.ndarray:
    """Return from a record's results 1 for each validation image that was right and 0 for the others, (images,)."""
    packed = np.frombuffer(base64.b64decode(values["right"]), dtype=np.uint8)
    return np.unpackbits(packed, count=values["val_images"]).astype(int)


def seed_paired_change(changes: np.ndarray) -> tuple[float, float, float]:
    """Return by how many points accuracy changes between two rows on the same images, and its 95 % interval.

    With one seed the interval is `paired_change`'s. It covers the images alone, so it is about these two trainings.
    With several seeds it also covers how trainings differ. The mean change then has two errors: that of the images is
    the same over all seeds, and that of the seeds follows from the spread of their own changes, by Student's t. Their
    halves add as squares, each with its own quantile (Banerjee 1960), so the interval holds the true change in at least
    95 % of cases whichever error is larger. What differs between seeds from image to image is in both errors, so the
    interval is rather too wide. Two seeds tell little of a spread: t is 12.7 there, and 4.3 with three.

    Args:
        changes: (seeds, images), 1 where an image is right only with the second row, -1 only with the first, else 0.
    """
    seeds, images = changes.shape
    of_images = changes.mean(axis=0)
    middle, half = _image_error(of_images.sum(), (of_images**2).sum(), images)
    if seeds > 1:
        spread = changes.mean(axis=1).std(ddof=1) / math.sqrt(seeds)
        half = math.hypot(half, float(stats.t.ppf(0.975, seeds - 1)) * spread)
    return 100 * float(changes.mean()), 100 * (middle - half), 100 * (middle + half)


def paired_change(worse: int, better: int, images: int) -> tuple[float, float, float]:
    """Return by how many points accuracy changes between two models on the same images, and its 95 % interval.

    `worse` images are right with the first model alone, `better` ones with the second alone. Only these tell anything
    of the change, so its interval is far narrower than the accuracies' own. It is Wald's after half an image is added
    to each of the four cells (Agresti and Min 2005), so that it has a width even where no image changed.
    """
    middle, half = _image_error(better - worse, better + worse, images)
    return 100 * (better - worse) / images, 100 * (middle - half), 100 * (middle + half)


def _image_error(total: float, squares: float, images: int) -> tuple[float, float]:
    """Return the middle and half the width of a 95 % interval of the images' mean change.

    `total` and `squares` are the sums of the images' changes and of their squares. Four images that weigh a half each
    are added: one that changes by 1, one by -1 and two that don't change.
    """
    weight = images + 2
    middle = total / weight
    return middle, NORMAL * math.sqrt(((squares + 1) / weight - middle**2) / weight)


# -- speed ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Speed:
    """Images/s of a model; its speed-up over the first of its group in %, with the 95 % interval and two ceilings.

    `warnings` are those of the measurement; `flags` say what a reader should know. NOT_TIMED has nothing.
    """

    throughput: float | None = None
    speedup_pct: float | None = None
    speedup_pct_low: float | None = None
    speedup_pct_high: float | None = None
    ceiling_macs_pct: float | None = None
    ceiling_roofline_pct: float | None = None
    macs_g: float | None = None
    params_m: float | None = None
    resolution: int | None = None
    batch_size: int | None = None
    precision: str | None = None
    mode: str | None = None
    device: str | None = None
    warnings: tuple[Warning, ...] = ()
    sources: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()


NOT_TIMED = Speed()


def speed(record: dict | None, run: str, model: str = f"{FULL_SIZE} at full size") -> Speed:
    """Return a model's speed from the record of its benchmark group; `model` says in words what was timed."""
    if record is None:
        return NOT_TIMED
    spec, results = record["spec"], record["results"]
    method, base = method_of(results, run), results["methods"][0]
    warned = (*warnings.read(method), *warnings.read(results))
    flags, values = [], {}
    if method.get("profile"):
        flags.append(f"profile={method['profile']}")
    obstacle = benchmarks.no_speed(method)
    if obstacle:
        flags.append(obstacle)
    else:
        values["throughput"] = method["images_per_s"]
        if method is not base and method["speedup"] is not None:
            low, high = method["speedup_interval"]
            values["speedup_pct"] = 100 * (method["speedup"] - 1)
            values["speedup_pct_low"] = 100 * (low - 1)
            values["speedup_pct_high"] = 100 * (high - 1)
            for name, ratio in method["ceilings"].items():
                values[f"ceiling_{name}_pct"] = 100 * (ratio - 1)
        if warned:
            flags.append(f"warning: {', '.join(warning.text for warning in warned)}")
    flags += provenance.flags(record)
    sources = [f"throughput, macs_g, params_m: {model}, {method['weights']} weights, {method['resolution']} px"]
    if "macs_per_image" in method:
        spread = method["macs_per_image"]
        sources.append(f"macs_g: mean of {spread['images']} images, sd {spread['sd_g']:.3f}")
    return Speed(
        macs_g=method["macs_g"],
        params_m=method["params_m"],
        resolution=method["resolution"],
        batch_size=spec["batch_size"],
        precision=spec["precision"],
        mode=spec["mode"],
        device=results["device"],
        warnings=warned,
        sources=tuple(sources),
        flags=tuple(flags),
        **values,
    )


def method_of(results: dict, run: str) -> dict:
    """Return what a benchmark's results say of one model."""
    return next(method for method in results["methods"] if method["run"] == run)


def speedup_pct(rate: float, base: float) -> float:
    """Return by how many per cent a rate is above another."""
    return 100 * (rate / base - 1)


def describe_timing(speeds: Iterable[Speed]) -> tuple[str, str]:
    """Say how speeds were measured, and how many of them have warnings; either may be empty."""
    timed = [speed for speed in speeds if speed.throughput is not None]
    if not timed:
        return "", ""
    conditions = []
    for name in ("device", "mode", "precision", "batch_size"):
        conditions.append("/".join(dict.fromkeys(str(getattr(speed, name)) for speed in timed)))
    warned = sum(bool(speed.warnings) for speed in timed)
    remark = f"{warned} of {len(timed)} speeds with warnings" if warned else ""
    return "{}, {}, {}, batch {}".format(*conditions), remark


# -- memory of a training step --------------------------------------------------------------


@dataclass(frozen=True)
class TrainingStep:
    """Whether a training step fits into memory, and how many bytes it needs where that is known.

    NOT_STEPPED has nothing.
    """

    fits: bool | None = None
    bytes: int | None = None
    sources: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()

    @property
    def out_of_memory(self) -> bool | None:
        return None if self.fits is None else not self.fits

    @property
    def gib(self) -> float | None:
        return None if self.bytes is None else self.bytes / 2**30

    @property
    def text(self) -> str:
        fits = "fits" if self.fits else "out of memory"
        return fits if self.gib is None else f"{self.gib:.1f} GiB, {fits}"


NOT_STEPPED = TrainingStep()


def training_step(record: dict | None, run: str, batch_size: int) -> TrainingStep:
    """Return what a record of training costs says of a run at a batch size."""
    if record is None:
        return NOT_STEPPED
    method = method_of(record["results"], run)
    for size in (*method["sizes"], *method.get("extrapolated", [])):
        if size["batch_size"] == batch_size:
            fits = not (size.get("out_of_memory", False) or size.get("over_limit", False))
            source = describe_memory(record)
            if batch_size not in record["spec"]["batch_sizes"]:
                measured = ", ".join(map(str, record["spec"]["batch_sizes"]))
                source += f", on the line through batches of {measured}"
            return TrainingStep(fits, size.get("bytes"), (source,), tuple(provenance.flags(record)))
    return NOT_STEPPED


def describe_memory(record: dict) -> str:
    """Say what the bytes of a record of training costs count, and on which device."""
    results, spec = record["results"], record["spec"]
    text = f"memory: {results['bytes_are']}, a step in {spec['precision']} on {results['device']}"
    if spec["memory_gib"]:
        text += f", held to {spec['memory_gib']} GiB"
    return text
