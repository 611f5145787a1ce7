"""Figures of one parameter (the supplement's Fig. 1): accuracy, and where it is timed speed, over
its values.
"""

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from workflow.campaign import specs, statements
from workflow.paper import columns, printed, style
from workflow.paper.columns import Records

LABELS = {
    "figureS1a": "keeping ratio",
    "figureS1b": "starting layer, counted from 1",
    "figureS1c": "alpha, weight of the previous score",
    "figureS1d": "starting epoch, of a training of 300",
}
ORDER = ["measured", "printed", "the paper's choice"]  # in the legend; lines stand between
COLUMNS = [
    "x", "chosen", "run", "top1", "top1_sd", "top1_low", "top1_high", "seeds", "val_images",
    "top1_paper", "throughput", "speedup_pct", "throughput_paper", "macs_g", "batch_size",
    "precision", "mode", "device", "source", "flags", "source_paper",
]  # fmt: skip


def measured(name: str, found: Records) -> pd.DataFrame:
    """One row per point of a figure, in the order of items.yaml: `x`, whether the paper chose it,
    top-1 in % over the seeds and, where it is timed, images/s and the speed-up in %.

    Raises RecordError for a record that the setting asks for and that is missing or outdated.
    """
    content, wanted = found.config.items["figures"][name], found.wanted(name)
    points = []
    for row in content["rows"]:
        parts = []
        trained = row["section"] in wanted["train"] and found.trained(row["run"], wanted["seeds"])
        if trained:
            parts.append(columns.accuracy(trained, found.config))
        if row["section"] in wanted["time"]:
            parts.append(columns.speed_columns(row["run"], row["section"], found))
        values, said, flags = columns.joined(parts)
        point = {"x": row["x"], "chosen": row["x"] == content.get("chosen"), "run": row["run"]}
        points.append(point | values | {"source": said, "flags": flags})
    return (
        pd.DataFrame(points)
        .reindex(columns=COLUMNS)
        .astype({"seeds": "Int64", "val_images": "Int64", "batch_size": "Int64"})
    )


def title(points: pd.DataFrame, found: Records) -> str:
    """Which model the points are of, what it was trained on, and how sure its accuracies are."""
    data = found.config.settings[found.setting]["data"]["name"]
    run = points["run"].iloc[0]
    spec = specs.train_spec(found.config, found.setting, run)
    backbone = statements.label(found.config, run.partition("-")[0])
    size = columns.describe_size(spec, found.config)
    model = backbone if size == columns.FULL_SIZE else f"{backbone}, {size},"
    said = f"{model} trained on {style.DATA.get(data, data)}"
    seeds = points["seeds"].dropna()
    if seeds.empty:
        return said
    counts = "/".join(str(count) for count in sorted(seeds.unique()))
    images = points["val_images"].max()
    return f"{said}\n95 % intervals; seeds: {counts}; {images} validation images"


def frame(name: str, found: Records) -> pd.DataFrame:
    """Likewise, with what the paper prints of the same points: `top1_paper`, `throughput_paper`
    (V100) and where it says so."""
    points = measured(name, found)
    known, own = printed.by_run(found.config), printed.by_x(name)
    shown = [own.get(str(x)) or known.get(run, {}) for x, run in points[["x", "run"]].to_numpy()]
    for column in ("top1", "throughput", "source"):
        points[f"{column}_paper"] = [one.get(column) for one in shown]
    return points


def draw(name: str, found: Records) -> tuple[Figure, pd.DataFrame]:
    """The figure and its numbers. Numbers are drawn over `x`; an `x` in words is a line."""
    points = frame(name, found)
    timed = points["throughput"].notna().any()
    figure, panels = plt.subplots(
        2 if timed else 1, sharex=True, squeeze=False, height_ratios=[3, 2] if timed else None,
        figsize=(style.COLUMN, 3.6 if timed else 2.5),
    )  # fmt: skip
    top, bottom = panels[0, 0], panels[-1, 0]
    data = found.config.settings[found.setting]["data"]["name"]
    draw_accuracy(top, points, data == "imagenet")
    if timed:
        draw_speed(bottom, points)
    for panel in panels[:, 0]:
        mark_chosen(panel, points)
        panel.margins(x=0.05, y=0.12)
    bottom.set_xlabel(LABELS[name])
    numbers = pd.to_numeric(points["x"], errors="coerce").dropna()
    if len(numbers) < 9:
        bottom.set_xticks(numbers)
    top.set_title(title(points, found), fontsize=7)
    handles = dict(zip(*reversed(top.get_legend_handles_labels()), strict=True))
    names = sorted(handles, key=lambda name: ORDER.index(name) if name in ORDER else 1)
    figure.legend([handles[name] for name in names], names, loc="outside lower center", ncols=2)
    return figure, points


def over_numbers(points: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The points whose `x` is a number, in its order, and the others."""
    numbers = pd.to_numeric(points["x"], errors="coerce")
    ours = points[numbers.notna()].assign(x=numbers.dropna()).sort_values("x")
    return ours, points[numbers.isna()]


def draw_accuracy(panel: Axes, points: pd.DataFrame, on_imagenet: bool) -> None:
    """Means over the seeds with their intervals; what the paper prints of ImageNet stands beside it
    there alone."""
    ours, lines = over_numbers(points)
    colour, grey = style.colour(0), style.GREY
    for _, line in lines.dropna(subset=["top1"]).iterrows():
        panel.axhspan(line["top1_low"], line["top1_high"], color=grey, alpha=0.2, linewidth=0)
        panel.axhline(line["top1"], color=grey, linestyle="--", linewidth=1, label=line["x"])
    ours = ours.dropna(subset=["top1"])
    if ours.empty:
        style.say(panel, "no accuracy measured")
    else:
        style.with_interval(panel, ours, label="measured", color=colour, linestyle="-")
    if on_imagenet:
        numbers, words = over_numbers(points.dropna(subset=["top1_paper"]))
        panel.scatter(numbers["x"], numbers["top1_paper"], s=30, marker="s", facecolors="none",
                      edgecolors=style.colour(1), linewidths=1.2, zorder=3,
                      label="printed")  # fmt: skip
        for _, line in words.iterrows():
            panel.axhline(line["top1_paper"], color=style.colour(1), linestyle=":", linewidth=1,
                          label=f"printed, {line['x']}")  # fmt: skip
    panel.set_ylabel("top-1 %")
    panel.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))


def draw_speed(panel: Axes, points: pd.DataFrame) -> None:
    """Images/s as measured; the printed ones are of another device and stay in the CSV."""
    ours, lines = over_numbers(points.dropna(subset=["throughput"]))
    for _, line in lines.iterrows():
        panel.axhline(line["throughput"], color=style.GREY, linestyle="--", linewidth=1)
    panel.plot(ours["x"], ours["throughput"], marker="o", markersize=4, color=style.colour(2))
    panel.set_ylabel("images/s")
    panel.yaxis.set_major_locator(MaxNLocator(4))
    panel.set_title(columns.timed_on(points), fontsize=6, loc="left", pad=2)


def mark_chosen(panel: Axes, points: pd.DataFrame) -> None:
    for x in points["x"][points["chosen"]]:
        panel.axvline(x, color=style.GREY, linestyle=":", linewidth=1, zorder=0,
                      label="the paper's choice")  # fmt: skip
