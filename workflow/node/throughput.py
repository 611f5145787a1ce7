"""Throughput: the models of one section, interleaved in one process that has the device to itself.

The measurement runs in a process of its own, because glibc's allocator is set up before Python
starts: untuned, it maps every block over 32 MB afresh, which punishes dense models more than
reduced ones and makes ratios exceed their MAC ceiling. `--spec` holds what runs.throughput_spec
makes.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from workflow import records
from workflow.node import build, checkpoints, data, device, macs

ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": "4000000000",
    "MALLOC_TRIM_THRESHOLD_": "16000000000",
}
FAULT = ".fault"  # beside the output: why there is none
IMAGENET = {"mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD}
UNUSABLE = (checkpoints.WeightsError, data.DataError)
WARM_UP_PASSES = 2
ROUND_S = 1.0  # each model's share of a round is at least one pass and about this long
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class MeasurementError(RuntimeError):
    """A measurement can't be made or can't be trusted; the message says which and why."""


def prepare(model: dict, spec: dict, where: torch.device, site: dict | None = None) -> nn.Module:
    """The model as it runs for inference, with attention as the mode has it.

    A model that is rebuilt after its training says so with a `deployed` method. `paper` multiplies
    queries and keys into an attention matrix, as in 2021; `fused` does not. `site` is needed where
    the model has the weights of a training.
    """
    module = build.build_model(model)
    if "weights" in model:
        if site is None:
            raise MeasurementError(f"{model['run']} needs its trained weights: give --site.")
        module.load_state_dict(checkpoints.final_weights(site, model["weights"]))
    module = module.eval().to(where)
    if hasattr(module, "deployed"):
        module = module.deployed()
    for part in module.modules():
        if hasattr(part, "fused_attn"):
            part.fused_attn = spec["mode"] != "paper"
    return module


def synchronise(where: torch.device) -> None:
    if where.type == "cuda":
        torch.cuda.synchronize(where)


def time_passes(module, images: torch.Tensor, passes: int, where: torch.device) -> float:
    """Seconds for `passes` forward passes, from an idle device to an idle device."""
    synchronise(where)
    started = time.perf_counter()
    for _ in range(passes):
        module(images)
    synchronise(where)
    return time.perf_counter() - started


def measure(modules: list[nn.Module], inputs: list[torch.Tensor], spec: dict, where) -> list[list]:
    """Images per second: one list per model, one number per round; A B C A B C ..."""
    passes = []
    for module, images in zip(modules, inputs, strict=True):
        output = module(images)
        if not output.isfinite().all():
            raise MeasurementError(f"{type(module).__name__} gives outputs that are not finite.")
        seconds = time_passes(module, images, WARM_UP_PASSES, where) / WARM_UP_PASSES
        passes.append(max(1, round(ROUND_S / seconds)))
    rates: list[list] = [[] for _ in modules]
    for _ in range(spec["rounds"]):
        for index, (module, images) in enumerate(zip(modules, inputs, strict=True)):
            seconds = time_passes(module, images, passes[index], where)
            rates[index].append(passes[index] * len(images) / seconds)
    return rates


def summarise(rates: list[float], baseline: list[float]) -> dict:
    """Median and quartiles of images/s, and of the ratio to the baseline in the same round."""
    ratios = [rate / dense for rate, dense in zip(rates, baseline, strict=True)]
    low, _, high = statistics.quantiles(rates, n=4, method="inclusive")
    ratio_low, _, ratio_high = statistics.quantiles(ratios, n=4, method="inclusive")
    return {
        "images_per_s": statistics.median(rates),
        "quartiles": [low, high],
        "speedup": statistics.median(rates) / statistics.median(baseline),
        "speedup_quartiles": [ratio_low, ratio_high],
        "rounds": rates,
    }


def forward_only(spec: dict, where: torch.device) -> contextlib.ExitStack:
    """The context of a timed pass: inference mode, and autocast below fp32."""
    stack = contextlib.ExitStack()
    stack.enter_context(torch.inference_mode())
    if (dtype := PRECISIONS[spec["precision"]]) is not None:
        stack.enter_context(torch.autocast(where.type, dtype))
    return stack


def make_inputs(
    modules: list[nn.Module], spec: dict, site: dict | None, where: torch.device
) -> tuple[list[Tensor], list[str] | None]:
    """Each model's batch, and the images' names: real ones where weights are, else noise."""
    names, sizes = None, {}
    for size in {build.image_size(module) for module in modules}:
        if "images" in spec:
            config = {**IMAGENET, "input_size": (3, *size)}
            sizes[size], names = data.named_images(
                spec["images"], site, config, spec["batch_size"], where
            )
        else:
            sizes[size] = torch.randn(spec["batch_size"], 3, *size, device=where)
    return [sizes[build.image_size(module)] for module in modules], names


def measure_section(spec: dict, site: dict | None = None) -> dict:
    """Build and time every model of the section; -> the record's results."""
    if spec["precision"] == "fp16" and spec["device"] == "cpu":
        raise MeasurementError("fp16 needs a GPU; set `precision: bf16` or `fp32`.")
    torch.set_num_threads(spec["threads"])
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.manual_seed(0)
    where = device.choose(spec["device"])
    modules = [prepare(model, spec, where, site) for model in spec["models"]]
    inputs, names = make_inputs(modules, spec, site, where)
    with forward_only(spec, where):
        rates = measure(modules, inputs, spec, where)
    methods = []
    for model, module, images, found in zip(spec["models"], modules, inputs, rates, strict=True):
        methods.append(
            {
                "run": model["run"],
                "model": model["name"],
                "profile": model.get("profile"),
                "weights": "trained" if "weights" in model else "random",
                "resolution": images.shape[-1],
                **operations(model, module, images),
                "params_m": sum(p.numel() for p in module.parameters()) / 1e6,
                **summarise(found, rates[0]),
            }
        )
    results = {"device": device.describe(where), "methods": methods, "environment": environment()}
    return results | ({"images": names} if names else {})


def operations(model: dict, module: nn.Module, images: Tensor) -> dict:
    """MACs of one image; of a model with trained weights the mean over the timed images."""
    if "weights" not in model:
        return {"macs_g": macs.count(module, tuple(images.shape[1:])) / 1e9}
    counts = macs.per_image(module, images)
    return {"macs_g": counts["mean_g"], "macs_per_image": counts}


def environment() -> dict:
    """What besides the spec decides how fast this process is."""
    return {
        "threads": torch.get_num_threads(),
        "allocator": {name: os.environ.get(name) for name in ALLOCATOR},
        "tf32": torch.backends.cuda.matmul.allow_tf32,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }


def run(spec: dict, site: dict, folder: Path) -> dict:
    """The job: measure in a fresh process with the allocator tuned; -> record."""
    spec_path, output = folder / "measure.json", folder / "measured.json"
    records.write_json(spec_path, spec)
    command = [sys.executable, "-m", "workflow.node.throughput"]
    command += ["--spec", str(spec_path), "--output", str(output), "--site", json.dumps(site)]
    threads = {"OMP_NUM_THREADS": str(spec["threads"]), "MKL_NUM_THREADS": str(spec["threads"])}
    fault = output.with_suffix(FAULT)
    fault.unlink(missing_ok=True)
    done = subprocess.run(command, env={**os.environ, **ALLOCATOR, **threads}, check=False)
    if fault.exists():
        raise MeasurementError(fault.read_text())
    if done.returncode:
        raise MeasurementError(f"The measuring process ended with code {done.returncode}.")
    return json.loads(output.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spec", required=True, type=Path, help="JSON file: what to measure")
    parser.add_argument("--output", required=True, type=Path, help="the record to write")
    parser.add_argument(
        "--site", type=json.loads, help="JSON: where trained weights and images lie"
    )
    arguments = parser.parse_args()
    if any(os.environ.get(name) != value for name, value in ALLOCATOR.items()):
        os.execve(
            sys.executable,
            [sys.executable, "-m", __spec__.name, *sys.argv[1:]],
            {**os.environ, **ALLOCATOR},
        )
    started = time.time()
    spec = json.loads(arguments.spec.read_text())
    try:
        results = measure_section(spec, arguments.site)
    except (MeasurementError, device.DeviceError, build.SpecError, *UNUSABLE) as error:
        arguments.output.with_suffix(FAULT).write_text(str(error))
        sys.exit(str(error))
    record = records.make(spec, results, started, device=results["device"])
    records.write_json(arguments.output, record)


if __name__ == "__main__":
    main()
