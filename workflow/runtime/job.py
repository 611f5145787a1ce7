"""Run a job that submitit starts on the node: it starts what its kind computes.

A Job is pickled by reference and carries its whole spec, so it computes what was submitted even if the YAML changes
meanwhile.
"""

import contextlib
import importlib
import os
import traceback
from pathlib import Path

import submitit

from workflow import command_line, job_environment
from workflow.campaign.kinds import KINDS, Kind
from workflow.data import worker_processes
from workflow.storage import locks, records

UNTIL_THE_TIME_LIMIT_S = 365 * 24 * 3600.0


class Job(submitit.helpers.Checkpointable):
    """One spec and the attempt folder it works in.

    `site` holds what must not change the result: root (the setting's results), data_root, workers, device ("auto",
    "cpu" or "cuda"), other_code (the profile's); of a local job also device_lock and visible_gpus.
    """

    def __init__(self, spec: dict, site: dict, folder: str):
        self.spec = spec
        self.site = site
        self.folder = folder

    @property
    def kind(self) -> Kind:
        """Return the kind of the job, which says what runs it and how."""
        return KINDS[self.spec["kind"]]

    def __call__(self) -> None:
        command_line.name_user()  # a node's container may know others than the login node
        environment = submitit.JobEnvironment()
        job_environment.clean()  # of what this node's scripts set
        if environment.global_rank > 0 and not self.kind.distributed:
            return  # resources for several processes were given to a job that is one
        if environment.num_tasks > 1:
            # each process chooses its GPU by local rank; hiding the others would number them anew
            submitit.helpers.TorchDistributedEnvironment().export(set_cuda_visible_devices=False)
            if environment.cluster == "local":
                os.environ["MASTER_ADDR"] = "127.0.0.1"  # a laptop may not know itself by its name
        if self.site.get("visible_gpus") is not None:  # submitit numbers a local job's anew
            os.environ["CUDA_VISIBLE_DEVICES"] = self.site["visible_gpus"]
        folder = Path(self.folder)
        rank = environment.global_rank
        # before any wait, so that all of this process is of the code that it notes as its own
        importlib.import_module(self.kind.module)
        # A requeued job may find its predecessor alive, on a node that Slurm holds to be dead. Only
        # one may write: this one waits, and goes on where the other ends.
        with locks.exclusive(folder / f"rank{rank}.lock", UNTIL_THE_TIME_LIMIT_S):
            if (folder / "record.json").exists():
                return
            error_note(folder, rank).unlink(missing_ok=True)  # of this job's last start
            try:
                job_environment.shorten_temporary_folder()
                self._wait_for_device()
                record = self._run(folder)
            except SystemExit:  # submitit's, after it has requeued the job
                raise
            except BaseException as error:
                keep_error(folder, rank, error)
                raise
            if rank == 0:
                records.write_json(folder / "record.json", record)

    def _run(self, folder: Path) -> dict:
        module = importlib.import_module(self.kind.module)
        with worker_processes.explained():
            return module.run(self.spec, self.site, folder)

    def _wait_for_device(self) -> None:
        """Wait locally for the device: a measurement until no other job computes, the others for measurements.

        Snakemake sees to that among its own jobs, but it does not know those that a killed snakemake left running.
        """
        path = self.site.get("device_lock")
        if path is not None:
            shared = not self.kind.exclusive
            self._device = locks.exclusive(path, patience_s=7 * 24 * 3600, shared=shared)
            self._device.__enter__()  # until the process ends

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """Return what submitit queues at a time limit or preemption: the same job, from its own checkpoint."""
        return submitit.helpers.DelayedSubmission(Job(self.spec, self.site, self.folder))


def error_note(folder: Path, rank: int) -> Path:
    """Return the path of the file in which a process of the job keeps why it failed."""
    return folder / f"error-rank{rank}.json"


def keep_error(folder: Path, rank: int, error: BaseException) -> None:
    """Write the reason where the launcher finds it; our own errors are one sentence for the user."""
    ours = type(error).__module__.startswith(("workflow", "evovit", "baselines"))
    content = {
        "rank": rank,
        "sentence": sentence(error) if ours else None,
        "stopped": was_stopped(error),
        "traceback": "".join(traceback.format_exception(error)),
    }
    if isinstance(error, submitit.core.utils.UncompletedJobError):  # submitit's at a time limit
        content["sentence"] = (
            "The job reached its time limit and can't go on where it was; give it more by "
            "--set-resources <rule>:runtime=<minutes>."
        )
    with contextlib.suppress(OSError):  # a full disk: the traceback is in the job's log, too
        records.write_json(error_note(folder, rank), content)


def was_stopped(error: BaseException) -> bool:
    """Return whether the cluster asked the job to end, with its checkpoint saved, so that it is no fault of the job.

    A job also ends like this when its own `scontrol requeue` fails: JobRequeue=0 forbids it, the controller is away,
    the node has no scontrol. The launcher then submits it again.
    """
    command = getattr(error, "cmd", None) or [getattr(error, "filename", None)]
    return type(error).__name__ == "Stopped" or command[0] == "scontrol"


def sentence(error: BaseException) -> str:
    """Return the message of one of our errors, also where a loader's process wrapped it in its traceback."""
    message = str(error)
    if message.startswith("Caught "):
        return message.strip().rpartition(f"{type(error).__name__}: ")[2]
    return message
