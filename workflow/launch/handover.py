"""Handing an attempt's job to submitit. Only submission.py's short-lived child imports this."""

import os
import time

import submitit

from workflow.launch import executors, slurm_request
from workflow.runtime.job import Job
from workflow.storage.attempts import Attempt

FOREVER_MIN = 60 * 24 * 365
# After a time limit submitit puts these back into the queue, for they go on where they were. The
# others would begin anew and meet the same limit.
RESUMABLE = ("train", "search")
MOST_TIMEOUTS = 1000


def local_executor(attempt: Attempt, resources: dict) -> submitit.Executor:
    executor = submitit.LocalExecutor(folder=attempt.folder / "logs")
    executor.update_parameters(
        timeout_min=FOREVER_MIN,
        gpus_per_node=max(1, resources.get("gpus", 0)),
        tasks_per_node=max(1, resources.get("tasks", 1)),
    )
    return executor


def slurm_executor(attempt: Attempt, resources: dict) -> submitit.Executor:
    executor = submitit.SlurmExecutor(
        folder=attempt.folder / "logs",
        max_num_timeout=MOST_TIMEOUTS if attempt.spec["kind"] in RESUMABLE else 0,
    )
    executor.update_parameters(
        **slurm_request.options(resources),
        job_name=attempt.job_name,
        setup=slurm_request.setup_lines(resources) or None,
        signal_delay_s=resources.get("signal_delay_s", 120),
        srun_args=["--kill-on-bad-exit=1"],  # or ranks would wait for one that failed
    )
    return executor


def to_slurm(attempt: Attempt, job: Job, resources: dict) -> None:
    submitted = slurm_executor(attempt, resources).submit(job)
    attempt.note_job(launcher="slurm", job_id=submitted.job_id, submitted=time.time(), resources=resources)


def to_this_machine(attempt: Attempt, job: Job, resources: dict) -> None:
    submitted = local_executor(attempt, resources).submit(job)
    attempt.note_job(
        launcher="local",
        job_id=submitted.job_id,
        submitted=time.time(),
        session=os.getpid(),
        host=os.uname().nodename,
        started=executors.process_start(submitted.job_id),
        resources=resources,
    )


def hand_over(attempt: Attempt, site: dict, resources: dict) -> None:
    """Submit the attempt's job and note beside it where it runs. Raises what submitit raises."""
    job = Job(attempt.spec, site, str(attempt.folder))
    (to_slurm if resources["launcher"] == "slurm" else to_this_machine)(attempt, job, resources)
