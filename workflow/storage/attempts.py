"""Attempts: the numbered folders in which jobs work, and which of them is current.

    <job folder>/spec.json                what the last start of snakemake asked for
    <job folder>/attempts/3/spec.json     what this attempt was started for
                           /job.json      where its job runs
                           /journal.jsonl, checkpoints/, record.json, logs/
                           /published     its record was handed to Snakemake

An attempt is open until its record is published. An open attempt is resumed, a closed one is
history. Nothing is ever deleted here.
"""

import base64
import hashlib
import json
from pathlib import Path

from workflow.campaign import specs
from workflow.storage import records

IMPORTED = "taken_in"  # the mark of an attempt that another machine made


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
        """The name that Slurm shows, and by which a job that nobody noted is recognised."""
        digest = hashlib.sha256(str(self.folder.resolve()).encode()).hexdigest()[:8]
        return f"{self.folder.parent.parent.name}-{self.number}-{digest}"

    @property
    def spec(self) -> dict:
        """The spec that the attempt was started for."""
        return json.loads((self.folder / "spec.json").read_text())

    def job(self) -> dict | None:
        """Return what was noted of its job at submission, None if none was submitted."""
        try:
            return json.loads((self.folder / "job.json").read_text())
        except FileNotFoundError:
            return None

    def note_job(self, **values) -> None:
        """Note the job that was submitted, and forget why the one before failed."""
        for error in self.folder.glob("error-rank*.json"):
            error.unlink()
        records.write_json(self.folder / "job.json", {**values, "place": location(self.folder)})

    def note_cancelled(self) -> None:
        """Note that its job was ended from here: while it dies, another may already be submitted."""
        records.write_json(self.folder / "job.json", {**self.job(), "cancelled": True})

    def errors(self) -> list[dict]:
        """Return why its processes failed, the first to fail first."""
        paths = self.folder.glob("error-rank*.json")
        ordered = sorted(paths, key=lambda path: path.stat().st_mtime)
        return [json.loads(path.read_text()) for path in ordered]

    def progress(self) -> str:
        """Return a text that changes whenever the attempt would be resumed from another checkpoint."""
        return max((path.name for path in self.folder.glob("checkpoints/step-*.pt")), default="")


def all_of(job_folder: Path) -> list[Attempt]:
    """Return a job's attempts, the newest first."""
    folders = [path for path in (job_folder / "attempts").glob("*") if path.name.isdigit()]
    return sorted(map(Attempt, folders), key=lambda attempt: attempt.number, reverse=True)


def newest(job_folder: Path) -> Attempt | None:
    """Return the newest attempt. One without a spec never began (a kill, a full disk)."""
    begun = [attempt for attempt in all_of(job_folder) if (attempt.folder / "spec.json").exists()]
    return begun[0] if begun else None


def begin(job_folder: Path, spec: dict) -> Attempt:
    """Begin a new attempt for the spec."""
    number = max((attempt.number for attempt in all_of(job_folder)), default=0) + 1
    attempt = Attempt(job_folder / "attempts" / str(number))
    specs.write_spec(attempt.folder / "spec.json", spec)
    return attempt


def import_record(job_folder: Path, spec: dict, record: dict) -> None:
    """Add an attempt that another machine made; it is history at once."""
    attempt = begin(job_folder, spec)
    records.write_json(attempt.record, record)
    (attempt.folder / IMPORTED).touch()
    attempt.published.touch()


def is_over(output: Path, attempt: Attempt) -> bool:
    """Return whether it is history: published, and recorded as complete by Snakemake after that.

    If Snakemake died in between, it deletes the output and asks for it again, and the attempt's record is still the
    answer. If it recorded the output, being asked again means that a user wants the job to run again.
    """
    if not attempt.published.exists():
        return False
    if (attempt.folder / IMPORTED).exists():
        return True  # snakemake never made it, so it has recorded nothing
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
