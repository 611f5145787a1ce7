"""How all figures look: one column wide, readable when printed, safe for colour-blind readers."""

from pathlib import Path

import matplotlib as mpl
import seaborn as sns
from matplotlib.figure import Figure

COLUMN, PAGE = 3.4, 7.0  # inches: a column's width, and a page's
DPI = 300


def apply() -> None:
    mpl.use("Agg")
    sns.set_theme(context="paper", style="ticks", palette="colorblind")
    mpl.rcParams |= {
        "font.size": 8, "axes.labelsize": 8, "axes.titlesize": 8, "legend.fontsize": 7,
        "xtick.labelsize": 7, "ytick.labelsize": 7, "legend.frameon": False,
        "svg.fonttype": "none", "svg.hashsalt": "evovit", "figure.constrained_layout.use": True,
    }  # fmt: skip


def save(figure: Figure, path: Path) -> None:
    """As PNG and as SVG beside it, each replaced only when it is whole."""
    for suffix, also in ((".svg", {"metadata": {"Date": None}}), (".png", {"dpi": DPI})):
        target = path.with_suffix(suffix)
        beside = target.with_name(f".{target.name}")
        figure.savefig(beside, format=suffix[1:], **also)
        beside.replace(target)
