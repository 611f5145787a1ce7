"""Accuracy against throughput of all methods: printed hollow, measured filled."""

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from workflow.paper import columns, labels, style, tables
from workflow.paper.columns import Records

DENSE, OURS, OTHERS = "dense", "Evo-ViT", "other models"
MARKERS = {DENSE: "o", OURS: "*", "PS-ViT": "s", "DynamicViT": "^", "SViTE": "D", "IA-RED2": "v",
           OTHERS: "X"}  # fmt: skip


def points(found: Records) -> pd.DataFrame:
    """One row per model of Tables 1 and 2: what it is built on, method, images/s and top-1 in %,
    measured (or none) and printed."""
    first, second = tables.make("table1", found), tables.make("table2", found)
    first = first.assign(model=first["backbone"])
    first["method"] = first["method"].replace("Baseline", DENSE)
    ours = second["model"].str.startswith("Evo-")
    levit = second["model"].str.contains("LeViT")
    second["method"] = ours.map({True: OURS, False: DENSE}).where(levit, OTHERS)
    second["model"] = second["model"].str.removeprefix("Evo-")
    both = pd.concat([first, second], ignore_index=True)
    large = both["resolution"] != 224
    both.loc[large, "model"] += ", " + both.loc[large, "resolution"].astype(str) + " px"
    return both[["model", "method", "top1", "top1_sd", "top1_low", "top1_high", "throughput",
                 "top1_paper", "throughput_paper", "batch_size", "precision", "mode", "device",
                 "seeds", "source", "flags"]]  # fmt: skip


def draw(found: Records) -> tuple[Figure, pd.DataFrame]:
    """Two panels that share no axis: the paper's numbers are of other hardware and other data."""
    frame = points(found)
    figure, panels = plt.subplots(1, 2, figsize=(style.PAGE, 4.0))
    data = found.config.settings[found.setting]["data"]["name"]
    both = frame.dropna(subset=["top1", "throughput"])
    seeds = "/".join(str(count) for count in sorted(both["seeds"].unique()))
    timed = "".join(f"\n{said}" for said in columns.timed_on(both).split("; ") if said)
    titles = (
        "printed: ImageNet, V100",
        f"measured: {style.DATA.get(data, data)}, speed at full size; 95 % intervals, seeds: {seeds or '-'}{timed}",
    )
    shown = [
        draw_panel(panel, frame, suffix, title)
        for panel, suffix, title in zip(panels, ("_paper", ""), titles, strict=True)
    ]
    handles = {}
    for panel in reversed(panels):  # the printed one, which has every method, last
        handles |= dict(zip(*reversed(panel.get_legend_handles_labels()), strict=True))
    names = [name for name in MARKERS if name in handles]
    figure.legend([handles[name] for name in names], names, loc="outside lower center",
                  ncols=len(names))  # fmt: skip
    figure.canvas.draw()  # where the layout puts everything, labels must know
    figure.set_layout_engine("none")
    for panel, known in zip(panels, shown, strict=True):
        label(panel, known)
    return figure, frame


def draw_panel(panel: Axes, frame: pd.DataFrame, suffix: str, title: str) -> pd.DataFrame:
    """The models whose accuracy and speed are known, as `x` and `y`, which it returns."""
    known = frame.rename(columns={f"throughput{suffix}": "x", f"top1{suffix}": "y"})
    known = known.dropna(subset=["x", "y"])
    panel.set(xlabel="images/s", ylabel="top-1 %")
    panel.set_title(title, fontsize=7 if "\n" in title else None)
    if known.empty:
        style.say(panel, "no model both trained and timed")
        panel.set(xticks=[], yticks=[])
        return known
    for line in lines(known):
        panel.plot(*line.T, color=style.GREY, linewidth=0.8, zorder=1)
    for index, (method, marker) in enumerate(MARKERS.items()):
        rows = known[known["method"] == method]
        colour = style.GREY if method == OTHERS else style.colour(index)
        size = 70 if marker == "*" else 24
        if len(rows):
            panel.scatter(rows["x"], rows["y"], s=size, marker=marker, label=method, zorder=2,
                          facecolors="white" if suffix else colour, edgecolors=colour,
                          linewidths=1.1)  # fmt: skip
    if not suffix:
        bars = [known["y"] - known["top1_low"], known["top1_high"] - known["y"]]
        panel.errorbar(known["x"], known["y"], yerr=bars, fmt="none", zorder=1,
                       ecolor=style.GREY, elinewidth=0.7, capsize=2)  # fmt: skip
    panel.set_xscale("log")
    wide = known["x"].max() / known["x"].min() > 8
    panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if wide else range(1, 10)))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.margins(0.08)
    return known


def lines(known: pd.DataFrame) -> list[np.ndarray]:
    """From each dense model to its Evo-ViT version: the ends, (2, 2)."""
    both = known[known["method"].isin([DENSE, OURS])].groupby("model")
    return [pair[["x", "y"]].to_numpy() for _, pair in both if len(pair) == 2]


def label(panel: Axes, known: pd.DataFrame) -> None:
    """Names of the dense models and, smaller, of the other papers' models."""
    styles = {DENSE: {"fontsize": 7}, OTHERS: {"fontsize": 6, "color": style.GREY}}
    anchors = [
        (row.x, row.y, row.model, also)
        for method, also in styles.items()
        for row in known[known["method"] == method].itertuples()
    ]
    if anchors:
        labels.place(panel, anchors, known[["x", "y"]].to_numpy(), lines(known))
