"""Attempts: the numbered folders in which jobs work, and which of them is current.

    <job folder>/spec.json                what is wanted now
    <job folder>/attempts/3/spec.json     what this attempt was started for
                           /job.json      where its job runs
                           /journal.jsonl, checkpoints/, record.json, logs/
                           /published     its record was handed to Snakemake

An attempt is open until its record is published; an open attempt is resumed, a closed one is
history. Nothing is ever deleted here.
"""

import base64
import hashlib
import json
from pathlib import Path

from workflow.campaign import specs
from workflow.storage import records

ELSEWHERE = "taken_in"


class Attempt:
    """One attempt's folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.number = int(folder.name)
        self.record = folder / "record.json"
        self.journal = folder / "journal.jsonl"
        self.published = folder / "published"

    @property
    def job_name(self) -> str:
        """What Slurm shows, and by which a job that nobody noted is found again."""
        place = hashlib.sha256(str(self.folder.resolve()).encode()).hexdigest()[:8]
        return f"{self.folder.parent.parent.name}-{self.number}-{place}"

    @property
    def spec(self) -> dict:
        return json.loads((self.folder / "spec.json").read_text())

    def job(self) -> dict | None:
        """What was noted of its job at submission, None if none was submitted."""
        try:
            return json.loads((self.folder / "job.json").read_text())
        except FileNotFoundError:
            return None

    def note_job(self, **values) -> None:
        for error in self.folder.glob("error-rank*.json"):
            error.unlink()  # of the job before
        noted = {**values, "place": location(self.folder)}
        records.write_json(self.folder / "job.json", noted)

    def note_cancelled(self) -> None:
        """Its job was ended from here; while it dies, another may already be submitted."""
        records.write_json(self.folder / "job.json", {**self.job(), "cancelled": True})

    def errors(self) -> list[dict]:
        """Why its processes failed, the first to fail first."""
        paths = self.folder.glob("error-rank*.json")
        ordered = sorted(paths, key=lambda path: path.stat().st_mtime)
        return [json.loads(path.read_text()) for path in ordered]

    def progress(self) -> str:
        """Changes whenever the attempt would be resumed from somewhere else."""
        return max((path.name for path in self.folder.glob("checkpoints/step-*.pt")), default="")


def _numbers(job_folder: Path) -> list[int]:
    return sorted(int(p.name) for p in (job_folder / "attempts").glob("*") if p.name.isdigit())


def newest(job_folder: Path) -> Attempt | None:
    """The newest attempt; one without a spec never began (a kill, a full disk)."""
    for number in reversed(_numbers(job_folder)):
        if (job_folder / "attempts" / str(number) / "spec.json").exists():
            return Attempt(job_folder / "attempts" / str(number))
    return None


def begin(job_folder: Path, spec: dict) -> Attempt:
    """A new attempt for the spec."""
    number = max(_numbers(job_folder), default=0) + 1
    attempt = Attempt(job_folder / "attempts" / str(number))
    specs.write_spec(attempt.folder / "spec.json", spec)
    return attempt


def take_in(job_folder: Path, spec: dict, record: dict) -> None:
    """An attempt that another machine made; it is history at once."""
    attempt = begin(job_folder, spec)
    records.write_json(attempt.record, record)
    (attempt.folder / ELSEWHERE).touch()
    attempt.published.touch()


def is_over(output: Path, attempt: Attempt) -> bool:
    """Whether it is history: published, and recorded as complete by Snakemake after that.

    If not recorded, Snakemake died in between, and deletes and asks for the output again; the
    attempt's record is then still the answer. If so, being asked again means a wanted re-run.
    """
    if not attempt.published.exists():
        return False
    if (attempt.folder / ELSEWHERE).exists():
        return True  # snakemake never made it, so being asked means a wanted re-run
    key = base64.b64encode(str(output).encode(), altchars=b"-_").decode()
    metadata = Path(".snakemake/metadata") / key
    return metadata.exists() and metadata.stat().st_mtime >= attempt.published.stat().st_mtime


def location(attempt_folder: Path) -> dict:
    """Return what tells an attempt's folder from a copy: its path, and a number that a move keeps."""
    return {"folder": str(attempt_folder.resolve()), "inode": attempt_folder.stat().st_ino}


def was_copied(job: dict, attempt_folder: Path) -> bool:
    """Return whether the attempt's folder is a copy of the one in which the job works.

    The job then belongs to the original, and is neither followed nor ended from here.
    """
    noted = job.get("place")
    if noted is None:
        return False
    here = location(attempt_folder)
    return all(noted[key] != here[key] for key in here)
