"""Throughput: the models of one section, interleaved in one process that has the device to itself.

`python -m workflow.node.fresh --spec spec.json --output record.json` measures by hand; the spec is
what runs.throughput_spec makes.
"""

import contextlib
import statistics
import time

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from workflow.node import build, checkpoints, data, device, macs
from workflow.node.fresh import MeasurementError, environment

IMAGENET = {"mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD}
WARM_UP_PASSES = 2
ROUND_S = 1.0  # each model's share of a round is at least one pass and about this long
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def prepare(model: dict, spec: dict, where: torch.device, site: dict | None = None) -> nn.Module:
    """The model as it runs for inference, with attention as the mode has it.

    A model that is rebuilt after its training says so with a `deployed` method. `site` is needed
    where the model has the weights of a training.
    """
    module = build.build_model(model)
    if "weights" in model:
        if site is None:
            raise MeasurementError(f"{model['run']} needs its trained weights: give --site.")
        module.load_state_dict(checkpoints.final_weights(site, model["weights"]))
    module = module.eval().to(where)
    if hasattr(module, "deployed"):
        module = module.deployed()
    set_attention(module, spec["mode"])
    return module


def set_attention(module: nn.Module, mode: str) -> None:
    """`paper` multiplies queries and keys into an attention matrix, as in 2021; `fused` not."""
    for part in module.modules():
        if hasattr(part, "fused_attn"):
            part.fused_attn = mode != "paper"


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
