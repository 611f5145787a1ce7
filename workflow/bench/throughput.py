"""Throughput: models in turns, in one process that has the device to itself.

    python -m workflow.bench.throughput --model evo_deit_small_patch16_224 \
        --baseline deit_small_patch16_224 --batch-size 256 --precision bf16 --mode fused \
        --device cuda --output f.json

needs torch and timm alone, so it can be carried to any GPU machine. The workflow measures a
section of items.yaml at once; its first model is the baseline of the others' speed-ups, and is
timed before and after each of them.
"""

import warnings
from functools import partial
from pathlib import Path

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from workflow.bench import checks, modes, roofline, statistics, timing, turns
from workflow.bench.fresh import environment
from workflow.bench.parts import Parts
from workflow.bench.timing import Contestant
from workflow.data import loaders
from workflow.runtime import device
from workflow.train import factory, macs

IMAGENET = {"mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD}


def make_inputs(
    modules: list[nn.Module], spec: dict, site: dict | None, where: torch.device
) -> tuple[list[Tensor], list[str] | None]:
    """Each model's batch, and the images' names: real ones where weights are, else noise."""
    names, sizes = None, {}
    for size in {factory.image_size(module) for module in modules}:
        if "images" in spec:
            config = {**IMAGENET, "input_size": (3, *size)}
            sizes[size], names = loaders.named_images(spec["images"], site, config, spec["batch_size"], where)
        else:
            sizes[size] = torch.randn(spec["batch_size"], 3, *size, device=where)
    return [sizes[factory.image_size(module)] for module in modules], names


def describe(model: dict, module: nn.Module, images: Tensor) -> dict:
    """What is known of a model before it is timed; with trained weights its MACs are the mean over
    the timed images."""
    found = {
        "run": model["run"],
        "model": model["name"],
        "kwargs": model["kwargs"],
        "profile": model.get("profile"),
        "weights": "trained" if "weights" in model else "random",
        "resolution": images.shape[-1],
        "params_m": sum(p.numel() for p in module.parameters()) / 1e6,
    }
    if "weights" not in model:
        return found | {"macs_g": macs.count(module, tuple(images.shape[1:])) / 1e9}
    if images.device.type == "meta":  # without weights and images nobody knows
        return found | {"macs_g": None}
    counts = macs.per_image(module, images)
    return found | {"macs_g": counts["mean_g"], "macs_per_image": counts}


def prepare(module: nn.Module, images: Tensor, spec: dict, where) -> tuple[Contestant, dict]:
    """The model ready to be timed, and what was found out on the way.

    Raises MeasurementError for outputs that are not the reference's, modes.Refused,
    torch.OutOfMemoryError.
    """
    reference = checks.make_reference(module, images, spec, where)
    module, images = modes.cast(module, images, spec)
    operations = operations_of(modes.plain(module, spec, where), images)
    run = modes.make_run(module, images, spec, where)
    found = {
        "check": None,
        "attention": roofline.attention_backends(operations),
        "cuda_graph": modes.wants_graph(spec, where),
        "operations": operations,
    }
    if where.type == "cuda":
        found["peak_memory_mib"] = peak_memory(run, module, images, where) / 2**20
    if found["cuda_graph"]:
        run = modes.captured(module, run, images)
        images = run.images
    if reference is not None:
        outputs = checks.seeded(run, images)
        found["check"] = checks.compare(outputs, reference, spec["precision"], module)
    one = Contestant(run, images)
    timing.warm_up(one, where)
    return one, found


def operations_of(run: modes.Run, images: Tensor) -> list[tuple[str, int, int]]:
    """Those of a pass of the uncompiled model, for the roofline. Where that needs more memory than
    there is, which a compiled pass may not, they are those of half of the images, scaled."""
    try:
        return roofline.operations(run, images)
    except RuntimeError as error:
        if not device.is_out_of_memory(error) or len(images) == 1:
            raise
    device.free()
    half = images[: len(images) // 2]
    more = len(images) / len(half)
    return [(name, round(more * flops), round(more * moved))
            for name, flops, moved in operations_of(run, half)]  # fmt: skip


def peak_memory(run: modes.Run, module: nn.Module, images: Tensor, where: torch.device) -> int:
    """Bytes of weights and images, and of what one more pass needs beside them."""
    torch.cuda.synchronize(where)
    torch.cuda.reset_peak_memory_stats(where)
    before = torch.cuda.memory_allocated(where)
    run(images)
    torch.cuda.synchronize(where)
    weights = sum(t.nbytes for t in (*module.parameters(), *module.buffers()))
    return torch.cuda.max_memory_allocated(where) - before + weights + images.nbytes


def measure_batch(spec: dict, site: dict | None, where: torch.device, machine: dict) -> dict:
    """Time every model of the section at one batch size; -> methods, what was seen, warnings."""
    modules = [modes.make_model(model, where, site) for model in spec["models"]]
    inputs, names = make_inputs(modules, spec, site, where)
    methods, contestants, measured = [], [], []
    with torch.inference_mode():
        for model, module, images in zip(spec["models"], modules, inputs, strict=True):
            method = describe(model, module, images)
            methods.append(method)
            try:
                one, found = prepare(module, images, spec, where)
            except RuntimeError as error:
                method["out_of_memory"] = device.is_out_of_memory(error)
                if not method["out_of_memory"]:
                    if not isinstance(error, modes.Refused) or method is methods[0]:
                        raise
                    method["refused"] = str(error)
            else:
                method |= found
                contestants.append(one)
                measured.append(method)
            device.free()  # here, where no error holds its frames and their tensors any more
        seen = turns.take(contestants, spec["rounds"], where)
    results = finish(methods, measured, contestants, seen, spec, machine) | {"warnings": []}
    if contestants:
        results |= turns.noticed(contestants, seen, where)
    return results | ({"images": names} if names else {})


def finish(methods, measured, contestants, seen, spec: dict, machine: dict) -> dict:
    """The methods' entries with their rates, and beside each speed-up its two ceilings."""
    baseline = methods[0]
    fuses = spec["mode"] == "compiled"
    times = [roofline.seconds(method.pop("operations"), machine, fuses) for method in measured]
    rates = turns.shares(contestants) if contestants else []
    for method, one, both, least in zip(measured, contestants, rates, times, strict=True):
        method["out_of_memory"] = False
        method |= statistics.summarise(*both)
        if measured[0] is baseline:
            method["ceilings"] = {
                "macs": baseline["macs_g"] / method["macs_g"],
                "roofline": times[0] / least,
            }
        else:  # the baseline ran out of memory: nothing to compare with
            for key in ("speedup", "speedup_interval", "speedup_quartiles"):
                method[key] = None
            method["warnings"] = []
        power = seen.power_w(one.spans)
        method["images_per_joule"] = power and method["images_per_s"] / power
        method["launch_ms"] = one.launch_s and 1000 * one.launch_s
        method["latency_ms"] = statistics.percentiles(one.latencies) if one.latencies else None
    return {"methods": methods}


def nothing_fits(spec: dict) -> dict:
    """What is recorded where the models of a section do not fit into memory side by side."""
    methods = []
    for model in spec["models"]:
        module = factory.build_model(model, "meta").eval()
        image = torch.empty(1, 3, *factory.image_size(module), device="meta")
        methods.append(describe(model, module, image) | {"out_of_memory": True})
    return {"methods": methods, "warnings": []}


def measure_section(spec: dict, site: dict | None = None, folder: Path | None = None) -> dict:
    """Time a section at its batch size, or at all of its `batch_sizes`, each a part that is kept in
    `folder`; -> the record's results."""
    modes.check_point(spec)
    warnings.filterwarnings("ignore", message=".*(TF32|tf32|TensorFloat32).*")
    torch.set_num_threads(spec["threads"])
    modes.set_backends()
    where = device.choose(spec["device"])
    device.check_precision(spec["precision"], where, "measure fp16 there")
    parts = Parts(folder, spec, device.describe(where))
    machine = parts.get("machine", partial(roofline.measure_machine, spec["precision"], where))

    def measured(size: int) -> dict:
        torch.manual_seed(0)
        try:
            found = measure_batch(spec | {"batch_size": size}, site, where, machine)
        except RuntimeError as error:
            if not device.is_out_of_memory(error):
                raise
            found = nothing_fits(spec)
        torch.compiler.reset()
        device.free()
        return {"batch_size": size, **found}

    sizes = spec.get("batch_sizes") or [spec["batch_size"]]
    found = [parts.get(f"b{size}", partial(measured, size)) for size in sizes]
    common = {
        "device": device.describe(where),
        "machine": machine,
        "environment": environment(),
        "kept_parts": parts.kept,
    }
    return common | ({"sizes": found} if "batch_sizes" in spec else found[0])


if __name__ == "__main__":
    from workflow import command_line
    from workflow.bench import by_hand

    command_line.run(by_hand.main)
