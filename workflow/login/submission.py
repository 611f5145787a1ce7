"""Handing an attempt's job to submitit, on this machine or to Slurm."""

import os
import signal
from pathlib import Path

import submitit

from workflow.login import executors
from workflow.login.attempts import Attempt
from workflow.login.jobs import Job

INTERRUPTS = {signal.SIGINT, signal.SIGTERM}
FOREVER_MIN = 60 * 24 * 365


class LaunchError(RuntimeError):
    """The job could not be launched or gave no record; the message says why, and where to look."""


def local_executor(folder: Path, resources: dict) -> submitit.Executor:
    executor = submitit.LocalExecutor(folder=folder)
    executor.update_parameters(
        timeout_min=FOREVER_MIN,
        gpus_per_node=max(1, resources.get("gpus", 0)),
        tasks_per_node=max(1, resources.get("tasks", 1)),
    )
    return executor


def slurm_executor(folder: Path, resources: dict) -> submitit.Executor:
    """submitit's Slurm executor for Snakemake's resource names."""
    gpus = resources.get("gpus", 0)
    executor = submitit.SlurmExecutor(folder=folder, max_num_timeout=1000)
    given = {
        "time": resources["runtime"],
        "nodes": resources.get("nodes", 1),
        "gpus_per_node": gpus or None,
        "ntasks_per_node": max(1, gpus),
        "cpus_per_task": resources.get("cpus_per_task"),
        "mem": f"{resources['mem_mb']}MB" if "mem_mb" in resources else None,
        "partition": resources.get("slurm_partition"),
        "account": resources.get("slurm_account"),
        "qos": resources.get("slurm_qos"),
        "constraint": resources.get("constraint"),
        "exclusive": True if resources.get("exclusive") else None,
        "signal_delay_s": 120,
        "srun_args": ["--kill-on-bad-exit=1"],
    }
    executor.update_parameters(**{key: value for key, value in given.items() if value is not None})
    return executor


def submit(attempt: Attempt, site: dict, resources: dict) -> dict:
    """Submit the attempt's job and note beside it where it runs; -> the note.

    Ctrl-C waits until that is done: a job that nobody noted would be submitted twice.
    """
    job = Job(attempt.spec, site, str(attempt.folder))
    signal.pthread_sigmask(signal.SIG_BLOCK, INTERRUPTS)
    try:
        _submit(attempt, job, resources)
        return attempt.job()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, INTERRUPTS)


def _submit(attempt: Attempt, job: Job, resources: dict) -> None:
    if resources["launcher"] == "slurm":
        try:
            with submitit.helpers.clean_env():
                submitted = slurm_executor(attempt.folder / "logs", resources).submit(job)
        except (submitit.core.utils.FailedJobError, OSError, KeyError) as error:
            raise LaunchError(f"sbatch refused the job: {error}") from error
        attempt.note_job(launcher="slurm", job_id=submitted.job_id, resources=resources)
    else:
        submit_locally(attempt, job, resources)


def submit_locally(attempt: Attempt, job: Job, resources: dict) -> None:
    """Submit from a forked process with a session of its own.

    So Ctrl-C in the terminal reaches the launcher alone, which then does what the profile says.
    """
    child = os.fork()
    if child == 0:
        try:
            os.setsid()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, INTERRUPTS)
            nowhere = os.open(os.devnull, os.O_RDWR)
            for stream in (0, 1, 2):  # or whoever reads our output would wait for the job's end
                os.dup2(nowhere, stream)
            submitted = local_executor(attempt.folder / "logs", resources).submit(job)
            attempt.note_job(
                launcher="local",
                job_id=submitted.job_id,
                session=os.getpid(),
                host=os.uname().nodename,
                started=executors.process_start(submitted.job_id),
                resources=resources,
            )
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    if attempt.job() is None:
        raise LaunchError(f"The job of {attempt.folder} could not be started.")
