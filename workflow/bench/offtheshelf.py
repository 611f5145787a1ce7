"""Reduce the tokens of a trained dense model as it is, by several methods, each at several strengths.

Each image is loaded once and goes through all models, whose predictions are compared with the dense model's. Then the
models are timed in interleaved rounds with the dense one. What each model predicted is in predictions.npz in the
attempt's folder, with its sha256 in the record.
"""

import copy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from workflow.bench import modes, process, roofline, throughput
from workflow.bench.process import MeasurementError, PartialResults, environment
from workflow.campaign import benchmarks
from workflow.data import check, layout, loaders
from workflow.runtime import device as devices
from workflow.runtime.distributed import DistributedContext
from workflow.train import checkpoints, factory, macs

TIMING_S = 0.2  # of a model in a round; there are four times as many models as in a table's section


def run(spec: dict, site: dict, folder: Path) -> dict:
    """Measure in a process of its own, and return the record."""
    record = process.run(spec, site, folder)
    record["provenance"] |= check.describe_images(site)
    return record


def measure(spec: dict, site: dict, folder: Path) -> dict:
    """Evaluate and time all models of the spec, and return the record's results.

    The first model is the dense one. A model that its method refuses has the reason as `refused`. Each of the two parts
    is a partial result that is kept in `folder`.

    Raises:
        DeviceError: for a device or a precision that the machine does not have.
        MeasurementError: for a dense model that no method takes, and for outputs that are wrong.
        WeightsError: for weights that are missing or do not fit.
    """
    benchmarks.check(spec)
    layout.check(spec["setting"], {**spec["data"], "root": site["data_root"]})
    device = modes.set_up(spec)
    partial_results = PartialResults(folder, spec, devices.describe(device))
    machine = partial_results.get("machine", partial(roofline.measure_machine, spec["precision"], device))
    host = factory.build_host(spec, site).to(device).eval()
    methods, modules = make_models(host, spec)
    config = factory.data_config(host)
    source = loaders.ImageSource(spec["data"], site, spec["recipe"], config, DistributedContext(device))
    evaluated = partial_results.get("evaluated", partial(evaluate, modules, source, spec, folder))
    timed = partial_results.get("timed", partial(time_all, methods, modules, source, spec, machine))
    by_run = {method["run"]: method for method in timed.pop("methods")}
    for method in methods:
        run = method["run"]
        method |= by_run.get(run, {"out_of_memory": False}) | evaluated["models"].get(run, {})
    return {
        "device": devices.describe(device),
        "machine": machine,
        "environment": environment(),
        "kept_parts": partial_results.kept,
        "patches": host.patch_embed.num_patches,
        "val_images": evaluated["val_images"],
        "predictions": evaluated["predictions"],
        "batch_size": spec["batch_size"],
        "methods": methods,
        **timed,
    }


# -- the models ---------------------------------------------------------------------------------


def make_models(host: nn.Module, spec: dict) -> tuple[list[dict], dict[str, nn.Module]]:
    """Return what is known of each model of the spec, and by their names the models that share the host's weights.

    A model that its method refuses is not among the latter. Raises MeasurementError if each method refuses.
    """
    methods = []
    modules: dict[str, nn.Module] = {}
    for model in spec["models"]:
        kwargs = factory.at_strength(model["method"], model["kwargs"], host.patch_embed.num_patches)
        method: dict[str, Any] = {"run": model["run"], "method": model["method"], "kwargs": kwargs, "refused": None}
        methods.append(method)
        try:
            modules[model["run"]] = factory.reduced(host, model["method"], kwargs) if model["method"] else host
        except factory.SpecError as error:
            method["refused"] = str(error)
    if len(modules) < 2:
        raise MeasurementError(f"No method takes {spec['run']} of {spec['setting']}: {methods[-1]['refused']}")
    return methods, modules


# -- accuracy -----------------------------------------------------------------------------------


def evaluate(modules: dict[str, nn.Module], source: loaders.ImageSource, spec: dict, folder: Path) -> dict:
    """Return by the models' names `compare` with the first, over all validation images, and where predictions are."""
    loader = source.validation()
    labels, predictions = predict(list(modules.values()), loader, spec["recipe"]["amp"], source.context.device)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "predictions.npz"
    of_models = {run: classes.numpy() for run, classes in zip(modules, predictions, strict=True)}
    np.savez_compressed(path, labels=labels.numpy(), **of_models)
    compared = [compare(labels, predictions[0], classes) for classes in predictions]
    return {
        "val_images": len(labels),
        "predictions": checkpoints.describe_file(path, "offtheshelf"),
        "models": dict(zip(modules, compared, strict=True)),
    }


@torch.inference_mode()
def predict(modules: list[nn.Module], loader, amp: str | None, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the labels (n,) of the loader's images and the classes (models, n) that the models predict, as int32."""
    autocast, _ = factory.mixed_precision(amp, device)
    labels = []
    predictions = []
    for number, (images, target) in enumerate(loader):
        classes = []
        for module in modules:
            torch.manual_seed(number)  # a method that draws does so alike whatever other models there are
            with autocast():
                classes.append(module(images).argmax(dim=1))
        labels.append(target.cpu())
        predictions.append(torch.stack(classes).cpu())
    return torch.cat(labels).int(), torch.cat(predictions, dim=1).int()


def compare(labels: Tensor, dense: Tensor, classes: Tensor) -> dict:
    """Return top-1 in % of predicted `classes` (n,), and how many images differ from the `dense` model's.

    `changed` counts images that get another class, `worse` those that were right before and are wrong now, and `better`
    those that were wrong before and are right now.
    """
    was_right = dense == labels
    is_right = classes == labels
    return {
        "top1": 100 * is_right.double().mean().item(),
        "changed": int((classes != dense).sum()),
        "worse": int((was_right & ~is_right).sum()),
        "better": int((~was_right & is_right).sum()),
    }


# -- speed --------------------------------------------------------------------------------------


def time_all(
    methods: list[dict], modules: dict[str, nn.Module], source: loaders.ImageSource, spec: dict, machine: dict
) -> dict:
    """Time the models on validation images, each with a copy of the weights, as a format may change them in place."""
    images, _ = source.timed(spec["batch_size"])
    described = []
    copies = []
    for method in methods:
        if method["run"] in modules:
            module = modules[method["run"]]
            described.append({**method, **describe(module, images, spec)})
            copies.append(copy.deepcopy(module))
    inputs = [images] * len(copies)
    return throughput.time_models(described, copies, inputs, spec, machine, TIMING_S)


def describe(module: nn.Module, images: Tensor, spec: dict) -> dict:
    """Return what is known of a model before it is timed; its MACs are the same for every image."""
    return {
        "weights": "trained" if "start" in spec else "given",
        "resolution": images.shape[-1],
        "params_m": sum(parameter.numel() for parameter in module.parameters()) / 1e6,
        "macs_g": macs.count(module, tuple(images.shape[1:])) / 1e9,
    }
