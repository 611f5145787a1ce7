"""Predict the class of every patch from the features of a trained dense model, with and without token reduction.

A scene is a grid of cells. Some cells are empty (black), each other cell shows one of the setting's images, and each
patch is labelled by the image that covers it, or as background. Every model runs on whole scenes, and none is trained:
a linear probe, fitted to the features of one model over scenes of training images, predicts the patches of scenes of
validation images.

Evo-ViT keeps the grid whole. Of EViT and Top-K a dropped patch has its last value; of ToMe a patch has the value of
the token that it was merged into. These three get the strength at which a pass has the MACs of Evo-ViT's.

Shapes: n scenes of N patches in raster order, m images in each scene, C channels.
"""

import bisect
import copy
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workflow.data import check, layout, loaders
from workflow.data.layout import DataError
from workflow.data.sampling import stream_seed
from workflow.runtime import device as devices
from workflow.runtime.distributed import DistributedContext
from workflow.storage import records
from workflow.storage.journal import Journal
from workflow.train import factory, macs

SPLITS = ("train", "val")
TOLERANCE = 0.03  # share of Evo-ViT's MACs by which another method's may differ
LOADED = 192  # images at a time
BATCH = 16  # scenes at a time
PENALTY = 1e-4  # weight of half the sum of squares in the probe's loss
MOST_STEPS = 500  # of the probe's solver
GRADIENT = 1e-4  # the fit ends where no gradient is larger

Features = Callable[[Tensor], Tensor]  # of scenes (B, 3, H, W) those of their patches (B, N, C)


class HostError(RuntimeError):
    """A host is not the model that was trained; the message names the weights that differ."""


class MatchError(ValueError):
    """A method has no strength with the MACs that are wanted; the message says which is nearest."""


def run(spec: dict, site: dict, folder: Path) -> dict:
    """Compose scenes, fit and test a probe for each model of the spec, and return the record."""
    started = time.time()
    torch.set_num_threads(spec["recipe"]["threads"])
    layout.check(spec["setting"], {**spec["data"], "root": site["data_root"]})
    device = devices.choose(site["device"])
    host = factory.build_host(spec, site).to(device).eval()
    source = loaders.ImageSource(
        spec["data"], site, spec["recipe"], factory.data_config(host), DistributedContext(device)
    )
    scenes = {split: compose(source, split, spec["scenes"], host.patch_embed.grid_size) for split in SPLITS}
    large = enlarge(host, spec["scenes"]["side"])
    trained = {name: value.clone() for name, value in large.state_dict().items()}
    methods = []
    for method, features in make_models(large, spec):
        methods.append(method)
        if features is not None:
            method |= judge(features, scenes, device)
    check_weights(large, trained)
    journal = Journal(folder / "journal.jsonl")
    journal.write("note", text=f"dense prediction with {spec['run']}: {len(scenes['val'].labels)} scenes")
    journal.write("end")
    facts = {"device": devices.describe(device), **check.describe_images(site)}
    return records.make(spec, describe(scenes, methods), started, **facts)


def describe(scenes: dict[str, "Scenes"], methods: list[dict]) -> dict:
    """Return the record's results."""
    val = scenes["val"]
    return {
        "scenes": len(val.labels),
        "train_scenes": len(scenes["train"].labels),
        "val_images": val.chosen.cells.numel(),
        "train_images": scenes["train"].chosen.cells.numel(),
        "classes": val.classes,
        "resolution": val.images.shape[-1],
        "patches": val.labels.shape[1],
        "patches_with_image": int((val.labels[0] != len(val.classes)).sum()),
        "methods": methods,
    }


# -- scenes -------------------------------------------------------------------------------------


class Choice(NamedTuple):
    """Which images of a split are shown where; no image is shown twice."""

    indices: list[int]  # of the images in the split, scene by scene (n * m)
    cells: Tensor  # (n, m) the cell of each image, counted in raster order


class Scenes(NamedTuple):
    """Scenes of a split, and the classes of their patches."""

    images: Tensor  # (n, 3, H, W), normalised
    labels: Tensor  # (n, N) positions in `classes`; the number of classes stands for background
    classes: list[str]  # that the scenes show
    chosen: Choice


def choose(labels: Sequence[int], classes: Sequence[int], split: str, plan: dict) -> Choice:
    """Choose images and cells of a split's scenes at random, the same each time.

    Args:
        labels: of the split's images.
        classes: labels of the images that may be shown.
        plan: the spec's `scenes`: `side` cells in each row and column, how many of all cells are `empty`, and for each
            split how many scenes; there are fewer if the images don't suffice.

    Raises:
        DataError: for a split with too few images for two scenes.
    """
    generator = torch.Generator().manual_seed(stream_seed(0, split, "scenes"))
    cells = plan["side"] ** 2
    shown = cells - plan["empty"]
    usable = torch.tensor([index for index, label in enumerate(labels) if label in classes])
    count = min(plan[split], len(usable) // shown)
    if count < 2:
        raise DataError(
            f"The {split} split has {len(usable)} images of the {len(classes)} classes that scenes show, but two "
            f"scenes need {2 * shown}; add images, or lower dense_prediction.scenes.side in workflow/config/items.yaml."
        )
    order = torch.randperm(len(usable), generator=generator)[: count * shown]
    places = torch.rand(count, cells, generator=generator).argsort(dim=1)[:, :shown]
    return Choice(usable[order].tolist(), places)


def compose(source: loaders.ImageSource, split: str, plan: dict, grid: tuple[int, int]) -> Scenes:
    """Return the scenes of a split, whose images have the size and the `grid` of patches that the host takes."""
    dataset = source.evaluation_set(split)
    classes = loaders.spaced(len(dataset.reader.classes), plan["classes"])
    chosen = choose(dataset.reader.labels, classes, split, plan)
    images = torch.cat([images.cpu() for images, _ in source.load(dataset, chosen.indices, LOADED)])
    count, shown = chosen.cells.shape
    mean, std = (torch.tensor(source.model_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    cells = plan["side"] ** 2
    black = (-mean / std).expand(count, cells, *images.shape[1:])
    of_images = torch.tensor([classes.index(dataset.reader.labels[index]) for index in chosen.indices])
    background = torch.full((count, cells), len(classes))
    return Scenes(
        images=assemble(fill(black, chosen.cells, images.unflatten(0, (count, shown)))),
        labels=spread(fill(background, chosen.cells, of_images.unflatten(0, (count, shown))), grid),
        classes=[dataset.reader.classes[label] for label in classes],
        chosen=chosen,
    )


def fill(empty: Tensor, cells: Tensor, values: Tensor) -> Tensor:
    """Return a copy of all cells (n, side², ...) with values (n, m, ...) in the chosen cells (n, m)."""
    filled = empty.clone()
    filled[torch.arange(len(cells)).unsqueeze(1), cells] = values
    return filled


def assemble(cells: Tensor) -> Tensor:
    """Return scenes (n, 3, side * h, side * w) of cells (n, side², 3, h, w)."""
    side = round(cells.shape[1] ** 0.5)
    rows = cells.unflatten(1, (side, side)).permute(0, 3, 1, 4, 2, 5)  # (n, 3, side, h, side, w)
    return rows.flatten(4, 5).flatten(2, 3)


def spread(labels: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return the labels (n, N) of patches from the labels of cells (n, side²); each cell has a `grid` of patches."""
    side = round(labels.shape[1] ** 0.5)
    rows = labels.unflatten(1, (side, side)).repeat_interleave(grid[0], dim=1)
    return rows.repeat_interleave(grid[1], dim=2).flatten(1)


# -- models -------------------------------------------------------------------------------------


def enlarge(host: nn.Module, side: int) -> nn.Module:
    """Return a copy of a host that takes images of `side` times its height and width; timm resamples its positions.

    Raises HostError if any other weight is not the host's.
    """
    height, width = factory.image_size(host)
    large = copy.deepcopy(host)
    large.set_input_size(img_size=(side * height, side * width))
    check_weights(large, host.state_dict(), resampled=("pos_embed",))
    return large


def check_weights(model: nn.Module, expected: dict[str, Tensor], resampled: tuple[str, ...] = ()) -> None:
    """Raise HostError unless a model has exactly the expected weights, those that were `resampled` excepted."""
    weights = model.state_dict()
    different = set(weights) ^ set(expected)
    for name in set(weights) & set(expected) - set(resampled):
        if not torch.equal(weights[name], expected[name]):
            different.add(name)
    if different:
        names = ", ".join(sorted(different))
        raise HostError(f"These weights of the host changed, although nothing is trained here: {names}.")


def make_models(host: nn.Module, spec: dict) -> list[tuple[dict, Features | None]]:
    """Return what is known of each model of the spec, and its features; None for a method that can't be matched.

    The first is the dense host. The second has what the host's blocks get: patches that know nothing of each other.
    """
    size = (3, *factory.image_size(host))
    evo = factory.reduced(host, "evo", {"keep_ratio": spec["keep_ratio"]})
    wanted = macs.count(evo, size)
    models: list[tuple[dict, Features | None]] = [
        (known("dense", None, {}, macs.count(host, size)), partial(last_features, host)),
        (known("embedding", None, {}, macs.count(host.patch_embed, size)), partial(embeddings, host)),
        (known("evo", "evo", {"keep_ratio": spec["keep_ratio"]}, wanted), partial(last_features, evo)),
    ]
    for method in spec["matched"]:
        try:
            kwargs, counted = match(host, method, wanted, size)
        except MatchError as error:
            models.append((known(method, method, {}, None) | {"refused": str(error)}, None))
        else:
            reduced = factory.reduced(host, method, kwargs)
            models.append((known(method, method, kwargs, counted), partial(last_features, reduced)))
    return models


def known(run: str, method: str | None, kwargs: dict, counted: int | None) -> dict[str, Any]:
    """Return what a record says of a model before it is tested."""
    macs_g = None if counted is None else counted / 1e9
    return {"run": run, "method": method, "kwargs": kwargs, "macs_g": macs_g, "refused": None}


def match(host: nn.Module, method: str, wanted: int, size: tuple[int, int, int]) -> tuple[dict, int]:
    """Return a method's arguments whose MACs on an image of a `size` are nearest to those wanted, and their MACs.

    Raises MatchError if these differ by more than TOLERANCE.
    """
    strengths = strengths_of(method, host.patch_embed.num_patches, len(host.blocks))
    counted: dict[int, int] = {}

    def count(index: int) -> int:
        """Return the MACs of a strength; 0 for one that leaves the host no patch."""
        if index not in counted:
            try:
                counted[index] = macs.count(factory.reduced(host, method, strengths[index]), size)
            except factory.SpecError:
                counted[index] = 0
        return counted[index]

    first = bisect.bisect_left(range(len(strengths)), wanted, key=count)
    near = [index for index in (first - 1, first) if 0 <= index < len(strengths)]
    best = min(near, key=lambda index: abs(count(index) - wanted))
    if abs(count(best) - wanted) > TOLERANCE * wanted:
        raise MatchError(
            f"no strength has Evo-ViT's {wanted / 1e9:.4g} G MACs within {100 * TOLERANCE:.0f} %; nearest is "
            f"{strengths[best]} with {count(best) / 1e9:.4g}"
        )
    return strengths[best], count(best)


def strengths_of(method: str, patches: int, depth: int) -> list[dict]:
    """Return arguments of a method on a host with this many patches and blocks, from the fewest MACs to the most.

    ToMe's strengths differ by one merge in one block: all blocks merge the same number, the first ones one more.
    """
    if method != "tome":
        return [{"keep_ratio": percent / 100} for percent in range(1, 101)]
    totals = range(depth * (patches // 2), -1, -1)
    return [{"r": [total // depth + (block < total % depth) for block in range(depth)]} for total in totals]


def last_features(vit: nn.Module, scenes: Tensor) -> Tensor:
    """Return the normed features (B, N, C) of all patches of scenes (B, 3, H, W) after the last block."""
    (features,) = vit.forward_intermediates(scenes, indices=1, norm=True, output_fmt="NLC", intermediates_only=True)
    return features


def embeddings(host: nn.Module, scenes: Tensor) -> Tensor:
    """Return the normed embeddings (B, N, C) of the patches of scenes (B, 3, H, W), as they enter the first block."""
    tokens = host.norm_pre(host._pos_embed(host.patch_embed(scenes)))
    return host.norm(tokens)[:, host.num_prefix_tokens :]


# -- the probe ----------------------------------------------------------------------------------


def judge(features: Features, scenes: dict[str, Scenes], device: torch.device) -> dict:
    """Fit a probe to the features of training scenes, and return how it predicts the patches of validation scenes.

    `right` and `right_with_image` count patches of each scene: all, and those that an image covers.
    """
    background = len(scenes["val"].classes)
    extracted = {split: extract(features, scenes[split].images, device) for split in SPLITS}
    labels = {split: scenes[split].labels.to(device) for split in SPLITS}
    mean = extracted["train"].mean(dim=(0, 1))
    deviation = extracted["train"].std(dim=(0, 1)).clamp_min(1e-6)
    inputs = {split: (extracted[split] - mean) / deviation for split in SPLITS}
    layer, gradient = fit(inputs["train"].flatten(0, 1), labels["train"].flatten(), background + 1)
    with torch.no_grad():
        right = layer(inputs["val"]).argmax(dim=2) == labels["val"]
    covered = labels["val"] != background
    return {
        "right": right.sum(dim=1).tolist(),
        "right_with_image": (right & covered).sum(dim=1).tolist(),
        "converged": gradient <= GRADIENT,
    }


@torch.no_grad()
def extract(features: Features, images: Tensor, device: torch.device) -> Tensor:
    """Return the features (n, N, C) of scenes (n, 3, H, W), batch by batch."""
    return torch.cat([features(batch.to(device)).float() for batch in images.split(BATCH)])


def fit(inputs: Tensor, labels: Tensor, classes: int) -> tuple[nn.Linear, float]:
    """Return a linear layer fitted to inputs (p, C) and labels (p,), and the largest gradient that is left.

    This is multinomial logistic regression with a small penalty on the weights, by torch's L-BFGS from zero.
    """
    layer = nn.Linear(inputs.shape[1], classes, device=inputs.device, dtype=inputs.dtype)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    solver = torch.optim.LBFGS(
        layer.parameters(),
        max_iter=MOST_STEPS,
        tolerance_grad=GRADIENT,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        solver.zero_grad()
        value = F.cross_entropy(layer(inputs), labels) + PENALTY / 2 * layer.weight.square().sum()
        value.backward()
        return value

    solver.step(loss)
    loss()
    return layer, max(parameter.grad.abs().max().item() for parameter in layer.parameters())
