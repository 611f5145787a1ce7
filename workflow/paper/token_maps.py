"""Figures 2 and 5: class attention and kept patches on images."""

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workflow.paper import image_grid, style
from workflow.paper.columns import Records, describe_size
from workflow.paper.image_grid import Group

ATTENTION_LAYERS = (3, 5, 8, 10, 12)  # the paper shows 5 and 10
GLOBAL_LAYER = 10
SELECTION_LAYERS = (5, 8, 12)  # of those that select layer by layer
FIRST = 5  # the layer that is shown by epochs
OUTLINE = "#D55E00"  # around kept patches: vermilion, told from most images by all readers
FADED = 0.75  # how far a patch that is not kept goes towards middle grey
GREY = (0.299, 0.587, 0.114)  # luma of R, G and B (ITU-R BT.601)


def figure2(found: Records) -> tuple[Figure, pd.DataFrame]:
    """Class attention by layers, and what the prediction rests on, over grey images; as numbers,
    how each map correlates over the patches with the last one."""
    record, arrays = found.analysis("class_attention")
    depth = len(arrays["class_attention"])
    layers = [layer for layer in ATTENTION_LAYERS if layer <= depth]
    beyond = min(GLOBAL_LAYER, depth)
    maps = [arrays["class_attention"][layer - 1] for layer in layers]
    maps += [arrays["global_attention"][beyond - 1], arrays["relevance"]]
    groups = [
        Group("", ["image"]),
        Group("class attention (Eq. 3)", [f"layer {layer}" for layer in layers]),
        Group("Eq. 4", [f"layer {beyond}"]),
        Group("relevance", ["by Captum"]),
    ]
    note = (
        f"{describe(record, found)}\n"
        "Relevance for the predicted class: gradient x attention, rolled out (Chefer et al. 2021, "
        "ICCV); the paper's is CVPR 2021.\nEach map up to its own maximum."
    )

    def correlation(values: np.ndarray, index: int) -> float:
        return np.corrcoef(values[index], arrays["relevance"][index])[0, 1]

    figure, axes, scale = image_grid.make(len(arrays["images"]), groups, note, colour_bar=True)
    for index, (image, row) in enumerate(zip(arrays["images"], axes, strict=True)):
        row[0].imshow(image)
        for panel, values in zip(row[1:], maps, strict=True):
            overlay(panel, image, values[index], arrays["grid"])
    bar = figure.colorbar(mpl.cm.ScalarMappable(cmap="inferno"), cax=scale, ticks=[0, 1])
    bar.ax.set_yticklabels(["0", "max"], fontsize=7)
    bar.outline.set_visible(False)
    names = record["results"]["names"]
    columns = [f"{group.title} {column}" for group in groups[1:-1] for column in group.columns]
    rows = [
        {"image": name, "map": column, "correlation_with_relevance": correlation(values, index)}
        for index, name in enumerate(names)
        for column, values in zip(columns, maps[:-1], strict=True)
    ]
    return figure, pd.DataFrame(rows)


def overlay(panel: Axes, image: np.ndarray, values: np.ndarray, grid: np.ndarray) -> None:
    """A map (N,) over the image's grey, each map up to its own maximum."""
    side = len(image)
    heat = plt.get_cmap("inferno")(image_grid.enlarged(values / values.max(), grid, side))[..., :3]
    grey = (image @ np.array(GREY) / 255)[..., None]
    panel.imshow(0.2 * grey + 0.8 * heat)


def figure5(found: Records) -> tuple[Figure, pd.DataFrame]:
    """Kept patches by layers, by epochs and with layer-to-stage, the others faded; as numbers, the
    share of each selection that the last one of its group keeps, too."""
    record, layerwise = found.analysis("selection")
    staged, stagewise = found.analysis("selection_stage")
    layers, stages = list(layerwise["layers"]), list(stagewise["layers"])
    shown = [layer for layer in SELECTION_LAYERS if layer in layers] or layers[:3]
    first = FIRST if FIRST in layers else layers[0]
    masks = [layerwise["kept"][-1, layers.index(layer)] for layer in shown]
    masks += list(layerwise["kept"][:, layers.index(first)])
    reached = staged["results"].get("schedule", "stage") == "stage"
    if not reached:  # as many columns as of the layer-wise training, not one of each layer
        stages = [layer for layer in shown if layer in stages]
    masks += [stagewise["kept"][-1, list(stagewise["layers"]).index(layer)] for layer in stages]
    groups = [
        Group("", ["image"]),
        Group("layer-wise, at the end", [f"layer {layer}" for layer in shown]),
        Group(f"layer-wise, layer {first}", [f"epoch {epoch}" for epoch in layerwise["epochs"]]),
        Group("layer-to-stage", [f"from layer {layer}" for layer in stages])
        if reached
        else Group("still layer-wise", [f"layer {layer}" for layer in stages]),
    ]
    note = f"{describe(record, found)}\nlayer-to-stage: {staged['spec']['run']}, likewise."
    if not reached:
        note = (
            f"{describe(record, found)}\nNo layer-to-stage here: the training of "
            f"{staged['spec']['run']} was too short to become stage-wise, and is layer-wise."
        )
    figure, axes, _ = image_grid.make(len(layerwise["images"]), groups, note)
    for index, (image, row) in enumerate(zip(layerwise["images"], axes, strict=True)):
        row[0].imshow(image)
        for panel, mask in zip(row[1:], masks, strict=True):
            panel.imshow(faded(image, mask[index], layerwise["grid"]))
            spread = image_grid.enlarged(mask[index].astype(float), layerwise["grid"], len(image))
            for colour, width in (("white", 1.6), (OUTLINE, 0.8)):
                panel.contour(spread, levels=[0.5], colors=colour, linewidths=width)
    return figure, pd.DataFrame(overlaps(record["results"]["names"], groups[1:], masks))


def overlaps(names: list[str], groups: list[Group], masks: list[np.ndarray]) -> list[dict]:
    """By image and column: how many patches are kept, and which share of them the group's last
    column keeps as well. `masks`: (n, N), of the groups' columns in their order."""
    rows, left = [], list(masks)
    for group in groups:
        mine, left = left[: len(group.columns)], left[len(group.columns) :]
        for column, mask in zip(group.columns, mine, strict=True):
            for name, kept, last in zip(names, mask, mine[-1], strict=True):
                shared = (kept & last).sum() / kept.sum()
                rows.append({"image": name, "group": group.title, "selection": column,
                             "kept": int(kept.sum()), "in_the_last": shared})  # fmt: skip
    return rows


def faded(image: np.ndarray, kept: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """The image (S, S, 3), its patches that are not kept (N,) nearly grey: white and black, which
    digits are made of, both show that they fade."""
    gone = FADED * (1 - image_grid.enlarged(kept.astype(float), grid, len(image)))[..., None]
    return image / 255 * (1 - gone) + gone / 2


def describe(record: dict, found: Records) -> str:
    """Of which model, and what it was trained on."""
    spec, data = record["spec"], record["spec"]["data"]["name"]
    return (
        f"{spec['run']}: {describe_size(spec, found.config)}, trained on "
        f"{style.DATA.get(data, data)}; "
        f"{spec['images']['shown']} validation images, then photographs."
    )
