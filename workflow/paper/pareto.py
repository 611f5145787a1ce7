"""Accuracy against throughput of all methods: printed hollow, measured filled."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from matplotlib.transforms import Bbox

from workflow.paper import results, style, tables
from workflow.paper.results import Records
from workflow.paper.tables import Row

DENSE, OURS, OTHERS = "dense", "Evo-ViT", "other models"
METHODS = [DENSE, OURS, "PS-ViT", "DynamicViT", "SViTE", "IA-RED2", "PS-ViT (published)", OTHERS]  # in the legend
COLUMNS = [
    *("model", "method", "top1", "top1_sd", "top1_low", "top1_high", "throughput", "top1_paper", "throughput_paper"),
    *("batch_size", "precision", "mode", "device", "seeds", "source", "flags"),
]
# of labels, in typographic points
DISTANCES = (6, 9, 13, 18, 24)  # from their points
NEAR = 6  # a label at most this far from its point needs no line
HALF = 4  # half the width of what a point covers
DIRECTIONS = [i * math.pi / 4 for i in (5, 1, 3, 7, 6, 2, 4, 0)]  # diagonals first


def pareto(records: Records) -> tuple[Figure, pd.DataFrame]:
    """Draw two panels that share no axis: the paper's numbers are of other hardware and other data."""
    rows = {table: tables.rows_of(table, records) for table in ("table1", "table2")}
    frames = {table: tables.frame_of(table, rows[table], records.config) for table in rows}
    frame = models_of(frames["table1"], frames["table2"])
    data = records.config.settings[records.setting]["data"]["name"]
    return draw(frame, [*rows["table1"], *rows["table2"]], style.DATA.get(data, data)), frame


def models_of(table1: pd.DataFrame, table2: pd.DataFrame) -> pd.DataFrame:
    """Return one line per model of Tables 1 and 2.

    It holds what the model is built on, its method, images/s and top-1 in %, measured (or none) and printed.
    """
    table1 = table1.assign(model=table1["backbone"], method=table1["method"].replace("Baseline", DENSE))
    ours = table2["model"].str.startswith("Evo-").map({True: OURS, False: DENSE})
    table2 = table2.assign(method=ours.where(table2["model"].str.contains("LeViT"), OTHERS))
    table2["model"] = table2["model"].str.removeprefix("Evo-")
    both = pd.concat([table1, table2], ignore_index=True)
    large = both["resolution"] != 224
    both.loc[large, "model"] += ", " + both.loc[large, "resolution"].astype(str) + " px"
    return both[COLUMNS]


def draw(frame: pd.DataFrame, rows: list[Row], data: str) -> Figure:
    """Draw the models; `rows` are those of the tables, for how their speeds were measured."""
    figure, panels = plt.subplots(1, 2, figsize=(style.PAGE, 4.0))
    seeds = sorted(frame.dropna(subset=["top1", "throughput"])["seeds"].unique())
    counts = "/".join(str(count) for count in seeds) or "-"
    timing = results.describe_timing(row.speed for row in rows if row.accuracy.top1 is not None)
    title = f"measured: {data}, speed at full size; 95 % intervals, seeds: {counts}"
    titles = ("printed: ImageNet, V100", "\n".join(filter(None, (title, *timing))))
    shown = [
        draw_panel(panel, frame, suffix, text)
        for panel, suffix, text in zip(panels, ("_paper", ""), titles, strict=True)
    ]
    handles: dict[str, Any] = {}
    for panel in reversed(panels):  # the printed one, which has every method, last
        handles |= dict(zip(*reversed(panel.get_legend_handles_labels()), strict=True))
    names = [name for name in METHODS if name in handles]
    figure.legend([handles[name] for name in names], names, loc="outside lower center", ncols=len(names))
    style.note(panels[1], describe_doubt(shown[1]))
    figure.canvas.draw()  # labels must know where the layout puts everything
    figure.set_layout_engine("none")
    for panel, known in zip(panels, shown, strict=True):
        label(panel, known)
    return figure


def draw_panel(panel: Axes, frame: pd.DataFrame, suffix: str, title: str) -> pd.DataFrame:
    """Draw the models whose accuracy and speed are known; return them, with both as `y` and `x`."""
    known = frame.rename(columns={f"throughput{suffix}": "x", f"top1{suffix}": "y"}).dropna(subset=["x", "y"])
    panel.set(xlabel="images/s", ylabel="top-1 accuracy (%)")
    panel.set_title(title, fontsize=7 if "\n" in title else None)
    if known.empty:
        style.say(panel, "no model both trained and timed")
        panel.set(xticks=[], yticks=[])
        return known
    for line in lines(known):
        panel.plot(*line.T, color=style.GREY, linewidth=0.8, zorder=1)
    for method in METHODS:
        rows = known[known["method"] == method]
        if rows.empty:
            continue
        marker, colour, larger = ("X", style.GREY, 1.0) if method == OTHERS else style.marker_of(method)
        marks = {"s": 24 * larger**2, "marker": marker, "edgecolors": colour, "linewidths": 1.1}
        face = "white" if suffix else colour
        panel.scatter(rows["x"], rows["y"], facecolors=face, label=method, zorder=2, **marks)
    if not suffix:
        bars = [known["y"] - known["top1_low"], known["top1_high"] - known["y"]]
        marks = {"fmt": "none", "ecolor": style.GREY, "elinewidth": 0.7, "capsize": 2}
        panel.errorbar(known["x"], known["y"], yerr=bars, zorder=1, **marks)
    panel.set_xscale("log")
    wide = known["x"].max() / known["x"].min() > 8
    panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if wide else range(1, 10)))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.margins(0.08)
    return known


def describe_doubt(known: pd.DataFrame) -> str:
    """Say why differences between models that are built on the same dense one may be chance; "" where they are more."""
    groups = [models for _, models in known.groupby("model") if len(models) > 1]
    if not groups:
        return ""
    if all(results.are_within(models["top1_low"], models["top1_high"]) for models in groups):
        return "on each dense model, differences are within the intervals"
    return results.ONE_SEED if (known["seeds"] == 1).all() else ""


def lines(known: pd.DataFrame) -> list[np.ndarray]:
    """Return the ends, (2, 2), of a line from each dense model to its Evo-ViT version."""
    both = known[known["method"].isin([DENSE, OURS])].groupby("model")
    return [pair[["x", "y"]].to_numpy() for _, pair in both if len(pair) == 2]


# -- labels near points; adjustText 1.4 left names across points and lines ------------------


def label(panel: Axes, known: pd.DataFrame) -> None:
    """Name the dense models and, smaller, the other papers' models."""
    styles: dict[str, dict] = {DENSE: {"fontsize": 7}, OTHERS: {"fontsize": 6, "color": style.GREY}}
    anchors = [
        (row.x, row.y, row.model, properties)
        for method, properties in styles.items()
        for row in known[known["method"] == method].itertuples()
    ]
    if anchors:
        place_labels(panel, anchors, known[["x", "y"]].to_numpy(), lines(known))


def place_labels(panel: Axes, anchors: Sequence[tuple[float, float, str, dict]], points, lines=()) -> None:
    """Write each (x, y, text, text's properties) of `anchors` near its point, in their order.

    Where there is room, a label is free of all `points` (count, 2), `lines` (each (2, 2), its ends) and earlier
    labels. A thin line leads from a label that is further off. Call it when limits, scales and layout are final.
    """
    pixel = panel.figure.dpi / 72
    taken = [around(spot, HALF * pixel) for spot in panel.transData.transform(points)]
    for line in lines:
        start, end = panel.transData.transform(line)
        steps = int(math.dist(start, end) / pixel) + 1
        taken += [around(start + (end - start) * i / steps, pixel / 2) for i in range(steps + 1)]
    for x, y, words, properties in anchors:
        text = panel.annotate(words, (x, y), xytext=(0, 0), textcoords="offset points", **properties)
        taken.append(settle(text, panel.bbox, taken))
        if math.hypot(*text.get_position()) > NEAR + 1:
            lead(panel, text)


def lead(panel: Axes, text: Annotation) -> None:
    """Draw a thin line from a label to its point."""
    arrow = {"arrowstyle": "-", "color": text.get_color(), "linewidth": 0.5, "shrinkA": 0, "shrinkB": 2}
    panel.annotate("", text.xy, text.get_position(), textcoords="offset points", zorder=1, arrowprops=arrow)


def around(spot, half: float) -> Bbox:
    """Return the box around a spot, in pixels."""
    x, y = spot
    return Bbox.from_extents(x - half, y - half, x + half, y + half)


def settle(text: Annotation, inside: Bbox, taken: list[Bbox]) -> Bbox:
    """Move the text to the first free spot, or to the one that covers least; return its box."""
    best = None
    for distance in DISTANCES:
        for angle in DIRECTIONS:
            spot = (distance * math.cos(angle), distance * math.sin(angle))
            box = move(text, spot)
            outside = box.x0 < inside.x0 or box.x1 > inside.x1 or box.y0 < inside.y0 or box.y1 > inside.y1
            covered = sum(box.overlaps(other) for other in taken) + 5 * outside
            if covered == 0:
                return box
            if best is None or covered < best[0]:
                best = (covered, spot)
    return move(text, best[1])


def move(text: Annotation, spot: tuple[float, float]) -> Bbox:
    """Write the text outward from the spot, which is relative to its point; return its box in pixels."""
    across, up = (round(value, 3) for value in spot)
    text.set_position(spot)
    text.set_ha({1: "left", 0: "center", -1: "right"}[np.sign(across)])
    text.set_va({1: "bottom", 0: "center", -1: "top"}[np.sign(up)])
    return text.get_window_extent()
