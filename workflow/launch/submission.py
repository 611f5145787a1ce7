"""Submitting an attempt's job, once, whatever happens meanwhile: Ctrl-C, a kill, Slurm away.

submitit is imported in a forked child alone, so that a waiting launcher stays small.
"""

import functools
import os
import signal
import time

from workflow import job_environment
from workflow.launch import executors, slurm_queue, slurm_request
from workflow.storage.attempts import Attempt

LOCK = ".launcher"  # in the job's folder; a launcher holds it as long as it lives
INTERRUPTS = {signal.SIGINT, signal.SIGTERM}
STARTABLE = "PENDING,CONFIGURING,RUNNING,SUSPENDED"  # and not what is just ending
FIRST_WAIT_S, LONGEST_WAIT_S = 5.0, 300.0


class LaunchError(RuntimeError):
    """The job could not be launched or gave no record; the message says why, and where to look."""


def submit(attempt: Attempt, site: dict, resources: dict, say) -> dict:
    """Submit the attempt's job and note beside it where it runs; -> the note.

    Waits, with growing pauses, for a Slurm that is away or takes no more jobs for now. Raises
    LaunchError or RequestError for a refusal. Ctrl-C waits until a submission is noted: a job that
    nobody noted would be submitted twice.
    """
    on_slurm = resources["launcher"] == "slurm"

    def noted() -> str:
        signal.pthread_sigmask(signal.SIG_BLOCK, INTERRUPTS)
        try:
            return try_once(attempt, site, resources)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, INTERRUPTS)

    error = patiently(noted, "Slurm takes no job now", say) if on_slurm else noted()
    if error:
        raise LaunchError(f"The job of {attempt.folder} was not accepted: {error}")
    return attempt.job()


def patiently(act, trouble: str, say) -> str:
    """Act until Slurm is there for it, with growing pauses; -> why it refuses, mostly ""."""
    pause_s = FIRST_WAIT_S
    while (error := act()) and slurm_request.is_temporary(error):
        last = error.strip().splitlines()[-1]
        say(f"{trouble} ({last}); trying again in {pause_s:.0f} s.")
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, LONGEST_WAIT_S)
    return error


def end_replaced(attempt: Attempt, say) -> None:
    """End a job whose spec is no longer wanted. Raises LaunchError if it can't be ended: nothing
    would follow it any more, and it would run to its end unseen."""
    job = attempt.job()
    say(f"The spec changed: ending job {job['job_id']} of attempt {attempt.number}.")
    end = functools.partial(executors.cancel, job, attempt.folder)
    if error := patiently(end, "Slurm ends no job now", say):
        raise LaunchError(
            f"The spec changed, and job {job['job_id']} of {attempt.folder} can't be ended: "
            f"{error}; end it (scancel {job['job_id']}) and start snakemake again."
        )


def try_once(attempt: Attempt, site: dict, resources: dict) -> str:
    """One submission; -> why it failed, "" if the job is noted."""
    before = attempt.job()
    if resources["launcher"] == "slurm":
        found, error = unnoted(attempt, resources)
        if found or error:
            return error
        # snakemake asked at its start, but Slurm may have been away then
        slurm_request.check_time(slurm_request.options(resources), slurm_queue.ask)
    error = in_a_child(lambda: _hand_over(attempt, site, resources))
    if not error and attempt.job() == before:
        error = "nothing was noted of it (killed?)"
    return error


def _hand_over(attempt: Attempt, site: dict, resources: dict) -> None:
    job_environment.clean()
    job_environment.leave_allocation()
    job_environment.shorten_temporary_folder()
    from workflow.launch import handover  # submitit reads the environment when it is imported

    handover.hand_over(attempt, site, resources)


def unnoted(attempt: Attempt, resources: dict) -> tuple[bool, str]:
    """Whether Slurm has the attempt's job although its launcher could not note it; (found, error).

    The launcher was killed in between, or sbatch did not hear the answer. Such a job is taken over
    if it is complete, and ended if its pickled function is missing, without which it can't start.
    """
    named = (f"--name={attempt.job_name}", f"--states={STARTABLE}")
    shown, error = slurm_queue.ask("squeue", "--me", "--noheader", "--format=%i", *named)
    noted = attempt.job() or {}
    for job_id in shown.split():
        if job_id == noted.get("job_id") and noted.get("cancelled"):
            continue  # it is dying
        if (attempt.folder / "logs" / f"{job_id}_submitted.pkl").exists():
            known = {"launcher": "slurm", "submitted": time.time(), "resources": resources}
            attempt.note_job(job_id=job_id, **known)
            return True, ""
        slurm_queue.ask("scancel", job_id)
    return False, error


def in_a_child(function) -> str:
    """Run it in a forked process with a session of its own; -> its error's text, mostly "".

    So Ctrl-C in the terminal reaches the launcher alone, which then does what the profile says.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setsid()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, INTERRUPTS)
            nowhere = os.open(os.devnull, os.O_RDWR)
            for stream in (0, 1, 2):  # or whoever reads our output would wait for the job's end
                os.dup2(nowhere, stream)
            function()
        except BaseException as error:
            os.write(writing, (str(error) or type(error).__name__).encode()[-4000:])
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as answer:
        text = answer.read().decode(errors="replace")
    os.waitpid(child, 0)
    return text
