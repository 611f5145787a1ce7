"""Snakemake's internals: whatever it does not offer as an interface is used in this file, each with a test.

Written for Snakemake 9; pyproject.toml holds Snakemake below 10.
"""

import argparse
import contextlib
import functools
import io
import logging
import sys
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from snakemake import cli
from snakemake.dag import DAG
from snakemake.logging import ColorizingTextHandler, LogEvent, logger
from snakemake.profiles import ProfileConfigFileParser
from snakemake.resources import Resources

from workflow.campaign.config import ConfigError, read_yaml

STREAM_HANDLER = "DefaultStreamHandler"
CHATTER = (
    *(LogEvent.JOB_INFO, LogEvent.JOB_STARTED, LogEvent.JOB_FINISHED, LogEvent.JOB_ERROR, LogEvent.SHELLCMD),
    *(LogEvent.PROGRESS, LogEvent.RESOURCES_INFO, LogEvent.RUN_INFO, LogEvent.WORKFLOW_STARTED, LogEvent.RULEGRAPH),
)
CHATTER_BEGINS = (
    *("Building DAG of jobs", "Using shell: ", "Conda environments: ignored", "Select jobs to execute"),
    *("Complete log(s): ", "Elapsed time: "),
)
LISTS = ("+", "*")  # argparse's `nargs` of options that take many values


@dataclass(frozen=True)
class CommandLine:
    """What the command line and the profiles together tell snakemake.

    `options` are Snakemake's own, `set_options` the names of those that differ from their defaults, each
    with its first spelling. `repeated` are options that the command line gives twice, `empty` those
    without a value. The three kinds of resources hold the values of every profile and of the command
    line. Where two give a value for one name, the command line's or the later profile's counts.
    """

    options: argparse.Namespace
    set_options: dict[str, str]
    repeated: list[str]
    empty: list[str]
    cores_are_typed: bool
    resources: Resources
    default_resources: Resources | None
    set_resources: dict[str, Resources]


def read_command_line(argv: list[str] | None = None) -> CommandLine:
    """Read the command line and the profiles that it, or SNAKEMAKE_PROFILE, names.

    Ends snakemake with one sentence where a profile has a mapping under a name that Snakemake
    does not know, or a value that is no resource.
    """
    argv = sys.argv[1:] if argv is None else argv
    with contextlib.redirect_stderr(io.StringIO()):  # Snakemake has named the profiles before
        parser, options = cli.parse_args(argv)
    plain = cli.get_argument_parser()
    profiles = [Path(name) for name in parser._default_config_files]
    for profile in profiles:
        _refuse_unknown_mappings(profile)
    typed = _lists(argv)
    layers = [*(_lists([], profile) for profile in profiles), typed]
    try:
        resources = _merge(layers, "resources", allow_expressions=False)
        defaults = _merge(layers, "default_resources", allow_expressions=True)
        rules: dict[str, Resources] = {}
        for layer in layers:
            for rule, values in cli.parse_set_resources(layer["set_resources"]).items():
                rules.setdefault(rule, Resources()).update(values)
    except Exception as error:  # of many classes, with Snakemake's sentence
        sys.exit(" ".join(str(error).split()))
    default_resources = None
    if any(layer["default_resources"] is not None for layer in layers):
        default_resources = Resources.default("full")
        default_resources.update(defaults)
    return CommandLine(
        options,
        dict(_set_options(plain, options)),
        typed["repeated"],
        typed["empty"],
        plain.parse_args(argv).cores is not None,
        resources,
        default_resources,
        rules,
    )


def _set_options(parser, options) -> Iterator[tuple[str, str]]:
    """Yield the options that differ from their defaults, each with its first spelling."""
    defaults = parser.parse_args([])
    for action in parser._actions:
        value = getattr(options, action.dest, None)
        default = getattr(defaults, action.dest, None)
        # not only by equality: a `--batch` can't be compared with None
        alike = value is default if default is None or value is None else value == default
        if action.option_strings and not alike:
            yield action.dest, action.option_strings[0]


def _lists(argv: list[str], *profiles: Path) -> dict:
    """Return the words of each option that takes many, as one layer has them; None where it is absent.

    `repeated` are the options that are given twice (Snakemake keeps the last), `empty` those that nothing follows.
    """
    parser = cli.get_argument_parser(profiles=profiles)
    actions = [action for action in parser._actions if action.option_strings and action.nargs in LISTS]
    for action in actions:
        action.__class__ = argparse._AppendAction  # keeps the words of each time that the option is given
        action.default = None
    options = vars(parser.parse_args(argv))
    layer: dict = {"repeated": [], "empty": []}
    for action in actions:
        lists = options[action.dest]
        layer[action.dest] = None if lists is None else [word for words in lists for word in words]
        if len(lists or ()) > 1:
            layer["repeated"].append(action.option_strings[0])
        if layer[action.dest] == []:
            layer["empty"].append(action.option_strings[0])
    return layer


def _merge(layers: list[dict], name: str, allow_expressions: bool) -> Resources:
    merged = Resources()
    for layer in layers:
        words = layer[name] or []
        merged.update(Resources.parse(words, allow_expressions=allow_expressions))
    return merged


def _refuse_unknown_mappings(profile: Path) -> None:
    """End snakemake for a mapping that Snakemake would drop from a profile without a word.

    It drops `set-resource: {train: {gpus: 8}}`, and the first of two mappings of one name.
    """
    try:
        content = read_yaml(profile)
    except ConfigError as error:
        sys.exit(str(error))
    if "__use_yte__" in content:  # a template, whose keys may be conditions
        return
    with open(profile, encoding="utf-8") as stream:
        read = ProfileConfigFileParser().parse(stream)
    for key, value in content.items():
        if isinstance(value, dict) and key not in read:
            sys.exit(
                f"{profile}: Snakemake reads no mapping called {key!r}; spell it as in "
                "workflow/profiles/slurm/config.yaml (set-resources, default-resources, resources)."
            )


def apply_resources(workflow, command_line: CommandLine) -> None:
    """Give the workflow the merged resources, before its rules are read.

    Snakemake itself lets a mapping on the command line, or in a later profile, replace that of a
    profile: `--set-resources train:runtime=600` would take a training's GPUs away.
    """
    settings = workflow.resource_settings
    settings.default_resources = command_line.default_resources
    settings.overwrite_resources = command_line.set_resources
    workflow.global_resources.update(command_line.resources)
    jobs, cores = settings.nodes, settings.cores
    if jobs is not None and cores is not None:
        # without an executor for clusters --jobs means --cores, but next to a profile's `cores`
        # Snakemake would lift the limit on cores, and start what queues after Ctrl-C
        settings.cores = min(jobs, cores) if command_line.cores_are_typed else jobs
        settings.nodes = None
        workflow.global_resources.update({"_cores": settings.cores, "_nodes": None})


def look_behind_ancient_inputs() -> None:
    """Let Snakemake check each job whose inputs are made again but `ancient`.

    Snakemake 9 takes every job below one that runs as decided, then finds that an ancient input is
    no reason to run it, and forgets its other reasons: a missing output, a changed input,
    --forcerun (https://github.com/snakemake/snakemake/issues/4166).
    """
    update_needrun = DAG.update_needrun
    if hasattr(update_needrun, "__wrapped__"):
        return

    @functools.wraps(update_needrun)
    async def update(dag, *arguments, **keywords):
        dag.bfs = functools.partial(_search_past_no_ancient_input, dag)
        try:
            return await update_needrun(dag, *arguments, **keywords)
        finally:
            del dag.bfs

    DAG.update_needrun = update


def _search_past_no_ancient_input(dag, direction, *jobs, stop=lambda job: False) -> Iterator:
    """Search breadth first as Snakemake does, without the steps over ancient inputs only."""
    queue = deque(jobs)
    visited = set(jobs)
    while queue:
        job = queue.popleft()
        if stop(job):
            continue
        yield job
        for neighbour, files in direction[job].items():
            if neighbour not in visited and not all(file.is_ancient for file in files):
                visited.add(neighbour)
                queue.append(neighbour)


def plan_jobs(workflow, outputs: set[str], check: Callable) -> None:
    """Let Snakemake run the jobs that make these outputs, and call `check(dag)` before it prints or starts any job.

    Input functions may add to the outputs while Snakemake looks for jobs.
    """
    build = workflow._build_dag

    def build_and_check():
        outputs.update(workflow.dag.forcefiles)
        workflow.dag.forcefiles = outputs
        build()
        check(workflow.dag)

    workflow._build_dag = build_and_check


def requested_resource(job, name: str) -> int | str | None:
    """Return how much of a resource a job asks for, before Snakemake holds it to that of all jobs."""
    resource = job.rule.resources[name]
    if resource.is_evaluable():
        resource = resource.evaluate(
            job.wildcards,
            input=job.input,
            attempt=job.attempt,
            threads=1,
            rulename=job.rule.name,
            async_run=job.rule.workflow.async_run,
        )
    return resource.value


def stream_handler() -> ColorizingTextHandler | None:
    """Return the handler that prints Snakemake's messages; None where a logger plugin does."""
    return next((handler for handler in logger.handlers if handler.name == STREAM_HANDLER), None)


def replace_handler(old: logging.Handler, new: logging.Handler) -> None:
    """Let another handler have all messages of Snakemake that `old` had."""
    logger.removeHandler(old)
    logger.addHandler(new)


def is_chatter(record: logging.LogRecord) -> bool:
    """Return whether nobody misses a message of Snakemake: it is about its own work, or about a job.

    The message that a launcher's command has failed comes with the whole command, in addition to JOB_ERROR.
    """
    event, text = getattr(record, "event", None), record.getMessage()
    if event == LogEvent.ERROR:
        return "CalledProcessError" in text and "returned non-zero exit status" in text
    return event in CHATTER or (record.levelno < logging.WARNING and text.startswith(CHATTER_BEGINS))
