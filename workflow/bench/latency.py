"""Measure the latency of one image as models are deployed: in PyTorch eager, compiled, and in ONNX Runtime.

All models in all runtimes take turns in one process, in fp32 at batch 1. A runtime's models of one size are timed as
throughput.py does it, A B A C A ..., with the dense model as A: a speed-up is over the dense model in the same runtime.
All runtimes have the same random weights, and their outputs are compared with eager's before they are timed. A runtime
that the machine lacks is left out, with a sentence that says why.
"""

import argparse
import copy
import importlib.util
import io
import os
import sys
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from workflow.bench import bars, modes, monitor, process, statistics, throughput
from workflow.bench.modes import Run
from workflow.bench.process import environment
from workflow.campaign import benchmarks
from workflow.runtime import device as devices
from workflow.storage import records
from workflow.storage.warnings import read as read_warnings
from workflow.train import checkpoints, factory

ONNX = "onnxruntime"
MODES = {"eager": "fused", "compiled": "compiled"}  # runtime of PyTorch -> mode of workflow/bench/modes.py
RUNTIMES = (*MODES, ONNX)
SIZES = ("tiny", "small")
REDUCED = ("evo_deit", "evit_deit", "tome_deit")
DENSE = {f"{name}_{size}_patch16_224": f"deit_{size}_patch16_224" for size in SIZES for name in REDUCED}
MODELS = sorted([*DENSE, *set(DENSE.values())])
TIMING_S = 0.3  # of a model in a round
SETTLING_PASSES = 2  # before a timing, untimed: threads of the runtime before may still spin
CHECKED = 4  # images, one by one
FIELDS = ["device", "threads", "runtime", "model", "p50_ms", "p95_ms", "passes"]
FIELDS += ["speedup", "low", "high", "ceiling", "warnings"]


# -- the command --------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to a parser."""
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS, metavar="MODEL", help="only these (all)")
    parser.add_argument("--runtimes", nargs="+", choices=RUNTIMES, default=RUNTIMES, help="only these (all)")
    parser.add_argument("--device", choices=benchmarks.DEVICES, default="cpu")
    threads = min(8, len(monitor.processors()))
    parser.add_argument("--threads", type=int, default=threads, help=f"of the processor ({threads})")
    parser.add_argument("--rounds", type=int, default=15, help="at least; up to twice as many while needed (15)")
    output = "write the rows there, and the record into X.json"
    parser.add_argument("--output", type=Path, metavar="X.CSV", help=output)


def main(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Measure what the arguments ask for in a process of its own; print and write rows."""
    output = arguments.output
    if output and output.suffix != ".csv":
        parser.error(f"--output {output}: name a file that ends in .csv")
    if arguments.threads < 1:
        parser.error(f"--threads {arguments.threads} must be at least 1")
    spec = make_spec(arguments)
    try:
        record = process.run_once(spec)
    except process.MeasurementError as error:
        sys.exit(f"ERROR: {error}")
    results = record["results"]
    for sentence in results["left_out"].values():
        print(sentence, file=sys.stderr)
    for method in results["methods"]:
        if "refused" in method:
            print(f"{method['run']} is left out in {method['runtime']}: {method['refused']}", file=sys.stderr)
    rows = rows_of(results)
    print("\n".join(line(row) for row in rows), flush=True)
    if output:
        records.write_json(output.with_suffix(".json"), record)
        if rows:
            bars.write(output, rows)
    if not rows:
        sys.exit("ERROR: nothing was timed; the sentences above say what each runtime needs.")


def make_spec(arguments: argparse.Namespace) -> dict:
    """Return the spec of the models that the arguments ask for, each size with its dense model first."""
    groups: dict[str, list[str]] = {}
    for name in arguments.models:
        dense = DENSE.get(name, name)
        groups.setdefault(dense, [dense])
        if name not in groups[dense]:
            groups[dense].append(name)
    return {
        "kind": "latency",
        "section": "latency",
        "groups": [[{"run": name, "name": name, "kwargs": {}} for name in names] for names in groups.values()],
        "runtimes": list(arguments.runtimes),
        "device": arguments.device,
        "precision": "fp32",
        "batch_size": 1,
        "channels_last": False,
        "threads": arguments.threads,
        "rounds": arguments.rounds,
    }


def rows_of(results: dict) -> list[dict]:
    """Return one row of FIELDS for each model and runtime that was timed."""
    shared = [warning.text for warning in read_warnings(results)]
    rows = []
    for method in results["methods"]:
        if "refused" in method:
            continue
        row = dict.fromkeys(FIELDS, "") | {
            "device": results["device"],
            "threads": results["environment"]["threads"],
            "runtime": method["runtime"],
            "model": method["run"],
            "p50_ms": round(method["latency_ms"]["p50"], 3),
            "p95_ms": round(method["latency_ms"]["p95"], 3),
            "passes": method["passes"],
            "warnings": "; ".join([*(warning.text for warning in read_warnings(method)), *shared]),
        }
        if method["speedup"] is not None:
            low, high = method["speedup_interval"]
            row |= {"speedup": round(method["speedup"], 3), "low": round(low, 3), "high": round(high, 3)}
            row["ceiling"] = round(method["ceiling"], 3)
        rows.append(row)
    return rows


def line(row: dict) -> str:
    """Return a row for people."""
    text = f"{row['runtime']:13}{row['model']:30}ms p50 {row['p50_ms']:8.2f} p95 {row['p95_ms']:8.2f}"
    if row["speedup"]:
        text += "  x {speedup:.3f} ({low:.3f}-{high:.3f})  ceiling {ceiling:.2f}".format(**row)
    if row["warnings"]:
        text += f"  warning: {row['warnings']}"
    return text


# -- the measurement ----------------------------------------------------------------------------


class SettledModel(throughput.TimedModel):
    """A timed model that first runs a few passes, until the runtime before it has let the processors go."""

    def time_once(self) -> None:
        """Time the model once, after the passes that settle it."""
        self.time_passes(SETTLING_PASSES)
        super().time_once()


def measure(spec: dict, site: dict | None = None, folder: Path | None = None) -> dict:
    """Time every model of the spec in every runtime that the machine has, and return the record's results.

    Raises:
        DeviceError: for a device that the machine does not have.
        MeasurementError: for outputs that are not eager's.
    """
    device = modes.set_up(spec)
    torch.manual_seed(0)
    # their passes start OpenMP's threads, on whose processors ONNX Runtime's are to run
    hosts = [[Host(model, device) for model in models] for models in spec["groups"]]
    left_out = {}
    for runtime in spec["runtimes"]:
        reason = missing(runtime, device, spec)
        if reason:
            left_out[runtime] = f"{runtime} is left out: {reason}"
    methods: list[dict] = []
    groups: list[list[throughput.TimedModel]] = []
    for runtime in spec["runtimes"]:
        if runtime in left_out:
            continue
        for models in hosts:
            described, timed = prepare(models, runtime, spec)
            methods += described
            if timed:
                groups.append(timed)
    everything = [model for group in groups for model in group]
    with torch.inference_mode():
        watch = time_in_rounds(groups, spec["rounds"], device)
    for group in groups:
        summarise(group)
    return {
        "device": devices.describe(device),
        "environment": environment(),
        "batch_size": 1,
        "left_out": left_out,
        "methods": methods,
        **throughput.observations(everything, watch, device),
    }


class Host:
    """A model in fp32 with random weights, its images, and the logits that it gives in eager mode.

    Attributes:
        images: CHECKED tensors (1, 3, H, W).
        logits: of the images, (CHECKED, classes).
        method: what is known of the model.
    """

    def __init__(self, model: dict, device: torch.device):
        self.module = modes.make_model(model, device)
        modes.set_attention(self.module, MODES["eager"])
        size = factory.image_size(self.module)
        self.images = [torch.randn(1, 3, *size, device=device) for _ in range(CHECKED)]
        with torch.inference_mode():
            self.logits = self.outputs(self.module)
            self.method = throughput.describe(model, self.module, self.images[0])

    def outputs(self, run: Run) -> Tensor:
        """Return logits (CHECKED, classes) of the images, one by one."""
        return torch.cat([run(image).clone() for image in self.images])


def prepare(hosts: list[Host], runtime: str, spec: dict) -> tuple[list[dict], list[throughput.TimedModel]]:
    """Return what is known of a group's models in a runtime, and those that it runs, the dense model first.

    Without the dense model nothing is timed. Raises MeasurementError for outputs that are not eager's.
    """
    methods = []
    timed: list[throughput.TimedModel] = []
    for host in hosts:
        method = {**copy.deepcopy(host.method), "runtime": runtime}
        methods.append(method)
        try:
            if methods[0].get("refused"):
                raise modes.Refused("its dense model does not run")
            run = make_run(host, runtime, spec)
        except modes.Refused as error:
            method["refused"] = str(error)
            continue
        with torch.inference_mode():
            method["check"] = throughput.compare(host.outputs(run), host.logits, "fp32", host.module)
            model = SettledModel(run, host.images[0], method, timing_s=TIMING_S)
            model.warm_up()
        timed.append(model)
    return methods, timed


def make_run(host: Host, runtime: str, spec: dict) -> Run:
    """Return the runtime's forward pass of a copy of the host, images (1, 3, H, W) to logits (1, classes).

    Raises Refused for a model that the runtime can't run.
    """
    module = copy.deepcopy(host.module)
    if runtime == ONNX:
        return onnx_session(module, host.images[0], spec)
    graphs = 1 if runtime == "compiled" else 0
    spec = spec | {"mode": MODES[runtime], "cuda_graphs": graphs}
    with torch.inference_mode():
        module, images = modes.cast(module, host.images[0], spec)
        run = modes.make_run(module, images, spec)
        if modes.wants_graph(spec):
            with modes.refused(module, "captured as a CUDA graph"):
                run = modes.CapturedPass(run, images)
    return run


def time_in_rounds(groups: list[list[throughput.TimedModel]], rounds: int, device: torch.device) -> monitor.Monitor:
    """Time all groups in each of at least `rounds` rounds. Return the monitor of the device, which observed it."""
    throughput.heat_up([model for group in groups for model in group], device)
    with monitor.start_monitor(device) as watch:
        while not all(throughput.are_enough(group, rounds) for group in groups):
            for group in groups:
                throughput.time_round(group)
        for group in groups:
            if len(group) > 1:
                group[0].time_once()  # after the last of the others
    return watch


def summarise(group: list[throughput.TimedModel]) -> None:
    """Complete what is known of a runtime's models: latencies, speed-up over the dense one, ceiling by MACs."""
    dense = group[0].method
    for model, rates in zip(group, throughput.baselines_of(group), strict=True):
        method = model.method
        method |= statistics.summarise(model.rates, rates)
        method["latency_ms"] = statistics.percentiles(model.latencies)
        method["passes"] = len(model.latencies)
        method["ceiling"] = dense["macs_g"] / method["macs_g"]


# -- runtimes -----------------------------------------------------------------------------------


def missing(runtime: str, device: torch.device, spec: dict) -> str | None:
    """Return why this machine can't run models in the runtime, and the remedy; None if it can."""
    if runtime == "compiled":
        module = nn.Linear(1, 1).to(device)
        try:
            with torch.inference_mode():
                modes.make_run(module, torch.zeros(1, 1, device=device), spec | {"mode": MODES[runtime]})
        except modes.Refused as error:
            reason = checkpoints.first_line(error.__cause__ or error)
            needed = "a C++ compiler (g++ or clang)" if device.type == "cpu" else "Triton and a C compiler"
            return f"torch.compile fails on this machine ({reason}); it needs {needed}."
        finally:
            torch.compiler.reset()
    if runtime == ONNX:
        if device.type != "cpu":
            return "it is timed on a CPU only; say --device cpu."
        absent = [name for name in ("onnx", ONNX) if importlib.util.find_spec(name) is None]
        if absent:
            return f"{' and '.join(absent)} not installed; pip install {' '.join(absent)}."
        threads = spec["threads"]
        if worker_processors(threads) is None:
            if monitor.psutil is None:
                return "psutil, which knows the processors of threads, is not installed; pip install psutil."
            return f"each of {threads} threads needs a processor of its own; say fewer --threads."
    return None


def onnx_session(module: nn.Module, images: Tensor, spec: dict) -> Run:
    """Return a pass of the module in ONNX Runtime on a CPU. Raises Refused if the module can't be exported."""
    import onnxruntime  # not every machine has it

    file = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad(), modes.refused(module, "exported to ONNX"):
        warnings.simplefilter("ignore")  # of the tracer, about sizes that are constant here
        torch.onnx.export(module, (images,), file, input_names=["images"], output_names=["logits"], dynamo=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = spec["threads"]
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors
    processors = worker_processors(spec["threads"])
    if processors:
        # they would inherit the one processor that OpenMP binds this thread to; ONNX Runtime counts from 1
        affinities = ";".join(str(number + 1) for number in processors)
        options.add_session_config_entry("session.intra_op_thread_affinities", affinities)
    with modes.refused(module, "run by ONNX Runtime"):
        session = onnxruntime.InferenceSession(file.getvalue(), options, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Tensor:
        (logits,) = session.run(None, {"images": images.numpy()})
        return torch.from_numpy(logits)

    return run


def worker_processors(threads: int) -> list[int] | None:
    """Return the processors of the threads that help this one, empty where none is bound; None if they are unknown."""
    if threads == 1 or not hasattr(os, "sched_getaffinity"):
        return []
    own = os.sched_getaffinity(0)
    if len(own) >= threads:  # this thread is not bound to one processor, and others inherit its processors
        return []
    others = sorted(monitor.processors() - own)
    if len(others) < threads - 1:
        return None
    return others[: threads - 1]
