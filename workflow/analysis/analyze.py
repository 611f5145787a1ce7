"""The analysis of a trained model: a spec and a folder become a record and, for maps, arrays.npz.

Curves are in the record; the arrays that maps are drawn from are in the attempt's folder, and their sha256 is in the
record. Layers and epochs count from 1, as in the paper. Shapes: n images, N patches in raster order.
"""

import hashlib
import mimetypes
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import evovit
from evovit import tokens as tk
from evovit.host import EvoHost
from workflow.analysis import similarity
from workflow.analysis.hooks import RELEVANCE, check_dense, observe, relevance
from workflow.campaign import specs
from workflow.data import augmentation, check, layout, loaders, readers
from workflow.data.layout import DataError, printable
from workflow.runtime import device
from workflow.runtime.distributed import DistributedContext
from workflow.storage import records
from workflow.storage.journal import Journal
from workflow.train import checkpoints, factory

KEEP_RATIO = 0.5  # of the tokens that count as informative, where nothing is selected by
BATCH = 64
SHOWN = 224  # pixels at least, so that people can see what a small model sees in 24
Results = tuple[dict, dict[str, np.ndarray]]  # a record's results, and arrays


class Subject(NamedTuple):
    """A trained model, and what its analysis needs."""

    spec: dict
    site: dict
    model: nn.Module  # with its trained weights, in evaluation mode
    config: dict  # timm's, of the model's images
    device: torch.device


def run(spec: dict, site: dict, folder: Path) -> dict:
    """Load the weights, compute, write the arrays, and return the record."""
    started = time.time()
    torch.set_num_threads(spec["recipe"]["threads"])
    layout.check(spec["setting"], {**spec["data"], "root": site["data_root"]})
    chosen = device.choose(site["device"])
    model = factory.build_started(spec, site).to(chosen).eval()
    subject = Subject(spec, site, model, factory.data_config(model), chosen)
    results, arrays = COMPUTES[spec["computes"]](subject)
    if arrays:
        path = folder / "arrays.npz"
        folder.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(path, **arrays)
        results["arrays"] = checkpoints.describe_file(path, "analyses")
    journal = Journal(folder / "journal.jsonl")
    journal.write("note", text=f"{spec['computes']} of {spec['run']}: {results['images']} images")
    journal.write("end")
    facts = {"device": device.describe(chosen), **check.describe_images(site)}
    return records.make(spec, results, started, **facts)


# -- images -------------------------------------------------------------------------------------


def batches(subject: Subject) -> Iterator[Tensor]:
    """Return batches (B, 3, H, W) of as many validation images as the spec asks for, at most all."""
    spec = subject.spec
    context = DistributedContext(subject.device)
    source = loaders.ImageSource(spec["data"], subject.site, spec["recipe"], subject.config, context)
    dataset = source.evaluation_set("val")
    spaced = loaders.spaced(len(dataset), spec["images"]["validation"])
    loader = source.load(dataset, spaced, BATCH)
    return (images for images, _ in loader)


class Pictures(NamedTuple):
    """n images for people; both versions have the same crop."""

    inputs: Tensor  # (n, 3, H, W), normalised
    shown: np.ndarray  # (n, S, S, 3) uint8, S a multiple of the grid's side
    names: list[str]
    sha256: list[str | None]  # of a photograph's pixels; a manifest vouches for the others


def pictures_of(subject: Subject) -> tuple[Pictures, dict, dict[str, np.ndarray]]:
    """Return pictures, their names and hashes for the record, and the arrays that show them."""
    pictures = gather(subject)
    results = {"names": pictures.names, "sha256": pictures.sha256}
    return pictures, results, {"images": pictures.shown, "grid": np.array(subject.model.patch_embed.grid_size)}


def gather(subject: Subject) -> Pictures:
    """Return the validation images and the photographs that the spec asks for.

    Raises DataError for a folder without photographs, or one that can't be read.
    """
    recipe = subject.spec["recipe"]
    grid = subject.model.patch_embed.grid_size[0]
    size = grid * -(-SHOWN // grid)
    plain = {"input_size": (3, size, size), "mean": (0.0,) * 3, "std": (1.0,) * 3}
    to_input = augmentation.evaluation_transform(recipe, subject.config, use_prefetcher=False)
    to_show = augmentation.evaluation_transform(recipe, plain, use_prefetcher=False)
    inputs, shown, names, hashes = [], [], [], []
    for name, digest, image in _images(subject.spec, subject.site):
        inputs.append(to_input(image))
        shown.append((255 * to_show(image)).round().byte().permute(1, 2, 0).numpy())
        names.append(name)
        hashes.append(digest)
    return Pictures(torch.stack(inputs), np.stack(shown), names, hashes)


def _images(spec: dict, site: dict) -> Iterator[tuple[str, str | None, Image.Image]]:
    """Yield name, hash and RGB image of each picture."""
    split = spec["data"]["val"]
    dataset = readers.open_split(spec["data"], site, split, transform=lambda image: image)
    for index in loaders.spaced(len(dataset), spec["images"]["shown"]):
        yield f"{split}/{dataset.reader.names[index]}", None, dataset[index][0]
    source = spec["images"].get("photographs")
    if not source:
        return
    photographs = _sample_images() if source == specs.SAMPLE_IMAGES else _folder(source, spec["setting"])
    for name, image in photographs:
        yield name, hashlib.sha256(image.tobytes()).hexdigest(), image


def _sample_images() -> Iterator[tuple[str, Image.Image]]:
    """Yield the two photographs that ship with scikit-learn."""
    from sklearn.datasets import load_sample_images

    sample = load_sample_images()
    for name, pixels in zip(sample.filenames, sample.images, strict=True):
        yield Path(name).name, Image.fromarray(pixels)


def _folder(path: str, setting: str) -> Iterator[tuple[str, Image.Image]]:
    """Yield the user's photographs, upright, by name. Raises DataError without any, or for one that can't be read."""
    key = f"workflow/config/settings.yaml, {setting}.photographs"
    folder = layout.expand(path, key)
    paths = sorted(folder.glob("*")) if folder.is_dir() else []
    paths = [path for path in paths if _is_picture(path)]
    if not paths:
        raise DataError(
            f"{folder} ({key}) holds no {', '.join(layout.IMAGE_SUFFIXES)} files; put photographs "
            f"there, or say `photographs: {specs.SAMPLE_IMAGES}`."
        )
    for file in paths:
        fault = layout.image_fault(file.name)
        if fault:
            raise DataError(f"{printable(file)} ({key}) {fault}.")
    for file in paths:
        try:
            with open(file, "rb") as stream:
                yield file.name, readers.decode(stream, upright=True)
        except (OSError, readers.ImageError) as error:
            raise DataError(f"{printable(file)} ({key}) can't be decoded ({error}); replace or delete it.") from None


def _is_picture(path: Path) -> bool:
    """Return whether a file is meant as a picture, also of a kind that is not read (.heic)."""
    kind = mimetypes.guess_type(path.name)[0] or ""
    return path.is_file() and kind.startswith("image/") and not layout.is_ignored(path.name)


# -- Figure 4 -----------------------------------------------------------------------------------


@torch.inference_mode()
def cka(subject: Subject) -> Results:
    """Compute linear CKA over images between each layer's average token and the last layer's class token.

    The average is over all patches, and over the halves with the higher and the lower global class attention. A layer's
    tokens are split by its own scores, by which Eq. 4 would have the next layer select.
    """
    check_dense(subject.model, subject.spec["run"])
    averages: dict[str, list[Tensor]] = {"all": [], "informative": [], "placeholder": []}
    class_tokens = []
    for images in batches(subject):
        layers = observe(subject.model, images)
        of_layers = [average_tokens(layer.tokens[:, 1:], layer.global_attention) for layer in layers]
        for name, values in averages.items():
            values.append(torch.stack([of_layer[name] for of_layer in of_layers]).cpu())  # (layers, B, C)
        class_tokens.append(layers[-1].tokens[:, 0].cpu())
    classes = torch.cat(class_tokens)
    curves = {}
    half_widths = {}
    for name, values in averages.items():
        estimates = [similarity.cka_with_error(layer, classes) for layer in torch.cat(values, dim=1)]
        curves[name] = [value for value, _ in estimates]
        half_widths[name] = [similarity.NORMAL * error for _, error in estimates]
    results = {"images": len(classes), "keep_ratio": KEEP_RATIO, "channels": classes.shape[1]}
    return results | {"curves": curves, "half_widths": half_widths}, {}


def average_tokens(patches: Tensor, scores: Tensor) -> dict[str, Tensor]:
    """Return the means (B, C) of all patches (B, N, C), of those with the highest scores (B, N), and of the others."""
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
def query_correlation(subject: Subject) -> Results:
    """Compute per layer how the queries of patches correlate with the image's mean query.

    The mean and the variance (n - 1) are over an image's patches; the curves are their means over images.
    """
    check_dense(subject.model, subject.spec["run"])
    means, variances = [], []
    for images in batches(subject):
        layers = observe(subject.model, images)
        correlations = torch.stack([similarity.correlation_with_mean(layer.queries) for layer in layers])
        means.append(correlations.mean(dim=2).cpu())
        variances.append(correlations.var(dim=2).cpu())
    mean = torch.cat(means, dim=1)  # (layers, n)
    variance = torch.cat(variances, dim=1)
    return {"images": mean.shape[1], **similarity.over_images({"mean": mean, "variance": variance})}, {}


# -- Figures 2 and 5 ----------------------------------------------------------------------------


def class_attention(subject: Subject) -> Results:
    """Compute class attention (layers, n, N) by Eqs. 3 and 4, and the relevance (n, N) for the predicted class.

    The arrays are of pictures. The curves are over validation images: how both attentions correlate with the relevance
    of their own image and of the others, and how evenly Eq. 3 attends.
    """
    check_dense(subject.model, subject.spec["run"])
    pictures, results, arrays = pictures_of(subject)
    maps, predicted = attention_maps(subject.model, pictures.inputs.to(subject.device))
    arrays |= {name: values.numpy() for name, values in maps.items()}
    of_batches = [attention_maps(subject.model, images)[0] for images in batches(subject)]
    validation = {name: torch.cat([of_batch[name] for of_batch in of_batches], dim=-2) for name in maps}
    values = {"evenness": similarity.evenness(validation["class_attention"])}
    for name in ("class", "global"):
        own, others = similarity.correlations(validation[f"{name}_attention"], validation["relevance"])
        values[name] = own
        values[f"{name}_others"] = others
    results |= {"images": len(validation["relevance"]), **similarity.over_images(values)}
    results |= {"interpretability": RELEVANCE, "predicted": predicted.tolist()}
    return results, arrays


def attention_maps(model: nn.Module, images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Return the maps of images (B, 3, H, W) by both equations and by relevance, and the classes."""
    layers = observe(model, images)
    of_patches, predicted = relevance(model, images)
    maps = {
        "class_attention": torch.stack([layer.class_attention for layer in layers]).cpu(),
        "global_attention": torch.stack([layer.global_attention for layer in layers]).cpu(),
        "relevance": of_patches.cpu(),
    }
    return maps, predicted


def selection(subject: Subject) -> Results:
    """Compute which patches of pictures are kept (epochs, selecting layers, n, N): after snapshots, and at the end.

    The curves are over validation images. `by_last` is the share of a layer's kept patches that the last layer keeps,
    too; `by_chance` is that share of a random choice; `by_next_epoch` is the share of the first layer's patches after a
    snapshot that it keeps after the next.
    """
    model = subject.model
    spec = subject.spec
    if not isinstance(model, EvoHost):
        raise factory.SpecError(
            f"{spec['run']} is a {type(model).__name__}, which selects no tokens; name a run of an evo_* model under "
            "`analyses` in workflow/config/items.yaml."
        )
    pictures, results, arrays = pictures_of(subject)
    inputs = [pictures.inputs.to(subject.device)]
    layers, at_end = kept(model, inputs)
    _, validation_at_end = kept(model, batches(subject))
    epochs, masks, first_layers = [], [], []
    for epoch, weights in checkpoints.snapshots(subject.site, spec["start"]):
        model.load_state_dict(weights)
        layers_then, mask = kept(model, inputs)
        if layers_then == layers:  # stage-wise it selects in other layers than it did before
            epochs.append(epoch)
            masks.append(mask)
            _, validation = kept(model, batches(subject))
            first_layers.append(validation[0])
    _, record = checkpoints.needed_record(subject.site, spec["start"])
    end = record["results"].get("epochs", 0)  # 0: weights that were given
    arrays |= {
        "kept": torch.stack([*masks, at_end]).numpy(),
        "layers": np.array(layers),
        "epochs": np.array([*epochs, end]),
    }
    last_layer = validation_at_end[-1:]
    by_last = similarity.shared(validation_at_end[:-1], last_layer)
    values = {"by_last": by_last, "by_chance": last_layer.double().mean(dim=-1).expand_as(by_last)}
    if first_layers:
        of_epochs = torch.stack([*first_layers, validation_at_end[0]])  # (epochs, n, N)
        values["by_next_epoch"] = similarity.shared(of_epochs[:-1], of_epochs[1:])
    results |= {"images": validation_at_end.shape[1], **similarity.over_images(values)}
    results["schedule"] = model.schedule  # of a training that was too short, "layer" to its end
    return results | {"layers": layers, "at_epochs": [*epochs, end]}, arrays


def kept(model: nn.Module, inputs: Iterable[Tensor]) -> tuple[list[int], Tensor]:
    """Return the layers in which a model selects, and the patches (layers, n, N) that it keeps there."""
    count = model.patch_embed.num_patches
    masks = []
    for images in inputs:
        trace = evovit.trace(model, images)
        none = torch.zeros(len(images), count, dtype=torch.bool)
        masks.append(torch.stack([none.scatter(1, indices.cpu(), True) for indices in trace.kept]))
    return [block + 1 for block in trace.blocks], torch.cat(masks, dim=1)


COMPUTES = {
    "class_attention": class_attention,
    "cka": cka,
    "query_correlation": query_correlation,
    "selection": selection,
}
