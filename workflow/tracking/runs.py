"""The results under a root, and how MLflow shows each: name, tags, params, metrics, artifacts, page.

Nothing here knows MLflow; sync.py sends what is described here. Standard library and yaml only.
"""

import contextlib
import functools
import hashlib
import json
import os
import re
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from workflow.campaign import kinds, specs, targets
from workflow.campaign.config import CLAIMS, Config
from workflow.launch import follow
from workflow.launch.slurm import Queue
from workflow.storage import journal, provenance, records
from workflow.storage.attempts import Attempt

SHOWN = "yes"  # the value of the tags that are named as tables and figures are
NOTE = "mlflow.note.content"  # MLflow's tag with the text on top of a run's page
# An older version wrote the second file; the runs of its attempts must not be made twice.
ID_FILES = (".mlflow-id", ".mirror-id")
PARAMS = (
    *("model", "data", "recipe", "start", "teacher", "checkpoint", "pretrained"),
    *("section", "device", "mode", "precision", "batch_size", "threads", "rounds"),
)
ANALYSIS_PARAMS = ("run", "computes", "images")
RECIPE = ("epochs", "batch_size", "optimizer", "lr", "amp", "images")  # the keys that the page shows
SIGNED = ("spec.json", "job.json", "journal.jsonl", "record.json", "published")  # and error-rank*.json
FILES_OF_AN_ITEM = {".csv": (".md", ".html"), ".png": (".svg", ".csv")}


class Dataset(NamedTuple):
    """One split of the images that a run used: the data set's name, the digest of its listing, split, and what for."""

    name: str
    digest: str
    split: str
    context: str


class Metric(NamedTuple):
    """One value of one metric, as MLflow orders its parts."""

    key: str
    value: float
    time_ms: int
    step: int


@dataclass
class Run:
    """What MLflow should show as one run; `identity` holds the tags by which the run is recognised."""

    identity: dict[str, str]
    experiment: str
    name: str
    started_ms: int
    tags: dict[str, str]
    params: dict[str, str] = field(default_factory=dict)
    metrics: list[Metric] = field(default_factory=list)
    artifacts: list[Path] = field(default_factory=list)
    datasets: list[Dataset] = field(default_factory=list)
    status: str = "RUNNING"
    ended_ms: int | None = None
    settled: bool = True  # its files say everything; otherwise it is described again in the next pass

    @property
    def key(self) -> str:
        """Return the part of the identity that stays when a table's content changes."""
        return self.identity.get("attempt_id") or self.identity["file"]


@dataclass(frozen=True)
class Source:
    """An attempt's folder or an item's file. The signature changes with what MLflow shows of it."""

    setting: str
    path: Path
    signature: str
    last: bool = True  # of its job's attempts


# -- what exists ----------------------------------------------------------------------------------


class Results:
    """The attempts, tables, figures and ledgers of claims of every setting under one root."""

    def __init__(self, root: Path):
        self.root = root
        self.queue = Queue(root / ".snakemake", list_only=True)  # one question for all old jobs together

    @functools.cached_property
    def config(self) -> Config:
        return Config.load()

    def sources(self) -> list[Source]:
        return [*self.attempts(), *self.items()]

    def attempts(self) -> Iterator[Source]:
        patterns = sorted(kind.folders for kind in kinds.KINDS.values() if kind.metrics)
        for name, setting in self.config.settings.items():
            for pattern in patterns:
                for folder in sorted((self.root / setting["results"]).glob(f"{pattern}/attempts")):
                    numbers = [int(entry.name) for entry in os.scandir(folder) if entry.name.isdigit()]
                    for number in numbers:
                        path = folder / str(number)
                        if (path / "spec.json").exists():  # else it is being made
                            last = number == max(numbers)
                            yield Source(name, path, _signature(path, last), last)

    def items(self) -> Iterator[Source]:
        """Yield tables, the ledger of claims, and figures."""
        for name, setting in self.config.settings.items():
            items = [f"{figure}.png" for figure in self.config.items["figures"]]
            for table in (*self.config.tables, CLAIMS):
                items += [f"{table}.csv", f"{table}.partial.csv"]
            for item in items:
                path = self.root / setting["results"] / item
                if path.exists():
                    yield Source(name, path, f"{path.stat().st_mtime_ns} {path.stat().st_size}")

    def a_job_lives(self) -> bool:
        """Return whether a job of an attempt that may still be resumed waits or runs."""
        for source in self.attempts():
            attempt = Attempt(source.path)
            job = attempt.job()
            resumable = source.last and job and not attempt.record.exists()
            if resumable and follow.is_alive(job, source.path, self.queue):
                return True
        return False

    def describe(self, source: Source) -> Run:
        return self._describe_attempt(source) if source.path.is_dir() else self._describe_item(source)

    def _describe_attempt(self, source: Source) -> Run:
        """Describe an attempt: the status first, then the journal, so that a finished run has all epochs."""
        attempt = Attempt(source.path)
        spec, job = attempt.spec, attempt.job() or {}
        folder = source.path.parent.parent
        results = self.config.settings[source.setting]["results"]
        names = (*PARAMS, *ANALYSIS_PARAMS) if spec["kind"] == "analysis" else PARAMS
        run = Run(
            identity={"attempt_id": _identity(source.path)},
            experiment=source.setting,
            name=re.sub("^(runs|throughput|training)/", "", str(folder.relative_to(self.root / results))),
            started_ms=round(1000 * (source.path / "spec.json").stat().st_mtime),
            params=_flatten("", {name: spec[name] for name in names if name in spec}),
            tags={
                "kind": spec["kind"],
                "folder": str(folder.relative_to(self.root)),
                "attempt": source.path.name,
                "spec_hash": specs.spec_hash(spec),
                **item_tags(self.config, spec),
                **source_tags(command(self.config, source.setting, folder.relative_to(self.root)), source.path),
            },
        )
        if "seed" in spec:
            run.tags["seed"] = str(spec["seed"])
        for key in ("host", "launcher"):
            if key in job:
                run.tags[key] = job[key]
        if job.get("launcher") == "slurm":
            run.tags["slurm_job_id"] = job["job_id"]
        record = json.loads(attempt.record.read_text()) if attempt.record.exists() else None
        self._set_status(run, attempt, source.last, record)
        run.metrics, repeated = metrics_of_journal(attempt.journal)
        if repeated:
            run.tags["done_twice"] = ",".join(map(str, repeated))
        if record:
            run.tags |= provenance_tags(record) | weights_tags(record, folder.relative_to(self.root))
            run.datasets = datasets_of(record)
            run.metrics += _metrics_of_record(record, run.ended_ms)
            files = [source.path / "spec.json", attempt.record, *source.path.glob("*.npz"), *folder.glob("*.log")]
            run.artifacts = [path for path in files if path.exists()]
        else:
            run.tags |= _code_of_last_start(attempt)
        run.tags[NOTE] = page(self.config, source.setting, folder.relative_to(self.root), spec, record)
        return run

    def _set_status(self, run: Run, attempt: Attempt, last: bool, record: dict | None) -> None:
        """Set the run's status and end. A job that was preempted or killed will be resumed, and stays RUNNING."""
        errors = list(attempt.folder.glob("error-rank*.json"))
        job = attempt.job() or {}
        failed = errors and job and not all(error.get("stopped") for error in attempt.errors())
        if record:
            run.status = "FINISHED"
            ended = record["provenance"]["started"] + record["provenance"]["wall_s"]
        elif not last:  # its spec changed, another attempt replaced it, and nothing resumes it
            run.status = "KILLED"
            ended = max(path.stat().st_mtime for path in attempt.folder.iterdir())
        elif failed and follow.is_alive(job, attempt.folder, self.queue):
            run.settled = False  # its other processes may go on
            return
        elif failed:
            run.status = "FAILED"
            ended = max(path.stat().st_mtime for path in errors)
        else:
            return
        run.ended_ms = round(1000 * ended)

    def _describe_item(self, source: Source) -> Run:
        """Describe a table, a figure or the ledger of claims."""
        path, config = source.path, self.config
        name = path.name.removesuffix(path.suffix)
        item, now = name.partition(".")[0], round(1000 * time.time())
        tags = {"kind": "table" if item in config.tables else "figure", item: SHOWN}
        if item == CLAIMS:
            tags["kind"] = CLAIMS
        results = config.settings[source.setting]["results"]
        tags |= source_tags(
            f"snakemake {results}/{path.name} --profile {targets.profile(config, source.setting)}", path
        )
        tags[NOTE] = targets.caption(config, results, str(path.relative_to(self.root))).replace("``", "`")
        files = [path, *(path.with_name(f"{name}{other}") for other in FILES_OF_AN_ITEM[path.suffix])]
        return Run(
            identity={"file": str(path.resolve()), "sha256": records.sha256(path)},
            experiment=source.setting,
            name=name,
            started_ms=now,  # the newest run of a name is the one that counts
            tags=tags,
            artifacts=[file for file in files if file.exists()],
            status="FINISHED",
            ended_ms=now,
        )


def _signature(attempt: Path, last: bool) -> str:
    """Return a text that changes with any of the attempt's files that MLflow shows. It reads one directory only."""
    parts = []
    for entry in os.scandir(attempt):
        if entry.name in SIGNED or entry.name.startswith("error-rank"):
            parts.append(f"{entry.name} {entry.stat().st_mtime_ns} {entry.stat().st_size}")
    return hashlib.sha256(f"{sorted(parts)} {last}".encode()).hexdigest()[:16]


def _identity(attempt: Path) -> str:
    """Return an identifier that the attempt keeps wherever its folder is moved or copied to.

    Its path is no such identifier: a folder that was deleted and made anew is another run, and clones share servers.
    """
    try:
        for name in ID_FILES:
            if (attempt / name).exists():
                return (attempt / name).read_text()
        path = attempt / ID_FILES[0]
        draft = attempt / f"{path.name}.{os.getpid()}"
        draft.write_text(uuid.uuid4().hex)
        try:
            os.link(draft, path)  # unlike a rename, keeps the name that came first
        except FileExistsError:
            pass
        finally:
            draft.unlink()
        return path.read_text()
    except OSError:  # someone else's results
        return str(attempt.resolve())


def _flatten(prefix: str, value) -> dict[str, str]:
    """Return nested mappings as one, with names joined by dots."""
    if not isinstance(value, dict):
        return {prefix: str(value)}
    flat: dict[str, str] = {}
    for key, inner in value.items():
        flat |= _flatten(f"{prefix}.{key}" if prefix else key, inner)
    return flat


# -- tags -----------------------------------------------------------------------------------------


def item_tags(config: Config, spec: dict) -> dict[str, str]:
    """Return a tag for each table and figure that shows the record, named as the item is (`tags.table1 = 'yes'`).

    The tags `backbone`, `method` and `strategy` say under which names tables show it, where they agree.
    """
    figures = config.items["figures"]
    if "analysis" in spec:
        return dict.fromkeys((name for name in figures if spec["analysis"] in config.analyses(name)), SHOWN)
    if "evaluation" in spec or spec["kind"] in specs.OF_HOSTS:
        compiled = config.items["compiled"]
        tables = config.tables_of(spec["setting"])
        return dict.fromkeys((table for table in tables if compiled.get(table) == spec["kind"]), SHOWN)
    if "row" in spec:
        column, value = "run", spec["row"]
    else:
        column, value = "section", spec["section"]
    rows = {table: [row for row in rows if row[column] == value] for table, rows in config.items["tables"].items()}
    tags = dict.fromkeys((table for table in rows if rows[table]), SHOWN)
    tags |= dict.fromkeys((name for name in figures if any(row[column] == value for row in config.rows(name))), SHOWN)
    for key in ("backbone", "method", "strategy"):  # each table has some of them
        values = {row[key] for table in rows for row in rows[table] if key in row}
        if len(values) == 1:
            tags[key] = values.pop()
    return tags


def source_tags(made_by: str, path: Path) -> dict[str, str]:
    """Return MLflow's own tags: the command that makes a result, and the user who owns its files."""
    tags = {"mlflow.source.name": made_by, "mlflow.source.type": "LOCAL"}
    with contextlib.suppress(KeyError, OSError):  # a user that this machine does not know
        tags["mlflow.user"] = path.owner()
    return tags


def weights_tags(record: dict, folder: Path) -> dict[str, str]:
    """Return where the final weights of a training are, below the project's root, and their hash."""
    weights = record["results"].get("weights")
    return {"weights": str(folder / weights["path"]), "weights_sha256": weights["sha256"]} if weights else {}


def datasets_of(record: dict) -> list[Dataset]:
    """Return the images that a record's job used, where it noted the digest of their listing."""
    data, digest = record["spec"].get("data"), record["provenance"].get("manifest")
    if not data or not digest:
        return []
    uses = [(data["val"], "validation")]
    if record["kind"] in ("train", "search"):
        uses.insert(0, (data["train"], "training"))
    return [Dataset(data["name"], digest, split, context) for split, context in uses]


def provenance_tags(record: dict) -> dict[str, str]:
    """Return the tags of the device, the host, the code and the versions that made a record."""
    known = record["provenance"]
    tags = {key: str(known[key]) for key in ("device", "host") if known.get(key) is not None}
    versions = ", ".join(f"{name} {version}" for name, version in known.get("versions", {}).items())
    return tags | _code_tags(known) | {"versions": versions}


def _code_tags(known: dict) -> dict[str, str]:
    """Return the tags of a record's provenance, or of a version of the code.

    They are the commit, whether files differed from it, why both are unknown, and which version made which part.
    """
    tags = {}
    for key in ("commit", "dirty"):
        tags[key] = "unknown" if known.get(key) is None else str(known[key])
    if known.get("commit") not in (None, provenance.MIXED):
        tags["mlflow.source.git.commit"] = known["commit"]
    for key, text in (("commit_reason", provenance.unknown_reason(known)), ("code", provenance.spans(known))):
        if text:
            tags[key] = text
    return tags


def _code_of_last_start(attempt: Attempt) -> dict[str, str]:
    """Return the tags of the code that an attempt without a record was last started with."""
    tags = {}
    for event, _ in journal.read(attempt.journal):
        if event["event"] == "start" and "code" in event:
            tags = _code_tags(event["code"])
    return tags


# -- metrics --------------------------------------------------------------------------------------


def metrics_of_journal(path: Path) -> tuple[list[Metric], list[int]]:
    """Return the metrics of a training's epochs or a search's layers, each once, and which steps were repeated.

    A job that died before it saved an epoch repeats it. The record counts the second time; MLflow, which takes no value
    back, keeps the first. On a CPU only their seconds differ.
    """
    by_step: dict[int, list[Metric]] = {}
    repeated = set()
    for event, _ in journal.read(path):
        if event["event"] not in ("epoch", "layer"):
            continue
        step = event[event["event"]]
        if step in by_step:
            repeated.add(step)
        else:
            time_ms = round(1000 * event["time"])
            values = {key: value for key, value in event["metrics"].items() if value is not None}
            by_step[step] = [Metric(key, value, time_ms, step) for key, value in values.items()]
    return [metric for metrics in by_step.values() for metric in metrics], sorted(repeated)


def _metrics_of_record(record: dict, time_ms: int) -> list[Metric]:
    """Return the numbers of a record. Its curves over layers or epochs become metrics with steps."""
    results = record["results"]
    last = results.get("epochs", 0)
    metrics = [Metric("wall_s", record["provenance"]["wall_s"], time_ms, last)]
    for key, value, step in kinds.KINDS[record["kind"]].metrics(results):
        if value is not None:
            metrics.append(Metric(key, value, time_ms, last if step is None else step))
    for key, curve in results.get("curves", {}).items():
        metrics += [Metric(key, value, time_ms, step) for step, value in enumerate(curve, 1)]
    return metrics


# -- pages ----------------------------------------------------------------------------------------


def page(config: Config, setting: str, folder: Path, spec: dict, record: dict | None) -> str:
    """Return the text on top of a run's page, in Markdown. `folder` is its job's, below the project's root.

    MLflow folds all but the first lines, so result, device and duration come first.
    """
    lines = [f"**{kinds.KINDS[spec['kind']].title}** in the setting `{setting}`"]
    lines += _outcome(record) if record else ["- not finished yet"]
    if "model" in spec:
        model = spec["model"]
        options = ", ".join(f"{key}={value}" for key, value in model["kwargs"].items())
        lines.append(f"- model: `{model['name']}`" + (f" ({options})" if options else ""))
        if "method" in model:
            keywords = ", ".join(f"{key}={value}" for key, value in model["options"].items())
            lines.append(f"- reduced by: `{model['method']}`" + (f" ({keywords})" if keywords else ""))
    if "models" in spec:
        names = ", ".join(f"`{model['run']}`" for model in spec["models"])
        sizes = spec.get("batch_sizes") or [spec["batch_size"]]
        configuration = [f"{key} {spec[key]}" for key in ("device", "mode", "precision") if key in spec]
        lines.append(f"- models, in interleaved rounds: {names}")
        lines.append(f"- how: {', '.join(configuration)}, batch {', '.join(map(str, sizes))}")
    if "data" in spec:
        lines.append(f"- data: {spec['data']['name']}, {spec['data']['num_classes']} classes")
    recipe = spec.get("recipe", {})
    if "name" in recipe:  # an analysis has only what images need
        values = ", ".join(f"{key} {recipe[key]}" for key in RECIPE if recipe.get(key) is not None)
        lines.append(f"- recipe: `{recipe['name']}` ({values})")
    for role, verb in (("start", "starts from"), ("teacher", "learns from")):
        if role in spec:
            lines.append(f"- {verb} `{spec[role]['run']}`")
    if "seed" in spec:
        lines.append(f"- seed: {spec['seed']}")
    if record:
        lines.append(f"- code: {describe_code(record['provenance'])}")
    return "\n".join([*lines, "", "Again:", "", f"    {command(config, setting, folder)}"])


def _outcome(record: dict) -> Iterator[str]:
    """Yield result, device and duration of a finished job."""
    results, known = record["results"], record["provenance"]
    if "top1" in results:
        images = f" on {results['val_images']} images" if "val_images" in results else ""
        yield f"- result: top-1 {results['top1']:.2f} %{images}"
    device = results.get("device") or known.get("device") or "unknown device"
    processes = f", {known['world_size']} processes" if known.get("world_size", 1) > 1 else ""
    yield f"- device: {device}{processes}, on {known['host']}"
    yield f"- how long: {_duration(known['wall_s'])}"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def describe_code(known: dict) -> str:
    """Say which commit made a record, why it is unknown, or which commits made which part."""
    reason = provenance.unknown_reason(known)
    if reason:
        return f"unknown commit: {reason}"
    uncommitted = ", with changes that are not committed" if known.get("dirty") else ""
    return provenance.spans(known) or f"commit {known['commit'][:10]}{uncommitted}"


def command(config: Config, setting: str, folder: Path) -> str:
    """Return the command that makes a job's record again, although it exists."""
    record = folder / "train.json" if folder.parent.name == "runs" else folder.with_name(f"{folder.name}.json")
    return f"snakemake {record} --profile {targets.profile(config, setting)} --forcerun {record}"


def experiment_tags(config: Config, setting: str) -> dict[str, str]:
    """Return the tags of a setting's experiment: its description, and that it holds trainings of models.

    MLflow 3 opens an experiment without the second on its pages for generative AI.
    """
    data, results = config.settings[setting]["data"], config.settings[setting]["results"]
    text = (
        f"Everything below `{results}/`: the setting `{setting}` of `workflow/config/settings.yaml` "
        f"(images: {data['name']}). Each attempt of a job is a run, and so is each table and figure. "
        "Rows of Table 1: search `tags.table1 = 'yes'`; of a figure, `tags.figureS1a = 'yes'`."
    )
    return {NOTE: text, "mlflow.experimentKind": "custom_model_development"}
