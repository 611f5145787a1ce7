"""A look into a trained model: one spec, one folder -> a record of numbers, for maps an .npz, too.

Curves are in the record; the arrays that maps are drawn from lie beside it, their sha256 in it.
Layers and epochs count from 1, as in the paper; shapes: n images, N patches in raster order.
"""

import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from timm.data import resolve_model_data_config
from torch import Tensor, nn

import evovit
from evovit import tokens as tk
from evovit.host import EvoHost
from workflow.analysis import maps, pictures, similarity
from workflow.analysis.hooks import check_dense, observe
from workflow.data import check, layout, loaders
from workflow.runtime import device
from workflow.storage import records
from workflow.storage.journal import Journal
from workflow.train import checkpoints, factory

KEEP_RATIO = 0.5  # of the tokens that count as informative, where nothing is selected by
BATCH = 64
Found = tuple[dict, dict[str, np.ndarray]]  # a record's results, and arrays


class Subject(NamedTuple):
    """What is looked into, and with what."""

    spec: dict
    site: dict
    model: nn.Module  # with its trained weights, in evaluation mode
    config: dict  # timm's, of the model's images
    device: torch.device


def run(spec: dict, site: dict, folder: Path) -> dict:
    """Load the weights, compute, and write the arrays; -> record."""
    started = time.time()
    torch.set_num_threads(spec["recipe"]["threads"])
    layout.check(spec["setting"], {**spec["data"], "root": site["data_root"]})
    where = device.choose(site["device"])
    model = factory.build_started(spec, site).to(where).eval()
    config = resolve_model_data_config(model)
    config["input_size"] = (3, *factory.image_size(model))
    results, arrays = COMPUTES[spec["computes"]](Subject(spec, site, model, config, where))
    if arrays:
        results["arrays"] = save_arrays(folder, arrays)
    journal = Journal(folder / "journal.jsonl")
    journal.write("note", text=f"{spec['computes']} of {spec['run']}: {results['images']} images")
    journal.write("end")
    seen = {"device": device.describe(where), **check.describe_images(site)}
    return records.make(spec, results, started, **seen)


def save_arrays(folder: Path, arrays: dict[str, np.ndarray]) -> dict:
    """Write arrays.npz in the attempt's folder; -> its sha256, and its path from the folder that
    the record is published in."""
    path = folder / "arrays.npz"
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **arrays)
    return checkpoints.describe_file(path, "analyses")


def batches(subject: Subject) -> Iterator[Tensor]:
    """So many validation images as the spec asks for, or all if they are fewer, (B, 3, H, W)."""
    spec = subject.spec
    shown = (spec["data"], subject.site, "val", spec["recipe"], subject.config)
    dataset = loaders.eval_dataset(*shown)
    spaced = loaders.spaced(len(dataset), spec["images"]["validation"])
    loader = loaders.plain_loader(dataset, spaced, BATCH, subject.site, subject.config, subject.device)
    return (images for images, _ in loader)


def gather(subject: Subject) -> tuple[pictures.Pictures, dict, dict[str, np.ndarray]]:
    """Pictures to look at, with what a record says of them and the arrays that show them."""
    grid, spec = subject.model.patch_embed.grid_size, subject.spec
    few = spec | {"images": spec["images"] | {"validation": spec["images"]["shown"]}}
    found = pictures.gather(few, subject.site, subject.config, grid[0])
    said = {"names": found.names, "sha256": found.sha256}
    return found, said, {"images": found.shown, "grid": np.array(grid)}


# -- Figure 4 -----------------------------------------------------------------------------------


@torch.inference_mode()
def cka(subject: Subject) -> Found:
    """Linear CKA per layer between the average token and the last layer's class token, over
    images: of all patches, and of the half with the higher and the lower global class attention.

    The tokens that a layer puts out are split by its own scores, by which Eq. 4 would have the
    next layer select.
    """
    check_dense(subject.model, subject.spec["run"])
    averages: dict[str, list[Tensor]] = {"all": [], "informative": [], "placeholder": []}
    last = []
    for images in batches(subject):
        layers = observe(subject.model, images)
        found = [average_tokens(layer.tokens[:, 1:], layer.global_attention) for layer in layers]
        for name, values in averages.items():
            values.append(torch.stack([one[name] for one in found]).cpu())  # (layers, B, C)
        last.append(layers[-1].tokens[:, 0].cpu())
    classes = torch.cat(last)
    found = {
        name: [similarity.cka_with_error(layer, classes) for layer in torch.cat(values, dim=1)]
        for name, values in averages.items()
    }
    curves = {name: [value for value, _ in layers] for name, layers in found.items()}
    wide = {name: [maps.NORMAL * error for _, error in layers] for name, layers in found.items()}
    results = {"images": len(classes), "keep_ratio": KEEP_RATIO, "channels": classes.shape[1]}
    return results | {"curves": curves, "half_widths": wide}, {}


def average_tokens(patches: Tensor, scores: Tensor) -> dict[str, Tensor]:
    """Means (B, C) of patches (B, N, C): all, those with the highest of the scores (B, N), and the
    others."""
    count = int(KEEP_RATIO * scores.shape[1])
    kept = tk.select(scores, count)
    weights = torch.zeros_like(scores).scatter(1, kept, 1.0).unsqueeze(1)
    others = scores.shape[1] - count
    return {
        "all": patches.mean(dim=1),
        "informative": (weights @ patches).squeeze(1) / count,
        "placeholder": ((1 - weights) @ patches).squeeze(1) / others,
    }


@torch.inference_mode()
def query_correlation(subject: Subject) -> Found:
    """Per layer the mean correlation of each patch's query with the image's mean query, and its
    variance (n - 1) over the patches of an image; both are means over images."""
    check_dense(subject.model, subject.spec["run"])
    means, variances = [], []
    for images in batches(subject):
        found = torch.stack([similarity.correlation_with_mean(x.queries) for x in observe(subject.model, images)])
        means.append(found.mean(dim=2).cpu())
        variances.append(found.var(dim=2).cpu())
    mean, variance = torch.cat(means, dim=1), torch.cat(variances, dim=1)  # (layers, n)
    return {"images": mean.shape[1], **maps.over_images({"mean": mean, "variance": variance})}, {}


# -- Figures 2 and 5 ----------------------------------------------------------------------------


def class_attention(subject: Subject) -> Found:
    """Class attention (layers, n, N) by Eq. 3 and by Eq. 4, and the patches' relevance (n, N) for
    the predicted class, of pictures; over validation images how both correlate with the relevance
    of their image and of the others, and how evenly Eq. 3 attends.
    """
    from workflow.analysis import gradient_relevance

    check_dense(subject.model, subject.spec["run"])

    def look(images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        layers = observe(subject.model, images)
        relevance, predicted = gradient_relevance.relevance(subject.model, images)
        return {
            "class_attention": torch.stack([x.class_attention for x in layers]).cpu(),
            "global_attention": torch.stack([x.global_attention for x in layers]).cpu(),
            "relevance": relevance.cpu(),
        }, predicted

    found, results, arrays = gather(subject)
    shown, predicted = look(found.inputs.to(subject.device))
    arrays |= {name: values.numpy() for name, values in shown.items()}
    each = [look(images)[0] for images in batches(subject)]
    every = {name: torch.cat([one[name] for one in each], dim=-2) for name in shown}
    values = {"evenness": maps.evenness(every["class_attention"])}
    for name in ("class", "global"):
        both = maps.correlations(every[f"{name}_attention"], every["relevance"])
        values |= dict(zip((name, f"{name}_others"), both, strict=True))
    results |= {"images": len(every["relevance"]), **maps.over_images(values)}
    results |= {"interpretability": gradient_relevance.METHOD, "predicted": predicted.tolist()}
    return results, arrays


def selection(subject: Subject) -> Found:
    """Which patches of pictures are kept (epochs, selecting layers, n, N): with the weights after
    each epoch whose snapshot the training kept, and at its end. Over validation images: which share
    of what a layer keeps the last one keeps, too, beside that by chance, and of what the first one
    keeps after a snapshot it keeps after the next.
    """
    model, spec = subject.model, subject.spec
    if not isinstance(model, EvoHost):
        raise factory.SpecError(
            f"{spec['run']} is a {type(model).__name__}, which selects no tokens; name a run of an "
            "evo_* model under `analyses` in workflow/config/items.yaml."
        )
    found, results, arrays = gather(subject)
    inputs = [found.inputs.to(subject.device)]
    layers, last = kept(model, inputs)
    _, at_end = kept(model, batches(subject))
    epochs, masks, firsts = [], [], []
    for epoch, weights in checkpoints.snapshots(subject.site, spec["start"]):
        model.load_state_dict(weights)
        then, mask = kept(model, inputs)
        if then == layers:  # stage-wise it selects in other layers than it did before
            epochs.append(epoch)
            masks.append(mask)
            firsts.append(kept(model, batches(subject))[1][0])
    _, record = checkpoints.needed_record(subject.site, spec["start"])
    end = record["results"].get("epochs", 0)  # 0: weights that were given
    arrays |= {
        "kept": torch.stack([*masks, last]).numpy(),
        "layers": np.array(layers),
        "epochs": np.array([*epochs, end]),
    }
    by_last = maps.shared(at_end[:-1], at_end[-1:])
    values = {"by_last": by_last}
    values["by_chance"] = at_end[-1:].double().mean(dim=-1).expand_as(by_last)
    if firsts:
        in_turn = torch.stack([*firsts, at_end[0]])  # (epochs, n, N)
        values["by_next_epoch"] = maps.shared(in_turn[:-1], in_turn[1:])
    results |= {"images": at_end.shape[1], **maps.over_images(values)}
    results["schedule"] = model.schedule  # of a training that was too short, "layer" to its end
    return results | {"layers": layers, "at_epochs": [*epochs, end]}, arrays


def kept(model: nn.Module, inputs: Iterable[Tensor]) -> tuple[list[int], Tensor]:
    """The layers in which a model selects, and the patches (layers, n, N) that it keeps there."""
    count, masks = model.patch_embed.num_patches, []
    for images in inputs:
        seen = evovit.trace(model, images)
        none = torch.zeros(len(images), count, dtype=torch.bool)
        masks.append(torch.stack([none.scatter(1, found.cpu(), True) for found in seen.kept]))
    return [block + 1 for block in seen.blocks], torch.cat(masks, dim=1)


COMPUTES = {
    "class_attention": class_attention,
    "cka": cka,
    "query_correlation": query_correlation,
    "selection": selection,
}
