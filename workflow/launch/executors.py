"""What can be asked of a job after its launcher is gone: how it stands, and end it.

A job is known by what was noted beside its attempt: {"launcher", "job_id", "host", ...}.
"""

import os
import signal
import time
from pathlib import Path

import psutil

from workflow.launch import slurm_queue
from workflow.launch.slurm_queue import Queue, Status
from workflow.storage import attempts, files, locks

CLOCK_STEP_S = 10.0  # a start is told by the system's clock, which may be set meanwhile


def status(job: dict, attempt_folder: Path, queue: Queue | None = None) -> Status:
    """How the job stands; on Slurm as of at most half a minute ago."""
    if job.get("cancelled"):
        return Status("CANCELLED")
    if attempts.was_copied(job, attempt_folder):
        return Status(slurm_queue.UNKNOWN, note="its job is that of the folder it was copied from")
    if job["launcher"] == "slurm":
        return (queue or Queue()).status(job["job_id"], job.get("submitted", 0.0))
    if locks.is_held(attempt_folder / "rank0.lock"):
        return Status("RUNNING")
    here = job["host"] == os.uname().nodename
    lives = here and is_same_process(job["job_id"], job["started"])
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
    try:
        os.killpg(job["session"], signal.SIGKILL)
    except PermissionError:  # macOS says so of a group of zombies, too
        if is_alive(job, attempt_folder):
            return f"it is {files.owner(attempt_folder / 'job.json')}'s job"
    except ProcessLookupError:
        pass
    while is_alive(job, attempt_folder):
        time.sleep(0.05)
    return ""


def process_start(pid: int | str) -> float | None:
    """When the process began, in seconds since 1970; None if it is gone or a zombie."""
    try:
        process = psutil.Process(int(pid))
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.Error:
        return None


def is_same_process(pid: int | str | None, started: float | str | None) -> bool:
    """Whether the process that began at `started` (None: never) still lives; its number may be
    another's by now."""
    now = process_start(pid) if started is not None else None
    return now is not None and abs(now - float(started)) < CLOCK_STEP_S
