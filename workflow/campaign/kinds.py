"""The kinds of jobs: one registry that rules, targets, launchers, forecasts, tables and MLflow ask.

A new kind is an entry in KINDS and the module that runs it. `record` is how everyone gets a job's path, spec and hash.
Standard library and yaml only: launchers import this.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from workflow.campaign import benchmarks, specs
from workflow.campaign.config import Config, run_name

CHECKS = ("data.json", "preflight.json")  # what most jobs wait for
# (name, value or None, step) of each metric; one without a step has that of the last epoch
Metrics = Iterator[tuple[str, float | None, int | None]]


@dataclass(frozen=True)
class Kind:
    """One kind of job.

    Attributes:
        name: the `kind` in its specs.
        rule: the name of its Snakemake rule, by which --set-resources and --forcerun call it.
        target: its record's path below a setting's results; the names in braces choose the job.
        spec: returns the spec for (config, setting, **names); raises KeyError or BenchmarkError where there is no
            such job.
        jobs: returns the names of a setting's jobs; of measurements those that its tables show.
        module: the module whose `run(spec, site, folder)` computes the record on the node; None for a kind that a
            program on the login node makes.
        title: what MLflow calls it.
        after: records, below the setting's results, that must be there before it.
        exclusive: it has its device to itself, since it measures time.
        distributed: it may run as several processes; other kinds run once, whatever resources they were given.
        resumable: after a time limit it goes on where it was; others would begin anew and meet the same limit.
        metrics: yields the numbers that MLflow shows of its record's results; None if MLflow does not show the kind.
    """

    name: str
    rule: str
    target: str
    spec: Callable[..., dict]
    jobs: Callable[[Config, str], list[dict[str, str]]]
    module: str | None
    title: str
    after: tuple[str, ...] = CHECKS
    exclusive: bool = False
    distributed: bool = False
    resumable: bool = False
    metrics: Callable[[dict], Metrics] | None = None

    @property
    def device_share(self) -> int:
        """The percentage of a device that Snakemake keeps for it; the profile has 100."""
        return 100 if self.exclusive else 1

    @property
    def folders(self) -> str:
        """The glob pattern of its jobs' folders below a setting's results."""
        return str(job_folder(re.sub(r"\{\w+\}", "*", self.target)))

    @property
    def pattern(self) -> re.Pattern:
        """The target as a regular expression whose groups are the names."""
        return re.compile(re.sub(r"\\{(\w+)\\}", r"(?P<\1>[^/]+)", re.escape(self.target)))


class Record(NamedTuple):
    """The record of a job: where it is, what it must be of, and the hash of that."""

    path: str
    spec: dict
    hash: str


def record(config: Config, kind: str, setting: str, **names: str) -> Record:
    """Return the record of the kind's job that the names choose: record(config, "train", "demo", run="deit_tiny").

    A spec is derived once for each configuration that was read; nobody may change it. Raises KeyError or
    BenchmarkError where there is no such job.
    """
    path = f"{config.settings[setting]['results']}/{KINDS[kind].target.format(**names)}"
    if path not in config.records:
        spec = KINDS[kind].spec(config, setting, **names)
        config.records[path] = Record(path, spec, specs.spec_hash(spec))
    return config.records[path]


def records_of(config: Config, kind: str, setting: str) -> list[Record]:
    """Return the records of all jobs of a kind that the setting has.

    Those of the kind `evaluate` include the evaluations of `checkpoints`, which have the targets of trainings.
    """
    records = [record(config, kind, setting, **names) for names in KINDS[kind].jobs(config, setting)]
    if kind == "evaluate":
        given = config.settings[setting].get("checkpoints", {})
        records += [record(config, "train", setting, run=run) for run in given]
    return records


def throughput_record(config: Config, setting: str, group: str) -> Record:
    """Return the record of the throughput that the setting's tables show of a benchmark group."""
    return record(config, "throughput", setting, **_throughput_names(config, setting, group))


def training_cost_record(config: Config, setting: str, group: str) -> Record:
    """Return the record of the training steps that the setting's tables show of a benchmark group."""
    return record(config, "training_cost", setting, **_training_cost_names(config, setting, group))


def first_records(spec: dict) -> list[str]:
    """Return all records, below the setting's results, that must be there before the spec's job."""
    return [*KINDS[spec["kind"]].after, *specs.needed_records(spec)]


def job_folder(record_path: str | Path) -> Path:
    """Return the folder of a record's spec and attempts: `runs/x/` for `runs/x/train.json`, else the path's stem."""
    path = Path(record_path)
    return path.parent if path.name == "train.json" else path.with_suffix("")


# -- the specs of kinds whose names are no arguments of specs.py and benchmarks.py


def _fetch_spec(config: Config, setting: str, tag: str) -> dict:
    checkpoints = {entry["timm"]: entry for entry in specs.checkpoints(config, setting) if "timm" in entry}
    return specs.fetch_spec(checkpoints[tag])


def _throughput_spec(config: Config, setting: str, group: str, configuration: str) -> dict:
    _check_group(config, setting, group)
    shown = benchmarks.throughput_configuration(config, setting, group)
    return benchmarks.throughput_spec(config, setting, group, benchmarks.parse(configuration, shown))


def _training_cost_spec(config: Config, setting: str, group: str, configuration: str) -> dict:
    _check_group(config, setting, group)
    shown = benchmarks.training_cost_configuration(config, setting)
    return benchmarks.training_cost_spec(config, setting, group, benchmarks.parse_training_cost(configuration, shown))


def _check_group(config: Config, setting: str, group: str) -> None:
    """Raise KeyError for a benchmark group that the setting does not have."""
    if group not in config.sections(setting):
        raise KeyError(f"{setting} has no benchmark group {group}")


# -- the names of a setting's jobs


def _single_job(config: Config, setting: str) -> list[dict[str, str]]:
    return [{}]


def _runs(config: Config, setting: str) -> list[dict[str, str]]:
    rows = [row for row in config.runs if config.has_row(row, setting)]
    return [{"run": run_name(row, seed)} for row in rows for seed in config.seeds(row)]


def _searches(config: Config, setting: str) -> list[dict[str, str]]:
    rows = [row for row in config.runs if config.has_row(row, setting)]
    rows = [row for row in rows if "search" in specs.recipe_of(config, setting, row)]
    return [{"run": run_name(row, seed)} for row in rows for seed in config.seeds(row)]


def _downloads(config: Config, setting: str) -> list[dict[str, str]]:
    tags = [entry["timm"] for entry in specs.checkpoints(config, setting) if "timm" in entry]
    return [{"tag": tag} for tag in dict.fromkeys(tags)]


def _evaluations(config: Config, setting: str) -> list[dict[str, str]]:
    return [{"evaluation": name} for name in config.settings[setting].get("evaluations", {})]


def _analyses(config: Config, setting: str) -> list[dict[str, str]]:
    analyses = config.items["analyses"].items()
    return [{"analysis": name} for name, entry in analyses if config.has_row(entry["run"], setting)]


def _hosts(config: Config, setting: str) -> list[dict[str, str]]:
    return [{"host": host} for host in config.settings[setting]["hosts"]]


def _throughput_names(config: Config, setting: str, group: str) -> dict[str, str]:
    configuration = benchmarks.throughput_configuration(config, setting, group)
    return {"group": group, "configuration": benchmarks.name(configuration)}


def _throughputs(config: Config, setting: str) -> list[dict[str, str]]:
    return [_throughput_names(config, setting, group) for group in config.sections(setting)]


def _training_cost_names(config: Config, setting: str, group: str) -> dict[str, str]:
    configuration = benchmarks.training_cost_configuration(config, setting)
    return {"group": group, "configuration": benchmarks.training_cost_name(configuration)}


def _training_costs(config: Config, setting: str) -> list[dict[str, str]]:
    return [_training_cost_names(config, setting, group) for group in config.sections(setting)]


# -- the numbers of a record's results that MLflow shows


def _accuracy(results: dict) -> Metrics:
    for key in ("top1", "top5", "val_loss", "loss", "ema_top1"):
        yield f"final_{key}", results.get(key), None
    for key in ("best_top1", "best_epoch", "val_images", "macs_g"):
        yield key, results.get(key), None
    yield "deviations", len(results.get("deviations", [])), None
    yield "total_train_s", results.get("train_s"), None  # each epoch has its own `train_s`


def _search(results: dict) -> Metrics:
    yield "macs_g", results["macs_g"], None
    yield "images", results["images"], None
    for layer, kept in enumerate(results["counts"], 1):
        yield f"kept.layer_{layer}", kept, None


def _analysis(results: dict) -> Metrics:
    yield "images", results["images"], None


def _throughput(results: dict) -> Metrics:
    """Yield each model's speed and speed-up; a sweep has the batch size as step."""
    for size in results.get("sizes", [results]):
        step = size["batch_size"] if "sizes" in results else 0
        for method in size["methods"]:
            for key in ("images_per_s", "macs_g", "params_m"):
                yield f"{key}.{method['run']}", method.get(key), step
            if method.get("speedup") is not None:
                yield f"speedup_pct.{method['run']}", 100 * (method["speedup"] - 1), step
            yield f"out_of_memory.{method['run']}", float(method["out_of_memory"]), step


def _training_cost(results: dict) -> Metrics:
    """Yield step times and bytes by batch size and run."""
    for method in results["methods"]:
        for size in method["sizes"]:
            for key in ("step_s_first", "step_s_last", "bytes", "out_of_memory"):
                yield f"{key}.b{size['batch_size']}.{method['run']}", size.get(key), None


def _offtheshelf(results: dict) -> Metrics:
    """Yield accuracy and speed of each model."""
    yield "val_images", results["val_images"], None
    for method in results["methods"]:
        for key in ("top1", "changed", "worse", "better"):
            yield f"{key}.{method['run']}", method.get(key), None
    yield from _throughput(results)


def _dense_prediction(results: dict) -> Metrics:
    """Yield each model's share of patches that are predicted right, in %, and its MACs."""
    yield "val_images", results["val_images"], None
    patches = results["scenes"] * results["patches"]
    for method in results["methods"]:
        if "right" in method:
            yield f"patches_right_pct.{method['run']}", 100 * sum(method["right"]) / patches, None
        yield f"macs_g.{method['run']}", method["macs_g"], None


KINDS = {
    kind.name: kind
    for kind in (
        Kind(
            "data",
            rule="prepare_data",
            target="data.json",
            spec=specs.data_spec,
            jobs=_single_job,
            module="workflow.data.check",
            title="Check of the data",
            after=(),
        ),
        Kind(
            "preflight",
            rule="preflight",
            target="preflight.json",
            spec=specs.preflight_spec,
            jobs=_single_job,
            module="workflow.train.preflight",
            title="Check of all models",
            after=(),
        ),
        Kind(
            "fetch",
            rule="fetch",
            target="weights/{tag}.json",
            spec=_fetch_spec,
            jobs=_downloads,
            module=None,  # workflow.launch.fetch_weights, as compute nodes are often offline
            title="Download of weights",
            after=(),
        ),
        Kind(
            "search",
            rule="search",
            target="runs/{run}/search.json",
            spec=specs.search_spec,
            jobs=_searches,
            module="workflow.train.search",
            title="Search",
            resumable=True,
            metrics=_search,
        ),
        Kind(
            "train",
            rule="train",
            target="runs/{run}/train.json",
            spec=specs.train_spec,
            jobs=_runs,
            module="workflow.train.trainer",
            title="Training",
            distributed=True,
            resumable=True,
            metrics=_accuracy,
        ),
        Kind(
            "evaluate",
            rule="evaluate",
            target="evaluations/{evaluation}.json",
            spec=specs.evaluation_spec,
            jobs=_evaluations,
            module="workflow.train.evaluate",
            title="Evaluation of given weights",
            distributed=True,
            metrics=_accuracy,
        ),
        Kind(
            "analysis",
            rule="analyse",
            target="analyses/{analysis}.json",
            spec=specs.analysis_spec,
            jobs=_analyses,
            module="workflow.analysis.analyze",
            title="Analysis of a trained model",
            metrics=_analysis,
        ),
        Kind(
            "throughput",
            rule="throughput",
            target="throughput/{group}/{configuration}.json",
            spec=_throughput_spec,
            jobs=_throughputs,
            module="workflow.bench.process",
            title="Measurement of images/s",
            after=("preflight.json",),
            exclusive=True,
            metrics=_throughput,
        ),
        Kind(
            "training_cost",
            rule="training_cost",
            target="training/{group}/{configuration}.json",
            spec=_training_cost_spec,
            jobs=_training_costs,
            module="workflow.bench.process",
            title="Measurement of training steps",
            after=("preflight.json",),
            exclusive=True,
            metrics=_training_cost,
        ),
        Kind(
            "offtheshelf",
            rule="offtheshelf",
            target="offtheshelf/{host}.json",
            spec=benchmarks.offtheshelf_spec,
            jobs=_hosts,
            module="workflow.bench.offtheshelf",
            title="Reduction without training",
            exclusive=True,
            metrics=_offtheshelf,
        ),
        Kind(
            "dense_prediction",
            rule="dense_prediction",
            target="dense_prediction/{host}.json",
            spec=specs.dense_prediction_spec,
            jobs=_hosts,
            module="workflow.analysis.dense_prediction",
            title="Prediction of every patch",
            metrics=_dense_prediction,
        ),
    )
}
