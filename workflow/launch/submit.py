"""The launcher: submit a spec's job, wait for it, publish its record. One per Snakemake job.

It imports neither torch nor mlflow, and keeps nothing in memory that matters: killed at any point
and started again, it re-attaches to the living job, takes the finished record, or goes on from the
newest checkpoint.
"""

import argparse
import json
import os
import signal
import sys
from contextlib import ExitStack
from pathlib import Path

from workflow import command_line, job_environment
from workflow.campaign import specs
from workflow.data import layout
from workflow.launch import executors, following, progress
from workflow.launch.slurm_queue import Queue
from workflow.launch.slurm_request import RequestError
from workflow.launch.submission import INTERRUPTS, LOCK, LaunchError, end_replaced, submit
from workflow.storage import attempts, locks, records
from workflow.storage.attempts import Attempt

LAUNCHERS = ("local", "slurm")
REFUSALS = (LaunchError, RequestError, records.RecordError, layout.DataError)
WAIT_FOR_TWIN_S = 7 * 24 * 3600


class Interrupted(BaseException):
    """Ctrl-C or SIGTERM reached the launcher."""


def choose_attempt(spec: dict, folder: Path, output: Path, say) -> Attempt:
    """The attempt to go on with: an open one of this spec, or a new one."""
    last = attempts.newest(folder)
    if last is None:
        return attempts.begin(folder, spec)
    job = last.job()
    if last.spec != spec:
        if job and executors.is_alive(job, last.folder):
            end_replaced(last, say)
        return attempts.begin(folder, spec)
    if attempts.is_over(output, last):
        return attempts.begin(folder, spec)
    if last.published.exists():
        say(f"Attempt {last.number} had finished; its record is published again.")
    return last


def publish(attempt: Attempt, spec_path: Path, output: Path) -> None:
    """Hand the record to Snakemake, unless the YAML meanwhile asks for something else."""
    wanted = specs.spec_hash(json.loads(spec_path.read_text()))
    record = records.read(attempt.record)
    if record["spec_hash"] != wanted:
        raise LaunchError(
            f"{attempt.record} is of spec {record['spec_hash']}, but workflow/config/ was changed "
            f"while it was made and now says {wanted}; nothing is published, start snakemake again."
        )
    records.write_json(output, record)
    attempt.published.touch()


def say_what_stays_behind(resources: dict, say) -> None:
    """Name what of the user's shell the job does not get."""
    if removed := job_environment.clean(dict(os.environ)):
        say(f"Not passed on to the job: {', '.join(removed)} (workflow/job_environment.py says why).")
    folder = job_environment.too_long_for_sockets()
    if folder and resources.get("launcher") == "local":
        say(
            f"TMPDIR={folder} is too long for the sockets of loader processes; the job takes the "
            "system's temporary folder."
        )


def attach(attempt: Attempt, site: dict, resources: dict, say) -> bool:
    """See to it that the attempt's job lives; True if it is one that was left running."""
    job = attempt.job()
    # a job that was killed before we were started must not pass for a living one
    status = executors.status(job, attempt.folder, Queue(max_age_s=2)) if job else None
    found = status is not None and status.alive
    if not found:
        say_what_stays_behind(resources, say)
        job = submit(attempt, site, resources, say)
    verb = ": re-attached to" if found else ":"
    logs = attempt.folder / "logs"
    say(f"Attempt {attempt.number}{verb} {job['launcher']} job {job['job_id']}, logs in {logs}.")
    return found and status.state != "PENDING"


def leave(attempt: Attempt, resources: dict, say) -> None:
    """Interrupted: end the job or let it go on, as the profile says, and say which."""
    job = attempt.job()
    if job is None or not executors.is_alive(job, attempt.folder):
        say("Interrupted; no job of this attempt waits or runs.")
    elif resources.get("on_interrupt") == "cancel":
        error = executors.cancel(job, attempt.folder)
        if not error:
            attempt.note_cancelled()
        done = f"could not be ended ({error})" if error else "is ended"
        say(f"Interrupted: job {job['job_id']} {done}; the next start resumes it.")
    else:
        say(f"Interrupted: job {job['job_id']} goes on; the next start re-attaches to it.")


def launch(spec_path: Path, output: Path, site: dict, resources: dict, say) -> None:
    """From spec to published record."""
    spec = json.loads(spec_path.read_text())
    folder = spec_path.parent
    attempt = choose_attempt(spec, folder, output, say)
    if not attempt.record.exists():
        try:
            patience = following.Patience(attempt)
            while True:
                left = attach(attempt, site, resources, say)
                ended = following.follow(attempt, say)
                if ended is None:
                    break
                if not patience.another(ended, left):
                    raise LaunchError(following.why_failed(attempt, ended, say))
                say(f"{following.what_ended(attempt, ended)}; it is submitted again.")
        except Interrupted:
            leave(attempt, resources, say)
            raise
    publish(attempt, spec_path, output)


def site_of(arguments: argparse.Namespace) -> dict:
    """What the job needs to know of this place, none of it part of the spec."""
    data = {} if arguments.data is None else json.loads(arguments.data)
    resources = json.loads(arguments.resources)
    device, local, data_root = "auto", {}, None
    if data:
        data_root = str(layout.expand(data["root"], "settings.yaml, data.root").absolute())
    if resources["launcher"] == "slurm":  # a GPU that was asked for and is not there is an error
        device = "cuda" if resources.get("gpus") else "cpu"
    else:
        local["device_lock"] = str(Path(".snakemake/device.lock").resolve())
        local["visible_gpus"] = os.environ.get("CUDA_VISIBLE_DEVICES")
    return {
        **local,
        "root": arguments.root,
        "data_root": data_root,
        "workers": data.get("workers", 0),
        "checkpoint_minutes": resources.get("checkpoint_minutes", 15),
        "device": device,
        "other_code": resources.get("other_code", "warn"),
    }


def interrupt(number, frame):
    raise Interrupted


def main() -> None:
    parser = command_line.parser(__doc__)
    parser.add_argument("--spec", type=Path, required=True, help="the spec, in the job's folder")
    parser.add_argument("--output", type=Path, required=True, help="where to publish the record")
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--root", required=True, help="the setting's results folder")
    parser.add_argument("--data", help="JSON: the setting's data root and workers")
    parser.add_argument("--resources", required=True, help="JSON: where and with what the job runs")
    arguments = parser.parse_args()
    resources = json.loads(arguments.resources)
    if resources.get("launcher") not in LAUNCHERS:
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
            launch(arguments.spec, arguments.output, site_of(arguments), resources, say)
        except (*REFUSALS, locks.Held, OSError) as error:
            say(progress.ERROR + " ".join(str(error).splitlines()))
            sys.exit(1)
        except Interrupted:
            sys.exit(130)


if __name__ == "__main__":
    command_line.run(main)
