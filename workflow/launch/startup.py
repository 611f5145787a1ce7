"""What happens when snakemake reads the Snakefile: may it start, and on what?

`-n`, `--lint`, `--report`, `--unlock`, `--summary` and the like only look, and need no profile.
Whatever refuses ends snakemake with one sentence (SystemExit; an exception would come with
Snakemake's traceback).
"""

import atexit
import difflib
import json
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from workflow.campaign import benchmarks, kinds, schema, targets
from workflow.campaign.config import ConfigError
from workflow.campaign.rule_inputs import NOT_OURS, Plan, own_resources
from workflow.data import layout
from workflow.launch import forecast, slurm_queue, slurm_request, snakemake_options
from workflow.launch import snakemake_compat as compat
from workflow.launch.snakemake_compat import CommandLine
from workflow.launch.submit import LAUNCHERS
from workflow.storage import files, locks, records
from workflow.tracking import process

LOCK = ".snakemake/evovit.lock"
PARTIAL = ".partial.csv"
DEMO_PROFILE = "workflow/profiles/demo/config.yaml or its copy"
ITEMS = ("table", "figure", "claims", "whole")  # rules of what trainings are for
# options that name targets; of those, the rules or files that must be part of what is made
TARGETS = ("targets", "forcerun", "prioritize", "until", "omit_from")
REQUIRED = ("forcerun", "until")
# Snakemake keeps the last of several, except of those that are merged here
MERGED = ("--resources", "--set-resources", "--default-resources", "--quiet")


def begin(workflow, argv: list[str] | None = None) -> tuple[Plan, CommandLine]:
    """Read the YAML and the command line, before Snakemake reads the rules.

    The workflow gets the resources that the profiles and the command line give together, for a dry
    run as for a start. Ends snakemake for options that can't work here.
    """
    command_line = compat.read_command_line(argv)
    if sentence := snakemake_options.refusal(command_line.given, command_line.options):
        sys.exit(sentence)
    for option in command_line.repeated:
        if option not in MERGED:
            sys.exit(
                f"{option} is given twice, and Snakemake would take the last alone; name all its "
                f"values after one {option}."
            )
    if "--forcerun" in command_line.empty:
        sys.exit("--forcerun names nothing that it should force; add rules or files after it.")
    try:
        config = schema.load()
        for setting in config.settings:
            benchmarks.kept_device(config, setting)
    except ConfigError as error:
        sys.exit(str(error))
    compat.apply_resources(workflow, command_line)
    compat.look_behind_ancient_inputs()
    plan = Plan(config, runs_jobs=not snakemake_options.only_looks(command_line.options))
    compat.force(workflow, plan.changed)
    return plan, command_line


def start(workflow, plan: Plan, command_line: CommandLine, stack: ExitStack) -> None:
    """Check the targets; before jobs run, also the profile, the data and that we are alone.

    Called once Snakemake has read the rules. `stack` holds the workflow's lock for as long as
    snakemake lives; the kernel drops it with the process, so unlike Snakemake's own lock a kill
    leaves none behind.
    """
    given = command_line.options
    rules = {rule.name: rule for rule in workflow.rules}
    check_resources(command_line, rules)
    asked = check_targets(plan, given, rules)
    caps = workflow.global_resources
    compat.call_with_jobs(workflow, lambda dag: check_jobs(plan, dag, given, caps))
    if snakemake_options.only_looks(given):
        return
    check_profile(command_line.default_resources)
    if asked and all(path.endswith(PARTIAL) for path in asked):
        return  # reads what is there, also while another snakemake works
    for setting in plan.settings_asked_for(asked):
        data = plan.config.settings[setting]["data"]
        try:
            root = layout.expand(data["root"], f"settings.yaml, {setting}.data.root")
            if data["name"] != "digits":  # written by the workflow itself
                layout.check(setting, {**data, "root": str(root)})
            check_checkpoints(setting, plan.config.settings[setting])
        except layout.DataError as error:
            sys.exit(str(error))
    try:
        files.check_writable(Path())
        files.check_folder(Path(".snakemake"), appended=())
        files.check_writable(Path(process.LOG))
        stack.enter_context(locks.exclusive(LOCK))
        atexit.register(stack.close)  # before Python takes its modules apart
        for setting in plan.settings_asked_for(asked):
            benchmarks.keep_device(plan.config, setting)
    except locks.Held as error:
        sys.exit(f"Another snakemake works in this folder ({error}); wait for it, or end it.")
    except (files.NotWritable, locks.NoLocks) as error:
        sys.exit(str(error))


def check_resources(command_line: CommandLine, rules: dict) -> None:
    """End snakemake for a rule or a resource that nothing here has, on the command line or in a
    profile: Snakemake would ignore it."""
    given = command_line.options
    for option, names in (
        ("set-resources", command_line.set_resources),
        ("consider-ancient", given.consider_ancient or {}),
    ):
        for name in names:
            if name not in rules:
                sys.exit(f"{option}: there is no rule {name!r}; {_nearest(name, rules, 'rules')}.")
    known = sorted({*slurm_request.RESOURCES, *NOT_OURS})
    for option, values in (
        ("resources", command_line.resources),
        ("default-resources", command_line.default_resources or {}),
        *((f"set-resources of {rule}", one) for rule, one in command_line.set_resources.items()),
    ):
        for name in values:
            if name not in known:
                nearest = _nearest(name, known, "resources")
                sys.exit(f"{option}: no job here has a resource {name!r}; {nearest}.")


def _nearest(name: str, names, kind: str) -> str:
    """Say which of the names may be meant, or which there are."""
    near = difflib.get_close_matches(name, names, n=1)
    return f"the nearest is {near[0]!r}" if near else f"{kind} are {', '.join(names)}"


def check_targets(plan: Plan, given, rules: dict) -> list[str]:
    """Return the files that are asked for, as Snakemake names them.

    Ends snakemake for a name that no rule makes, with those that are like it.
    """
    named = {option: [] for option in TARGETS}
    for option in TARGETS:
        for name in sorted(map(str, getattr(given, option) or ())):
            if name not in rules:
                named[option].append(_file(plan, name, rules))
            elif option == "targets" and rules[name].has_wildcards():
                sys.exit(
                    f"{name} is a rule that makes many files; name the one that you want, such as "
                    f"{_example(plan, rules[name])}."
                )
    _refuse_swallowed_targets(plan, given, named)
    asked = [*named["targets"], *named["forcerun"], *named["prioritize"], *named["until"]]
    if not given.targets or "all" in given.targets:
        asked.append(targets.DEFAULT)
    return asked


def _file(plan: Plan, name: str, rules: dict) -> str:
    """A target as Snakemake names it, below the clone."""
    path = os.path.relpath(name)
    try:
        targets.spec_of(plan.config, path)
        if os.path.isabs(name):
            sys.exit(f"{name}: targets are named from the clone's folder; say {path} there.")
    except targets.TargetError as error:
        near = difflib.get_close_matches(name, rules, n=1, cutoff=0.8)
        rule = f"; the rule that is nearest is {near[0]}" if near else ""
        sys.exit(f"{str(error).rstrip('.')}{rule}.")
    return path


def _example(plan: Plan, rule) -> str:
    names = targets.every(plan.config)
    return next((name for name in names if rule.is_producer(name)), targets.DEFAULT)


def _refuse_swallowed_targets(plan: Plan, given, named: dict[str, list[str]]) -> None:
    """`--forcerun results/demo/data.json results/demo/table1.csv` alone would make ImageNet's
    Table 1 as well: an option of many values takes the targets, and then the default is made."""
    default = targets.split_root(plan.config, targets.DEFAULT)[0]
    for option in TARGETS[1:] if not given.targets else ():
        for path in named[option]:
            if targets.split_root(plan.config, path)[0] != default:
                spelling = f"--{option.replace('_', '-')}"
                sys.exit(
                    f"No target is named, as {spelling} takes all that follows it, so "
                    f"{targets.DEFAULT} would be made, too; put the targets first: "
                    f"snakemake <targets> {spelling} {path}."
                )


def check_jobs(plan: Plan, dag, given, caps) -> None:
    """End snakemake where what was asked for would not happen with these jobs.

    Called for each command, before a job starts or is shown. `caps` are the resources of all jobs
    together. A dry run says what would be asked of Slurm.
    """
    for option in REQUIRED:
        for name in sorted(getattr(given, option) or ()):
            path = os.path.relpath(name)
            if not any(name == job.rule.name or path in job.output for job in dag.jobs):
                spelling = f"--{option.replace('_', '-')}"
                sys.exit(
                    f"{spelling} {name} would do nothing, as the targets need no such job; name a "
                    "file of it as a target, too."
                )
    jobs, looks = list(dag.needrun_jobs()), snakemake_options.only_looks(given)
    for job in jobs:
        if given.dryrun or not looks:
            check_caps(job, caps)
        if not looks:
            check_launcher(job)
        if given.touch:
            check_touch(plan, job)
    if given.dryrun:
        for line in requests(jobs):
            print(line, file=sys.stderr)


def check_launcher(job) -> None:
    """End snakemake if a job that is to be submitted names no launcher that there is."""
    launcher = job.resources.get("launcher")
    if _submits(job) and launcher not in LAUNCHERS:
        sys.exit(
            f"Rule {job.rule.name} has launcher: {launcher}, which is none of "
            f"{', '.join(LAUNCHERS)}; correct default-resources in the profile."
        )


def check_touch(plan: Plan, job) -> None:
    """End snakemake if touching a record would pass it off as what the YAML asks for by now."""
    for path in map(str, job.output):
        record = plan.config.records.get(path)  # its input function has asked for it
        try:
            if record is not None and Path(path).exists():
                records.read(path, record.hash)
        except records.RecordError as error:
            sys.exit(f"--touch would pass an outdated record off as current: {error}")


def check_checkpoints(setting: str, scale: dict) -> None:
    """The files that stand in for trainings are there; the node checks what is in them."""
    for run, checkpoint in scale.get("checkpoints", {}).items():
        place = f"settings.yaml, {setting}.checkpoints.{run}"
        if "file" in checkpoint and not layout.expand(checkpoint["file"], place).is_file():
            sys.exit(
                f"No file {checkpoint['file']} (workflow/config/settings.yaml, "
                f"{setting}.checkpoints.{run}); download it there, or correct the path."
            )


def check_profile(default_resources) -> None:
    """Nothing may choose by itself where jobs run, least of all the login node."""
    if "launcher" not in (default_resources or {}):
        sys.exit(
            "Where should the jobs run? Say --profile slurm (a Slurm cluster) or --profile demo "
            "(this machine); look without running by adding -n."
        )


def requested(job) -> Iterator[tuple[str, int | str | None]]:
    """The resources that a job asks for, before Snakemake holds them to those of all jobs."""
    for name, resource in job.rule.resources.items():
        if not name.startswith("_") and name not in NOT_OURS:
            if resource.is_evaluable():
                resource = resource.evaluate(
                    job.wildcards, input=job.input, attempt=job.attempt, threads=1,
                    rulename=job.rule.name, async_run=job.rule.workflow.async_run,
                )  # fmt: skip
            yield name, resource.value


def check_caps(job, caps) -> None:
    """End snakemake if a job asks for more than `caps` gives all jobs together: Snakemake would
    run it with less, a training with fewer GPUs, without a word."""
    for name, value in requested(job):
        most = caps.get(name).value
        if isinstance(value, int) and isinstance(most, int) and value > most:
            sys.exit(
                f"Rule {job.rule.name} asks for {name}: {value}, but all jobs together may "
                f"have {most} (the profile's `resources`); raise that, or add "
                f"--set-resources {job.rule.name}:{name}={most}."
            )


def _submits(job) -> bool:
    """Whether a launcher submits the job; what only reads records runs where snakemake does."""
    return "resources" in job.params.keys()  # noqa: SIM118 (a list with names)


def _submitted(jobs) -> dict[tuple[str, str], list]:
    """The jobs that a launcher submits, by rule and resources (as JSON)."""
    alike: dict[tuple[str, str], list] = {}
    for job in jobs:
        if _submits(job):
            resources = json.dumps(own_resources(job.resources), sort_keys=True)
            alike.setdefault((job.rule.name, resources), []).append(job)
    return alike


def requests(jobs) -> Iterator[str]:
    """What jobs would ask of Slurm, a line for those of one rule. Ends snakemake for a request
    that contradicts itself."""
    for (rule, text), alike in sorted(_submitted(jobs).items()):
        resources = json.loads(text)
        if resources.get("launcher") != "slurm":
            continue
        try:
            flags = slurm_request.flags(slurm_request.options(resources))
        except slurm_request.RequestError as error:
            sys.exit(str(error))
        yield f"Request of rule {rule}, {len(alike)} job(s): sbatch {' '.join(flags)}"


def check_requests(jobs, ask=slurm_queue.ask) -> None:
    """End snakemake with one sentence if one of the jobs to come could never run as it asks.

    `jobs` are Snakemake's; those that are not submitted carry no `resources` parameter.
    """
    for rule, text in _submitted(jobs):
        resources = json.loads(text)
        try:
            if resources.get("launcher") == "slurm":
                slurm_request.check(rule, resources, ask)
            else:
                slurm_request.check_names(rule, resources, DEMO_PROFILE)
        except slurm_request.RequestError as error:
            sys.exit(str(error))


def check_rights(jobs) -> None:
    """End snakemake with one sentence if this user may not write what one of the jobs writes."""
    try:
        for job in jobs:
            for path in (*(Path(output).parent for output in job.output), *map(Path, job.log)):
                files.check_writable(path)
            if _submits(job):
                files.check_folder(kinds.job_folder(str(job.output[0])))
    except files.NotWritable as error:
        sys.exit(str(error))


def announce(plan: Plan, jobs) -> None:
    """Say what the trainings to come may cost, target by target, before anything is submitted.

    Where nothing was measured, only on a cluster: there hours are somebody's.
    """
    jobs = list(jobs)
    trainings = [job for job in jobs if job.rule.name == "train"]
    paths = [str(job.output[0]) for job in trainings]
    specs_by_path = {path: targets.spec_of(plan.config, path) for path in paths}
    costs = forecast.of_trainings(plan.config, specs_by_path)
    if not any(job.resources.get("launcher") == "slurm" for job in trainings):
        costs = [cost for cost in costs if cost.hours is not None]
    items = [str(job.output[0]) for job in jobs if job.rule.name in ITEMS]
    wanted = {item: list(targets.needed(plan.config, item)) for item in items}
    for line in forecast.by_target(costs, wanted):
        print(line, file=sys.stderr)
