"""Measure speeds, in processes that have the device to themselves.

    python -m workflow.bench run --model evo_deit_small_patch16_224 --baseline deit_small_patch16_224 \
        --batch-size 256 --precision bf16 --mode fused --device cuda --output f.json
    python -m workflow.bench profile --model evo_deit_small_patch16_224 --baseline deit_small_patch16_224 \
        --batch-size 256 --precision bf16 --mode compiled
    python -m workflow.bench suite --device cuda --output measured
    python -m workflow.bench import measured --root results
    python -m workflow.bench bars --device cpu
    python -m workflow.bench latency --output latency.csv

All but `import` need only torch and timm, so they run on any GPU machine.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from workflow import command_line
from workflow.bench import bars, latency, monitor, process, profile, suite, throughput
from workflow.bench.statistics import LEAST_ROUNDS
from workflow.campaign import benchmarks
from workflow.storage import records


def main() -> None:
    """Run the command that the command line names."""
    parser = command_line.parser(__doc__, prog="python -m workflow.bench")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, purpose: str, function: Callable) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=purpose, description=f"{purpose}.")
        command.set_defaults(main=function, parser=command)
        return command

    run = add("run", "Time a model and its dense baseline", run_model)
    add_configuration(run)
    run.add_argument("--rounds", type=int, default=15, help="at least; more while an interval is not narrow")
    repeat = "measure N times, and say how far the speed-ups are apart"
    run.add_argument("--repeat", type=int, default=1, metavar="N", help=repeat)
    run.add_argument("--output", type=Path, help="write the record there; of several <name>-1, -2 ...")

    kernels = add("profile", "Show where a forward pass spends its time, kernel by kernel", profile_models)
    add_configuration(kernels)
    kernels.add_argument("--kernels", type=int, default=20, metavar="N", help="number of lines (20)")

    suite.add_arguments(add("suite", "Time all that the tables show", suite.main))

    importing = add("import", "Make measurements from elsewhere the workflow's", import_folder)
    importing.add_argument("folder", type=Path, help="the suite's output")
    importing.add_argument("--root", default="results", help="the setting's results folder")

    bars.add_arguments(add("bars", "Compare speed-ups with benchmarks/speed_bars.yaml", bars.main))

    purpose = "Time single images in PyTorch eager, compiled, and in ONNX Runtime"
    latency.add_arguments(add("latency", purpose, latency.main))

    arguments = parser.parse_args()
    rounds = getattr(arguments, "rounds", None)
    if rounds is not None and rounds < LEAST_ROUNDS:
        arguments.parser.error(f"--rounds {rounds}: at least {LEAST_ROUNDS}, or no interval is known")
    arguments.main(arguments.parser, arguments)


# -- a model and its baseline -------------------------------------------------------------------


def add_configuration(parser: argparse.ArgumentParser) -> None:
    """Add the options of a model, its baseline and a benchmark configuration."""
    parser.add_argument("--model", required=True, help="timm's name, ours included")
    parser.add_argument("--baseline", required=True, help="the dense model")
    built = "how it is built, such as '{\"keep_ratio\": 0.7}'"
    parser.add_argument("--model-kwargs", type=json.loads, default={}, metavar="JSON", help=built)
    parser.add_argument("--baseline-kwargs", type=json.loads, default={}, metavar="JSON", help=built)
    parser.add_argument("--batch-size", type=int, default=256, help="images (256); of run, 0: a sweep, 1 to 1024")
    mode = "how it runs (fused); paper: as a V100 did in 2021"
    parser.add_argument("--mode", choices=benchmarks.MODES, default="fused", help=mode)
    precision = "of weights and images, or of autocast in mode amp (fp32)"
    parser.add_argument("--precision", choices=benchmarks.PRECISIONS, default="fp32", help=precision)
    device = "auto: the GPU if there is one"
    parser.add_argument("--device", choices=("auto", *benchmarks.DEVICES), default="auto", help=device)
    parser.add_argument("--channels-last", action="store_true", help="memory layout of all tensors")
    graphs = "replay batches of up to N images as CUDA graphs (16)"
    parser.add_argument("--cuda-graphs", type=int, default=16, metavar="N", help=graphs)
    threads = min(8, len(monitor.processors()))
    parser.add_argument("--threads", type=int, default=threads, help="of the processor; on a GPU of its host")


def make_spec(arguments: argparse.Namespace) -> dict:
    """Return the spec of the measurement that the arguments ask for, without `rounds`."""
    device = arguments.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    spec = {
        "kind": "throughput",
        "section": "bench_run",
        "models": [
            {"run": arguments.baseline, "name": arguments.baseline, "kwargs": arguments.baseline_kwargs},
            {"run": arguments.model, "name": arguments.model, "kwargs": arguments.model_kwargs},
        ],
        "device": device,
        "mode": arguments.mode,
        "precision": arguments.precision,
        "channels_last": arguments.channels_last,
        "cuda_graphs": arguments.cuda_graphs,
        "threads": arguments.threads,
    }
    if arguments.batch_size:
        spec["batch_size"] = arguments.batch_size
    else:
        spec["batch_sizes"] = benchmarks.SWEEP
    return spec


def run_model(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Time a model and its dense baseline in interleaved rounds, in a process of their own."""
    if arguments.repeat > 1 and not arguments.batch_size:
        parser.error("--repeat compares one batch size; --batch-size 0 is a sweep")
    spec = make_spec(arguments) | {"rounds": arguments.rounds}
    speedups = []
    for number in range(1, arguments.repeat + 1):
        try:
            record = process.run_once(spec)
        except process.MeasurementError as error:
            sys.exit(f"ERROR: {error}")
        results = record["results"]
        print("\n".join(throughput.lines(results)), flush=True)
        if arguments.batch_size and results["methods"][-1].get("refused"):
            sys.exit(f"ERROR: {results['methods'][-1]['refused']}")
        if arguments.repeat > 1:
            speedups.append(results["methods"][-1].get("speedup"))
        if arguments.output:
            path = arguments.output
            if arguments.repeat > 1:
                path = path.with_name(f"{path.stem}-{number}{path.suffix}")
            records.write_json(path, record)
            print(path, flush=True)
    if None in speedups:
        sys.exit("ERROR: out of memory: without speed-ups nothing can be compared.")
    if speedups:
        least = min(speedups)
        most = max(speedups)
        apart = 100 * (most / least - 1)
        print(f"speed-ups of {len(speedups)} measurements: {least:.3f} to {most:.3f}, {apart:.1f} % apart")


def profile_models(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Print the kernels of a model's forward pass and of its baseline's."""
    if not arguments.batch_size:
        parser.error("--batch-size 0 is a sweep; name one batch size")
    profile.main(make_spec(arguments), arguments.kernels)


def import_folder(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Publish the records of the suite's folder in the setting's results."""
    from workflow.bench import import_records  # it checks the YAML, which a bare machine can't

    command_line.check_folder()
    import_records.main(arguments.folder, arguments.root)


if __name__ == "__main__":
    command_line.run(main)
