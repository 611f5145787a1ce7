"""Measure in a process of its own, whose allocator and processors are set up before Python starts.

Untuned, glibc's allocator maps every block over 32 MB afresh, which punishes dense
models more than reduced ones and makes ratios exceed their MAC ceiling; and threads that wander between processors vary
more than the models differ.

    python -m workflow.bench.process --spec spec.json --output record.json

A long measurement keeps its partial results on disk; killed and started again, it goes on from there.
"""

import contextlib
import importlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from workflow import command_line, job_environment
from workflow.bench import monitor
from workflow.campaign import benchmarks, specs
from workflow.data import layout, worker_processes
from workflow.runtime import device as devices
from workflow.storage import files, provenance, records
from workflow.train import checkpoints, factory

# kind -> module and function that measure a spec of the kind
MEASUREMENTS = {
    "throughput": ("workflow.bench.throughput", "measure_group"),
    "training_cost": ("workflow.bench.training_step", "measure_cost"),
    "offtheshelf": ("workflow.bench.offtheshelf", "measure"),
    "latency": ("workflow.bench.latency", "measure"),
    "training_speed": ("workflow.bench.training_step", "measure_speed"),
}
ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": "4000000000",
    "MALLOC_TRIM_THRESHOLD_": "16000000000",
}
# variables of the shell that workflow/job_environment.py does not remove
KEPT_VARIABLES = ("LD_PRELOAD", "PYTORCH_CUDA_ALLOC_CONF")
FAULT = ".fault"  # the output's suffix where there is none: a file that says why
PARTIAL = "parts"  # the folder of partial results
TOPOLOGY = Path("/sys/devices/system/cpu")


class MeasurementError(RuntimeError):
    """A measurement can't be made or can't be trusted; the message says which and why."""


# errors whose message says all
UNUSABLE = (
    MeasurementError,
    benchmarks.BenchmarkError,
    checkpoints.WeightsError,
    layout.DataError,
    devices.DeviceError,
    factory.SpecError,
    worker_processes.LoaderError,
)


# -- the process that asks ----------------------------------------------------------------------


def run(spec: dict, site: dict, folder: Path) -> dict:
    """Measure a spec of any of MEASUREMENTS in a new process, and return the record.

    Started again with the same folder, it goes on from the partial results that it kept there.

    Raises MeasurementError with the sentence of the process, or the reason why it ended.
    """
    spec_path = folder / "measure.json"
    output = folder / "measured.json"
    records.write_json(spec_path, spec)
    command = [sys.executable, "-m", "workflow.bench.process"]
    command += ["--spec", str(spec_path), "--output", str(output), "--site", json.dumps(site)]
    fault = output.with_suffix(FAULT)
    fault.unlink(missing_ok=True)
    with pinned(spec):
        done = subprocess.run(command, env=process_environment(spec), check=False)
    if fault.exists():
        raise MeasurementError(fault.read_text())
    if done.returncode == -signal.SIGKILL:
        raise MeasurementError(
            "The measuring process was killed (signal 9), as the kernel does where memory runs "
            "out; name smaller batches, or a machine with more."
        )
    if done.returncode:
        raise MeasurementError(f"The measuring process ended with code {done.returncode}.")
    return json.loads(output.read_text())


def run_once(spec: dict) -> dict:
    """Measure a spec as `run` does, and keep nothing but the record."""
    with tempfile.TemporaryDirectory() as folder:
        return run(spec, {}, Path(folder))


def tuned_environment(spec: dict) -> dict[str, str]:
    """Return the variables that a process needs before it starts to measure the spec."""
    threads = str(spec["threads"])
    environ = {**ALLOCATOR, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    if spec["device"] == "cpu":
        environ["OMP_PROC_BIND"] = "true"
    return environ


def process_environment(spec: dict) -> dict[str, str]:
    """Return this process's variables, tuned, without those of the shell that change a speed."""
    environ = dict(os.environ)
    job_environment.clean(environ)
    return environ | tuned_environment(spec)


def choose_processors(count: int, allowed: set[int]) -> set[int]:
    """Return `count` of the allowed processors, of different cores where there are enough."""
    used: Counter[str] = Counter()  # how many processors of each core come before
    ranked = []
    for number in sorted(allowed):
        siblings = TOPOLOGY / f"cpu{number}/topology/thread_siblings_list"
        core = siblings.read_text() if siblings.exists() else str(number)
        ranked.append((used[core], number))
        used[core] += 1
    return {number for _, number in sorted(ranked)[:count]}


@contextlib.contextmanager
def pinned(spec: dict) -> Iterator[None]:
    """Keep this process, and what it starts, on as many processors as the spec has threads.

    Nothing is bound where a GPU is measured, nor on macOS, which can't bind processes.
    """
    if spec["device"] != "cpu" or not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, choose_processors(spec["threads"], before))
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def restart_tuned(spec: dict, module: str) -> None:
    """Start this command (`python -m module`) again, tuned and pinned, unless it already is."""
    if any(os.environ.get(name) != value for name, value in tuned_environment(spec).items()):
        command = [sys.executable, "-m", module, *sys.argv[1:]]
        with pinned(spec):
            os.execve(sys.executable, command, process_environment(spec))


# -- the process that measures ------------------------------------------------------------------


def main() -> None:
    """Measure the spec of the command line, and write its record or the fault."""
    parser = command_line.parser(__doc__)
    parser.add_argument("--spec", required=True, type=Path, help="JSON file: what to measure")
    parser.add_argument("--output", required=True, type=Path, help="the record to write")
    parser.add_argument("--site", type=json.loads, help="JSON: where trained weights and images are")
    arguments = parser.parse_args()
    started = time.time()
    spec = json.loads(arguments.spec.read_text())
    restart_tuned(spec, "workflow.bench.process")
    module, function = MEASUREMENTS[spec["kind"]]
    measure = getattr(importlib.import_module(module), function)
    try:
        with worker_processes.explained():
            results = measure(spec, arguments.site, arguments.output.parent)
    except UNUSABLE as error:
        arguments.output.with_suffix(FAULT).write_text(str(error))
        sys.exit(str(error))
    record = records.make(spec, results, started, device=results["device"])
    records.write_json(arguments.output, record)
    shutil.rmtree(arguments.output.parent / PARTIAL, ignore_errors=True)


def environment() -> dict:
    """Return what decides, in addition to the spec, how fast this process is."""
    return {
        "threads": torch.get_num_threads(),
        "processors": sorted(monitor.processors()),
        "bound": os.environ.get("OMP_PROC_BIND"),
        "allocator": {name: os.environ.get(name) for name in ALLOCATOR},
        "given": {name: os.environ.get(name) for name in KEPT_VARIABLES},
        "tf32": {
            "matmul": torch.backends.cuda.matmul.allow_tf32,
            "cudnn": torch.backends.cudnn.allow_tf32,
        },
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
    }


class PartialResults:
    """Keep the partial results of one measurement as JSON in `folder`; None keeps nothing.

    A result of another spec, device, host, code or torch is measured again. `kept` counts the results that an earlier
    start had.
    """

    def __init__(self, folder: Path | None, spec: dict, device: str):
        self.folder = None if folder is None else folder / PARTIAL
        self.kept = 0
        self.origin = {
            "spec_hash": specs.spec_hash(spec),
            "device": device,
            "host": platform.node(),
            "code": provenance.running()["source_hash"],
            "versions": provenance.running()["versions"],
        }

    def get(self, name: str, measure: Callable[[], Any]) -> Any:
        """Return the result of that name: an earlier start's, or what `measure()` returns now."""
        if self.folder is None:
            return measure()
        path = self.folder / f"{name}.json"
        content = files.read_json(path)
        if {key: content.get(key) for key in self.origin} == self.origin:
            self.kept += 1
            return content["part"]
        result = measure()
        records.write_json(path, {**self.origin, "part": result})
        return result


if __name__ == "__main__":
    from workflow.bench import process  # the module whose MeasurementError the measurements raise

    command_line.run(process.main)
