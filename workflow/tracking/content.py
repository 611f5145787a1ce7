"""What lies on disk, as MLflow should show it: attempts -> names, tags, params, status.

Standard library and yaml only. tracking.py sends what is described here; nothing here knows MLflow.
"""

import json
import os
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from workflow.campaign import specs
from workflow.campaign.config import Config
from workflow.launch import follow
from workflow.launch.slurm import Queue
from workflow.storage import journal, provenance
from workflow.storage.attempts import Attempt
from workflow.tracking import run_metrics, run_page

SHOWN = ("model", "data", "recipe", "start", "teacher", "checkpoint")
LOOK = ("run", "computes", "images")  # of an analysis
POINT = ("section", "device", "mode", "precision", "batch_size", "threads", "rounds")


@dataclass
class Content:
    """One MLflow run; `identity` holds the tags by which it is found again."""

    identity: dict[str, str]
    experiment: str
    name: str
    started_ms: int
    tags: dict[str, str]
    params: dict[str, str] = field(default_factory=dict)
    points: list[run_metrics.Point] = field(default_factory=list)
    artifacts: list[Path] = field(default_factory=list)
    table: dict | None = None
    status: str = "RUNNING"
    ended_ms: int | None = None
    settled: bool = True  # its files alone say everything; else it is looked at again

    @property
    def key(self) -> str:
        """What stays of its identity when a table's content changes."""
        return self.identity.get("attempt_id") or self.identity["file"]


@dataclass(frozen=True)
class Source:
    """An attempt's folder or a table's file, with what tells whether it changed."""

    setting: str
    path: Path
    signature: str
    last: bool = True  # of its job's attempts


def identity(attempt: Path) -> str:
    """A name that the attempt keeps for good, wherever its folder is moved or copied to.

    Its path alone is none: a deleted folder made anew is another run, and clones share servers.
    """
    path = attempt / ".mirror-id"
    try:
        if not path.exists():
            beside = attempt / f".mirror-id.{os.getpid()}"
            beside.write_text(uuid.uuid4().hex)
            try:
                os.link(beside, path)  # unlike a rename, keeps the name that came first
            except FileExistsError:
                pass
            finally:
                beside.unlink()
        return path.read_text()
    except OSError:  # someone else's results
        return str(attempt.resolve())


def flatten(prefix: str, value) -> dict[str, str]:
    if isinstance(value, dict):
        flat: dict[str, str] = {}
        for key, inner in value.items():
            flat |= flatten(f"{prefix}.{key}" if prefix else key, inner)
        return flat
    return {prefix: str(value)}


def item_tags(config: Config, spec: dict) -> dict[str, str]:
    """Which tables and figures show it, and under which backbone, method and strategy."""
    if "evaluation" in spec:
        return {}
    if "analysis" in spec:
        return figure_tag(name for name in config.items["figures"]
                          if spec["analysis"] in config.analyses(name))  # fmt: skip
    field_, name = ("run", spec["row"]) if "row" in spec else ("section", spec["section"])
    tables, rows = [], []
    for item, content in config.items["tables"].items():
        found = [row for row in content if row[field_] == name]
        tables += [item.removeprefix("table")] if found else []
        rows += found
    tags = {"table": ",".join(tables)} if tables else {}
    tags |= figure_tag(item for item in config.items["figures"]
                       if any(row[field_] == name for row in config.rows(item)))  # fmt: skip
    for key in ("backbone", "method", "strategy"):  # each table has some of them
        values = {row[key] for row in rows if key in row}
        if len(values) == 1:
            tags[key] = values.pop()
    return tags


def figure_tag(figures: Iterable[str]) -> dict[str, str]:
    found = ",".join(name.removeprefix("figure") for name in figures)
    return {"figure": found} if found else {}


def code_tags(known: dict) -> dict[str, str]:
    """The commit, whether files differed from it, why both are unknown, and which versions of the
    code made which part; from a record's provenance or one version of the code."""
    values = {key: known.get(key) for key in ("commit", "dirty")}
    tags = {key: "unknown" if value is None else str(value) for key, value in values.items()}
    more = {"commit_reason": provenance.unknown_reason(known), "code": provenance.spans(known)}
    return tags | {key: text for key, text in more.items() if text}


def provenance_tags(record: dict) -> dict[str, str]:
    known = record["provenance"]
    named = {key: known.get(key) for key in ("device", "host")}
    tags = {key: str(value) for key, value in named.items() if value is not None} | code_tags(known)
    versions = known.get("versions", {})
    return tags | {"versions": ", ".join(f"{name} {is_}" for name, is_ in versions.items())}


def running_tags(attempt: Attempt) -> dict[str, str]:
    """The code of an attempt without a record: that of its last start."""
    starts = [event["code"] for event, _ in journal.read(attempt.journal)
              if event["event"] == "start" and "code" in event]  # fmt: skip
    return code_tags(starts[-1]) if starts else {}


def describe_attempt(root: Path, source: Source, config: Config, queue: Queue) -> Content:
    """Status first, then the journal: a run that is shown as finished has all its epochs."""
    attempt = Attempt(source.path)
    spec, job = attempt.spec, attempt.job() or {}
    record = json.loads(attempt.record.read_text()) if attempt.record.exists() else None
    folder = source.path.parent.parent
    started = (source.path / "spec.json").stat().st_mtime
    shown = (*SHOWN, *POINT, *(LOOK if spec["kind"] == "analysis" else ()))
    content = Content(
        identity={"attempt_id": identity(source.path)},
        experiment=source.setting,
        name=display_name(spec, folder),
        started_ms=round(1000 * started),
        params=flatten("", {key: spec[key] for key in shown if key in spec}),
        tags={
            "kind": spec["kind"],
            "folder": str(folder.relative_to(root)),
            "attempt": source.path.name,
            "spec_hash": specs.spec_hash(spec),
            **item_tags(config, spec),
            **({"seed": str(spec["seed"])} if "seed" in spec else {}),
            **({"host": job["host"]} if "host" in job else {}),
            **({"launcher": job["launcher"]} if job else {}),
            **({"slurm_job_id": job["job_id"]} if job.get("launcher") == "slurm" else {}),
            **(provenance_tags(record) if record else running_tags(attempt)),
            run_page.NOTE: run_page.of_attempt(config, spec, source.setting, folder.relative_to(root), record),
        },
    )
    settle(content, attempt, source.last, job, record, queue)
    content.points, again = run_metrics.of_journal(attempt.journal)
    if again:
        content.tags["done_twice"] = ",".join(map(str, again))
    if record:
        content.points += run_metrics.of_record(record, content.ended_ms)
        logs = folder.glob("*.log")
        files = [source.path / "spec.json", attempt.record, *source.path.glob("*.npz"), *logs]
        content.artifacts = [path for path in files if path.exists()]
    return content


def display_name(spec: dict, folder: Path) -> str:
    """The run's name; of what belongs to a run or a section, with that before it."""
    if "evaluation" in spec:
        return f"evaluations/{spec['evaluation']}"
    if "analysis" in spec:
        return f"analyses/{spec['analysis']}"
    if spec["kind"] in run_metrics.RUNS:
        return spec["run"]
    return f"{spec.get('run') or spec['section']}/{folder.name}"


def settle(content: Content, attempt: Attempt, last: bool, job: dict, record: dict | None, queue: Queue) -> None:
    """Its status. A job that was preempted or killed is to be resumed, so its run stays RUNNING."""
    errors = list(attempt.folder.glob("error-rank*.json"))
    stopped = all(error.get("stopped") for error in attempt.errors())
    if record:
        known = record["provenance"]
        content.status, ended = "FINISHED", known["started"] + known["wall_s"]
    elif not last:  # its spec changed: another attempt took its place, nothing resumes it
        content.status, ended = "KILLED", max(p.stat().st_mtime for p in attempt.folder.iterdir())
    elif errors and job and not stopped:
        if follow.is_alive(job, attempt.folder, queue):
            content.settled = False  # its other processes may go on; ask again
            return
        content.status, ended = "FAILED", max(path.stat().st_mtime for path in errors)
    else:
        return
    content.ended_ms = round(1000 * ended)
