"""Slurm: what it says about jobs, and what a job asks of it.

Questions. All launchers of a user share one answer of `squeue`, which any of them renews every half minute, so the
scheduler's load does not grow with the launchers. Accounting (`sacct`) is asked only about a job that the controller
has forgotten, and may be absent. The job's record then is the only witness.

Requests. Snakemake's resources become options of `sbatch`. What Slurm could never run is refused
with one sentence before anything is submitted.

Standard library only. submit.py hands the options to submitit, which writes them into the script.
"""

import os
import re
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workflow import job_environment
from workflow.storage import files, locks, provenance, records

# -- questions ------------------------------------------------------------------------------------

ALIVE = {
    *("PENDING", "RUNNING", "CONFIGURING", "COMPLETING", "SUSPENDED", "REQUEUED", "SPECIAL_EXIT", "REQUEUE_HOLD"),
    *("REQUEUE_FED", "RESIZING", "SIGNALING", "STAGE_OUT", "STOPPED"),
}
UNKNOWN = "UNKNOWN"
UNANSWERED = "UNANSWERED"
ASK_EVERY_S = 30.0
SETTLE_S = 5.0  # an answer that is at most this much younger than a job may not list it yet
PATIENCE_S = 60  # for one question
ACCOUNTING_TRIES = 3  # while accounting is away, one try each half minute
NO_ACCOUNTING = ("no sacct", "disabled")
FORMAT = "%i|%T|%r|%N|%S"


@dataclass(frozen=True)
class Status:
    """Slurm's word for a job's state, with the reason why it waits or the node on which it runs.

    UNKNOWN means that nobody knows the job any more. UNANSWERED means that the controller or the
    accounting was silent. That says nothing about the job, so the job counts as alive.
    """

    state: str
    reason: str = ""
    node: str = ""
    start: str = ""
    note: str = ""

    @property
    def alive(self) -> bool:
        return self.state in ALIVE or self.state == UNANSWERED

    @property
    def words(self) -> str:
        """Describe the status for a person: "queued (Resources)", "running on node3"."""
        if self.state == "PENDING":
            return f"queued ({self.reason})" if self.reason else "queued"
        if self.state == UNANSWERED:
            return "Slurm does not answer; the job is taken to go on"
        return f"{self.state.lower()} on {self.node}" if self.node else self.state.lower()


def ask(*command: str) -> tuple[str, str]:
    """Run a command of Slurm. Return (its output, "") or ("", why there is none)."""
    environment = job_environment.for_slurm_commands()
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_S, env=environment)
    except FileNotFoundError:
        return "", f"no {command[0]} here"
    except subprocess.TimeoutExpired:
        return "", f"{command[0]} did not answer within {PATIENCE_S} s"
    if done.returncode:
        return "", done.stderr.strip() or f"{command[0]} ended with {done.returncode}"
    return done.stdout, ""


def parse(answer: str) -> dict[str, Status]:
    """Return the jobs in an answer of squeue, by id."""
    jobs = {}
    for line in answer.splitlines():
        if line.count("|") != 4:  # a site's own words
            continue
        number, state, reason, node, start = line.strip().split("|")
        if state != "PENDING" or reason == "None":
            reason = ""
        if state != "PENDING" or start == "N/A":
            start = ""
        jobs[number] = Status(state, reason, node, start)
    return jobs


class Queue:
    """The user's jobs, kept as one file that every launcher reads and any launcher may renew.

    Args:
        folder: holds the shared answer.
        max_age_s: how old the shared answer may be.
        ask: takes a command and returns (output, error); tests pass their own.
        list_only: take a job that the shared answer lacks for gone, whatever ended it, and ask
            nothing about it; for programs that ask about many old jobs.
    """

    def __init__(
        self,
        folder: Path = Path(".snakemake"),
        ask: Callable = ask,
        max_age_s: float = ASK_EVERY_S,
        list_only: bool = False,
    ):
        self.path = folder / f"slurm-queue-{os.getuid()}-{os.uname().nodename}.json"
        self.lock = self.path.with_suffix(".lock")
        self.ask = ask
        self.max_age_s = max_age_s
        self.list_only = list_only
        self._single: dict[str, tuple[float, Status]] = {}  # answers about single jobs, with their times
        self._failures: dict[str, int] = {}
        self._kept: dict[str, Any] = {"asked": 0.0, "answered": 0.0, "error": "", "jobs": {}}

    def status(self, job_id: str, submitted: float) -> Status:
        """Return the job's status; `submitted` (time.time()) tells a new job from a forgotten one."""
        answer = self._shared()
        if answer["error"].startswith("no squeue"):  # results that were copied to another machine
            return Status(UNKNOWN, note=answer["error"])
        if job_id in answer["jobs"]:
            return Status(*answer["jobs"][job_id])
        if answer["answered"] < submitted + SETTLE_S:
            # not in the list yet, or the controller is silent
            return Status(UNANSWERED if answer["error"] else "PENDING", "just submitted")
        return Status(UNKNOWN) if self.list_only else self._ask_about(job_id)

    def _shared(self) -> dict:
        answer = files.read_json(self.path) or self._kept
        if time.time() - answer["asked"] < self.max_age_s:
            return answer
        try:
            with locks.exclusive(self.lock):
                answer = files.read_json(self.path) or self._kept
                if time.time() - answer["asked"] >= self.max_age_s:
                    answer = self._ask_about_all(answer)
                    records.write_json(self.path, answer)
        except locks.Held:  # another launcher is asking; until then the last answer is good enough
            pass
        except files.NotWritable:  # this user may only read the clone, so nothing is shared
            answer = self._kept = self._ask_about_all(answer)
        return answer

    def _ask_about_all(self, answer: dict) -> dict:
        asked = time.time()
        output, error = self.ask("squeue", "--me", "--states=all", "--noheader", f"--format={FORMAT}")
        if error:
            return {**answer, "asked": asked, "error": error}
        jobs = {
            number: [status.state, status.reason, status.node, status.start] for number, status in parse(output).items()
        }
        return {"asked": asked, "answered": asked, "error": "", "jobs": jobs}

    def _ask_about(self, job_id: str) -> Status:
        """Ask about a job that the shared answer lacks: someone else's, or a forgotten one."""
        asked, status = self._single.get(job_id, (-ASK_EVERY_S, None))
        if time.monotonic() - asked >= ASK_EVERY_S:
            command = ("squeue", f"--jobs={job_id}", "--states=all", "--noheader", f"--format={FORMAT}")
            output, error = self.ask(*command)
            if "Invalid job id" in error or not (output or error):
                status = self._ask_accounting(job_id)
            elif error:
                status = Status(UNANSWERED, error)
            else:
                status = parse(output).get(job_id, Status(UNKNOWN))
            self._single[job_id] = (time.monotonic(), status)
        return status

    def _ask_accounting(self, job_id: str) -> Status:
        columns = ("--noheader", "--parsable2", "--allocations", "--format=State,NodeList")
        output, error = self.ask("sacct", f"--jobs={job_id}", *columns)
        if output:
            state, _, node = output.splitlines()[0].partition("|")
            return Status(state.split()[0].rstrip("+"), node=node)
        self._failures[job_id] = self._failures.get(job_id, 0) + 1
        away = error and not any(words in error for words in NO_ACCOUNTING)
        if away and self._failures[job_id] < ACCOUNTING_TRIES:
            return Status(UNANSWERED, error)
        why = error.splitlines()[-1] if error else "it has no such job"
        return Status(UNKNOWN, note=f"Slurm has forgotten the job, and sacct can't say ({why})")


# -- requests -------------------------------------------------------------------------------------

PROFILE = "workflow/profiles/slurm/config.yaml or its copy"
RESOURCES = {
    *("launcher", "checkpoint_minutes", "on_interrupt", "other_code", "signal_delay_s", "setup"),
    *("slurm_partition", "slurm_account", "slurm_qos", "constraint", "slurm_extra", "gres"),
    *("runtime", "nodes", "gpus", "tasks", "cpus_per_task", "mem_mb", "exclusive", "device_share", "disk_mb"),
}
LAUNCHERS = ("local", "slurm")
CHOICES = {"launcher": LAUNCHERS, "on_interrupt": ("cancel", "leave"), "other_code": provenance.POLICIES}
PASSED_ON = {  # options of sbatch, and the resources that are their values
    "cpus_per_task": "cpus_per_task",
    "partition": "slurm_partition",
    "account": "slurm_account",
    "qos": "slurm_qos",
    "constraint": "constraint",
}
UNLIMITED_MIN = 24 * 60 * 365
TEMPORARY = (
    *("Unable to contact", "timed out", "Connection refused", "Communication connection failure"),
    *("temporarily", "SubmitJob", "did not answer", "Zero Bytes were transmitted", "MaxJobCount"),
    "Unexpected message received",
)
AWAY = ("down", "drain", "fail", "maint", "reboot", "unknown")  # in sinfo's word for a node


class RequestError(RuntimeError):
    """Slurm can never run what is asked for; the message says what, where it is written and why."""


def is_temporary(error: str) -> bool:
    """Return whether Slurm may accept the same request later: it is away, or a submit limit is reached."""
    return any(words.lower() in error.lower() for words in TEMPORARY)


def options(resources: dict) -> dict:
    """Return sbatch's options, by submitit's names, for Snakemake's resources.

    `gpus` and `tasks` (processes; one per GPU where there are GPUs) count all nodes together,
    `mem_mb` one node. Raises RequestError for resources that contradict each other.
    """
    gpus, tasks = _per_node(resources, "gpus"), _per_node(resources, "tasks")
    if gpus and tasks and gpus != tasks:
        raise RequestError(
            f"tasks: {resources['tasks']} contradicts gpus: {resources['gpus']}; a process has one GPU, "
            f"so leave tasks out ({PROFILE})."
        )
    more = _extra(resources.get("slurm_extra", ""))
    if "no-requeue" not in more:  # a time limit ends by `scontrol requeue`, which JobRequeue=0 forbids
        more = {"requeue": True, **more}
    request = {"time": resources["runtime"], "nodes": resources.get("nodes", 1)}
    if gpus and resources.get("gres"):
        request["gres"] = f"{resources['gres']}:{gpus}"
    elif gpus:
        request["gpus_per_node"] = gpus
    request["ntasks_per_node"] = max(1, gpus, tasks)
    if "mem_mb" in resources:
        request["mem"] = f"{resources['mem_mb']}MB"
    if resources.get("exclusive"):
        request["exclusive"] = True
    for option, name in PASSED_ON.items():
        if resources.get(name) is not None:
            request[option] = resources[name]
    return {**request, "additional_parameters": more}


def _per_node(resources: dict, name: str) -> int:
    """Return one node's share of a resource that counts all nodes together."""
    total, nodes = resources.get(name, 0), resources.get("nodes", 1)
    if total % nodes:
        raise RequestError(f"{name}: {total} can't be shared equally by nodes: {nodes} ({PROFILE}).")
    return total // nodes


def _extra(text: str) -> dict:
    """Return `--reservation=x --nice` as {"reservation": "x", "nice": True}."""
    more = {}
    for word in shlex.split(text):
        if not re.fullmatch(r"--[a-z][a-z-]*(=.*)?", word):
            raise RequestError(f"slurm_extra: {word!r} is no `--option=value` ({PROFILE}).")
        name, equals, value = word.removeprefix("--").partition("=")
        more[name] = value if equals else True
    return more


def flags(request: dict) -> list[str]:
    """Return the options as words of sbatch's command line."""
    named = {key: value for key, value in request.items() if key != "additional_parameters"}
    words = []
    for key, value in {**named, **request.get("additional_parameters", {})}.items():
        name = f"--{key.replace('_', '-')}"
        words.append(name if value is True else f"{name}={value}")
    return words


def setup_lines(resources: dict) -> list[str]:
    """Return the shell lines that a node runs before Python: they source the file that `setup` names."""
    name = resources.get("setup")
    if not name:
        return []
    path = Path(name)
    if not path.is_file():
        raise RequestError(f"setup: no file {name} ({PROFILE}); write it, or leave setup out.")
    message = shlex.quote(f"ERROR: {path} failed on this node.")
    return [f"source {shlex.quote(str(path.resolve()))} || {{ echo {message} >&2; exit 1; }}"]


def check(rule: str, resources: dict, ask: Callable = ask) -> None:
    """Raise RequestError if Slurm could never run the rule's jobs.

    A controller that is away refuses nothing here, since submission waits for it.
    """
    check_choices(rule, resources)
    request = options(resources)
    setup_lines(resources)
    check_time(request, ask, rule)
    words = flags(request)
    _, error = ask("sbatch", "--test-only", *words, "--wrap=true")
    if error.startswith("no sbatch"):
        raise RequestError(
            "No sbatch here: --profile slurm is for the login node of a Slurm cluster; on this machine "
            "say --profile demo."
        )
    if error and not is_temporary(error) and not _nodes_are_away(error, request, ask):
        reason = error.splitlines()[-1].removeprefix("allocation failure: ").strip()
        raise RequestError(
            f"Slurm can't run rule {rule} ({' '.join(words)}): {reason}; correct {PROFILE}; for once, add "
            f"--set-resources {rule}:<resource>=<value>."
        )


def check_choices(rule: str, resources: dict, profile: str = PROFILE) -> None:
    """Raise RequestError for a word that a resource does not allow."""
    for name, values in CHOICES.items():
        if name in resources and resources[name] not in values:
            raise RequestError(f"Rule {rule} has {name}: {resources[name]!r} ({profile}); it is {' or '.join(values)}.")


def check_time(request: dict, ask: Callable, rule: str = "<rule>") -> None:
    """Raise RequestError for a time that no named partition allows: sbatch accepts it, and the job
    would wait for ever.

    `request` holds sbatch's options. A controller that is away refuses nothing here.
    """
    limits = dict(_time_limits(request, ask))
    if limits and request["time"] > max(limits.values()):
        allowed = ", ".join(f"partition {name} allows {limit}" for name, limit in limits.items())
        raise RequestError(
            f"Rule {rule} asks for {request['time']} minutes (runtime), but {allowed}; correct {PROFILE}; for once, "
            f"add --set-resources {rule}:runtime=<minutes>. A training goes on after its time limit by itself."
        )


def _time_limits(request: dict, ask: Callable) -> Iterator[tuple[str, int]]:
    """Yield name and time limit (minutes) of each partition that the request names, or of the default one."""
    output, _ = ask("scontrol", "--oneliner", "show", "partition")
    named = request.get("partition", "").split(",")
    for line in output.splitlines():
        partition = dict(word.split("=", 1) for word in line.split() if "=" in word)
        is_default = "partition" not in request and partition.get("Default") == "YES"
        if is_default or partition.get("PartitionName") in named:
            yield partition["PartitionName"], minutes(partition.get("MaxTime", "UNLIMITED"))


def minutes(limit: str) -> int:
    """Return Slurm's [days-]hours:minutes:seconds in whole minutes."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d+):(\d+)", limit)
    if not match:
        return UNLIMITED_MIN
    days, hours, whole, _ = (int(part or 0) for part in match.groups())
    return (days * 24 + hours) * 60 + whole


def _nodes_are_away(error: str, request: dict, ask: Callable) -> bool:
    """Return whether nodes are down or drained for now.

    `sbatch --test-only` then says what it also says of too many GPUs; sbatch itself lets the job wait.
    """
    if "node configuration is not available" not in error:
        return False
    partition = [f"--partition={request['partition']}"] if "partition" in request else []
    states, _ = ask("sinfo", "--noheader", "--format=%T", *partition)
    return any(word in states for word in AWAY)
