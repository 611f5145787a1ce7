"""What can be asked of a job after its launcher is gone: does it live, and end it.

A job is known by what was noted beside its attempt: {"launcher", "job_id", "host", ...}.
"""

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

from workflow import locks

ALIVE_STATES = {"PENDING", "RUNNING", "CONFIGURING", "COMPLETING", "SUSPENDED", "REQUEUED"}
ALIVE_STATES |= {"REQUEUE_HOLD", "REQUEUE_FED", "RESIZING", "SIGNALING", "STAGE_OUT", "STOPPED"}


def is_alive(job: dict, attempt_folder: Path) -> bool:
    """Whether the job still waits or runs."""
    if job["launcher"] == "slurm":
        return slurm_state(job["job_id"]) in ALIVE_STATES
    if locks.is_held(attempt_folder / "rank0.lock"):
        return True
    if job["host"] != os.uname().nodename or job["started"] is None:
        return False
    return process_start(job["job_id"]) == job["started"]


def cancel(job: dict, attempt_folder: Path) -> None:
    """End the job; a local one is gone on return, whatever it was doing: checkpoints survive that.

    A local job's processes share a session of their own, begun by the forked submitter.
    """
    if job["launcher"] == "slurm":
        subprocess.run(["scancel", job["job_id"]], check=False)
        return
    with contextlib.suppress(ProcessLookupError):
        os.killpg(job["session"], signal.SIGKILL)
    while is_alive(job, attempt_folder):
        time.sleep(0.05)


def process_start(pid: int | str) -> str | None:
    """When the process began, in kernel ticks: tells a reused process id from the same one."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] == "Z" else fields[19]


def slurm_state(job_id: str) -> str:
    """Slurm's word for the job's state, "UNKNOWN" once it is forgotten.

    A controller that does not answer says nothing about the job: it counts as running.
    """
    command = ["squeue", "--noheader", "--states=all", "--format=%T", "--jobs", job_id]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode:
        return "UNKNOWN" if "Invalid job id" in answer.stderr else "RUNNING"
    states = answer.stdout.split()
    return states[0] if states else "UNKNOWN"
