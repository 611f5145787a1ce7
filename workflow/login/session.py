"""What happens when snakemake reads the Snakefile: may it start, and on what?

`-n`, `--lint`, `--report`, `--unlock`, `--summary` and the like only look, and need no profile.
"""

import atexit
import json
import sys
from contextlib import ExitStack

from snakemake.cli import get_argument_parser, get_profile_dir
from snakemake.resources import Resources

from workflow import layout, locks
from workflow.campaign import ConfigError, read_yaml
from workflow.login import forecast, schema, slurm_queue, slurm_request, targets
from workflow.login.plan import Plan, own_resources

LOCK = ".snakemake/evovit.lock"
PARTIAL = ".partial.csv"
ITEMS = ("table", "figure", "claims", "whole")  # rules of what trainings are for
LOOKING = (
    "dryrun",
    "touch",
    "lint",
    "unlock",
    "summary",
    "detailed_summary",
    "report",
    "list_rules",
    "list_target_rules",
    "list_changes",
    "dag",
    "rulegraph",
    "filegraph",
    "d3dag",
    "cleanup_metadata",
    "generate_unit_tests",
    "print_compilation",
    "archive",
    "delete_all_output",
    "delete_temp_output",
)


def arguments(argv: list[str] | None = None):
    """snakemake's own reading of its command line, without the profile's defaults."""
    known, _ = get_argument_parser().parse_known_args(sys.argv[1:] if argv is None else argv)
    return known


def only_looks(options) -> bool:
    """Whether this invocation runs no jobs."""
    given = (getattr(options, name, None) for name in LOOKING)
    return any(value is not None and value is not False for value in given)


def begin(workflow, stack: ExitStack, argv: list[str] | None = None) -> Plan:
    """Read and check the YAML; before jobs run, also the profile, the data and that we are alone.

    `stack` holds the workflow's lock for as long as snakemake lives; the kernel drops it with the
    process, so unlike Snakemake's own lock a kill leaves none behind. Ends snakemake with one
    sentence (SystemExit; an exception would come with Snakemake's traceback).
    """
    try:
        config = schema.load()
    except ConfigError as error:
        sys.exit(str(error))
    plan = Plan(config)
    options = arguments(argv)
    if only_looks(options) or not workflow.is_main_process:
        return plan
    check_profile(workflow.resource_settings.default_resources)
    keep_profile_resources(workflow.resource_settings.overwrite_resources, options)
    if options.targets and all(str(target).endswith(PARTIAL) for target in options.targets):
        return plan  # reads what is there, also while another snakemake works
    for setting in plan.settings_asked_for(options.targets):
        data = config.settings[setting]["data"]
        try:
            root = layout.expand(data["root"], f"settings.yaml, {setting}.data.root")
            if data["name"] != "digits":  # written by the workflow itself
                layout.check(setting, {**data, "root": str(root)})
            check_checkpoints(setting, config.settings[setting])
        except layout.DataError as error:
            sys.exit(str(error))
    try:
        stack.enter_context(locks.exclusive(LOCK))
        atexit.register(stack.close)  # before Python takes its modules apart
    except locks.Held as error:
        sys.exit(f"Another snakemake works in this folder ({error}); wait for it, or end it.")
    except locks.NoLocks as error:
        sys.exit(str(error))
    return plan


def keep_profile_resources(given: dict[str, Resources], options) -> None:
    """Put back the profile's `set-resources`, of which one on the command line leaves nothing.

    Else `--set-resources train:runtime=600` would take a training's GPUs away, without a word.
    """
    profiles = options.profile or [] if options.set_resources else []
    for profile in reversed(profiles):  # of several, the last one has the say
        _, path = get_profile_dir(profile)
        for rule, values in (read_yaml(path).get("set-resources") or {}).items():
            given_here = [f"{name}={value}" for name, value in values.items()]
            merged = Resources.parse(given_here, allow_expressions=True)
            merged.update(given.get(rule, {}))
            given[rule] = merged


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
            "(this machine); look without running by adding -n. "
            "(--default-resources on the command line replaces the profile's; "
            "use --set-resources instead.)"
        )


def check_caps(job, caps) -> None:
    """Ends snakemake if a job asks for more than `caps` gives all jobs together: Snakemake would
    run it with less, a training with fewer GPUs, without a word."""
    for name, most in caps.items():
        wanted = job.rule.resources.get(name)
        if name.startswith("_") or wanted.is_evaluable():
            continue
        if isinstance(wanted.value, int) and wanted.value > most.value:
            sys.exit(
                f"Rule {job.rule.name} asks for {name}: {wanted.value}, but all jobs together may "
                f"have {most.value} (the profile's `resources`); raise that, or add "
                f"--set-resources {job.rule.name}:{name}={most.value}."
            )


def check_requests(jobs, caps, ask=slurm_queue.ask) -> None:
    """Ends snakemake with one sentence if one of the jobs to come could never run as it asks.

    `jobs` are Snakemake's; those that are not submitted carry no `resources` parameter. `caps` are
    its resources of all jobs together.
    """
    seen = set()
    for job in jobs:
        check_caps(job, caps)
        resources = own_resources(job.resources)
        key = (job.rule.name, json.dumps(resources, sort_keys=True))
        submits = "resources" in job.params.keys()  # noqa: SIM118 (a list with names)
        if not submits or key in seen or resources.get("launcher") != "slurm":
            continue
        seen.add(key)
        try:
            slurm_request.check(job.rule.name, resources, ask)
        except slurm_request.RequestError as error:
            sys.exit(str(error))


def announce(plan: Plan, jobs) -> None:
    """Say what the trainings to come may cost, target by target, before anything is submitted.

    Where nothing was measured, only on a cluster: there hours are somebody's.
    """
    jobs = list(jobs)
    trainings = [job for job in jobs if job.rule.name == "train"]
    paths = [str(job.output[0]) for job in trainings]
    specs = {path: targets.spec_of(plan.config, path) for path in paths}
    costs = forecast.of_trainings(plan.config, specs)
    if not any(job.resources.get("launcher") == "slurm" for job in trainings):
        costs = [cost for cost in costs if cost.hours is not None]
    items = [str(job.output[0]) for job in jobs if job.rule.name in ITEMS]
    wanted = {item: list(targets.needed(plan.config, item)) for item in items}
    for line in forecast.by_target(costs, wanted):
        print(line, file=sys.stderr)
