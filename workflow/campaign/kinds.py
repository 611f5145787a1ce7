"""The kinds of jobs: one registry that rules, targets, launchers, forecasts, tables and MLflow ask.

A new kind is an entry in KINDS and the module that runs it. `record` is how everyone gets a job's path, spec and hash.
Standard library and yaml only: launchers import this.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from workflow.campaign import benchmarks, specs
from workflow.campaign.config import Config

CHECKS = ("data.json", "preflight.json")  # what most jobs wait for


@dataclass(frozen=True)
class Kind:
    """One kind of job.

    Attributes:
        name: the `kind` in its specs.
        rule: the name of its Snakemake rule, by which --set-resources and --forcerun call it.
        target: its record's path below a setting's results; the names in braces choose the job.
        spec: returns the spec for (config, setting, **names); raises KeyError or BenchmarkError where there is no
            such job.
        module: the module whose `run(spec, site, folder)` computes the record on the node; None for a kind that a
            program on the login node makes.
        title: what MLflow calls it.
        after: records, below the setting's results, that must be there before it.
        exclusive: it is alone on its device, since it measures time.
        distributed: it may run as several processes; other kinds run once, whatever resources they were given.
        resumable: after a time limit it goes on where it was; others would begin anew and meet the same limit.
        is_run: its record holds the accuracy of a run's model.
        metrics: the numbers that MLflow shows of its results: the metric's name -> the key of the results. A list
            counts as its length.
    """

    name: str
    rule: str
    target: str
    spec: Callable[..., dict]
    module: str | None
    title: str
    after: tuple[str, ...] = CHECKS
    exclusive: bool = False
    distributed: bool = False
    resumable: bool = False
    is_run: bool = False
    metrics: dict[str, str] = field(default_factory=dict)

    @property
    def device_share(self) -> int:
        """The percentage of a device that Snakemake keeps for it; the profile has 100."""
        return 100 if self.exclusive else 1

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


def throughput_record(config: Config, setting: str, group: str) -> Record:
    """Return the record of the throughput that the setting's tables show of a benchmark group."""
    configuration = benchmarks.name(benchmarks.throughput_configuration(config, setting, group))
    return record(config, "throughput", setting, group=group, configuration=configuration)


def training_cost_record(config: Config, setting: str, group: str) -> Record:
    """Return the record of the training steps that the setting's tables show of a benchmark group."""
    configuration = benchmarks.training_cost_name(benchmarks.training_cost_configuration(config, setting))
    return record(config, "training_cost", setting, group=group, configuration=configuration)


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
    shown = benchmarks.throughput_configuration(config, setting, group)
    return benchmarks.throughput_spec(config, setting, group, benchmarks.parse(configuration, shown))


def _training_cost_spec(config: Config, setting: str, group: str, configuration: str) -> dict:
    shown = benchmarks.training_cost_configuration(config, setting)
    return benchmarks.training_cost_spec(config, setting, group, benchmarks.parse_training_cost(configuration, shown))


ACCURACY = {
    **{f"final_{key}": key for key in ("top1", "top5", "val_loss", "loss", "ema_top1")},
    **{key: key for key in ("best_top1", "best_epoch", "val_images", "deviations", "macs_g")},
    "total_train_s": "train_s",  # an epoch's is called train_s
}
KINDS = {
    kind.name: kind
    for kind in (
        Kind(
            "data",
            rule="prepare_data",
            target="data.json",
            spec=specs.data_spec,
            module="workflow.data.check",
            title="Check of the data",
            after=(),
        ),
        Kind(
            "preflight",
            rule="preflight",
            target="preflight.json",
            spec=specs.preflight_spec,
            module="workflow.train.preflight",
            title="Check of all models",
            after=(),
        ),
        Kind(
            "fetch",
            rule="fetch",
            target="weights/{tag}.json",
            spec=_fetch_spec,
            module=None,  # workflow.launch.fetch_weights, as compute nodes are often offline
            title="Download of weights",
            after=(),
        ),
        Kind(
            "search",
            rule="search",
            target="runs/{run}/search.json",
            spec=specs.search_spec,
            module="workflow.train.search",
            title="Search",
            resumable=True,
            metrics={"macs_g": "macs_g", "images": "images"},
        ),
        Kind(
            "train",
            rule="train",
            target="runs/{run}/train.json",
            spec=specs.train_spec,
            module="workflow.train.train",
            title="Training",
            distributed=True,
            resumable=True,
            is_run=True,
            metrics=ACCURACY,
        ),
        Kind(
            "evaluate",
            rule="evaluate",
            target="evaluations/{evaluation}.json",
            spec=specs.evaluation_spec,
            module="workflow.train.evaluate",
            title="Evaluation of given weights",
            distributed=True,
            is_run=True,
            metrics=ACCURACY,
        ),
        Kind(
            "analysis",
            rule="analyse",
            target="analyses/{analysis}.json",
            spec=specs.analysis_spec,
            module="workflow.analysis.analyze",
            title="Analysis of a trained model",
            metrics={"images": "images"},
        ),
        Kind(
            "throughput",
            rule="throughput",
            target="throughput/{group}/{configuration}.json",
            spec=_throughput_spec,
            module="workflow.bench.fresh",
            title="Measurement of images/s",
            after=("preflight.json",),
            exclusive=True,
        ),
        Kind(
            "training_cost",
            rule="training_cost",
            target="training/{group}/{configuration}.json",
            spec=_training_cost_spec,
            module="workflow.bench.fresh",
            title="Measurement of training steps",
            after=("preflight.json",),
            exclusive=True,
        ),
    )
}
