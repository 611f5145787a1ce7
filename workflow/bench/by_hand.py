"""The command line of throughput.py: one model and its baseline, one record."""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import torch

from workflow.bench import fresh, sensors
from workflow.campaign import points
from workflow.storage import records, warnings

LEAST_ROUNDS = 5


def parser(command: str, description: str, sweeps: str = "") -> argparse.ArgumentParser:
    """The switches of a model, its baseline and a point of measurement."""
    made = argparse.ArgumentParser(prog=f"python -m workflow.bench.{command}", description=description)
    made.add_argument("--model", required=True, help="timm's name, ours included")
    made.add_argument("--baseline", required=True, help="the dense model")
    for name in ("model", "baseline"):
        made.add_argument(f"--{name}-kwargs", type=json.loads, default={}, metavar="JSON",
                          help="how it is built, such as '{\"keep_ratio\": 0.7}'")  # fmt: skip
    made.add_argument("--batch-size", type=int, default=256, help="images (256)" + sweeps)
    made.add_argument("--mode", choices=points.MODES, default="fused",
                      help="how it runs (fused); paper: as a V100 did in 2021")  # fmt: skip
    made.add_argument("--precision", choices=points.PRECISIONS, default="fp32",
                      help="of weights and images, or of autocast in mode amp (fp32)")  # fmt: skip
    made.add_argument("--device", choices=("auto", *points.DEVICES), default="auto",
                      help="auto: the GPU if there is one")  # fmt: skip
    made.add_argument("--channels-last", action="store_true", help="memory layout of all tensors")
    made.add_argument("--cuda-graphs", type=int, default=16, metavar="N",
                      help="replay batches of up to N images as CUDA graphs (16)")  # fmt: skip
    made.add_argument("--threads", type=int, default=min(8, len(sensors.processors())),
                      help="of the processor; on a GPU of its host")  # fmt: skip
    return made


def throughput_parser() -> argparse.ArgumentParser:
    made = parser(
        "throughput",
        "Time a model and its dense baseline in turns, in a process of their own.",
        sweeps="; 0: 1 to 1024 in turn",
    )
    made.add_argument("--rounds", type=int, default=15, help="at least; more while unsure")
    made.add_argument("--repeat", type=int, default=1, metavar="N",
                      help="measure N times, and say how far the speed-ups lie apart")  # fmt: skip
    made.add_argument("--output", type=Path, help="write the record there; of several <name>-1, -2 ...")
    return made


def make_spec(given: argparse.Namespace) -> dict:
    names = ((given.baseline, given.baseline_kwargs), (given.model, given.model_kwargs))
    models = [{"run": name, "name": name, "kwargs": kwargs} for name, kwargs in names]
    device = given.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    size = {"batch_size": given.batch_size} if given.batch_size else {"batch_sizes": points.SWEEP}
    point = {"device": device, "mode": given.mode, "precision": given.precision}
    point |= {"channels_last": given.channels_last, "cuda_graphs": given.cuda_graphs, **size}
    point["threads"] = given.threads
    return {"kind": "throughput", "section": "by_hand", "models": models, **point}


def lines(results: dict) -> list[str]:
    """For a person: a line for each model, and the warnings about it."""
    said = []
    for found in results.get("sizes", [results]):
        size = f"batch {found['batch_size']}"
        for method in found["methods"]:
            said.append(f"{size}  {method['run']:32}{line(method)}")
            said += [f"    warning: {warning.text}" for warning in warnings.read(method)]
        said += [f"    warning: {warning.text}" for warning in warnings.read(found)]
    return said


def line(method: dict) -> str:
    """Rate, speed-up with its interval, and the ceilings that stand beside it."""
    if why := points.no_speed(method):
        return why
    said = f"{method['images_per_s']:9.1f} images/s"
    if method["speedup"] is not None:
        low, high = method["speedup_interval"]
        said += f"  x {method['speedup']:.3f} ({low:.3f}-{high:.3f})"
        said += "  ceilings: MACs {macs:.2f}, roofline {roofline:.2f}".format(**method["ceilings"])
    if latency := method["latency_ms"]:
        said += "  ms p50 {p50:.2f} p90 {p90:.2f} p99 {p99:.2f}".format(**latency)
    return said


def too_few(rounds: int) -> str:
    return f"--rounds {rounds}: at least {LEAST_ROUNDS}, or no interval is known"


def main() -> None:
    made = throughput_parser()
    given = made.parse_args()
    if given.rounds < LEAST_ROUNDS:
        made.error(too_few(given.rounds))
    if given.repeat > 1 and not given.batch_size:
        made.error("--repeat compares one batch size; --batch-size 0 is a sweep")
    spec, speedups = make_spec(given) | {"rounds": given.rounds}, []
    for number in range(1, given.repeat + 1):
        try:
            with tempfile.TemporaryDirectory() as folder:
                record = fresh.run(spec, {}, Path(folder))
        except fresh.MeasurementError as error:
            sys.exit(f"ERROR: {error}")
        results = record["results"]
        print("\n".join(lines(results)), flush=True)
        if refused := results.get("methods", [{}])[-1].get("refused"):
            sys.exit(f"ERROR: {refused}")
        if given.repeat > 1:
            speedups.append(results["methods"][-1].get("speedup"))
        if given.output:
            several = f"{given.output.stem}-{number}{given.output.suffix}"
            path = given.output if given.repeat == 1 else given.output.with_name(several)
            records.write_json(path, record)
            print(path, flush=True)
    if None in speedups:
        sys.exit("ERROR: out of memory: without speed-ups nothing can be compared.")
    if speedups:
        apart = 100 * (max(speedups) / min(speedups) - 1)
        print(f"speed-ups of {given.repeat} measurements: {min(speedups):.3f} to "
              f"{max(speedups):.3f}, {apart:.1f} % apart")  # fmt: skip
