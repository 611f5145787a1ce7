"""What tells an attempt's folder from a copy of it."""

from pathlib import Path


def place(attempt_folder: Path) -> dict:
    """What tells an attempt's folder from a copy: its path, and a number that a move keeps."""
    return {"folder": str(attempt_folder.resolve()), "inode": attempt_folder.stat().st_ino}


def was_copied(job: dict, attempt_folder: Path) -> bool:
    """Whether the attempt's folder is a copy of the one in which the job works.

    The job is then the original's, to be neither followed nor ended from here.
    """
    noted, here = job.get("place"), place(attempt_folder)
    return noted is not None and all(noted[key] != here[key] for key in here)
