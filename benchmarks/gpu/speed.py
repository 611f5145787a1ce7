"""Measure speed-ups on one GPU, the most telling first, and write each as soon as it is there.

    python -m benchmarks.gpu.speed --output DIR --minutes 9

Needs torch and timm. DIR/speed.tar.gz holds a record of each measurement and speed.csv, and is written anew after each;
the command may be killed anywhere. Records stay in --work, so that the same command goes on where it was. A process of
its own measures, one step after the other; if it crashes, another goes on with the next step.

A step is a dense model and others, compiled once and timed twice: with a launch for every kernel, and as a CUDA graph.
`-undeferred` is an Evo-ViT without deferred scores (evovit/fast/deferred.py). Peak memory is that of a pass without
graph. `--smoke` runs all steps with tiny uncompiled models on the CPU, to test this command: its numbers mean nothing.
"""

import argparse
import copy
import csv
import dataclasses
import functools
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu import transport
from workflow import command_line
from workflow.bench import modes, process, roofline, throughput
from workflow.campaign import benchmarks, specs
from workflow.campaign.config import Config
from workflow.runtime import device as devices
from workflow.storage import files, locks, records
from workflow.train import checkpoints

ARCHIVE = "speed.tar.gz"
TABLE = "speed.csv"
FIELDS = ["step", "device", "model", "mode", "precision", "batch_size", "cuda_graph", "images_per_s"]
FIELDS += ["speedup", "low", "high", "ceiling_macs", "ceiling_roofline", "peak_mib", "p50_ms", "p95_ms", "note"]
UNDEFERRED = "-undeferred"
GRAPH = "-graph"
SMOKE = {"img_size": 32, "embed_dim": 24, "num_heads": 3, "depth": 6, "num_classes": 10}
SMOKE_STEPS = ("deit_small", "deit_small-paper")
ROUNDS = 5
TIMING_S = 0.3  # of a model in a round
SMOKE_TIMING_S = 0.01
EVERY_S = 1.0  # between two looks at the measuring process
END_S = 15.0  # the command ends this long before its minutes are over, as importing torch took time, too


# -- what is measured, in which order -----------------------------------------------------------


def plan(config: Config, smoke: bool = False) -> list[dict]:
    """Return the spec of each step, the most telling first, without `cuda_graphs`.

    With `smoke`, a few steps of tiny models, which the CPU runs uncompiled.
    """
    steps = []

    def add(name: str, rows: list[str], mode: str = "compiled", batch_size: int = 256) -> None:
        precision = "fp32" if mode == "paper" else "bf16"
        models = [model_of(config, row) for row in rows]
        spec: dict = {"kind": "throughput", "section": name, "models": models, "device": "cuda", "mode": mode}
        spec |= {"precision": precision, "batch_size": batch_size, "channels_last": False}
        steps.append(spec | {"threads": 8, "rounds": ROUNDS})

    def add_methods(size: str) -> None:
        _, _, *others = config.items["sections"][f"methods_{size}"]  # after the dense model and Evo-ViT
        for row in others:
            add(f"methods-{row}", [f"deit_{size}", row])

    for size in ("small", "tiny"):
        add(f"deit_{size}", [f"deit_{size}", f"evo_deit_{size}", f"evo_deit_{size}{UNDEFERRED}"])
    for size in ("small", "tiny"):
        add(f"deit_{size}-b1", [f"deit_{size}", f"evo_deit_{size}", f"evo_deit_{size}{UNDEFERRED}"], batch_size=1)
    for size in ("small", "tiny"):
        add(f"deit_{size}-paper", [f"deit_{size}", f"evo_deit_{size}"], mode="paper")
    add_methods("small")
    add("deit_base", ["deit_base", "evo_deit_base"])
    add("levit_256", ["levit_256", "evo_levit_256"])
    add("deit_small_384", ["deit_small_384", "evo_deit_small_384"], batch_size=64)
    add_methods("tiny")
    if smoke:
        return [make_small(spec) for spec in steps if spec["section"] in SMOKE_STEPS]
    return steps


def model_of(config: Config, row: str) -> dict:
    """Return the model of a row of runs.yaml at the paper's size, at its assumed profile where it needs one."""
    model = {"run": row, **specs.model_of(config, row.removesuffix(UNDEFERRED))}
    if row.endswith(UNDEFERRED):
        return model | {"defers_scores": False}
    if row in config.items["profiles"]:
        return model | {"kwargs": model["kwargs"] | config.items["profiles"][row], "profile": "assumed"}
    return model


def make_small(spec: dict) -> dict:
    """Return a spec of the same kind for tiny models on the CPU, which are timed for a moment."""
    models = [model | {"kwargs": model["kwargs"] | SMOKE} for model in spec["models"]]
    mode = "fused" if spec["mode"] == "compiled" else spec["mode"]
    small = {"models": models, "device": "cpu", "mode": mode, "precision": "fp32", "batch_size": 2, "threads": 1}
    return spec | small | {"smoke": True}


def names_of(spec: dict) -> list[str]:
    """Return what the records of a step are called: launched kernel by kernel, and as a CUDA graph."""
    section = spec["section"]
    return [section, f"{section}{GRAPH}"] if has_graph(spec) else [section]


def has_graph(spec: dict) -> bool:
    """Return whether a step's models are timed as CUDA graphs, too."""
    return modes.wants_graph(spec | {"cuda_graphs": spec["batch_size"]})


# -- the measuring process ----------------------------------------------------------------------


class Bench:
    """Measure steps one after the other. A dense model is prepared once for the steps in a row that it serves."""

    def __init__(self) -> None:
        self.machines: dict[str, dict] = {}  # rates for rooflines, by precision
        self.dense_of: dict | None = None  # the configuration of the prepared dense model
        self.dense: throughput.TimedModel | None = None

    def measure(self, spec: dict, keep: Callable[[str, dict], None]) -> None:
        """Measure a step, and hand each of its records to `keep` with its name, as soon as it is there."""
        started = time.time()
        benchmarks.check(spec)
        device = modes.set_up(spec)
        torch.manual_seed(0)
        precision = spec["precision"]
        if precision not in self.machines:
            self.machines[precision] = roofline.measure_machine(precision, device)
        machine = self.machines[precision]

        def finish(name: str, of_run: dict, results: dict) -> None:
            results |= {"device": devices.describe(device), "environment": process.environment()}
            keep(name, records.make(of_run, results, started, device=results["device"]))

        methods, timed = self.prepare(spec, device)
        launched = spec | {"cuda_graphs": 0}
        finish(spec["section"], launched, time_rounds(copy.deepcopy(methods), timed, launched, machine))
        if has_graph(spec):
            as_graph = spec | {"cuda_graphs": spec["batch_size"]}
            finish(f"{spec['section']}{GRAPH}", as_graph, time_graphs(methods, timed, as_graph, machine))

    def prepare(self, spec: dict, device: torch.device) -> tuple[list[dict], dict[str, throughput.TimedModel]]:
        """Return what is known of the step's models, and by their names those that run, without CUDA graphs."""
        dense = spec["models"][0]
        configuration = {key: spec[key] for key in ("mode", "precision", "batch_size")} | {"model": dense}
        if configuration != self.dense_of:
            self.dense_of = self.dense = None
            torch.compiler.reset()
            devices.free()
            self.dense = self.prepare_model(dense, spec, device)
            self.dense_of = configuration
        timed = {dense["run"]: forget(self.dense)}
        methods = [self.dense.method]
        for model in spec["models"][1:]:
            method = {"run": model["run"], "out_of_memory": False}
            try:
                timed[model["run"]] = self.prepare_model(model, spec, device)
                method = timed[model["run"]].method
            except process.MeasurementError as error:
                method["refused"] = str(error)
            except RuntimeError as error:
                if not devices.is_out_of_memory(error):
                    raise
                method["out_of_memory"] = True
            methods.append(method)
            devices.free()
        return methods, timed

    def prepare_model(self, model: dict, spec: dict, device: torch.device) -> throughput.TimedModel:
        """Return the model, checked against fp32 with unfused attention, ready to be timed without a CUDA graph."""
        module = modes.make_model(model, device)
        if not model.get("defers_scores", True):
            # a class of its own, for which torch.compile can't take the code of the model that defers them
            module.__class__ = type("Undeferred", (type(module),), {"defers_scores": False})
        (images,), _ = throughput.make_inputs([module], spec, None, device)
        timing_s = SMOKE_TIMING_S if spec.get("smoke") else TIMING_S
        with torch.inference_mode():
            method = throughput.describe(model, module, images)
            prepared = throughput.prepare(module, images, spec | {"cuda_graphs": 0}, timing_s)
        prepared.method = method | prepared.method | {"out_of_memory": False}
        return prepared


def forget(model: throughput.TimedModel) -> throughput.TimedModel:
    """Return the model as it was before it was timed."""
    return dataclasses.replace(model, rates=[], latencies=[], spans=[])


@torch.inference_mode()
def time_rounds(methods: list[dict], timed: dict[str, throughput.TimedModel], spec: dict, machine: dict) -> dict:
    """Time the models that run in interleaved rounds, complete `methods`, and return a record's results."""
    models = []
    for method in methods:
        if method["run"] in timed:
            timed[method["run"]].method = method
            models.append(timed[method["run"]])
    device = models[0].device
    watch = throughput.time_in_rounds(models, spec["rounds"], device)
    throughput.summarise(models, watch, methods[0], spec, machine)
    shared = throughput.observations(models, watch, device)
    return {"batch_size": spec["batch_size"], "machine": machine, "methods": methods, **shared}


@torch.inference_mode()
def time_graphs(methods: list[dict], timed: dict[str, throughput.TimedModel], spec: dict, machine: dict) -> dict:
    """Time the models that run as CUDA graphs, as `time_rounds` does. A model that can't be captured is noted."""
    methods = copy.deepcopy(methods)
    graphs = {}
    for method in methods:
        plain = timed.get(method["run"])
        if plain is None:
            continue
        try:
            graphs[method["run"]] = capture(plain)
            method["cuda_graph"] = True
        except process.MeasurementError as error:
            if method is methods[0]:
                raise
            method["refused"] = str(error)
    return time_rounds(methods, graphs, spec, machine)


def capture(plain: throughput.TimedModel) -> throughput.TimedModel:
    """Return a model's pass as a CUDA graph, checked against the pass itself."""
    reference = throughput.seeded(plain.run, plain.images)
    try:
        run = modes.CapturedPass(plain.run, plain.images)
    except RuntimeError as error:
        if devices.is_out_of_memory(error):
            raise
        reason = checkpoints.first_line(error)
        raise process.MeasurementError(f"it can't be captured as a CUDA graph: {reason}") from error
    if not close(throughput.seeded(run, run.images), reference):
        raise process.MeasurementError("as a CUDA graph it gives other outputs than without")
    graph = dataclasses.replace(forget(plain), run=run, images=run.images)
    graph.warm_up()
    return graph


def close(outputs: Tensor, reference: Tensor) -> bool:
    """Return whether logits (B, classes) are the reference's, but for rounding."""
    return throughput.distance(outputs, reference) <= throughput.TOLERANCE["bf16"]


def measure_all(work: Path, smoke: bool) -> None:
    """Measure every step that has neither a record nor a fault, and write its records."""
    bench = Bench()
    for spec in plan(Config.load(), smoke):
        section = spec["section"]
        if is_over(work, spec):
            continue
        files.write(work / "now.txt", section)
        print(f"{section} ...", flush=True)
        try:
            bench.measure(spec, functools.partial(keep, work))
        except process.UNUSABLE as error:
            note_fault(work, section, str(error))
        except Exception as error:  # the GPU may be unusable for this process now
            note_fault(work, section, checkpoints.first_line(error))
            raise


def keep(work: Path, name: str, record: dict) -> None:
    """Write a record, and print its models' speeds."""
    records.write_json(work / f"{name}.json", record)
    print("\n".join(f"  {name}: {line}" for line in throughput.lines(record["results"])), flush=True)


# -- the command --------------------------------------------------------------------------------


def is_over(work: Path, spec: dict) -> bool:
    """Return whether a step has its records, or a fault."""
    whole = all((work / f"{name}.json").exists() for name in names_of(spec))
    return whole or fault_path(work, spec["section"]).exists()


def fault_path(work: Path, section: str) -> Path:
    """Return where it is noted why a step has no record."""
    return work / f"{section}.fault"


def note_fault(work: Path, section: str, sentence: str) -> None:
    """Note why a step has no record; to have it measured again, delete the file."""
    print(f"{section} is left out: {sentence}", file=sys.stderr, flush=True)
    files.write(fault_path(work, section), f"{sentence}\n")


def measure_until(deadline: float, work: Path, output: Path, arguments: argparse.Namespace) -> None:
    """Let processes measure until all steps are over or the time is, and pack what they made after each step."""
    steps = plan(Config.load(), arguments.smoke)
    while not all(is_over(work, spec) for spec in steps) and time.time() < deadline:
        child = start_child(work, steps[0], arguments.smoke)
        while child.poll() is None and time.time() < deadline:
            time.sleep(EVERY_S)
            pack(work, output)
        if child.poll() is None:
            child.kill()
            child.wait()
            print("The time is up; the same command goes on with the next step.", flush=True)
        elif child.returncode:
            if not (work / "now.txt").exists():
                sys.exit(f"ERROR: the measuring process ended with code {child.returncode} before its first step.")
            section = (work / "now.txt").read_text()
            if not fault_path(work, section).exists():
                note_fault(work, section, f"the measuring process ended with code {child.returncode}")
    pack(work, output)


def start_child(work: Path, spec: dict, smoke: bool) -> subprocess.Popen:
    """Start a process that measures, tuned as workflow.bench.process does it."""
    command = [sys.executable, "-m", "benchmarks.gpu.speed", "--output", str(work), "--work", str(work), "--measure"]
    if smoke:
        command.append("--smoke")
    (work / "now.txt").unlink(missing_ok=True)
    with process.pinned(spec):
        return subprocess.Popen(command, env=process.process_environment(spec), stdin=subprocess.PIPE)


def pack(work: Path, output: Path) -> None:
    """Write the table of all records and the archive, unless both are newer than every record."""
    made = [*work.glob("*.json"), *work.glob("*.fault")]
    archive = output / ARCHIVE
    if not made or (archive.exists() and archive.stat().st_mtime_ns > max(p.stat().st_mtime_ns for p in made)):
        return
    write_table(work)
    transport.pack(archive, work, [*made, work / TABLE])


def write_table(folder: Path) -> None:
    """Write speed.csv, a row for each model in each of the folder's records, in the order of the steps."""
    order = {spec["section"]: number for number, spec in enumerate(plan(Config.load()))}
    rows = []
    for path in folder.glob("*.json"):
        rows += rows_of(records.read(path))
    rows.sort(key=lambda row: (order.get(row["step"], len(order)), row["cuda_graph"]))  # an earlier plan's come last
    with files.replacing(folder / TABLE) as temporary, open(temporary, "w", newline="") as stream:
        writer = csv.DictWriter(stream, FIELDS)
        writer.writeheader()
        writer.writerows(rows)


def rows_of(record: dict) -> list[dict]:
    """Return a row of FIELDS for each model of a record."""
    spec, results = record["spec"], record["results"]
    warnings = [warning["text"] for warning in results["warnings"]]
    rows = []
    for method in results["methods"]:
        row: dict[str, Any] = dict.fromkeys(FIELDS, "")
        row |= {key: spec[key] for key in ("mode", "precision", "batch_size")}
        row |= {"step": spec["section"], "device": results["device"], "model": method["run"]}
        row["cuda_graph"] = spec["cuda_graphs"] > 0
        notes = warnings
        reason = benchmarks.no_speed(method)
        if reason:
            notes = [reason]
        else:
            low, high = method["speedup_interval"]
            row |= {"images_per_s": round(method["images_per_s"], 1), "speedup": round(method["speedup"], 4)}
            row |= {"low": round(low, 4), "high": round(high, 4)}
            row["ceiling_macs"] = round(method["ceilings"]["macs"], 3)
            row["ceiling_roofline"] = round(method["ceilings"]["roofline"], 3)
            row["peak_mib"] = round(method["peak_memory_mib"]) if "peak_memory_mib" in method else ""
            if method["latency_ms"]:
                row["p50_ms"] = round(method["latency_ms"]["p50"], 3)
                row["p95_ms"] = round(method["latency_ms"]["p95"], 3)
            notes = [*(warning["text"] for warning in method["warnings"]), *notes]
        rows.append(row | {"note": "; ".join(notes)})
    return rows


def main() -> None:
    """Measure what is not measured yet, until the time is up."""
    started = time.time()
    parser = command_line.parser(__doc__)
    parser.add_argument("--output", type=Path, required=True, help=f"folder for {ARCHIVE}")
    parser.add_argument("--minutes", type=float, default=9.0, help="after which the command has ended (9)")
    kept = "folder that keeps the records between two calls (results/gpu/speed)"
    parser.add_argument("--work", type=Path, default=Path("results/gpu/speed"), help=kept)
    parser.add_argument("--smoke", action="store_true", help="tiny models on the CPU, to test this command")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)  # the process that measures
    arguments = parser.parse_args()
    work = arguments.work / "smoke" if arguments.smoke and not arguments.measure else arguments.work
    if arguments.measure:
        transport.end_with_parent(grace_s=1.0)
        try:
            measure_all(work, arguments.smoke)
        except Exception:
            traceback.print_exc()
            sys.exit(1)
        return
    if not arguments.smoke and not torch.cuda.is_available():
        sys.exit("ERROR: torch sees no GPU; --smoke tests this command on the CPU.")
    arguments.output.mkdir(parents=True, exist_ok=True)
    work.mkdir(parents=True, exist_ok=True)
    try:
        with locks.exclusive(work / "speed.lock", patience_s=5.0):
            measure_until(started + 60 * arguments.minutes - END_S, work, arguments.output, arguments)
    except (locks.Held, locks.NoLocks) as error:
        sys.exit(f"ERROR: {error}")
    missing = [spec["section"] for spec in plan(Config.load(), arguments.smoke) if not is_over(work, spec)]
    print(f"{arguments.output / ARCHIVE}; not measured yet: {', '.join(missing) or 'nothing'}")


if __name__ == "__main__":
    command_line.run(main)
