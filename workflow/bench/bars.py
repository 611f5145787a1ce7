"""Compare speed-ups over the dense models with the bars of benchmarks/speed_bars.yaml.

`python -m workflow.bench bars` measures each benchmark group of the device (224 px, interleaved rounds, glibc's
allocator tuned, threads pinned), prints every bar with the measured speed-up, and ends with code 1 if one is missed.
"""

import argparse
import csv
import functools
import re
import sys
from pathlib import Path

import yaml

from workflow.bench import process
from workflow.campaign import benchmarks
from workflow.campaign.config import Config, nearest
from workflow.campaign.specs import recipe_of
from workflow.storage import records, warnings

BARS = records.ROOT / "benchmarks/speed_bars.yaml"
DEVICES = ("cpu", "cuda")
TRAINING = "DeiT-S, training step"
EVO = "Evo, stage, paper"
CONFIGURATIONS = {
    "cpu": {"device": "cpu", "channels_last": False, "threads": 2},
    "cuda": {"device": "cuda", "channels_last": False, "threads": 8},
}
FIELDS = [
    "section",
    "model",
    "precision",
    "images_per_s",
    "speedup",
    "low",
    "high",
    "ceiling",
    "bar",
    "met",
    "warnings",
]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to a parser."""
    parser.add_argument("--rounds", type=int, default=15, help="at least; up to twice as many while needed (15)")
    parser.add_argument("--device", choices=DEVICES, default="cpu")
    parser.add_argument("--groups", nargs="+", help="only these benchmark groups")
    parser.add_argument("--precisions", nargs="+", choices=("fp32", "bf16"), help="both on a CPU, bf16 on a GPU")
    output = "write the rows there, their records into folder X"
    parser.add_argument("--output", type=Path, metavar="X.CSV", help=output)


def main(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Measure what the arguments ask for, print and write rows, and end with code 1 for a miss."""
    on_cpu = arguments.device == "cpu"
    known = list(load_bars()[arguments.device])
    if on_cpu:
        known.append(TRAINING)
    for group in arguments.groups or ():
        if group not in known:
            parser.error(f"--groups {group!r} is unknown{nearest(group, known)}")
    if arguments.output and arguments.output.suffix != ".csv":  # without, file and folder are one
        parser.error(f"--output {arguments.output}: name a file that ends in .csv")
    if not on_cpu and "fp32" in (arguments.precisions or ()):
        parser.error("--precisions fp32: the bars of a GPU are in bf16")
    folder = arguments.output and arguments.output.with_suffix("")
    precisions = arguments.precisions or (["fp32", "bf16"] if on_cpu else ["bf16"])
    rows = []
    for group in arguments.groups or known:
        for precision in precisions:
            try:
                if group == TRAINING:
                    new = measure_training(precision, arguments.rounds, folder)
                else:
                    new = measure(arguments.device, group, precision, arguments.rounds, folder)
            except process.MeasurementError as error:
                sys.exit(f"ERROR: {group}: {error}")
            rows += new
            print("\n".join(line(row) for row in new), flush=True)
            if arguments.output:  # each time: the next group may be killed
                write(arguments.output, rows)
    sys.exit(any(row["met"] is False for row in rows))


@functools.cache
def load_bars() -> dict:
    """Return the content of speed_bars.yaml, which describes itself."""
    return yaml.safe_load(BARS.read_text())


def measure(device: str, group: str, precision: str, rounds: int, folder: Path | None) -> list[dict]:
    """Return one row of FIELDS per model of the group, dense first.

    "low" and "high" bound the speed-up. The record is written into `folder`, too.
    """
    entry = load_bars()[device][group]
    profiles = Config.load().items["profiles"]
    models = [{"run": "dense", "name": entry["dense"], "kwargs": {}}]
    bars = [None]
    for model in entry["models"]:
        kwargs = profiles[model["profile"]] if "profile" in model else model.get("kwargs", {})
        models.append({"run": model["label"], "name": model["name"], "kwargs": kwargs})
        bars.append(model[precision])
    spec = {
        **CONFIGURATIONS[device],
        "kind": "throughput",
        "section": group,
        "mode": entry["mode"],
        "precision": precision,
        "batch_size": entry["batch_size"],
        "models": models,
        "cuda_graphs": entry.get("cuda_graphs", 16),
        "rounds": rounds,
    }
    results = measure_spec(spec, folder)
    methods = zip(results["methods"], bars, strict=True)
    return [row_of(group, precision, method, bar, results) for method, bar in methods]


def measure_spec(spec: dict, folder: Path | None) -> dict:
    """Return the results of the spec's record, which is written into `folder`, too."""
    record = process.run_once(spec)
    if folder:
        name = "-".join([*re.findall(r"[a-z0-9]+", spec["section"].lower()), spec["precision"]])
        records.write_json(folder / f"{name}.json", record)
    return record["results"]


def row_of(group: str, precision: str, method: dict, bar: float | None, results: dict) -> dict:
    """Return the row of a method; without a speed-up it misses its bar."""
    row = dict.fromkeys(FIELDS, "") | {"section": group, "model": method["run"], "precision": precision, "bar": bar}
    reason = benchmarks.no_speed(method)
    if reason or method["speedup"] is None:
        return row | {"met": False, "warnings": reason or "its dense model has no speed"}
    low, high = method["speedup_interval"]
    return row | {
        "images_per_s": round(method["images_per_s"], 2),
        "speedup": round(method["speedup"], 3),
        "low": round(low, 3),
        "high": round(high, 3),
        "ceiling": round(method["ceilings"]["macs"], 3),
        "met": "" if bar is None else method["speedup"] >= bar,
        "warnings": "; ".join(warning.text for part in (method, results) for warning in warnings.read(part)),
    }


def measure_training(precision: str, rounds: int, folder: Path | None) -> list[dict]:
    """Return a row for the training step's time, and one for the bytes saved, Evo over dense."""
    config = Config.load()
    models = []
    for run, name in (
        ("deit_small", "plain_deit_small_patch16_224"),
        ("evo_deit_small", "evo_deit_small_patch16_224"),
    ):
        models.append({"run": run, "model": {"name": name, "kwargs": {}}, "recipe": recipe_of(config, None, run)})
    spec = {
        **CONFIGURATIONS["cpu"],
        "kind": "training_speed",
        "section": TRAINING,
        "mode": "fused",
        "rounds": rounds,
        "precision": precision,
        "models": models,
        "batch_size": 16,
    }
    results = measure_spec(spec, folder)
    dense, evo = results["methods"]
    bars = load_bars()["training_step"][precision]
    evo |= {"run": EVO, "out_of_memory": False, "ceilings": {"macs": dense["macs_g"] / evo["macs_g"]}}
    time = row_of(TRAINING, precision, evo, bars["speedup"], results)
    saved = evo["saved_bytes"] / dense["saved_bytes"]
    memory = dict.fromkeys(FIELDS, "") | {
        "section": TRAINING,
        "model": "  bytes saved, over dense",
        "precision": precision,
        "speedup": round(saved, 3),
        "bar": bars["saved_bytes"],
        "met": saved <= bars["saved_bytes"],
    }
    return [time, memory]


def line(row: dict) -> str:
    """Return a row for people."""
    text = f"{row['section']:22}{row['model']:26}{row['precision']:6}{row['images_per_s']:>8}"
    if row["speedup"]:
        text += f"  x {row['speedup']:.3f}"
    if row["low"]:
        text += f" ({row['low']:.3f}-{row['high']:.3f})"
    if row["ceiling"]:
        text += f"  ceiling {row['ceiling']:.2f}"
    if row["bar"]:
        text += f"  bar {row['bar']:.2f}"
        if not row["met"]:
            text += "  missed"
    if row["warnings"]:
        text += f"  warning: {row['warnings']}"
    return text


def write(path: Path, rows: list[dict]) -> None:
    """Write the rows, which have the same keys, as CSV."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
