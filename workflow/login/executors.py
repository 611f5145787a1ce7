"""What can be asked of a job after its launcher is gone: how it stands, and end it.

A job is known by what was noted beside its attempt: {"launcher", "job_id", "host", ...}.
"""

import contextlib
import os
import signal
import time
from pathlib import Path

from workflow import locks
from workflow.login import slurm_queue
from workflow.login.slurm_queue import Queue, Status


def status(job: dict, attempt_folder: Path, queue: Queue | None = None) -> Status:
    """How the job stands; on Slurm as of at most half a minute ago."""
    if job.get("cancelled"):
        return Status("CANCELLED")
    if job["launcher"] == "slurm":
        return (queue or Queue()).status(job["job_id"], job.get("submitted", 0.0))
    if locks.is_held(attempt_folder / "rank0.lock"):
        return Status("RUNNING")
    here = job["host"] == os.uname().nodename and job["started"] is not None
    lives = here and process_start(job["job_id"]) == job["started"]
    return Status("RUNNING" if lives else slurm_queue.UNKNOWN)


def is_alive(job: dict, attempt_folder: Path, queue: Queue | None = None) -> bool:
    """Whether the job still waits or runs."""
    return status(job, attempt_folder, queue).alive


def cancel(job: dict, attempt_folder: Path) -> str:
    """End the job; -> why it could not be ended, mostly "".

    A local one is gone on return, whatever it was doing: checkpoints survive that. Its processes
    share a session of their own, begun by the forked submitter.
    """
    if job["launcher"] == "slurm":
        error = slurm_queue.ask("scancel", job["job_id"])[1]
        return "" if "Invalid job id" in error else error  # it is gone already
    with contextlib.suppress(ProcessLookupError):
        os.killpg(job["session"], signal.SIGKILL)
    while is_alive(job, attempt_folder):
        time.sleep(0.05)
    return ""


def process_start(pid: int | str) -> str | None:
    """When the process began, in kernel ticks: tells a reused process id from the same one."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] == "Z" else fields[19]
