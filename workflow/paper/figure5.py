"""Figure 5: kept patches by layers, by epochs of the training and with layer-to-stage; the other patches are faded."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from workflow.paper import image_grid
from workflow.paper.image_grid import Group
from workflow.paper.results import Records

LAYERS = (5, 8, 12)  # of those that select layer by layer
FIRST = 5  # the layer that is shown by epochs
OUTLINE = "#D55E00"  # around kept patches: vermilion, told from most images by all readers
FADED = 0.75  # how far a patch that is not kept goes towards middle grey


def figure5(records: Records) -> tuple[Figure, pd.DataFrame]:
    """Draw the selections; return as numbers which share of each selection the last one of its group keeps, too."""
    record, layerwise = records.analysis("selection")
    stage_record, stagewise = records.analysis("selection_stage")
    layers, stages = list(layerwise["layers"]), list(stagewise["layers"])
    shown = [layer for layer in LAYERS if layer in layers] or layers[:3]
    first = FIRST if FIRST in layers else layers[0]
    staged = stage_record["results"].get("schedule", "stage") == "stage"
    if not staged:  # as many columns as of the layer-wise training, not one of each layer
        stages = [layer for layer in shown if layer in stages]
    masks = [layerwise["kept"][-1, layers.index(layer)] for layer in shown]
    masks += list(layerwise["kept"][:, layers.index(first)])
    masks += [stagewise["kept"][-1, list(stagewise["layers"]).index(layer)] for layer in stages]
    groups = [
        Group("", ["image"]),
        Group("layer-wise, at the end", [f"layer {layer}" for layer in shown]),
        Group(f"layer-wise, layer {first}", [f"epoch {epoch}" for epoch in layerwise["epochs"]]),
    ]
    note = image_grid.describe(record, records)
    run = stage_record["spec"]["run"]
    if staged:
        groups.append(Group("layer-to-stage", [f"from layer {layer}" for layer in stages]))
        note += f"\nlayer-to-stage: {run}, of the same size, data and images."
    else:
        groups.append(Group("still layer-wise", [f"layer {layer}" for layer in stages]))
        note += (
            f"\nNo layer-to-stage here: the training of {run} was too short to become stage-wise, and is layer-wise."
        )
    figure, axes, _ = image_grid.make(len(layerwise["images"]), groups, note)
    for index, (image, row) in enumerate(zip(layerwise["images"], axes, strict=True)):
        row[0].imshow(image)
        for panel, mask in zip(row[1:], masks, strict=True):
            panel.imshow(faded(image, mask[index], layerwise["grid"]))
            pixels = image_grid.enlarged(mask[index].astype(float), layerwise["grid"], len(image))
            for colour, width in (("white", 1.6), (OUTLINE, 0.8)):
                panel.contour(pixels, levels=[0.5], colors=colour, linewidths=width)
    return figure, pd.DataFrame(overlaps(record["results"]["names"], groups[1:], masks))


def overlaps(names: list[str], groups: list[Group], masks: list[np.ndarray]) -> list[dict]:
    """Return how many patches each selection keeps, and which share of them the last one of its group keeps, too.

    `masks` are (n, N) for n images, of the groups' columns in their order.
    """
    rows, remaining = [], list(masks)
    for group in groups:
        selections, remaining = remaining[: len(group.columns)], remaining[len(group.columns) :]
        for column, mask in zip(group.columns, selections, strict=True):
            for name, kept, last in zip(names, mask, selections[-1], strict=True):
                shared = (kept & last).sum() / kept.sum()
                row = {"image": name, "group": group.title, "selection": column}
                rows.append(row | {"kept": int(kept.sum()), "in_the_last": shared})
    return rows


def faded(image: np.ndarray, kept: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Return the image (S, S, 3) with the patches that are not kept (N,) nearly grey.

    Digits are white on black, and both fade visibly.
    """
    gone = FADED * (1 - image_grid.enlarged(kept.astype(float), grid, len(image)))[..., None]
    return image / 255 * (1 - gone) + gone / 2
