"""How all figures look: one column wide, readable when printed, safe for colour-blind readers."""

from pathlib import Path

import matplotlib as mpl
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workflow.paper import results
from workflow.storage import files

COLUMN, PAGE = 3.4, 7.0  # inches: a column's width, and a page's
DPI = 300
GREY = "0.45"
# Marker and colour of each method, the same in all figures; with that many methods, markers must differ without colour.
METHODS = {
    "dense": ("o", "#0173b2"),
    "Evo-ViT": ("*", "#de8f05"),
    "PS-ViT": ("s", "#029e73"),
    "DynamicViT": ("^", "#d55e00"),
    "SViTE": ("D", "#cc78bc"),
    "IA-RED2": ("v", "#a0663c"),
    "PS-ViT (published)": ("p", "#029e73"),
    "EViT": ("h", "#332288"),
    "ToMe": ("P", "#56b4e9"),
    "Top-K": ("<", "#882255"),
    "random": (">", "0.55"),
    "ATS": ("d", "#999933"),
    "DPC-KNN": ("X", "black"),
}
LARGER = {"*": 1.7, "D": 0.85, "s": 0.9}  # of a marker's size, so that all look alike in size
DATA = results.IMAGES  # names in titles


def apply() -> None:
    """Set matplotlib's defaults for all figures."""
    mpl.use("Agg")
    mpl.rcdefaults()  # not the user's matplotlibrc
    sns.set_theme(context="paper", style="ticks", palette="colorblind")
    mpl.rcParams |= {
        "font.size": 8, "axes.labelsize": 8, "axes.titlesize": 8, "legend.fontsize": 7,
        "xtick.labelsize": 7, "ytick.labelsize": 7, "legend.frameon": False,
        "axes.linewidth": 0.8, "xtick.major.width": 0.8, "ytick.major.width": 0.8, "xtick.major.size": 3.5,
        "ytick.major.size": 3.5, "xtick.minor.width": 0.6, "ytick.minor.width": 0.6, "xtick.minor.size": 2,
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


def marker_of(method: str) -> tuple[str, str, float]:
    """Return a method's marker, its colour and how much larger than a circle it is drawn; others share one mark."""
    marker, shade = METHODS.get(method, ("8", "0.3"))
    return marker, shade, LARGER.get(marker, 1.0)


def with_interval(panel: Axes, points: pd.DataFrame, value: str = "top1", **options) -> None:
    """Draw points at (`x`, value) with bars from `<value>_low` to `<value>_high`."""
    bars = [points[value] - points[f"{value}_low"], points[f"{value}_high"] - points[value]]
    marks = {"marker": "o", "markersize": 4, "capsize": 2.5, "linewidth": 1.2, "elinewidth": 1}
    panel.errorbar(points["x"], points[value], yerr=bars, **marks, **options)


def note(panel: Axes, text: str) -> None:
    """Write a remark, if there is one, at the lower edge of a panel, in room that is made below the data.

    Call it when the data and their margins are final.
    """
    if not text:
        return
    low, high = panel.get_ylim()
    height = (
        0.8 * panel.get_position().height * panel.figure.get_figheight()
    )  # inches; titles and legends take the rest
    lines = text.count("\n") + 1
    room = (0.11 * lines + 0.06) / height
    panel.set_ylim(low - room / (1 - room) * (high - low), high)
    place = {"xycoords": "axes fraction", "textcoords": "offset points", "ha": "center", "va": "bottom"}
    white = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # as a line may cross it
    panel.annotate(text, (0.5, 0), (0, 3), fontsize=6.5, style="italic", bbox=white, **place)


def say(panel: Axes, text: str) -> None:
    """Write a sentence into the middle of a panel that has nothing else to show."""
    panel.text(0.5, 0.5, text, transform=panel.transAxes, ha="center", va="center", color=GREY)
