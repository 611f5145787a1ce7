"""Evaluation: weights from a file -> a record like a training's, so that others may start from it.

settings.yaml names what a run is given instead of a training (`checkpoints`), and weights to
evaluate beside the campaign's runs (`evaluations`).
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from timm.data import resolve_model_data_config
from timm.task import ClassificationEvaluator
from torch import nn

from workflow.data import check, layout, loaders
from workflow.runtime import device, distributed, precision
from workflow.storage import records
from workflow.storage.journal import Journal
from workflow.train import checkpoints, factory


@torch.inference_mode()
def accuracy(
    module: nn.Module,
    loader,
    evaluator: ClassificationEvaluator,
    autocast: Callable[[], AbstractContextManager],
    across_processes: bool,
) -> dict[str, float]:
    """{"val_loss", "top1", "top5"} in percent over all of the loader's images, on all ranks."""
    for images, target in loader:
        with autocast():
            output = module(images)
        evaluator.update(output, target)
    found = evaluator.compute(distributed=across_processes)
    return {"val_loss": found["loss"], "top1": found["top1"], "top5": found["top5"]}


def run(spec: dict, site: dict, folder: Path) -> dict | None:
    """Load, evaluate and keep a copy of the weights; -> the record on rank 0, None elsewhere."""
    started = time.time()
    recipe = spec["recipe"]
    torch.set_num_threads(recipe["threads"])
    layout.check(spec["setting"], {**spec["data"], "root": site["data_root"]})
    where = distributed.join(site["device"])
    model = factory.build_model(spec["model"])
    checkpoints.load_given(model, spec, site)
    model.to(where.device).eval()
    config = resolve_model_data_config(model)
    config["input_size"] = (3, *factory.image_size(model))
    loader = loaders.eval_loader(spec["data"], site, recipe, config, where)
    autocast, _ = precision.make(recipe["amp"], where.device)
    evaluator = ClassificationEvaluator(device=where.device)
    results = accuracy(model, loader, evaluator, autocast, where.distributed)
    distributed.leave(where)
    if not where.first:
        return None
    if "evaluation" not in spec:  # others may start from it
        classes = loader.loader.dataset.reader.classes
        results["weights"] = checkpoints.save_weights(folder, model, spec, classes)
    results["val_images"] = len(loader.loader.dataset)
    journal = Journal(folder / "journal.jsonl")
    given = spec["checkpoint"].get("file") or f"timm/{spec['checkpoint']['timm']}"
    journal.write("note", text=f"{given}: top-1 {results['top1']:.2f} %")
    journal.write("end")
    seen = {"device": device.describe(where.device), **check.of_images(site)}
    return records.make(spec, results, started, world_size=where.world_size, **seen)
