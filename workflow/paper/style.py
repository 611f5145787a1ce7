"""How all figures look: one column wide, readable when printed, safe for colour-blind readers."""

from pathlib import Path

import matplotlib as mpl
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workflow.storage import files

COLUMN, PAGE = 3.4, 7.0  # inches: a column's width, and a page's
DPI = 300
GREY = "0.45"
DATA = {"imagenet": "ImageNet", "cifar10": "CIFAR-10"}  # names in titles


def apply() -> None:
    """Set matplotlib's defaults for all figures."""
    mpl.use("Agg")
    mpl.rcdefaults()  # not the user's matplotlibrc
    sns.set_theme(context="paper", style="ticks", palette="colorblind")
    mpl.rcParams |= {
        "font.size": 8, "axes.labelsize": 8, "axes.titlesize": 8, "legend.fontsize": 7,
        "xtick.labelsize": 7, "ytick.labelsize": 7, "legend.frameon": False,
        "svg.fonttype": "none", "svg.hashsalt": "evovit", "figure.constrained_layout.use": True,
    }  # fmt: skip


def save(figure: Figure, path: Path) -> None:
    """Write the figure as PNG and as SVG of the same name, each replaced only when it is whole."""
    with files.replacing(path.with_suffix(".svg")) as draft:
        figure.savefig(draft, format="svg", metadata={"Date": None})
    with files.replacing(path.with_suffix(".png")) as draft:
        figure.savefig(draft, format="png", dpi=DPI)


def colour(index: int) -> str:
    """Return the palette's colour of that number, from 0."""
    colours = mpl.rcParams["axes.prop_cycle"].by_key()["color"]
    return colours[index % len(colours)]


def with_interval(panel: Axes, points: pd.DataFrame, **options) -> None:
    """Draw points at (`x`, `top1`) with bars from `top1_low` to `top1_high`."""
    bars = [points["top1"] - points["top1_low"], points["top1_high"] - points["top1"]]
    marks = {"marker": "o", "markersize": 4, "capsize": 2.5, "linewidth": 1.2, "elinewidth": 1}
    panel.errorbar(points["x"], points["top1"], yerr=bars, **marks, **options)


def say(panel: Axes, text: str) -> None:
    """Write a sentence into the middle of a panel that has nothing else to show."""
    panel.text(0.5, 0.5, text, transform=panel.transAxes, ha="center", va="center", color=GREY)
