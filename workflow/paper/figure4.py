"""Figure 4: how far tokens are from the final class token (4a), and how alike queries are (4b), by layer."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workflow.paper import style
from workflow.paper.results import Records, are_within, describe_size

HEIGHT = 2.6
# label, marker and line of a group of tokens, which differ without colour, too
GROUPS = {
    "all": ("all tokens", "o", "-"),
    "informative": ("informative", "^", "--"),
    "placeholder": ("placeholder", "s", ":"),
}


def figure4a(records: Records) -> tuple[Figure, pd.DataFrame]:
    """Draw the linear CKA of each layer's average token with the last class token."""
    record = records.curves("cka")
    figure, panel = plt.subplots(figsize=(style.COLUMN, HEIGHT))
    for name, (label, marker, line) in GROUPS.items():
        plot(panel, record, name, line, marker=marker, label=label)
    panel.set(ylabel="CKA with final class token", ylim=(0, 1.04))
    panel.legend(loc="upper left")
    style.note(panel, describe_doubt(record))
    finish(panel, describe(record, records))
    return figure, table(record)


def figure4b(records: Records) -> tuple[Figure, pd.DataFrame]:
    """Draw the correlation of patch queries with their image's mean query: its mean and its variance."""
    record = records.curves("query_correlation")
    figure, panels = plt.subplots(2, 1, sharex=True, figsize=(style.COLUMN, 1.25 * HEIGHT))
    for panel, name, marker, colour in zip(panels, ("mean", "variance"), "os", ("C0", "C1"), strict=True):
        plot(panel, record, name, marker=marker, color=colour)
        panel.set(ylabel=f"correlation, {name}")
    panels[0].set_ylim(top=1.0)
    panels[1].set_ylim(bottom=0.0)
    finish(panels[1], describe(record, records))
    return figure, table(record)


def describe_doubt(record: dict) -> str:
    """Say whether the groups of tokens differ by less than their intervals in every layer; "" where they do not."""
    curves = np.array([record["results"]["curves"][name] for name in GROUPS])
    half = np.array([record["results"]["half_widths"][name] for name in GROUPS])
    lows, highs = (curves - half).T, (curves + half).T
    within = all(are_within(low, high) for low, high in zip(lows, highs, strict=True))
    return "in every layer, differences are within the bands" if within else ""


def plot(panel: Axes, record: dict, name: str, *line: str, **options) -> None:
    """Draw a curve over the layers, and its 95 % interval over images as a band."""
    values = np.array(record["results"]["curves"][name])
    half = np.array(record["results"]["half_widths"][name])
    (drawn,) = panel.plot(layers_of(values), values, *line, markersize=3.5, **options)
    panel.fill_between(layers_of(values), values - half, values + half, color=drawn.get_color(), alpha=0.2, linewidth=0)


def table(record: dict) -> pd.DataFrame:
    """Return the curves by layer, counted from 1, and half of their 95 % intervals."""
    curves, halves = record["results"]["curves"], record["results"]["half_widths"]
    layers = layers_of(next(iter(curves.values())))
    wide = {f"{name}_half_width": values for name, values in halves.items()}
    return pd.DataFrame({"layer": layers, **curves, **wide})


def layers_of(values: Sequence[float]) -> np.ndarray:
    """Return the layers of a curve's points, counted from 1."""
    return np.arange(1, len(values) + 1)


def describe(record: dict, records: Records) -> str:
    """Say which model the figure shows on which images, for people who see nothing else."""
    spec, images = record["spec"], record["results"]["images"]
    data = spec["data"]["name"]
    return (
        f"{spec['run']}: {describe_size(spec, records.config)}\n"
        f"trained on {style.DATA.get(data, data)}; {images} validation images; bands: 95 %"
    )


def finish(panel: Axes, text: str) -> None:
    """Label the axis of layers and write the text below the figure."""
    panel.set_xlabel("layer")
    panel.figure.supxlabel(text, fontsize=7)
    panel.set_xticks(range(1, int(panel.lines[0].get_xdata()[-1]) + 1))
    for axes in panel.figure.axes:
        axes.grid(alpha=0.3, linewidth=0.5)
