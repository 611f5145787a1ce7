"""What a job asks of Slurm: Snakemake's resources as sbatch's options, and if they can be met.

Standard library only; submitit writes the options into the script (handover.py).
"""

import difflib
import re
import shlex
from pathlib import Path

from workflow.launch import slurm_queue
from workflow.storage import provenance

PROFILE = "workflow/profiles/slurm/config.yaml or its copy"
RESOURCES = {
    *("launcher", "checkpoint_minutes", "on_interrupt", "signal_delay_s", "setup"),
    "other_code",
    *("slurm_partition", "slurm_account", "slurm_qos", "constraint", "slurm_extra", "gres"),
    *("runtime", "nodes", "gpus", "tasks", "cpus_per_task", "mem_mb", "exclusive"),
    *("device_share", "disk_mb"),
}
CHOICES = {"on_interrupt": ("cancel", "leave"), "other_code": provenance.POLICIES}
LONG_MIN = 24 * 60 * 365
TEMPORARY = (
    *("Unable to contact", "timed out", "Connection refused", "Communication connection failure"),
    *("temporarily", "SubmitJob", "did not answer", "Zero Bytes were transmitted", "MaxJobCount"),
    "Unexpected message received",
)

AWAY = ("down", "drain", "fail", "maint", "reboot", "unknown")  # in sinfo's word for a node


class RequestError(RuntimeError):
    """Slurm can never run what is asked for; the message says what, where it stands and why."""


def is_temporary(error: str) -> bool:
    """Whether Slurm may accept the same request later: it is away, or a submit limit is reached."""
    return any(words.lower() in error.lower() for words in TEMPORARY)


def per_node(resources: dict, name: str) -> int:
    """A node's share of what is asked for in all."""
    whole, nodes = resources.get(name, 0), resources.get("nodes", 1)
    if whole % nodes:
        raise RequestError(f"{name}: {whole} can't be shared equally by nodes: {nodes} ({PROFILE}).")
    return whole // nodes


def options(resources: dict) -> dict:
    """sbatch's options, by submitit's names, for Snakemake's resources.

    `gpus` and `tasks` (processes; one per GPU where there are GPUs) are of all nodes together,
    `mem_mb` of one node. Raises RequestError for what contradicts itself.
    """
    gpus, tasks = per_node(resources, "gpus"), per_node(resources, "tasks")
    if gpus and tasks and gpus != tasks:
        raise RequestError(f"tasks: {resources['tasks']} beside gpus: {resources['gpus']}; a "
                           f"process has one GPU, so leave tasks out ({PROFILE}).")  # fmt: skip
    gres, more = resources.get("gres"), extra(resources.get("slurm_extra", ""))
    if "no-requeue" not in more:  # a time limit ends by `scontrol requeue`, which JobRequeue=0 bars
        more = {"requeue": True, **more}
    given = {
        "time": resources["runtime"],
        "nodes": resources.get("nodes", 1),
        "gpus_per_node": gpus if gpus and not gres else None,
        "gres": f"{gres}:{gpus}" if gpus and gres else None,
        "ntasks_per_node": max(1, gpus, tasks),
        "cpus_per_task": resources.get("cpus_per_task"),
        "mem": f"{resources['mem_mb']}MB" if "mem_mb" in resources else None,
        "partition": resources.get("slurm_partition"),
        "account": resources.get("slurm_account"),
        "qos": resources.get("slurm_qos"),
        "constraint": resources.get("constraint"),
        "exclusive": True if resources.get("exclusive") else None,
        "additional_parameters": more or None,
    }
    return {key: value for key, value in given.items() if value is not None}


def extra(text: str) -> dict:
    """`--reservation=x --nice` -> {"reservation": "x", "nice": True}."""
    found = {}
    for word in shlex.split(text):
        if not re.fullmatch(r"--[a-z][a-z-]*(=.*)?", word):
            raise RequestError(f"slurm_extra: {word!r} is no `--option=value` ({PROFILE}).")
        name, given, value = word.removeprefix("--").partition("=")
        found[name] = value if given else True
    return found


def setup_lines(resources: dict) -> list[str]:
    """Shell lines on the node before the job's Python: the file that `setup` names, sourced."""
    if not (name := resources.get("setup")):
        return []
    path = Path(name)
    if not path.is_file():
        raise RequestError(f"setup: no file {name} ({PROFILE}); write it, or leave setup out.")
    said = shlex.quote(f"ERROR: {path} failed on this node.")
    return [f"source {shlex.quote(str(path.resolve()))} || {{ echo {said} >&2; exit 1; }}"]


def flags(given: dict) -> list[str]:
    """The options as sbatch's command line."""
    flat = {**given, **given.get("additional_parameters", {})}
    flat.pop("additional_parameters", None)
    named = ((f"--{key.replace('_', '-')}", value) for key, value in flat.items())
    return [name if value is True else f"{name}={value}" for name, value in named]


def check(rule: str, resources: dict, ask=slurm_queue.ask) -> None:
    """Raise RequestError if Slurm could never run the rule's jobs.

    A controller that is away refuses nothing here: submission waits for it.
    """
    check_names(rule, resources)
    given = options(resources)
    setup_lines(resources)
    wanted = " ".join(flags(given))
    mend = f"correct {PROFILE}; for once, add --set-resources {rule}:<resource>=<value>"
    check_time(given, ask, rule)
    _, error = ask("sbatch", "--test-only", *flags(given), "--wrap=true")
    if error.startswith("no sbatch"):
        raise RequestError("No sbatch here: --profile slurm is for the login node of a Slurm "
                           "cluster; on this machine say --profile demo.")  # fmt: skip
    if error and not is_temporary(error) and not nodes_are_away(error, given, ask):
        reason = error.splitlines()[-1].removeprefix("allocation failure: ")
        raise RequestError(f"Slurm can't run rule {rule} ({wanted}): {reason.strip()}; {mend}.")


def check_names(rule: str, resources: dict, profile: str = PROFILE) -> None:
    """Raise RequestError for an unknown resource, or a word that is none of those it may be."""
    known = sorted(RESOURCES)
    for name in sorted(set(resources) - RESOURCES):
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}."
        raise RequestError(f"Rule {rule} has an unknown resource {name!r} ({profile}); {hint}")
    for name, values in CHOICES.items():
        if name in resources and resources[name] not in values:
            raise RequestError(f"Rule {rule} has {name}: {resources[name]!r} ({profile}); it is {' or '.join(values)}.")


def nodes_are_away(error: str, given: dict, ask) -> bool:
    """Whether nodes are down or drained for now, of which `sbatch --test-only` says what it says
    of too many GPUs; sbatch itself lets the job wait for them."""
    if "node configuration is not available" not in error:
        return False
    partition = [f"--partition={given['partition']}"] if "partition" in given else []
    states, _ = ask("sinfo", "--noheader", "--format=%T", *partition)
    return any(word in states for word in AWAY)


def check_time(given: dict, ask, rule: str = "<rule>") -> None:
    """Refuse what no named partition allows: sbatch accepts it, and it would pend for ever.

    `given` are sbatch's options. A controller that is away refuses nothing here.
    """
    shown, _ = ask("scontrol", "--oneliner", "show", "partition")
    lines = [dict(word.split("=", 1) for word in line.split() if "=" in word)
             for line in shown.splitlines()]  # fmt: skip
    named = given.get("partition", "").split(",")
    limits = {
        found["PartitionName"]: minutes(found.get("MaxTime", "UNLIMITED"))
        for found in lines
        if found.get("PartitionName") in named or ("partition" not in given and found.get("Default") == "YES")
    }
    if limits and given["time"] > max(limits.values()):
        allowed = ", ".join(f"partition {name} allows {limit}" for name, limit in limits.items())
        raise RequestError(
            f"Rule {rule} asks for {given['time']} minutes (runtime), but {allowed}; correct "
            f"{PROFILE}; for once, add --set-resources {rule}:runtime=<minutes>. A training goes "
            "on after its time limit by itself."
        )


def minutes(limit: str) -> int:
    """Slurm's [days-]hours:minutes:seconds in whole minutes."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d+):(\d+)", limit)
    if not match:
        return LONG_MIN
    days, hours, whole, _ = (int(part or 0) for part in match.groups())
    return (days * 24 + hours) * 60 + whole
