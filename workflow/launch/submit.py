"""The launcher: submit a spec's job, wait for it, publish its record. Snakemake starts one per job.

It imports neither torch nor mlflow, and keeps its state on disk. After a kill, the next launcher re-attaches to the
living job, publishes the finished record, or resumes from the newest checkpoint. A job is submitted once, whatever
happens meanwhile: Ctrl-C, a kill, or a Slurm that does not answer.

Only a short-lived forked child imports submitit: so a waiting launcher stays small, and submitit reads the job's
environment instead of the shell's.
"""

import argparse
import functools
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from workflow import command_line, job_environment
from workflow.campaign import specs
from workflow.campaign.kinds import KINDS
from workflow.data import layout
from workflow.launch import follow, progress, slurm
from workflow.launch.slurm import Queue
from workflow.storage import attempts, locks, records
from workflow.storage.attempts import Attempt

MOST_TIMEOUTS = 1000
LOCK = ".launcher"  # in the job's folder; a launcher holds it as long as it lives
WAIT_FOR_TWIN_S = 7 * 24 * 3600
INTERRUPTS = {signal.SIGINT, signal.SIGTERM}
STARTABLE = "PENDING,CONFIGURING,RUNNING,SUSPENDED"  # states of a job that is not just ending
FIRST_WAIT_S, LONGEST_WAIT_S = 5.0, 300.0


class LaunchError(RuntimeError):
    """The job could not be launched or gave no record; the message says why, and which log tells more."""


REFUSALS = (LaunchError, slurm.RequestError, records.RecordError, layout.DataError)


class Interrupted(BaseException):
    """Ctrl-C or SIGTERM reached the launcher."""


def launch(spec_path: Path, output: Path, site: dict, resources: dict, say) -> None:
    """Bring the spec to its published record."""
    spec = json.loads(spec_path.read_text())
    attempt = choose_attempt(spec, spec_path.parent, output, say)
    if not attempt.record.exists():
        launcher = Launcher(attempt, site, resources, say)
        try:
            launcher.wait_for_record()
        except Interrupted:
            launcher.leave()
            raise
    publish(attempt, spec_path, output)


def choose_attempt(spec: dict, folder: Path, output: Path, say) -> Attempt:
    """Return the attempt to go on with: an open one of this spec, or a new one."""
    last = attempts.newest(folder)
    if last is None:
        return attempts.begin(folder, spec)
    job = last.job()
    if last.spec != spec:
        if job and follow.is_alive(job, last.folder):
            end_replaced(last, say)
        return attempts.begin(folder, spec)
    if attempts.is_over(output, last):
        return attempts.begin(folder, spec)
    if last.published.exists():
        say(f"Attempt {last.number} had finished; its record is published again.")
    return last


def end_replaced(attempt: Attempt, say) -> None:
    """End a job whose spec was replaced.

    Raises LaunchError if the job can't be ended: nothing would follow it any more, and it would run
    to its end unnoticed.
    """
    job = attempt.job()
    say(f"The spec changed: ending job {job['job_id']} of attempt {attempt.number}.")
    error = patiently(functools.partial(follow.cancel, job, attempt.folder), "Slurm ends no job now", say)
    if error:
        raise LaunchError(
            f"The spec changed, and job {job['job_id']} of {attempt.folder} can't be ended: "
            f"{error}; end it (scancel {job['job_id']}) and start snakemake again."
        )


@dataclass(frozen=True)
class Launcher:
    """What brings an attempt to its record: the attempt, where and with what its job runs, and who is told of it."""

    attempt: Attempt
    site: dict
    resources: dict
    say: Callable[[str], None]

    @property
    def on_slurm(self) -> bool:
        """Return whether the job runs on Slurm, not on this machine."""
        return self.resources["launcher"] == "slurm"

    def wait_for_record(self) -> None:
        """Attach to the job or submit it, as often as the cluster ends it, until its record exists."""
        attempt, patience = self.attempt, follow.Patience(self.attempt)
        while True:
            was_left = self.attach()
            ended = follow.follow(attempt, self.say)
            if ended is None:
                return
            if not patience.another(ended, was_left):
                raise LaunchError(follow.why_failed(attempt, ended, self.say))
            self.say(f"{follow.what_ended(attempt, ended)}; it is submitted again.")

    def attach(self) -> bool:
        """Make sure that the attempt's job lives. Return whether it was left running by a former launcher."""
        attempt, job = self.attempt, self.attempt.job()
        # a job that was killed before this launcher started must not pass for a living one
        status = follow.status(job, attempt.folder, Queue(max_age_s=2)) if job else None
        alive = status is not None and status.alive
        if not alive:
            self.report_removed_environment()
            job = self.submit()
        verb = ": re-attached to" if alive else ":"
        logs = attempt.folder / "logs"
        self.say(f"Attempt {attempt.number}{verb} {job['launcher']} job {job['job_id']}, logs in {logs}.")
        return status is not None and status.alive and status.state != "PENDING"

    def report_removed_environment(self) -> None:
        """Name what the job does not get of the user's shell."""
        removed = job_environment.clean(dict(os.environ))
        if removed:
            self.say(f"Not passed on to the job: {', '.join(removed)} (workflow/job_environment.py says why).")
        folder = job_environment.too_long_for_sockets()
        if folder and self.resources.get("launcher") == "local":
            self.say(
                f"TMPDIR={folder} is too long for the sockets of loader processes; "
                "the job takes the system's temporary folder."
            )

    def submit(self) -> dict:
        """Submit the attempt's job, note in the attempt's folder which job it is, and return that note.

        Waits, with growing pauses, for a Slurm that is away or takes no more jobs for now. Raises LaunchError or
        RequestError for a refusal. Ctrl-C waits until a submission is noted, since a job without a note would be
        submitted twice.
        """
        if self.on_slurm:
            error = patiently(self.try_uninterrupted, "Slurm takes no job now", self.say)
        else:
            error = self.try_uninterrupted()
        if error:
            raise LaunchError(f"The job of {self.attempt.folder} was not accepted: {error}")
        return self.attempt.job()

    def try_uninterrupted(self) -> str:
        """Submit once, with Ctrl-C held back. Return why that failed, or "" once the job is noted."""
        signal.pthread_sigmask(signal.SIG_BLOCK, INTERRUPTS)
        try:
            return self.try_once()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, INTERRUPTS)

    def try_once(self) -> str:
        """Submit once. Return why that failed, or "" once the job is noted."""
        before = self.attempt.job()
        if self.on_slurm:
            adopted, error = self.adopt_unnoted_job()
            if adopted or error:
                return error
            # snakemake asked at its start, but Slurm may have been away then
            slurm.check_time(slurm.options(self.resources), slurm.ask)
        error = in_a_child(self.submit_with_submitit)
        if not error and self.attempt.job() == before:
            error = "nothing was noted of it (killed?)"
        return error

    def adopt_unnoted_job(self) -> tuple[bool, str]:
        """Adopt a job of this attempt that Slurm has although no launcher noted it.

        A launcher was killed in between, or sbatch did not hear the answer. Such a job is adopted if it is complete,
        and ended if its pickled function is missing, since it can't start then. Return whether a job was adopted, and
        why Slurm could not be asked.
        """
        attempt = self.attempt
        named = (f"--name={attempt.job_name}", f"--states={STARTABLE}")
        output, error = slurm.ask("squeue", "--me", "--noheader", "--format=%i", *named)
        noted = attempt.job() or {}
        for job_id in output.split():
            if job_id == noted.get("job_id") and noted.get("cancelled"):
                continue  # it is dying
            if (attempt.folder / "logs" / f"{job_id}_submitted.pkl").exists():
                attempt.note_job(job_id=job_id, launcher="slurm", submitted=time.time(), resources=self.resources)
                return True, ""
            slurm.ask("scancel", job_id)
        return False, error

    def submit_with_submitit(self) -> None:
        """Submit the job and note it. Runs in the forked child, and raises what submitit raises."""
        job_environment.clean()
        job_environment.leave_allocation()
        job_environment.shorten_temporary_folder()
        from workflow.runtime.job import Job

        job = Job(self.attempt.spec, self.site, str(self.attempt.folder))
        if self.on_slurm:
            submit_to_slurm(self.attempt, job, self.resources)
        else:
            submit_to_this_machine(self.attempt, job, self.resources)

    def leave(self) -> None:
        """End the job or let it go on after an interrupt, as the profile says, and report which."""
        attempt, job = self.attempt, self.attempt.job()
        if job is None or not follow.is_alive(job, attempt.folder):
            self.say(f"{progress.INTERRUPTED}; no job of this attempt waits or runs.")
        elif self.resources.get("on_interrupt") == "cancel":
            error = follow.cancel(job, attempt.folder)
            if not error:
                attempt.note_cancelled()
            end = f"could not be ended ({error})" if error else "is ended"
            self.say(f"{progress.INTERRUPTED}: job {job['job_id']} {end}; the next start resumes it.")
        else:
            self.say(f"{progress.INTERRUPTED}: job {job['job_id']} goes on; the next start re-attaches to it.")


def patiently(act, trouble: str, say) -> str:
    """Act again, with growing pauses, while Slurm is away. Return why Slurm refuses, mostly ""."""
    pause_s = FIRST_WAIT_S
    while True:
        error = act()
        if not error or not slurm.is_temporary(error):
            return error
        last_line = error.strip().splitlines()[-1]
        say(f"{trouble} ({last_line}); trying again in {pause_s:.0f} s.")
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, LONGEST_WAIT_S)


def in_a_child(function) -> str:
    """Run the function in a forked process with a session of its own. Return its error's text, mostly "".

    So Ctrl-C in the terminal reaches the launcher only, which then does what the profile says.
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


def submit_to_slurm(attempt: Attempt, job, resources: dict) -> None:
    """Give the job to sbatch, by submitit, and note it."""
    import submitit

    # after a time limit submitit puts a job back into the queue as many times
    timeouts = MOST_TIMEOUTS if KINDS[attempt.spec["kind"]].resumable else 0
    executor = submitit.SlurmExecutor(folder=attempt.folder / "logs", max_num_timeout=timeouts)
    executor.update_parameters(
        **slurm.options(resources),
        job_name=attempt.job_name,
        setup=slurm.setup_lines(resources) or None,
        signal_delay_s=resources.get("signal_delay_s", 120),
        srun_args=["--kill-on-bad-exit=1"],  # or ranks would wait for one that failed
    )
    submitted = executor.submit(job)
    attempt.note_job(launcher="slurm", job_id=submitted.job_id, submitted=time.time(), resources=resources)


def submit_to_this_machine(attempt: Attempt, job, resources: dict) -> None:
    """Start the job on this machine, by submitit."""
    import submitit

    executor = submitit.LocalExecutor(folder=attempt.folder / "logs")
    executor.update_parameters(
        timeout_min=slurm.UNLIMITED_MIN,
        gpus_per_node=max(1, resources.get("gpus", 0)),
        tasks_per_node=max(1, resources.get("tasks", 1)),
    )
    submitted = executor.submit(job)
    attempt.note_job(
        launcher="local",
        job_id=submitted.job_id,
        submitted=time.time(),
        session=os.getpid(),
        host=os.uname().nodename,
        started=follow.process_start(submitted.job_id),
        resources=resources,
    )


def publish(attempt: Attempt, spec_path: Path, output: Path) -> None:
    """Hand the record to Snakemake, unless the YAML asks for something else by now."""
    current = specs.spec_hash(json.loads(spec_path.read_text()))
    record = records.read(attempt.record)
    if record["spec_hash"] != current:
        raise LaunchError(
            f"{attempt.record} is of spec {record['spec_hash']}, but workflow/config/ was changed "
            f"while it was made and now says {current}; nothing is published, start snakemake again."
        )
    records.write_json(output, record)
    attempt.published.touch()


def site_of(arguments: argparse.Namespace, resources: dict) -> dict:
    """Return what the job needs to know of this machine and folder; no part of the spec."""
    data = json.loads(arguments.data)
    site = {
        "root": arguments.root,
        # with its links: on a node the path may be a folder of the node's own
        "data_root": str(layout.expand(data["root"], "settings.yaml, data.root").absolute()),
        "workers": data["workers"],
        "checkpoint_minutes": resources.get("checkpoint_minutes", 15),
        "device": "auto",
        "other_code": resources.get("other_code", "warn"),
    }
    if resources["launcher"] == "slurm":  # a job that asked for a GPU and has none is an error
        site["device"] = "cuda" if resources.get("gpus") else "cpu"
    else:
        site["device_lock"] = str(Path(".snakemake/device.lock").resolve())
        site["visible_gpus"] = os.environ.get("CUDA_VISIBLE_DEVICES")
    return site


def interrupt(number, frame):
    raise Interrupted


def main() -> None:
    parser = command_line.parser(__doc__)
    parser.add_argument("--spec", type=Path, required=True, help="the spec, in the job's folder")
    parser.add_argument("--output", type=Path, required=True, help="where to publish the record")
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--root", required=True, help="the setting's results folder")
    parser.add_argument("--data", required=True, help="JSON: the setting's data root and workers")
    parser.add_argument("--resources", required=True, help="JSON: where and with what the job runs")
    arguments = parser.parse_args()
    resources = json.loads(arguments.resources)
    if resources.get("launcher") not in slurm.LAUNCHERS:
        sys.exit(
            "No launcher is set: run snakemake with --profile slurm or --profile demo "
            "(--default-resources on the command line replaces the profile's)."
        )
    for number in INTERRUPTS:
        signal.signal(number, interrupt)
    with ExitStack() as stack:
        say = stack.enter_context(progress.Log(arguments.log, str(arguments.spec.parent))).say
        try:
            lock = arguments.spec.parent / LOCK
            if locks.is_held(lock):
                say(f"Waiting for {lock}: {lock.read_text().strip()} is launching the same job.")
            stack.enter_context(locks.exclusive(lock, WAIT_FOR_TWIN_S))
            launch(arguments.spec, arguments.output, site_of(arguments, resources), resources, say)
        except (*REFUSALS, locks.Held, OSError) as error:
            say(progress.ERROR + " ".join(str(error).splitlines()))
            sys.exit(1)
        except Interrupted:
            sys.exit(command_line.INTERRUPTED)


if __name__ == "__main__":
    command_line.run(main)
