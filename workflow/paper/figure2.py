"""Figure 2: class attention by layers, and what the prediction rests on, over grey images."""

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workflow.paper import image_grid
from workflow.paper.image_grid import Group
from workflow.paper.results import Records

LAYERS = (3, 5, 8, 10, 12)  # the paper shows 5 and 10
GLOBAL_LAYER = 10
GREY = (0.299, 0.587, 0.114)  # luma of R, G and B (ITU-R BT.601)


def figure2(records: Records) -> tuple[Figure, pd.DataFrame]:
    """Draw the maps; return as numbers how each map correlates over the patches with the relevance."""
    record, arrays = records.analysis("class_attention")
    depth = len(arrays["class_attention"])
    layers = [layer for layer in LAYERS if layer <= depth]
    beyond = min(GLOBAL_LAYER, depth)
    maps = [arrays["class_attention"][layer - 1] for layer in layers]
    maps += [arrays["global_attention"][beyond - 1], arrays["relevance"]]
    groups = [
        Group("", ["image"]),
        Group("class attention (Eq. 3)", [f"layer {layer}" for layer in layers]),
        Group("global (Eq. 4)", [f"layer {beyond}"]),
        Group("relevance", ["by Captum"]),
    ]
    note = (
        f"{image_grid.describe(record, records)}\n"
        "Relevance for the predicted class: gradient x attention, rolled out (Chefer et al. 2021, "
        "ICCV); the paper's is CVPR 2021.\nEach map up to its own maximum."
    )
    figure, axes, scale = image_grid.make(len(arrays["images"]), groups, note, colour_bar=True)
    for index, (image, row) in enumerate(zip(arrays["images"], axes, strict=True)):
        row[0].imshow(image)
        for panel, values in zip(row[1:], maps, strict=True):
            overlay(panel, image, values[index], arrays["grid"])
    bar = figure.colorbar(mpl.cm.ScalarMappable(cmap="inferno"), cax=scale, ticks=[0, 1])
    bar.ax.set_yticklabels(["0", "max"], fontsize=7)
    bar.outline.set_visible(False)
    columns = [f"{group.title} {column}" for group in groups[1:-1] for column in group.columns]
    rows = []
    for index, name in enumerate(record["results"]["names"]):
        for column, values in zip(columns, maps[:-1], strict=True):
            correlation = np.corrcoef(values[index], arrays["relevance"][index])[0, 1]
            rows.append({"image": name, "map": column, "correlation_with_relevance": correlation})
    return figure, pd.DataFrame(rows)


def overlay(panel: Axes, image: np.ndarray, values: np.ndarray, grid: np.ndarray) -> None:
    """Draw a map (N,) over the image's grey, up to the map's own maximum."""
    side = len(image)
    heat = plt.get_cmap("inferno")(image_grid.enlarged(values / values.max(), grid, side))[..., :3]
    grey = (image @ np.array(GREY) / 255)[..., None]
    panel.imshow(0.2 * grey + 0.8 * heat)
