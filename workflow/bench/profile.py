"""Where a forward pass spends its time: kernels of a model beside those of its dense baseline.

    python -m workflow.bench.profile --model evo_deit_small_patch16_224 \
        --baseline deit_small_patch16_224 --batch-size 256 --precision bf16 --mode compiled

prepares both as throughput.py times them, and prints milliseconds of each kernel (on a CPU: of each
operation) per pass, the longest first, and how long the device had nothing to do. A profiler slows
down what it watches, a CPU more than a GPU: take speeds from throughput.py.
"""

import re
import sys
import time
from dataclasses import dataclass

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from workflow import command_line
from workflow.bench import by_hand, fresh, modes, throughput, timing
from workflow.bench.fresh import MeasurementError
from workflow.runtime import device
from workflow.train import factory

PASSES = 10
WIDTH = 76


@dataclass(frozen=True)
class Profile:
    """Of one pass: the wall-clock's ms, and (ms, calls) of each kernel or operation by name."""

    wall_ms: float
    kernels: dict[str, tuple[float, float]]

    @property
    def busy_ms(self) -> float:
        return sum(ms for ms, _ in self.kernels.values())


def short(name: str) -> str:
    """A kernel's name without namespaces, and not too long."""
    name = re.sub(r"^void |\(anonymous namespace\)::|at::native::|at_cuda_detail::", "", name)
    return name if len(name) <= WIDTH else f"{name[: WIDTH - 3]}..."


def profile_model(model: dict, spec: dict, where: torch.device) -> Profile:
    """One model at the spec's point. Raises MeasurementError, torch.OutOfMemoryError."""
    with torch.inference_mode():
        module = modes.make_model(model, where)
        (images,), _ = throughput.make_inputs([module], spec, None, where)
        one, _ = throughput.prepare(module, images, spec, where)
        kind = ProfilerActivity.CUDA if where.type == "cuda" else ProfilerActivity.CPU
        with profile(activities=[kind]) as seen:
            started = time.perf_counter()
            timing.time_passes(one.run, one.images, PASSES, where)
            wall_ms = 1000 * (time.perf_counter() - started) / PASSES
    return Profile(wall_ms, per_kernel(seen.key_averages(), where))


def per_kernel(events, where: torch.device) -> dict[str, tuple[float, float]]:
    """Milliseconds and calls per pass, the longest first."""
    gpu = where.type == "cuda"
    found: dict[str, tuple[float, float]] = {}
    for event in events:
        if (event.device_type == DeviceType.CUDA) != gpu:
            continue
        spent = event.self_device_time_total if gpu else event.self_cpu_time_total
        ms, calls = found.get(short(event.key), (0.0, 0.0))
        found[short(event.key)] = ms + spent / 1000 / PASSES, calls + event.count / PASSES
    return dict(sorted(found.items(), key=lambda item: -item[1][0]))


def lines(label: str, seen: Profile, shown: int) -> list[str]:
    """For a person; what is not shown is summed up, so that the lines add up to the pass."""
    idle_ms = max(0.0, seen.wall_ms - seen.busy_ms)
    said = [f"{label}: {seen.wall_ms:.3f} ms a pass, {idle_ms:.3f} ms of it idle, the rest in"]
    kernels = list(seen.kernels.items())
    rest = kernels[shown:]
    if rest:
        sums = (sum(value[i] for _, value in rest) for i in range(2))
        kernels = [*kernels[:shown], (f"({len(rest)} others)", tuple(sums))]
    for name, (ms, calls) in kernels:
        said.append(f"  {ms:9.3f} ms {100 * ms / seen.busy_ms:5.1f} %  x{calls:<6.1f} {name}")
    return said


def main() -> None:
    made = by_hand.parser("profile", "Kernels of a model's forward pass and of its baseline's.")
    made.add_argument("--kernels", type=int, default=20, metavar="N", help="so many lines (20)")
    given = made.parse_args()
    if not given.batch_size:
        made.error("--batch-size 0 is a sweep; name one batch size")
    spec = by_hand.make_spec(given)
    fresh.settle(spec, __spec__.name)
    try:
        modes.check_point(spec)
        torch.set_num_threads(spec["threads"])
        modes.set_backends()
        torch.manual_seed(0)
        where = device.choose(spec["device"])
        device.check_precision(spec["precision"], where, "measure fp16 there")
        for model in spec["models"]:
            seen = profile_model(model, spec, where)
            print("\n".join(lines(model["name"], seen, given.kernels)), flush=True)
            torch.compiler.reset()
    except (MeasurementError, device.DeviceError, factory.SpecError) as error:
        sys.exit(f"ERROR: {error}")
    except RuntimeError as error:
        if not device.is_out_of_memory(error):
            raise
        sys.exit(f"ERROR: batch size {spec['batch_size']} does not fit into memory; give less.")


if __name__ == "__main__":
    command_line.run(main)
