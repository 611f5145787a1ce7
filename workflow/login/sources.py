"""What lies on disk, as MLflow's terms: runs with parameters, tags, points and artifacts."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

from workflow import journal, records, runs
from workflow.login import executors
from workflow.login.attempts import Attempt
from workflow.runs import Config

Point = tuple[str, float, int, int]  # metric, value, time in ms, step


def sources(root: Path) -> Iterator["AttemptSource | TableSource"]:
    """Every attempt of a training or a measurement, and every compiled table, below `root`."""
    config = Config.load()
    for experiment, setting in config.settings.items():
        results = root / setting["results"]
        for pattern in ("runs/*/attempts/*", "throughput/*/*/attempts/*"):
            for folder in sorted(results.glob(pattern)):
                if folder.name.isdigit() and (folder / "spec.json").exists():
                    yield AttemptSource(folder, experiment, root, config)
        for path in sorted(results.glob("table*.csv")):
            yield TableSource(path, experiment, root)


def flatten(values: dict, prefix: str = "") -> dict[str, str]:
    """Nested values under dotted names, as MLflow's parameters (strings)."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = str(value)
    return flat


class AttemptSource:
    """One attempt of a training or a throughput measurement."""

    def __init__(self, folder: Path, experiment: str, root: Path, config: Config):
        self.attempt, self.experiment, self.config = Attempt(folder), experiment, config
        self.folder = folder.relative_to(root)
        # the time tells this attempt from one of the same name in a tree that was deleted
        self.begun_ns = (folder / "spec.json").stat().st_mtime_ns
        self.identity = f"{self.folder}@{self.begun_ns}"

    def signature(self) -> tuple:
        """Changes whenever there may be something new to mirror."""
        names = ("journal.jsonl", "record.json", "job.json", "error-rank0.json")
        paths = [self.attempt.folder / name for name in names]
        stats = [path.stat() if path.exists() else None for path in paths]
        return tuple(stat and (stat.st_mtime_ns, stat.st_size) for stat in stats)

    @property
    def spec(self) -> dict:
        return self.attempt.spec

    @property
    def name(self) -> str:
        job = self.attempt.folder.parent.parent
        return job.name if self.spec["kind"] == "train" else f"{job.parent.name}/{job.name}"

    def record(self) -> dict | None:
        return records.read(self.attempt.record) if self.attempt.record.exists() else None

    def is_alive(self) -> bool:
        job = self.attempt.job()
        if job is None or self.attempt.record.exists():
            return False
        return executors.is_alive(job, self.attempt.folder)

    def status(self) -> str:
        """MLflow's word for it; a job that was killed or preempted is expected back."""
        if self.attempt.record.exists():
            return "FINISHED"
        return "FAILED" if self.attempt.errors() and not self.is_alive() else "RUNNING"

    def started_ms(self) -> int:
        return self.begun_ns // 1_000_000

    def ended_ms(self) -> int:
        return int(self.attempt.record.stat().st_mtime * 1000)

    def params(self) -> dict[str, str]:
        spec = self.spec
        if spec["kind"] == "train":
            return flatten({key: spec[key] for key in ("model", "data", "recipe", "seed")})
        point = {key: value for key, value in spec.items() if key not in ("kind", "models")}
        return flatten({**point, "models": " ".join(model["name"] for model in spec["models"])})

    def tags(self) -> dict[str, str]:
        spec, job, record = self.spec, self.attempt.job() or {}, self.record()
        tags = {
            "kind": spec["kind"],
            "attempt": self.attempt.number,
            "folder": self.folder,
            "spec_hash": runs.spec_hash(spec),
            "seed": spec.get("seed"),
            "launcher": job.get("launcher"),
            "job_id": job.get("job_id"),
        }
        for row in self.config.items["table1"]:
            if row["run"] == spec.get("row"):
                tags |= {"table": "1", "backbone": row["backbone"], "method": row["method"]}
            elif row["section"] == spec.get("section"):
                tags |= {"table": "1", "backbone": row["backbone"]}
        if record is not None:
            provenance = record["provenance"]
            tags |= {name: provenance.get(name) for name in ("commit", "dirty", "host", "device")}
            tags |= {f"version.{name}": text for name, text in provenance["versions"].items()}
        return {key: str(value) for key, value in tags.items() if value is not None}

    def points(self) -> Iterator[Point]:
        """A training's metrics by completed epoch; at the end the record's single numbers."""
        epoch = 0
        for event, _ in journal.read(self.attempt.journal):
            if event["event"] == "epoch":
                epoch = event["epoch"]
                for key, value in event["metrics"].items():
                    yield key, float(value), int(event["time"] * 1000), epoch
        if (record := self.record()) is None:
            return
        ended = self.ended_ms()
        for key, value in self._final(record).items():
            yield key, float(value), ended, epoch

    def _final(self, record: dict) -> dict[str, float]:
        results, wall = record["results"], {"wall_s": record["provenance"]["wall_s"]}
        if record["kind"] == "train":
            names = ("best_top1", "best_epoch", "val_images")
            return wall | {name: results[name] for name in names}
        names = ("images_per_s", "speedup", "macs_g", "params_m")
        return wall | {
            f"{name}.{method['run']}": method[name]
            for method in results["methods"]
            for name in names
        }

    def artifacts(self) -> list[Path]:
        job = self.attempt.folder.parent.parent
        paths = [self.attempt.folder / "spec.json", self.attempt.record, *job.glob("*.log")]
        return [path for path in paths if path.exists()]


class TableSource:
    """One version of a compiled table."""

    def __init__(self, path: Path, experiment: str, root: Path):
        self.path, self.experiment, self.name = path, experiment, path.stem
        self.content_hash = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        self.identity = f"{path.relative_to(root)}@{self.content_hash}"

    def signature(self) -> tuple:
        return (self.content_hash,)

    def status(self) -> str:
        return "FINISHED"

    def started_ms(self) -> int:
        return int(self.path.stat().st_mtime * 1000)

    def ended_ms(self) -> int:
        return self.started_ms()

    def params(self) -> dict[str, str]:
        return {}

    def tags(self) -> dict[str, str]:
        number = self.name.removeprefix("table").partition(".")[0]
        return {"kind": "table", "table": number, "sha256": self.content_hash}

    def points(self) -> Iterator[Point]:
        return iter(())

    def artifacts(self) -> list[Path]:
        return [self.path]
