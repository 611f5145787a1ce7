"""Run the bench suite: all that the tables time, on a machine where only torch and timm are installed.

`python -m workflow.bench suite --device cuda --output measured` writes
measured/throughput/<group>/<configuration>.json, which `python -m workflow.bench import measured` imports where the
workflow is. Started again, the suite goes on where it was.
"""

import argparse
import shutil
import sys
from pathlib import Path

import torch

from workflow.bench import process, throughput
from workflow.campaign import benchmarks, specs
from workflow.campaign.config import Config, ConfigError, nearest
from workflow.runtime import device as devices
from workflow.storage import locks, records

DEFAULT = {  # at the batch sizes of the setting
    "cuda": ["paper-fp32", "fused-fp32", "fused-{half}", "amp-{half}", "compiled-{half}"],
    "cpu": ["fused-fp32", "fused-{half}"],
}
SWEEP = "compiled-{half}-sweep"
SWEPT = ("deit_tiny", "deit_small")  # from batch 1 to 1024, compiled
SETTING = {"cuda": "imagenet", "cpu": "demo"}  # whose threads and rounds are taken


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to a parser."""
    parser.add_argument("--output", type=Path, required=True, help="folder of the records")
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=benchmarks.DEVICES, default=default)
    parser.add_argument("--tables", nargs="+", help="only these of items.yaml")
    parser.add_argument("--groups", nargs="+", help="only these benchmark groups of the tables")
    rows = "only these of the groups' models, and the baselines; such records can't be imported"
    parser.add_argument("--rows", nargs="+", metavar="ROW", help=rows)
    configurations = "such as paper-fp32-b256, compiled-bf16-sweep"
    parser.add_argument("--configurations", nargs="+", metavar="MODE-PRECISION-bN", help=configurations)
    parser.add_argument("--setting", help="whose threads and rounds are taken (settings.yaml)")
    parser.add_argument("--threads", type=int, help="instead of the setting's")
    rounds = "at least; instead of the setting's, so that such records can't be imported"
    parser.add_argument("--rounds", type=int, help=rounds)


def main(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Measure all that the arguments ask for, and end with a sentence on what could not be."""
    try:
        config = Config.load()
        machine = devices.ask(arguments.device)
        tasks = plan(config, arguments, "bf16" if machine["bf16"] else "fp16")
    except (ConfigError, benchmarks.BenchmarkError, devices.DeviceError) as error:
        sys.exit(f"ERROR: {error}")
    try:
        with locks.exclusive(arguments.output / "suite.lock"):
            failed = measure_all(config, tasks, arguments, machine["device"])
    except (locks.Held, locks.NoLocks) as error:
        sys.exit(f"ERROR: {error}")
    if failed:
        sys.exit(f"{failed} of {len(tasks)} could not be measured; started again, only those are.")


def plan(config: Config, arguments: argparse.Namespace, half: str) -> list[tuple[str, dict]]:
    """Return (group, benchmark configuration) of every measurement.

    Groups are in the tables' order within each configuration. `half` is the 16-bit format that the device has units
    for.

    Raises BenchmarkError for a name that the YAML does not have, or what nothing can run.
    """
    tables = arguments.tables or list(config.items["tables"])
    check_names("--tables", tables, list(config.items["tables"]))
    groups = list(dict.fromkeys(name for table in tables for name in config.sections_of(table)))
    if arguments.groups:
        check_names("--groups", arguments.groups, groups)
        groups = [group for group in groups if group in arguments.groups]
    if arguments.rows:
        check_names("--rows", arguments.rows, [row for group in groups for row in config.items["sections"][group]])
        # a group without one of the rows would measure its baseline and nothing to compare with it
        groups = [group for group in groups if set(arguments.rows) & set(config.items["sections"][group])]
    setting = setting_of(config, arguments)
    defaults = {}
    for group in groups:
        defaults[group] = benchmarks.throughput_configuration(config, setting, group)
        for key in ("threads", "rounds"):
            if getattr(arguments, key):
                defaults[group][key] = getattr(arguments, key)
    if arguments.configurations:
        named = [(group, name) for name in arguments.configurations for group in groups]
    else:
        named = []
        for name in DEFAULT[arguments.device]:
            named += [(group, f"{name.format(half=half)}-b{defaults[group]['batch_size']}") for group in groups]
        if arguments.device == "cuda":
            named += [(group, SWEEP.format(half=half)) for group in SWEPT if group in groups]
    return [(group, benchmarks.parse(f"{arguments.device}-{name}", defaults[group])) for group, name in named]


def check_names(option: str, names: list[str], known: list[str]) -> None:
    """Raise BenchmarkError for a name of an option that is not known."""
    for name in names:
        if name not in known:
            raise benchmarks.BenchmarkError(f"{option} {name} is unknown{nearest(name, known)}")


def setting_of(config: Config, arguments: argparse.Namespace) -> str:
    """Return the setting whose threads and rounds are taken. Raises BenchmarkError for an unknown one."""
    setting = arguments.setting or SETTING[arguments.device]
    check_names("--setting", [setting], list(config.settings))
    return setting


def measure_all(config: Config, tasks: list, arguments: argparse.Namespace, device: str) -> int:
    """Measure every (group, configuration) in its order. Return how many could not be measured."""
    setting = setting_of(config, arguments)
    failed = 0
    for number, (group, configuration) in enumerate(tasks, 1):
        print(f"[{number}/{len(tasks)}] {group} {benchmarks.name(configuration)}", flush=True)
        try:
            spec = spec_of(config, setting, group, configuration, arguments.rows)
            record = measure(spec, configuration, arguments.output, device)
        except process.MeasurementError as error:
            failed += 1
            print(f"  ERROR: {error}", flush=True)
        else:
            print("\n".join(f"  {line}" for line in throughput.lines(record["results"])), flush=True)
    return failed


def spec_of(config: Config, setting: str, group: str, configuration: dict, rows: list[str] | None) -> dict:
    """Return the spec of the group's models, or of its baseline and those in `rows`."""
    spec = benchmarks.throughput_spec(config, setting, group, configuration, weights="assumed")
    baseline, *others = spec["models"]
    models = [model for model in others if rows is None or model["run"] in rows]
    return spec | {"models": [baseline, *models]}


def measure(spec: dict, configuration: dict, output: Path, device: str) -> dict:
    """Return the record of a spec: the one that `output` has, or a new one.

    Raises process.MeasurementError, also for a record of another device than `device`.
    """
    path = Path(benchmarks.throughput_path(str(output), spec["section"], configuration))
    try:
        record = records.read(path)
    except records.RecordError:  # missing or damaged
        record = None
    if record is None:
        unfinished = path.with_suffix("")  # a sweep that is killed keeps its batch sizes there
        record = process.run(spec, {}, unfinished)
        records.write_json(path, record)
        shutil.rmtree(unfinished)
        return record
    measured_on = record["results"]["device"]
    if measured_on != device:
        raise process.MeasurementError(
            f"{path} was measured on {measured_on}, and this is {device}: give another --output."
        )
    if record["spec_hash"] != specs.spec_hash(spec):
        raise process.MeasurementError(
            f"{path} is of other models, rounds or threads than are asked for now: delete it or give another --output."
        )
    return record
