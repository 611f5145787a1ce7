"""A job after its submission: whether it is alive, how it is ended, and what became of it.

A job is known by what submit.py noted in its attempt's folder: {"launcher", "job_id", "host", ...}.
So any later process can ask about it, not only the launcher that submitted it.
"""

import os
import re
import signal
import time
from pathlib import Path

import psutil

from workflow.launch import progress, slurm
from workflow.launch.slurm import Queue, Status
from workflow.storage import attempts, files, locks
from workflow.storage.attempts import Attempt

CLOCK_STEP_S = 10.0  # a process's start is told by the system's clock, which may be set meanwhile
POLL_S = {"local": 0.3, "slurm": 5.0}
# How long a job must seem to be gone. A network file system shows a record late; a requeued job is
# for a moment in the state that it ended with.
GRACE_S = {"local": 0.0, "slurm": 40.0}
ENDED_BY_THE_CLUSTER = {"PREEMPTED", "NODE_FAIL", "BOOT_FAIL", "TIMEOUT"}
FRUITLESS = 3  # such ends in a row without a new checkpoint
LAST_LINES = 30
OUT_OF_MEMORY = re.compile(r"exceeded memory limit|oom.kill|out.of.memory", re.IGNORECASE)
FIRST_TASK = re.compile(r"srun: error: .*tasks? (\d+)[^:]*: (?:Killed|Exited|Out Of Memory|Termin)")


def status(job: dict, attempt_folder: Path, queue: Queue | None = None) -> Status:
    """Return the job's status; a job on Slurm has the one of at most half a minute ago."""
    if job.get("cancelled"):
        return Status("CANCELLED")
    if attempts.was_copied(job, attempt_folder):
        return Status(slurm.UNKNOWN, note="its job is that of the folder it was copied from")
    if job["launcher"] == "slurm":
        return (queue or Queue()).status(job["job_id"], job.get("submitted", 0.0))
    if locks.is_held(attempt_folder / "rank0.lock"):
        return Status("RUNNING")
    on_this_machine = job["host"] == os.uname().nodename
    if on_this_machine and is_same_process(job["job_id"], job["started"]):
        return Status("RUNNING")
    return Status(slurm.UNKNOWN)


def is_alive(job: dict, attempt_folder: Path, queue: Queue | None = None) -> bool:
    """Return whether the job still waits or runs."""
    return status(job, attempt_folder, queue).alive


def cancel(job: dict, attempt_folder: Path) -> str:
    """End the job. Return why it could not be ended, mostly "".

    A local job is gone when this returns, whatever it was doing: checkpoints survive that. Its
    processes share a session of their own, which the forked submitter began.
    """
    if job["launcher"] == "slurm":
        error = slurm.ask("scancel", job["job_id"])[1]
        return "" if "Invalid job id" in error else error  # it is gone already
    try:
        os.killpg(job["session"], signal.SIGKILL)
    except PermissionError:  # macOS raises it for a group of zombies, too
        if is_alive(job, attempt_folder):
            return f"it is {files.owner(attempt_folder / 'job.json')}'s job"
    except ProcessLookupError:
        pass
    while is_alive(job, attempt_folder):
        time.sleep(0.05)
    return ""


def process_start(pid: int | str) -> float | None:
    """Return when the process began, in seconds since 1970; None if it is gone or a zombie."""
    try:
        process = psutil.Process(int(pid))
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.Error:
        return None


def is_same_process(pid: int | str, started: float | str | None) -> bool:
    """Return whether the process that began at `started` still lives.

    Another process may have its number by now. Without `started` it never lived.
    """
    if started is None:
        return False
    now = process_start(pid)
    return now is not None and abs(now - float(started)) < CLOCK_STEP_S


def follow(attempt: Attempt, say) -> Status | None:
    """Report what the job does. Return None once its record exists, or the status that it ended with."""
    job, queue = attempt.job(), Queue()
    launcher = job["launcher"]
    follower = progress.Follower(attempt.journal, attempt.spec)
    gone_since, reported = None, ""
    while True:
        now = status(job, attempt.folder, queue)  # before looking for the record
        for line in follower.news():
            say(line)
        if attempt.record.exists():
            return None
        if now.alive:
            gone_since = None
            if launcher == "slurm" and now.words != reported:
                reported = now.words
                say(f"job {job['job_id']}: {reported}")
        else:
            gone_since = gone_since or time.monotonic()
            os.listdir(attempt.folder)  # makes NFS ask its server again
            raised = any(not error["stopped"] for error in attempt.errors())
            if raised or time.monotonic() - gone_since >= GRACE_S[launcher]:
                return now
        time.sleep(POLL_S[launcher])


class Patience:
    """Decides whether a job that ended without a record is submitted once more."""

    def __init__(self, attempt: Attempt):
        self.attempt = attempt
        self.tries_left = FRUITLESS
        self.checkpoint = attempt.progress()

    def another(self, ended: Status, was_left: bool) -> bool:
        """Return True if the cluster ended the job, and not for ever at the same checkpoint.

        Also if a former launcher left the job running (`was_left`), and it has done nothing since
        and gives no reason: then it was already dying.
        """
        if ended.state == "CANCELLED" or self.attempt.job()["launcher"] != "slurm":
            return False  # the user's own scancel; it stops a job as a preemption does
        moved = self.attempt.progress() != self.checkpoint
        if moved:
            self.tries_left = FRUITLESS
            self.checkpoint = self.attempt.progress()
        self.tries_left -= 1
        errors = self.attempt.errors()
        if errors and all(error["stopped"] for error in errors):
            return self.tries_left >= 0
        if errors:
            return False
        if ended.state in ENDED_BY_THE_CLUSTER:
            return self.tries_left >= 0
        return was_left and not moved and not out_of_memory(self.attempt, ended)


def what_ended(attempt: Attempt, ended: Status) -> str:
    """Return the beginning of a sentence about a job that ended without a record."""
    job = attempt.job()
    if job["launcher"] == "local":
        return "The job ended without a record (killed?)"
    state = f" as {ended.state}" if ended.state != slurm.UNKNOWN else ""
    note = f" ({ended.note})" if ended.note else ""
    return f"Slurm job {job['job_id']} ended{state} without a record{note}"


def why_failed(attempt: Attempt, ended: Status, say) -> str:
    """Return one sentence about the job's end.

    If the error is no sentence of our own, first report the traceback or the log of the process that failed first.
    """
    logs, job = attempt.folder / "logs", attempt.job()
    errors = attempt.errors()
    if errors and errors[0]["sentence"]:
        return errors[0]["sentence"]
    if errors:
        for line in errors[0]["traceback"].splitlines():
            say(f"  {line}")
        return f"The job failed on rank {errors[0]['rank']}; its logs are in {logs}."
    named = FIRST_TASK.search(main_log(attempt))  # by srun
    rank = int(named[1]) if named else 0
    log = logs / f"{job['job_id']}_{rank}_log.err"
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    if lines:
        say(f"  The last lines of rank {rank} ({log}):")
    for line in lines[-LAST_LINES:]:
        say(f"  {line}")
    remedy = ""
    if out_of_memory(attempt, ended):
        remedy = f" It needs more than {job['resources'].get('mem_mb', '?')} MB of memory (mem_mb)."
    elif ended.state == "CANCELLED":
        remedy = " It was cancelled; started again, it goes on."
    return f"{what_ended(attempt, ended)}; its logs are in {logs}.{remedy}"


def main_log(attempt: Attempt) -> str:
    """Return what the job's first process and srun wrote as errors; Slurm writes its own words there."""
    path = attempt.folder / "logs" / f"{attempt.job()['job_id']}_0_log.err"
    return path.read_text(errors="replace") if path.exists() else ""


def out_of_memory(attempt: Attempt, ended: Status) -> bool:
    """Return whether the job ended for lack of memory.

    Slurm has a state for that with cgroups only; without them its words in the log tell.
    """
    return ended.state == "OUT_OF_MEMORY" or bool(OUT_OF_MEMORY.search(main_log(attempt)))
