"""Compute validation accuracy, and evaluate weights from a file.

The job's record is like a training's, so that other runs may start from the weights. settings.yaml names the runs whose
weights come from a file (`checkpoints`), and weights that are evaluated in addition to the campaign's runs
(`evaluations`).
"""

import base64
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import torch
from timm.data.loader import PrefetchLoader
from timm.task import ClassificationEvaluator
from torch import Tensor, nn

from workflow.data import check, layout, loaders
from workflow.runtime import device, distributed
from workflow.runtime.distributed import DistributedContext
from workflow.storage import records
from workflow.storage.journal import Journal
from workflow.train import checkpoints, factory


@torch.inference_mode()
def accuracy(
    module: nn.Module,
    loader: PrefetchLoader,
    evaluator: ClassificationEvaluator,
    autocast: Callable[[], AbstractContextManager],
    context: DistributedContext,
) -> tuple[dict[str, float], str]:
    """Return "val_loss", and "top1" and "top5" in percent, over the whole split, and which of its images are right.

    The loader has this rank's images, and all ranks get the same. Images that are right are as `packed` has them.
    """
    indices = loader.loader.sampler  # of this rank's images in the split
    right = torch.zeros(len(indices), dtype=torch.bool, device=evaluator.device)
    first = 0
    for images, target in loader:
        with autocast():
            output = module(images)
        evaluator.update(output, target)
        right[first : first + len(target)] = is_right(output, target)
        first += len(target)
    metrics = evaluator.compute(distributed=context.is_distributed)
    of_split = np.zeros(len(loader.loader.dataset), dtype=bool)
    for of_rank, values in context.gather((indices, right.cpu().numpy())):
        of_split[list(of_rank)] = values
    return {"val_loss": metrics["loss"], "top1": metrics["top1"], "top5": metrics["top5"]}, packed(of_split)


def is_right(output: Tensor, target: Tensor) -> Tensor:
    """Return for each image (B,) whether its class is the first of the outputs (B, C), as timm's evaluator counts."""
    # by topk, as the evaluator: argmax may choose another one of equal outputs
    return output.float().topk(min(5, output.shape[1])).indices[:, 0] == target


def packed(right: np.ndarray) -> str:
    """Return booleans, one for each image of the split in its order, as base64 of their bits."""
    return base64.b64encode(np.packbits(right)).decode()


def describe_split(loader: PrefetchLoader) -> dict:
    """Return for a record how many images the loader's split has, and a hash of their names, classes and order."""
    dataset = loader.loader.dataset
    return {"val_images": len(dataset), "val_listing": dataset.reader.digest()}


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
    results, right = accuracy(model, loader, evaluator, autocast, context)
    distributed.leave(context)
    if not context.is_first:
        return None
    if "evaluation" not in spec:  # it takes the place of a training, so other runs may start from it
        classes = loader.loader.dataset.reader.classes
        results["weights"] = checkpoints.save_weights(folder, model, spec, classes)
    results |= describe_split(loader) | {"right": right}
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
