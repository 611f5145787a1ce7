"""Images in rows and named columns (Figures 2 and 5), placed in inches: no layout engine keeps their rows level."""

from dataclasses import dataclass

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import PlaceHolderLayoutEngine

from workflow.paper import style
from workflow.paper.results import Records, describe_size

GAP, BETWEEN, MARGIN = 0.04, 0.16, 0.06  # inches between images, between groups, at the edges
LINE = 0.14  # inches of a line of text
MOST = 1.0  # inches of an image's side


@dataclass(frozen=True)
class Group:
    """Columns that belong together, with a title above theirs."""

    title: str
    columns: list[str]


def make(
    rows: int, groups: list[Group], note: str, colour_bar: bool = False
) -> tuple[Figure, list[list[Axes]], Axes | None]:
    """Return a page-wide figure of square axes without ticks, with a note below.

    With it come its axes by row and column, and those of a colour bar at the right or None.
    """
    columns = sum(len(group.columns) for group in groups)
    bar = 0.5 if colour_bar else 0.0
    gaps = GAP * (columns - len(groups)) + BETWEEN * (len(groups) - 1)
    side = min(MOST, (style.PAGE - 2 * MARGIN - bar - gaps) / columns)
    width = columns * side + gaps + 2 * MARGIN + bar
    titled = any(group.title for group in groups)
    lines = max(name.count("\n") + 1 for group in groups for name in group.columns)
    head = LINE * (lines + (1.4 if titled else 0.3)) + MARGIN
    foot = LINE * (note.count("\n") + 1.6) + MARGIN
    height = head + rows * side + (rows - 1) * GAP + foot
    # a placeholder: without any, saving would fall back to the constrained layout of style.py
    layout = PlaceHolderLayoutEngine(adjust_compatible=True, colorbar_gridspec=True)
    figure = plt.figure(figsize=(width, height), layout=layout)
    axes: list[list[Axes]] = [[] for _ in range(rows)]
    left = MARGIN
    for group in groups:
        start = left
        for name in group.columns:
            for row in range(rows):
                bottom = height - head - (row + 1) * side - row * GAP
                panel = figure.add_axes((left / width, bottom / height, side / width, side / height))
                panel.set(xticks=[], yticks=[])
                plt.setp(panel.spines.values(), visible=False)
                axes[row].append(panel)
            axes[0][-1].set_title(name, pad=3, fontsize=7)
            left += side + GAP
        left += BETWEEN - GAP
        centre = (start + left - BETWEEN) / 2
        figure.text(centre / width, 1 - MARGIN / height, group.title, ha="center", va="top", fontsize=8)
    figure.text(MARGIN / width, MARGIN / height, note, ha="left", va="bottom", fontsize=7)
    scale = None
    if colour_bar:
        tall = rows * side + (rows - 1) * GAP
        scale = figure.add_axes(((left - BETWEEN + 0.1) / width, foot / height, 0.09 / width, tall / height))
    return figure, axes, scale


def enlarged(values: np.ndarray, grid: np.ndarray, side: int) -> np.ndarray:
    """Return patches (N,) in raster order spread over the pixels (side, side) that they cover."""
    rows, columns = grid
    return np.kron(values.reshape(rows, columns), np.ones((side // rows, side // columns)))


def describe(record: dict, records: Records) -> str:
    """Say which model an analysis is of, and what it was trained on."""
    spec, data = record["spec"], record["spec"]["data"]["name"]
    return (
        f"{spec['run']}: {describe_size(spec, records.config)}, trained on {style.DATA.get(data, data)}; "
        f"{spec['images']['shown']} validation images, then photographs."
    )
