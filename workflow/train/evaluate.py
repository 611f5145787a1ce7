"""Compute validation accuracy, and evaluate weights from a file.

The job's record is like a training's, so that other runs may start from the weights. settings.yaml names the runs whose
weights come from a file (`checkpoints`), and weights that are evaluated in addition to the campaign's runs
(`evaluations`).
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from timm.task import ClassificationEvaluator
from torch import nn

from workflow.data import check, layout, loaders
from workflow.runtime import device, distributed
from workflow.storage import records
from workflow.storage.journal import Journal
from workflow.train import checkpoints, factory


@torch.inference_mode()
def accuracy(
    module: nn.Module,
    loader,
    evaluator: ClassificationEvaluator,
    autocast: Callable[[], AbstractContextManager],
    is_distributed: bool,
) -> dict[str, float]:
    """Return "val_loss", and "top1" and "top5" in percent, over all of the loader's images, on all ranks."""
    for images, target in loader:
        with autocast():
            output = module(images)
        evaluator.update(output, target)
    metrics = evaluator.compute(distributed=is_distributed)
    return {"val_loss": metrics["loss"], "top1": metrics["top1"], "top5": metrics["top5"]}


def run(spec: dict, site: dict, folder: Path) -> dict | None:
    """Load the weights, evaluate them and keep a copy. Return the record on rank 0, None on the other ranks."""
    started = time.time()
    recipe = spec["recipe"]
    torch.set_num_threads(recipe["threads"])
    layout.check(spec["setting"], {**spec["data"], "root": site["data_root"]})
    context = distributed.join(site["device"])
    model = factory.build_model(spec["model"])
    checkpoints.load_external(model, spec, site)
    model.to(context.device).eval()
    loader = loaders.ImageSource(spec["data"], site, recipe, factory.data_config(model), context).validation()
    autocast, _ = factory.mixed_precision(recipe["amp"], context.device)
    evaluator = ClassificationEvaluator(device=context.device)
    results = accuracy(model, loader, evaluator, autocast, context.is_distributed)
    distributed.leave(context)
    if not context.is_first:
        return None
    if "evaluation" not in spec:  # it takes the place of a training, so other runs may start from it
        classes = loader.loader.dataset.reader.classes
        results["weights"] = checkpoints.save_weights(folder, model, spec, classes)
    results["val_images"] = len(loader.loader.dataset)
    journal = Journal(folder / "journal.jsonl")
    source = spec["checkpoint"].get("file") or f"timm/{spec['checkpoint']['timm']}"
    journal.write("note", text=f"{source}: top-1 {results['top1']:.2f} %")
    journal.write("end")
    return records.make(
        spec,
        results,
        started,
        world_size=context.world_size,
        device=device.describe(context.device),
        **check.describe_images(site),
    )
