"""Following a job to its record or its end, and saying what became of it."""

import os
import re
import time

from workflow.launch import executors, progress
from workflow.launch.slurm_queue import UNKNOWN, Queue, Status
from workflow.storage.attempts import Attempt

POLL_S = {"local": 0.3, "slurm": 5.0}
# How long a job must seem to be gone. A network file system shows a record late; a requeued job is
# for a moment in the state that it ended with.
GRACE_S = {"local": 0.0, "slurm": 40.0}
BY_THE_CLUSTER = {"PREEMPTED", "NODE_FAIL", "BOOT_FAIL", "TIMEOUT"}
FRUITLESS = 3  # such ends in a row without a new checkpoint
TAIL = 30
OUT_OF_MEMORY = re.compile(r"exceeded memory limit|oom.kill|out.of.memory", re.IGNORECASE)
FIRST_TASK = re.compile(r"srun: error: .*tasks? (\d+)[^:]*: (?:Killed|Exited|Out Of Memory|Termin)")


class Patience:
    """Whether a job that ended without a record is submitted once more."""

    def __init__(self, attempt: Attempt):
        self.attempt, self.left, self.stood = attempt, FRUITLESS, attempt.progress()

    def another(self, ended: Status, was_left: bool) -> bool:
        """Yes if the cluster ended it, and not for ever at the same checkpoint; and yes if it was
        left running by a former launcher, has done nothing since and gives no reason: it was dying
        then."""
        if ended.state == "CANCELLED" or self.attempt.job()["launcher"] != "slurm":
            return False  # the user's own scancel; it stops a job as a preemption does
        moved = self.attempt.progress() != self.stood
        if moved:
            self.left, self.stood = FRUITLESS, self.attempt.progress()
        self.left -= 1
        errors = self.attempt.errors()
        if errors and all(error["stopped"] for error in errors):
            return self.left >= 0
        if errors:
            return False
        if ended.state in BY_THE_CLUSTER:
            return self.left >= 0
        return was_left and not moved and not out_of_memory(self.attempt, ended)


def follow(attempt: Attempt, say) -> Status | None:
    """Say what the job does until its record lies there (None) or it ended without one."""
    job, queue = attempt.job(), Queue()
    launcher = job["launcher"]
    follower = progress.Follower(attempt.journal, attempt.spec)
    ended_at, shown = None, ""
    while True:
        status = executors.status(job, attempt.folder, queue)  # before looking for the record
        for line in follower.news():
            say(line)
        if attempt.record.exists():
            return None
        if status.alive:
            ended_at = None
            if launcher == "slurm" and status.words != shown:
                shown = status.words
                say(f"job {job['job_id']}: {shown}")
        else:
            ended_at = ended_at or time.monotonic()
            os.listdir(attempt.folder)  # makes NFS look again
            raised = any(not error["stopped"] for error in attempt.errors())
            if raised or time.monotonic() - ended_at >= GRACE_S[launcher]:
                return status
        time.sleep(POLL_S[launcher])


def what_ended(attempt: Attempt, ended: Status) -> str:
    job = attempt.job()
    if job["launcher"] == "local":
        return "The job ended without a record (killed?)"
    state = f" as {ended.state}" if ended.state != UNKNOWN else ""
    note = f" ({ended.note})" if ended.note else ""
    return f"Slurm job {job['job_id']} ended{state} without a record{note}"


def why_failed(attempt: Attempt, ended: Status, say) -> str:
    """One sentence; what it rests on goes before it: the traceback or the log of the process that
    failed first, unless the error is one of our own sentences."""
    logs, job = attempt.folder / "logs", attempt.job()
    errors = attempt.errors()
    if errors and errors[0]["sentence"]:
        return errors[0]["sentence"]
    if errors:
        for line in errors[0]["traceback"].splitlines():
            say(f"  {line}")
        return f"The job failed on rank {errors[0]['rank']}; its logs are in {logs}."
    rank = first_to_fail(main_log(attempt))
    log = logs / f"{job['job_id']}_{rank}_log.err"
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    if lines:
        say(f"  The last lines of rank {rank} ({log}):")
    for line in lines[-TAIL:]:
        say(f"  {line}")
    remedy = ""
    if out_of_memory(attempt, ended):
        remedy = f" It needs more than {job['resources'].get('mem_mb', '?')} MB of memory (mem_mb)."
    elif ended.state == "CANCELLED":
        remedy = " It was cancelled; started again, it goes on."
    return f"{what_ended(attempt, ended)}; its logs are in {logs}.{remedy}"


def main_log(attempt: Attempt) -> str:
    """What the job's first process and srun wrote as errors; Slurm puts its own words there."""
    path = attempt.folder / "logs" / f"{attempt.job()['job_id']}_0_log.err"
    return path.read_text(errors="replace") if path.exists() else ""


def out_of_memory(attempt: Attempt, ended: Status) -> bool:
    """Slurm knows that state with cgroups alone; else its words in the log say so."""
    return ended.state == "OUT_OF_MEMORY" or bool(OUT_OF_MEMORY.search(main_log(attempt)))


def first_to_fail(text: str) -> int:
    """The rank that srun names first; 0 if it names none."""
    found = FIRST_TASK.search(text)
    return int(found.group(1)) if found else 0
