"""Accuracy against throughput of all methods: printed hollow, measured filled."""

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from workflow.paper import style, tables
from workflow.paper.columns import Records


def points(found: Records) -> pd.DataFrame:
    """One row per model: label, method, images/s and top-1, measured (or none) and printed."""
    first, second = tables.make("table1", found), tables.make("table2", found)
    first = first.assign(label=first["backbone"], group=first["method"])
    dense = second["model"].str.startswith(("LeViT", "Evo-LeViT"))
    names = second["model"].str.replace(r"^Evo-", "", regex=True)
    second = second.assign(
        label=names,
        group=second["model"].str.extract(r"^(Evo)-")[0].map({"Evo": "Evo-ViT"}).fillna("Baseline"),
    )
    second.loc[~dense, "group"] = "other models"
    both = pd.concat([first, second])
    small = both["resolution"] == 224
    both["label"] = both["label"].where(small, both["label"] + " " + both["resolution"].astype(str))
    return both[["label", "group", "throughput", "top1", "throughput_paper", "top1_paper"]]


def draw(found: Records) -> Figure:
    """Two panels that share no axis: the paper's numbers are of other hardware and other data."""
    frame = points(found)
    figure, panels = plt.subplots(1, 2, figsize=(style.PAGE, 3.4))
    groups = list(dict.fromkeys(frame["group"]))
    colours = dict(zip(groups, plt.rcParams["axes.prop_cycle"].by_key()["color"], strict=False))
    for panel, suffix, filled in ((panels[0], "_paper", False), (panels[1], "", True)):
        speed, accuracy = f"throughput{suffix}", f"top1{suffix}"
        known = frame.dropna(subset=[speed, accuracy])
        for group, rows in known.groupby("group", sort=False):
            face = colours[group] if filled else "none"
            panel.scatter(rows[speed], rows[accuracy], s=22, label=group, facecolors=face,
                          edgecolors=colours[group], linewidths=1.2)  # fmt: skip
        panel.set(xscale="log", xlabel="images/s", ylabel="top-1 %")
        panel.set_title("printed: V100, ImageNet" if not filled else f"measured: {found.setting}")
    panels[0].legend(loc="lower left")
    return figure
