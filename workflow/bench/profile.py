"""Show where a forward pass spends its time: kernels of a model and of its dense baseline.

`python -m workflow.bench profile` prepares both as throughput.py times them, and prints milliseconds of each kernel (on
a CPU: of each operation) per pass, the longest first, and how long the device had nothing to do. A profiler slows down
what it watches, a CPU more than a GPU: take speeds from `run`.
"""

import re
import sys
import time
from dataclasses import dataclass

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity
from torch.profiler import profile as profiler

from workflow.bench import modes, process, throughput
from workflow.campaign import benchmarks
from workflow.runtime import device as devices

PASSES = 10
WIDTH = 76


@dataclass(frozen=True)
class Profile:
    """The time of one pass in ms, and (ms, calls) of each of its kernels or operations by name."""

    wall_ms: float
    kernels: dict[str, tuple[float, float]]

    @property
    def busy_ms(self) -> float:
        return sum(ms for ms, _ in self.kernels.values())


def main(spec: dict, shown: int) -> None:
    """Print the profile of each model of the spec, with that many kernels.

    Ends with one sentence for a configuration that can't run.
    """
    process.restart_tuned(spec, "workflow.bench")
    try:
        benchmarks.check(spec)
        device = modes.set_up(spec)
        torch.manual_seed(0)
        for model in spec["models"]:
            profile = profile_model(model, spec, device)
            print("\n".join(lines(model["name"], profile, shown)), flush=True)
            torch.compiler.reset()
    except process.UNUSABLE as error:
        sys.exit(f"ERROR: {error}")
    except RuntimeError as error:
        if not devices.is_out_of_memory(error):
            raise
        sys.exit(f"ERROR: batch size {spec['batch_size']} does not fit into memory; give less.")


def profile_model(model: dict, spec: dict, device: torch.device) -> Profile:
    """Return the profile of one model in the spec's configuration.

    Raises MeasurementError, torch.OutOfMemoryError.
    """
    with torch.inference_mode():
        module = modes.make_model(model, device)
        (images,), _ = throughput.make_inputs([module], spec, None, device)
        timed = throughput.prepare(module, images, spec)
        activity = ProfilerActivity.CUDA if device.type == "cuda" else ProfilerActivity.CPU
        with profiler(activities=[activity]) as trace:
            started = time.perf_counter()
            timed.time_passes(PASSES)
            wall_ms = 1000 * (time.perf_counter() - started) / PASSES
    return Profile(wall_ms, per_kernel(trace.key_averages(), device))


def per_kernel(events, device: torch.device) -> dict[str, tuple[float, float]]:
    """Return milliseconds and calls per pass of each kernel, the longest first."""
    gpu = device.type == "cuda"
    kernels: dict[str, tuple[float, float]] = {}
    for event in events:
        if (event.device_type == DeviceType.CUDA) != gpu:
            continue
        spent = event.self_device_time_total if gpu else event.self_cpu_time_total
        name = short(event.key)
        ms, calls = kernels.get(name, (0.0, 0.0))
        kernels[name] = (ms + spent / 1000 / PASSES, calls + event.count / PASSES)
    return dict(sorted(kernels.items(), key=lambda item: -item[1][0]))


def short(name: str) -> str:
    """Return a kernel's name without namespaces, and not too long."""
    name = re.sub(r"^void |\(anonymous namespace\)::|at::native::|at_cuda_detail::", "", name)
    if len(name) > WIDTH:
        return f"{name[: WIDTH - 3]}..."
    return name


def lines(label: str, profile: Profile, shown: int) -> list[str]:
    """Return a profile for people; the kernels that are not shown are summed up in a line."""
    idle_ms = max(0.0, profile.wall_ms - profile.busy_ms)
    text = [f"{label}: {profile.wall_ms:.3f} ms a pass, {idle_ms:.3f} ms of it idle, the rest in"]
    kernels = list(profile.kernels.items())
    rest = [value for _, value in kernels[shown:]]
    if rest:
        total = (sum(ms for ms, _ in rest), sum(calls for _, calls in rest))
        kernels = [*kernels[:shown], (f"({len(rest)} others)", total)]
    for name, (ms, calls) in kernels:
        text.append(f"  {ms:9.3f} ms {100 * ms / profile.busy_ms:5.1f} %  x{calls:<6.1f} {name}")
    return text
