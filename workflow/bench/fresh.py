"""A measurement in a process of its own, with its allocator and its processors set up.

That is done before Python starts: untuned, glibc's allocator maps every block over 32 MB afresh,
which punishes dense models more than reduced ones and makes ratios exceed their MAC ceiling; and
threads that wander between processors vary more than the models differ.

    python -m workflow.bench.fresh --spec spec.json --output record.json
"""

import contextlib
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch

from workflow import command_line, job_environment
from workflow.bench import sensors
from workflow.bench.parts import FOLDER
from workflow.data import layout, worker_processes
from workflow.runtime import device
from workflow.storage import records
from workflow.train import checkpoints, factory

MEASUREMENTS = {
    "throughput": "workflow.bench.throughput",
    "training_cost": "workflow.bench.training_cost",
    "training_speed": "workflow.bench.training_speed",
}
ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": "4000000000",
    "MALLOC_TRIM_THRESHOLD_": "16000000000",
}
GIVEN = (
    "LD_PRELOAD",
    "PYTORCH_CUDA_ALLOC_CONF",
)  # of the shell, not removed (workflow/job_environment.py)
FAULT = ".fault"  # beside the output: why there is none
TOPOLOGY = Path("/sys/devices/system/cpu")


class MeasurementError(RuntimeError):
    """A measurement can't be made or can't be trusted; the message says which and why."""


UNUSABLE = (checkpoints.WeightsError, layout.DataError, device.DeviceError, factory.SpecError)


def environment() -> dict:
    """What besides the spec decides how fast this process is."""
    return {
        "threads": torch.get_num_threads(),
        "processors": sorted(sensors.processors()),
        "bound": os.environ.get("OMP_PROC_BIND"),
        "allocator": {name: os.environ.get(name) for name in ALLOCATOR},
        "given": {name: os.environ.get(name) for name in GIVEN},
        "tf32": {
            "matmul": torch.backends.cuda.matmul.allow_tf32,
            "cudnn": torch.backends.cudnn.allow_tf32,
        },
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
    }


def tuned(spec: dict) -> dict[str, str]:
    """The environment in which the spec is to be measured."""
    threads = {"OMP_NUM_THREADS": str(spec["threads"]), "MKL_NUM_THREADS": str(spec["threads"])}
    bound = {"OMP_PROC_BIND": "true"} if spec["device"] == "cpu" else {}
    return {**ALLOCATOR, **threads, **bound}


def choose_processors(count: int, allowed: set[int], topology: Path = TOPOLOGY) -> set[int]:
    """So many of the allowed processors, of different cores where there are enough."""
    first, second, cores = [], [], set()
    for number in sorted(allowed):
        siblings = topology / f"cpu{number}/topology/thread_siblings_list"
        core = siblings.read_text().strip() if siblings.exists() else str(number)
        (second if core in cores else first).append(number)
        cores.add(core)
    return set([*first, *second][:count])


def shell_environment(spec: dict) -> dict[str, str]:
    """This process's variables without those of the shell that change a speed, and with `tuned`."""
    environ = dict(os.environ)
    job_environment.clean(environ)
    return {**environ, **tuned(spec)}


@contextlib.contextmanager
def pinned(spec: dict) -> Iterator[None]:
    """Keep this process, and what it starts, on as many processors as it has threads; a GPU's host
    threads may go where they like, and so may all on macOS, which binds none."""
    process = psutil.Process()
    if spec["device"] != "cpu" or not hasattr(process, "cpu_affinity"):
        yield
        return
    before = process.cpu_affinity()
    process.cpu_affinity(sorted(choose_processors(spec["threads"], set(before))))
    try:
        yield
    finally:
        process.cpu_affinity(before)


def settle(spec: dict, module: str) -> None:
    """Start this command (`python -m module`) once more, tuned and pinned, unless it is."""
    if any(os.environ.get(name) != value for name, value in tuned(spec).items()):
        command = [sys.executable, "-m", module, *sys.argv[1:]]
        with pinned(spec):
            os.execve(sys.executable, command, shell_environment(spec))


def run(spec: dict, site: dict, folder: Path) -> dict:
    """The job of any of MEASUREMENTS; -> record. Started again with the same folder it goes on from
    the parts that it kept there (workflow.bench.parts)."""
    spec_path, output = folder / "measure.json", folder / "measured.json"
    records.write_json(spec_path, spec)
    command = [sys.executable, "-m", "workflow.bench.fresh"]
    command += ["--spec", str(spec_path), "--output", str(output), "--site", json.dumps(site)]
    fault = output.with_suffix(FAULT)
    fault.unlink(missing_ok=True)
    with pinned(spec):
        done = subprocess.run(command, env=shell_environment(spec), check=False)
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


def main() -> None:
    parser = command_line.parser(__doc__)
    parser.add_argument("--spec", required=True, type=Path, help="JSON file: what to measure")
    parser.add_argument("--output", required=True, type=Path, help="the record to write")
    parser.add_argument("--site", type=json.loads, help="JSON: where trained weights and images lie")
    arguments = parser.parse_args()
    started = time.time()
    spec = json.loads(arguments.spec.read_text())
    settle(spec, __spec__.name)
    try:
        results = importlib.import_module(MEASUREMENTS[spec["kind"]]).measure_section(
            spec, arguments.site, arguments.output.parent
        )
    except (MeasurementError, *UNUSABLE) as error:
        arguments.output.with_suffix(FAULT).write_text(str(error))
        sys.exit(str(error))
    except worker_processes.FAULTS as error:
        if (sentence := worker_processes.explain(error)) is None:
            raise
        arguments.output.with_suffix(FAULT).write_text(sentence)
        sys.exit(sentence)
    record = records.make(spec, results, started, device=results["device"])
    records.write_json(arguments.output, record)
    shutil.rmtree(arguments.output.parent / FOLDER, ignore_errors=True)


if __name__ == "__main__":
    from workflow.bench import fresh  # the module whose MeasurementError the measurements raise

    command_line.run(fresh.main)
