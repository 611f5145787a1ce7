"""All tables' models on one machine, where only torch and timm need to be installed.

    python -m workflow.bench.suite --device cuda --output measured

leaves measured/throughput/<section>/<point>.json. Back where the workflow is, `python -m
workflow.bench.import_records measured` makes them its own. Started again, it goes on where it was.
"""

import argparse
import shutil
import sys
from pathlib import Path

import torch

from workflow import command_line
from workflow.bench import by_hand, fresh
from workflow.campaign import benchmarks, specs
from workflow.campaign.config import Config, ConfigError
from workflow.runtime import device
from workflow.storage import locks, records

DEFAULT = {  # at the batch sizes of the setting
    "cuda": ["paper-fp32", "fused-fp32", "fused-{half}", "amp-{half}", "compiled-{half}"],
    "cpu": ["fused-fp32", "fused-{half}"],
}
SWEEP = "compiled-{half}-sweep"
SWEPT = ("deit_tiny", "deit_small")  # from batch 1 to 1024, compiled
SETTING = {"cuda": "imagenet", "cpu": "demo"}  # whose threads and rounds are taken


def plan(config: Config, given: argparse.Namespace, half: str) -> list[tuple[str, dict]]:
    """(section, point) of every measurement, the tables' order within each point; `half` is the
    16-bit format that the device has units for."""
    sections = [name for table in given.tables for name in config.sections_of(table)]
    if unknown := sorted(set(given.sections or ()) - set(sections)):
        named = ", ".join(unknown)
        raise benchmarks.BenchmarkError(f"--sections: {named}: none of {', '.join(dict.fromkeys(sections))}.")
    sections = [name for name in dict.fromkeys(sections) if name in (given.sections or sections)]
    known = {row for name in sections for row in config.items["sections"][name]}
    if unknown := sorted(set(given.rows or ()) - known):
        named = ", ".join(unknown)
        raise benchmarks.BenchmarkError(f"--rows: {named} is in none of {', '.join(sections)}.")
    if given.rows:  # a baseline alone tells nothing
        sections = [s for s in sections if set(given.rows) & set(config.items["sections"][s])]
    setting = given.setting or SETTING[given.device]
    shown = {name: benchmarks.throughput_configuration(config, setting, name) for name in sections}
    changes = {key: getattr(given, key) for key in ("threads", "rounds") if getattr(given, key)}
    shown = {name: point | changes for name, point in shown.items()}
    if given.points:
        found = [(section, name) for name in given.points for section in sections]
    else:
        found = [(section, f"{name.format(half=half)}-b{shown[section]['batch_size']}")
                 for name in DEFAULT[given.device] for section in sections]  # fmt: skip
        if given.device == "cuda":
            swept = (section for section in SWEPT if section in sections)
            found += [(section, SWEEP.format(half=half)) for section in swept]
    return [(section, benchmarks.parse(f"{given.device}-{name}", shown[section])) for section, name in found]


def spec_of(config: Config, setting: str, section: str, point: dict, rows: list[str] | None) -> dict:
    """What is measured: the section's models, or of them the baseline and those in `rows`."""
    spec = benchmarks.throughput_spec(config, setting, section, point, weights="assumed")
    baseline, *others = spec["models"]
    kept = [model for model in others if rows is None or model["run"] in rows]
    return spec | {"models": [baseline, *kept]}


def measure(spec: dict, point: dict, output: Path, here: str) -> dict:
    """The record of a spec at its point: the one that is there already, or a new one; `here` is the
    device.

    Raises fresh.MeasurementError, also for a record of another device.
    """
    path = Path(benchmarks.throughput_path(str(output), spec["section"], point))
    try:
        found = records.read(path)
    except records.RecordError:  # missing or damaged
        pass
    else:
        there = found["results"]["device"]
        if there != here:
            raise fresh.MeasurementError(f"{path} was measured on {there}, and this is {here}: give another --output.")
        if found["spec_hash"] != specs.spec_hash(spec):
            raise fresh.MeasurementError(
                f"{path} is of other models, rounds or threads than are asked for now: delete it "
                "or give another --output."
            )
        return found
    unfinished = path.with_suffix("")  # a sweep that is killed keeps its batch sizes there
    record = fresh.run(spec, {}, unfinished)
    records.write_json(path, record)
    shutil.rmtree(unfinished)
    return record


def parser(config: Config) -> argparse.ArgumentParser:
    made = command_line.parser(__doc__, prog="python -m workflow.bench.suite")
    made.add_argument("--output", type=Path, required=True, help="folder of the records")
    made.add_argument("--device", choices=benchmarks.DEVICES,
                      default="cuda" if torch.cuda.is_available() else "cpu")  # fmt: skip
    tables = list(config.items["tables"])
    made.add_argument("--tables", nargs="+", choices=tables, default=tables)
    made.add_argument("--sections", nargs="+", help="only these of the tables' sections")
    made.add_argument("--rows", nargs="+", metavar="ROW",
                      help="only these of the sections' models, and the baselines: for a look, "
                           "the workflow does not take such records in")  # fmt: skip
    made.add_argument("--points", nargs="+", metavar="MODE-PRECISION-bN",
                      help="such as paper-fp32-b256, compiled-bf16-sweep")  # fmt: skip
    made.add_argument("--setting", choices=tuple(config.settings),
                      help="whose threads and rounds are taken (settings.yaml)")  # fmt: skip
    made.add_argument("--threads", type=int, help="instead of the setting's")
    made.add_argument("--rounds", type=int, help="at least; instead of the setting's, so that the "
                      "workflow does not take such records in")  # fmt: skip
    return made


def main() -> None:
    try:
        config = Config.load()
    except ConfigError as error:
        sys.exit(f"ERROR: {error}")
    made = parser(config)
    given = made.parse_args()
    if given.rounds is not None and given.rounds < by_hand.LEAST_ROUNDS:
        made.error(by_hand.too_few(given.rounds))
    setting = given.setting or SETTING[given.device]
    try:
        found = device.ask(given.device)
        wanted = plan(config, given, "bf16" if found["bf16"] else "fp16")
    except (benchmarks.BenchmarkError, device.DeviceError) as error:
        sys.exit(f"ERROR: {error}")
    try:
        with locks.exclusive(given.output / "survey.lock"):
            failed = measure_all(config, setting, wanted, given, found["device"])
    except (locks.Held, locks.NoLocks) as error:
        sys.exit(f"ERROR: {error}")
    if failed:
        sys.exit(f"{failed} of {len(wanted)} could not be measured; started again, only those are.")


def measure_all(config: Config, setting: str, wanted: list, given: argparse.Namespace, here: str) -> int:
    """Every (section, point) in its order; -> how many could not be measured."""
    failed = 0
    for number, (section, point) in enumerate(wanted, 1):
        print(f"[{number}/{len(wanted)}] {section} {benchmarks.name(point)}", flush=True)
        try:
            spec = spec_of(config, setting, section, point, given.rows)
            record = measure(spec, point, given.output, here)
        except fresh.MeasurementError as error:
            failed += 1
            print(f"  ERROR: {error}", flush=True)
        else:
            print("\n".join(f"  {said}" for said in by_hand.lines(record["results"])), flush=True)
    return failed


if __name__ == "__main__":
    command_line.run(main)
