"""Which attempts and items lie on disk, whether they changed, and who is still at work.

Standard library and yaml only; mirror_content.py says what MLflow shows of each.
"""

import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from workflow.campaign.config import CLAIMS, FILES, Config, ConfigError
from workflow.launch import follow
from workflow.launch.follow import GRACE_S
from workflow.launch.slurm import Queue
from workflow.storage.attempts import Attempt
from workflow.tracking import item_runs
from workflow.tracking.content import Content, Source, describe_attempt

PATTERNS = ("runs/*/attempts", "runs/*/search/attempts", "evaluations/*/attempts",
            "analyses/*/attempts",
            "throughput/*/*/attempts",
            "training/*/*/attempts")  # fmt: skip


class Results:
    """The results of every setting under one root."""

    def __init__(self, root: Path):
        self.root = root
        self._config: Config | None = None
        self._read_at = 0
        self._gone: dict[tuple, float] = {}
        self.queue = Queue(root / ".snakemake", list_only=True)  # however many old jobs there are

    @property
    def config(self) -> Config:
        """workflow/config/ as it is now; as it was, while someone has a mistake in it."""
        try:
            changed = max(path.stat().st_mtime_ns for path in FILES.values())
            if changed != self._read_at:
                self._config, self._read_at = Config.load(), changed
        except (OSError, ConfigError):
            if self._config is None:
                raise
        return self._config

    def _folders(self) -> Iterator[tuple[str, Path]]:
        for name, setting in self.config.settings.items():
            folder = self.root / setting["results"]
            for pattern in PATTERNS:
                for attempts in sorted(folder.glob(pattern)):
                    yield name, attempts

    def attempts(self) -> list[Source]:
        found = []
        for setting, folder in self._folders():
            numbered = [entry.path for entry in os.scandir(folder) if entry.name.isdigit()]
            for path in map(Path, numbered):
                last = int(path.name) == max(int(Path(other).name) for other in numbered)
                if (path / "spec.json").exists():  # else it is being made
                    found.append(Source(setting, path, signature(path, last), last))
        return found

    def items(self) -> list[Source]:
        """Tables, the ledger of claims, and figures."""
        found = []
        for name, setting in self.config.settings.items():
            folder = self.root / setting["results"]
            figures = (folder / f"{figure}.png" for figure in self.config.items["figures"])
            names = [*self.config.items["tables"], CLAIMS]
            tables = (folder / f"{name}{part}.csv" for name in names for part in ("", ".partial"))
            for path in filter(Path.exists, [*tables, *figures]):
                stat = path.stat()
                found.append(Source(name, path, f"{stat.st_mtime_ns} {stat.st_size}"))
        return found

    def describe(self, source: Source) -> Content:
        if source.path.is_dir():
            return describe_attempt(self.root, source, self.config, self.queue)
        return item_runs.describe(self.root, source, self.config)

    def a_job_lives(self, grace: bool = False) -> bool:
        """Whether a job of an attempt that may still be resumed waits or runs.

        A requeued job is for a moment in the state that it ended with: with `grace`, for who asks
        again and again, only a job that stays away is gone.
        """
        for source in self.attempts():
            attempt = Attempt(source.path)
            job = attempt.job()
            if not source.last or job is None or attempt.record.exists():
                continue
            key = (str(source.path), job["job_id"])
            if follow.is_alive(job, source.path, self.queue):
                self._gone.pop(key, None)
                return True
            away_s = time.monotonic() - self._gone.setdefault(key, time.monotonic())
            if grace and away_s < GRACE_S[job["launcher"]]:
                return True
        return False


def signature(attempt: Path, last: bool) -> str:
    """Changes with any of the attempt's files that MLflow shows: one directory read, no more."""
    shown = ("spec.json", "job.json", "journal.jsonl", "record.json", "published")
    parts = []
    for entry in os.scandir(attempt):
        if entry.name in shown or entry.name.startswith("error-rank"):
            stat = entry.stat()
            parts.append(f"{entry.name} {stat.st_mtime_ns} {stat.st_size}")
    return hashlib.sha256(f"{sorted(parts)} {last}".encode()).hexdigest()[:16]
