"""What happens when snakemake reads the Snakefile: check whether it may start, and tell what it will ask for.

`-n`, `--lint`, `--report`, `--unlock`, `--summary` and the like run no job, and need no profile. A refusal ends
snakemake with one sentence (SystemExit; an exception would come with Snakemake's traceback).
"""

import atexit
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from workflow.campaign import benchmarks, kinds, schema, specs, targets
from workflow.campaign.config import HOST, ConfigError, nearest
from workflow.campaign.rule_inputs import NOT_OURS, Plan, own_resources
from workflow.data import layout
from workflow.launch import forecast, slurm, snakemake_options
from workflow.launch import snakemake_compat as compat
from workflow.launch.snakemake_compat import CommandLine
from workflow.storage import files, locks, records
from workflow.tracking import sync

LOCK = ".snakemake/evovit.lock"
PARTIAL = ".partial.csv"
DEMO_PROFILE = "workflow/profiles/demo/config.yaml or its copy"
ITEMS = ("table", "figure", "claims", "whole")  # rules that trainings are made for
# options that take rules or files, as the targets do
NAMING = ("forcerun", "prioritize", "until", "omit_from")
REQUIRED = ("forcerun", "until")  # whose rules or files must be part of what is made
# Snakemake keeps the last of several, except of those that are merged here
MERGED = ("--resources", "--set-resources", "--default-resources", "--quiet")


def begin(workflow, argv: list[str] | None = None) -> tuple[Plan, CommandLine]:
    """Read the YAML and the command line, before Snakemake reads the rules.

    The workflow gets the resources that the profiles and the command line give together, for a dry
    run as for a start. Ends snakemake for options that can't work here.
    """
    command_line = compat.read_command_line(argv)
    sentence = snakemake_options.refusal(command_line.set_options, command_line.options)
    if sentence:
        sys.exit(sentence)
    for option in command_line.repeated:
        if option not in MERGED:
            sys.exit(
                f"{option} is given twice, and Snakemake would take only the last; "
                f"name all its values after one {option}."
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
    plan = Plan(config, runs_jobs=snakemake_options.runs_jobs(command_line.options))
    return plan, command_line


def start(workflow, plan: Plan, command_line: CommandLine, stack: ExitStack) -> None:
    """Check the targets; before jobs run, also the profile, the data, and that no other snakemake works here.

    Called once Snakemake has read the rules. `stack` holds the workflow's lock for as long as snakemake lives. The
    kernel drops that lock with the process, so a kill leaves none behind, unlike Snakemake's own lock.
    """
    options = command_line.options
    rules = {rule.name: rule for rule in workflow.rules}
    check_resources(command_line, rules)
    requested = check_targets(plan, options, rules)
    settings = sorted({targets.split_root(plan.config, path)[0] for path in requested})
    count_classes(plan, settings)
    caps = workflow.global_resources
    compat.plan_jobs(workflow, plan.changed, lambda dag: check_jobs(plan, dag, options, caps))
    only_reads = bool(requested) and all(path.endswith(PARTIAL) for path in requested)  # records that are there
    faults = [missing_data(name, plan.config.settings[name]) for name in settings if not only_reads]
    missing = [sentence for sentence in faults if sentence is not None]
    if options.dryrun:
        for sentence in missing:
            print(f"A start would end at once: {sentence}", file=sys.stderr)
    if not plan.runs_jobs:
        return
    check_profile(command_line.default_resources)
    if missing:
        sys.exit(missing[0])
    if only_reads:
        return  # also while another snakemake works
    try:
        files.check_writable(Path())
        files.check_folder(Path(".snakemake"), appended=())
        files.check_writable(Path(sync.LOG))
        stack.enter_context(locks.exclusive(LOCK))
        atexit.register(stack.close)  # before Python takes its modules apart
        for setting in settings:
            benchmarks.keep_device(plan.config, setting)
    except locks.Held as error:
        sys.exit(f"Another snakemake works in this folder ({error}); wait for it, or end it.")
    except (files.NotWritable, locks.NoLocks) as error:
        sys.exit(str(error))


# -- the command line and the profile -------------------------------------------------------------


def check_resources(command_line: CommandLine, rules: dict) -> None:
    """End snakemake for an unknown rule or resource, on the command line or in a profile: Snakemake
    would ignore it."""
    ancient = command_line.options.consider_ancient or {}
    for option, names in (("set-resources", command_line.set_resources), ("consider-ancient", ancient)):
        for name in names:
            if name not in rules:
                sys.exit(f"{option}: there is no rule {name!r}{nearest(name, rules)}")
    by_option = {
        "resources": command_line.resources,
        "default-resources": command_line.default_resources or {},
        **{f"set-resources of {rule}": values for rule, values in command_line.set_resources.items()},
    }
    known = sorted({*slurm.RESOURCES, *NOT_OURS})
    for option, values in by_option.items():
        for name in values:
            if name == "stage":
                sys.exit(
                    f"{option}: jobs copy no images any more, so leave `stage` out; the `setup:` lines in "
                    "docs/cluster.md copy them to the node's disk."
                )
            if name not in known:
                sys.exit(f"{option}: no job here has a resource {name!r}{nearest(name, known)}")


def check_targets(plan: Plan, options, rules: dict) -> list[str]:
    """Return the requested files, as Snakemake names them.

    Ends snakemake for a name that no rule makes, with similar names.
    """
    named: dict[str, list[str]] = {}
    for option in ("targets", *NAMING):
        named[option] = []
        for name in sorted(map(str, getattr(options, option) or ())):
            if name not in rules:
                named[option].append(_file(plan, name, rules))
            elif option == "targets" and rules[name].has_wildcards():
                sys.exit(
                    f"{name} is a rule that makes many files; name the one that you want, such as "
                    f"{_example(plan, rules[name])}."
                )
    if not options.targets:
        _refuse_swallowed_targets(plan, named)
    requested = [*named["targets"], *named["forcerun"], *named["prioritize"], *named["until"]]
    if not options.targets or "all" in options.targets:
        requested.append(targets.DEFAULT)
    return requested


def _file(plan: Plan, name: str, rules: dict) -> str:
    """Return a target as Snakemake names it, below the clone."""
    path = os.path.relpath(name)
    try:
        targets.spec_of(plan.config, path)
        if os.path.isabs(name):
            sys.exit(f"{name}: targets are named from the clone's folder; say {path} there.")
    except ConfigError as error:  # classes that can't be counted
        sys.exit(str(error))
    except targets.TargetError as error:
        if "/" in path:  # every target has a folder
            sys.exit(str(error))
        sys.exit(f"There is no target or rule {name!r}{_meant(plan, name, rules)}")
    return path


def _meant(plan: Plan, name: str, rules: dict) -> str:
    """Return the end of the sentence about an unknown name without a folder: which targets or rule it may mean."""
    known = targets.every(plan.config)
    item = name.partition(".")[0]
    files = [path for path in known if Path(path).name in (f"{item}.csv", f"{item}.png")]
    if files:
        return f"; a target has its folder: {' or '.join(files)}."
    return nearest(name, [*rules, *known])


def _example(plan: Plan, rule) -> str:
    """Return a file that the rule makes."""
    return next(filter(rule.is_producer, targets.every(plan.config)), targets.DEFAULT)


def _refuse_swallowed_targets(plan: Plan, named: dict[str, list[str]]) -> None:
    """End snakemake where an option of many values took the targets, so that the default would be made.

    `--forcerun results/demo/data.json results/demo/table1.csv`, without targets before it, would make
    ImageNet's Table 1 as well.
    """
    default = targets.split_root(plan.config, targets.DEFAULT)[0]
    for option in NAMING:
        for path in named[option]:
            if targets.split_root(plan.config, path)[0] != default:
                spelling = f"--{option.replace('_', '-')}"
                sys.exit(
                    f"No target is named, as {spelling} takes all that follows it, so {targets.DEFAULT} would be "
                    f"made, too; put the targets first: snakemake <targets> {spelling} {path}."
                )


def check_profile(default_resources) -> None:
    """End snakemake without a profile: nothing may choose by itself where jobs run, least of all the login node."""
    if "launcher" not in (default_resources or {}):
        sys.exit(
            "Where should the jobs run? Say --profile slurm (a Slurm cluster) or --profile demo "
            "(this machine); to see the jobs without running them, add -n."
        )


# -- the data -------------------------------------------------------------------------------------


def count_classes(plan: Plan, settings: list[str]) -> None:
    """End snakemake if the classes of a setting, which its specs name, can't be counted."""
    try:
        for setting in settings:
            specs.num_classes(plan.config, setting)
    except ConfigError as error:
        sys.exit(str(error))


def missing_data(setting: str, scale: dict) -> str | None:
    """Return a sentence if the setting's images, or the weights that replace trainings, are missing.

    A job checks what is in them.
    """
    data = scale["data"]
    try:
        root = layout.expand(data["root"], f"settings.yaml, {setting}.data.root")
        if data["name"] != "digits":  # written by the workflow itself
            layout.check(setting, {**data, "root": str(root)})
        named = {"host.checkpoint": scale.get(HOST, {}).get("checkpoint", {})}
        for part in ("checkpoints", "hosts"):
            named |= {f"{part}.{run}": checkpoint for run, checkpoint in scale.get(part, {}).items()}
        for key, checkpoint in named.items():
            key = f"{setting}.{key}"
            if "file" in checkpoint and not layout.expand(checkpoint["file"], f"settings.yaml, {key}").is_file():
                return (
                    f"No file {checkpoint['file']} (workflow/config/settings.yaml, {key}); download it "
                    "there, or correct the path."
                )
    except layout.DataError as error:
        return str(error)
    return None


# -- the jobs -------------------------------------------------------------------------------------


def check_jobs(plan: Plan, dag, options, caps) -> None:
    """End snakemake where these jobs would not do what was requested.

    Called for each command, before a job starts or is shown. `caps` are the resources of all jobs
    together. A dry run prints what would be asked of Slurm.
    """
    for option in REQUIRED:
        for name in sorted(getattr(options, option) or ()):
            path = os.path.relpath(name)
            if not any(name == job.rule.name or path in job.output for job in dag.jobs):
                spelling = f"--{option.replace('_', '-')}"
                sys.exit(
                    f"{spelling} {name} would do nothing, as the targets need no such job; "
                    "name a file of it as a target, too."
                )
    jobs = list(dag.needrun_jobs())
    for job in jobs:
        if options.dryrun or plan.runs_jobs:
            check_caps(job, caps)
        if options.touch:
            check_touch(plan, job)
    if options.dryrun:
        for line in requests(jobs):
            print(line, file=sys.stderr)


def check_caps(job, caps) -> None:
    """End snakemake if a job asks for more than `caps` gives all jobs together.

    Snakemake would run it with less, such as a training with fewer GPUs, without a word.
    """
    for name in job.rule.resources:
        if name.startswith("_") or name in NOT_OURS:
            continue
        value = compat.requested_resource(job, name)
        most = caps.get(name).value
        if isinstance(value, int) and isinstance(most, int) and value > most:
            sys.exit(
                f"Rule {job.rule.name} asks for {name}: {value}, but all jobs together may have {most} (the profile's "
                f"`resources`); raise that, or add --set-resources {job.rule.name}:{name}={most}."
            )


def check_touch(plan: Plan, job) -> None:
    """End snakemake if touching a record would pass it off as what the YAML asks for by now."""
    try:
        for path in map(str, job.output):
            record = plan.config.records.get(path)  # its input function has asked for it
            if record is not None and Path(path).exists():
                records.read(path, record.hash)
    except records.RecordError as error:
        sys.exit(f"--touch would pass an outdated record off as current: {error}")


def requests(jobs) -> Iterator[str]:
    """Yield what jobs would ask of Slurm, a line for those of one rule.

    Ends snakemake for a request that contradicts itself.
    """
    for rule, resources, count in _submitted(jobs):
        if resources.get("launcher") != "slurm":
            continue
        try:
            words = slurm.flags(slurm.options(resources))
        except slurm.RequestError as error:
            sys.exit(str(error))
        yield f"Request of rule {rule}, {count} job(s): sbatch {' '.join(words)}"


def check_requests(jobs, ask=slurm.ask) -> None:
    """End snakemake with one sentence if one of the jobs to come could never run as it asks."""
    for rule, resources, _ in _submitted(jobs):
        try:
            if resources.get("launcher") == "slurm":
                slurm.check(rule, resources, ask)
            else:
                slurm.check_choices(rule, resources, DEMO_PROFILE)
        except slurm.RequestError as error:
            sys.exit(str(error))


def _submitted(jobs) -> list[tuple[str, dict, int]]:
    """Return each rule and resources with which launchers submit jobs, and the number of these jobs."""
    submitted = filter(_is_submitted, jobs)
    counts = Counter((job.rule.name, json.dumps(own_resources(job.resources), sort_keys=True)) for job in submitted)
    return [(rule, json.loads(text), count) for (rule, text), count in sorted(counts.items())]


def _is_submitted(job) -> bool:
    """Return whether a launcher submits the job. A job that only reads records runs where snakemake does."""
    return "resources" in job.params.keys()  # noqa: SIM118 (a list with names)


def check_rights(jobs) -> None:
    """End snakemake with one sentence if this user may not write what one of the jobs writes."""
    try:
        for job in jobs:
            for path in (*(Path(output).parent for output in job.output), *map(Path, job.log)):
                files.check_writable(path)
            if _is_submitted(job):
                files.check_folder(kinds.job_folder(str(job.output[0])))
    except files.NotWritable as error:
        sys.exit(str(error))


def announce(plan: Plan, jobs) -> None:
    """Print what the jobs to come may cost, target by target, before anything is submitted.

    Jobs without an estimate are named on a cluster only: there hours are somebody's.
    """
    jobs = list(jobs)
    estimated = [job for job in jobs if job.rule.name in ("train", "offtheshelf")]
    paths = [str(job.output[0]) for job in estimated]
    costs = forecast.of_jobs(plan.config, {path: targets.spec_of(plan.config, path) for path in paths})
    if not any(job.resources.get("launcher") == "slurm" for job in estimated):
        costs = [cost for cost in costs if cost.hours is not None]
    items = [str(job.output[0]) for job in jobs if job.rule.name in ITEMS]
    needed = {item: list(targets.needed(plan.config, item)) for item in items}
    for line in forecast.by_target(costs, needed):
        print(line, file=sys.stderr)
