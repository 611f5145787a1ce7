"""Figures of one parameter (the supplement's Figures 1a to 1d): accuracy over its values, and speed if timed.

Such a figure needs no code: its rows in items.yaml have the values as `x`, and its `xlabel` says what they are.
"""

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from workflow.campaign import specs
from workflow.paper import printed, results, style, tables
from workflow.paper.results import Records
from workflow.paper.tables import Row

ORDER = ["measured", "printed", "the paper's choice"]  # in the legend; lines come between
VALUES = {column.name: column.value for column in tables.COLUMNS} | {
    "x": lambda row: row.names[0],
    "chosen": lambda row: row.names[1],
    "run": lambda row: row.run,
    "val_images": lambda row: row.accuracy.val_images,
    "source": lambda row: "; ".join([*row.accuracy.sources, *row.speed.sources]) or None,
    "source_paper": lambda row: row.of_print("source"),
}
COLUMNS = [
    *("x", "chosen", "run", "top1", "top1_sd", "top1_low", "top1_high", "seeds", "val_images", "top1_paper"),
    *("throughput", "speedup_pct", "speedup_pct_low", "speedup_pct_high", "throughput_paper", "macs_g", "batch_size"),
    *("precision", "mode", "device", "source", "flags", "source_paper"),
]


def rows_of(figure: str, records: Records) -> list[Row]:
    """Return a figure's rows in the order of items.yaml, each called by its `x` and whether the paper chose it.

    Raises RecordError for a record that the setting asks for and that is missing or outdated.
    """
    content = records.config.items["figures"][figure]
    requested = records.requested(figure)
    by_run, by_x = printed.by_run(records.config), printed.by_x(figure)
    rows = []
    for entry in content["rows"]:
        run, group, x = entry["run"], entry["section"], entry["x"]
        trained = records.trained(run, requested["seeds"]) if group in requested["train"] else []
        timed = records.throughput(group) if group in requested["time"] else None
        row = Row(
            (x, x == content.get("chosen")),
            run,
            printed=by_x.get(str(x)) or by_run.get(run),
            accuracy=results.accuracy(trained, records.config),
            speed=results.speed(timed, run),
        )
        rows.append(row)
    return rows


def frame_of(rows: list[Row]) -> pd.DataFrame:
    """Return the rows as the CSV has them; printed images/s are a V100's."""
    frame = pd.DataFrame([{name: VALUES[name](row) for name in COLUMNS} for row in rows])
    return frame.astype({"seeds": "Int64", "val_images": "Int64", "batch_size": "Int64"})


def title(rows: list[Row], records: Records) -> str:
    """Say which model the rows are of, what it was trained on, and how certain its accuracies are."""
    data, run = records.config.settings[records.setting]["data"]["name"], rows[0].run
    spec = specs.train_spec(records.config, records.setting, run)
    model = printed.label(records.config, run.partition("-")[0])
    size = results.describe_size(spec, records.config)
    if size != results.FULL_SIZE:
        model += f", {size},"
    text = f"{model} trained on {style.DATA.get(data, data)}"
    trained = [row.accuracy for row in rows if row.accuracy.seeds]
    if not trained:
        return text
    seeds = "/".join(str(count) for count in sorted({accuracy.seeds for accuracy in trained}))
    images = max(accuracy.val_images for accuracy in trained)
    return f"{text}\n95 % intervals; seeds: {seeds}; {images} validation images"


def draw(name: str, records: Records) -> tuple[Figure, pd.DataFrame]:
    """Draw a figure over the numbers `x`; an `x` in words is a horizontal line."""
    rows = rows_of(name, records)
    frame = frame_of(rows)
    timed = frame["speedup_pct"].notna().any()
    if timed:
        figure, (top, bottom) = plt.subplots(2, sharex=True, height_ratios=[3, 2], figsize=(style.COLUMN, 3.8))
        draw_speed(bottom, frame)
        timing = results.describe_timing(row.speed for row in rows)
        bottom.set_title("; ".join(filter(None, timing)), fontsize=6.5, loc="left", pad=3)
        panels = [top, bottom]
    else:
        figure, top = plt.subplots(figsize=(style.COLUMN, 2.6))
        panels = [top]
    data = records.config.settings[records.setting]["data"]["name"]
    draw_accuracy(top, frame, data == printed.DATA)
    for panel in panels:
        mark_chosen(panel, frame)
        panel.margins(x=0.05, y=0.12)
    panels[-1].set_xlabel(records.config.items["figures"][name].get("xlabel", name))
    numbers = pd.to_numeric(frame["x"], errors="coerce").dropna()
    style.note(top, results.describe_doubt(row.accuracy for row in rows if not isinstance(row.names[0], str)))
    if len(numbers) < 9:
        panels[-1].set_xticks(numbers)
    top.set_title(title(rows, records), fontsize=7)
    handles = dict(zip(*reversed(top.get_legend_handles_labels()), strict=True))
    names = sorted(handles, key=lambda name: ORDER.index(name) if name in ORDER else 1)
    figure.legend([handles[name] for name in names], names, loc="outside lower center", ncols=2)
    return figure, frame


def over_numbers(frame: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the rows whose `x` is a number, in its order, and the others."""
    numbers = pd.to_numeric(frame["x"], errors="coerce")
    ordered = frame[numbers.notna()].assign(x=numbers.dropna()).sort_values("x")
    return ordered, frame[numbers.isna()]


def draw_accuracy(panel: Axes, frame: pd.DataFrame, on_imagenet: bool) -> None:
    """Draw means over the seeds with their intervals, and on ImageNet the printed accuracies, which are of ImageNet."""
    measured, lines = over_numbers(frame.dropna(subset=["top1"]))
    colour, grey = style.colour(0), style.GREY
    for _, line in lines.iterrows():
        panel.axhspan(line["top1_low"], line["top1_high"], color=grey, alpha=0.2, linewidth=0)
        panel.axhline(line["top1"], color=grey, linestyle="--", linewidth=1, label=line["x"])
    if measured.empty:
        style.say(panel, "no accuracy measured")
    else:
        style.with_interval(panel, measured, label="measured", color=colour, linestyle="-")
    if on_imagenet:
        other = style.colour(1)
        numbers, words = over_numbers(frame.dropna(subset=["top1_paper"]))
        hollow = {"s": 30, "marker": "s", "facecolors": "none", "edgecolors": other, "linewidths": 1.2}
        panel.scatter(numbers["x"], numbers["top1_paper"], zorder=3, label="printed", **hollow)
        for _, line in words.iterrows():
            label = f"printed, {line['x']}"
            panel.axhline(line["top1_paper"], color=other, linestyle=":", linewidth=1, label=label)
    panel.set_ylabel("top-1 accuracy (%)")
    panel.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))


def draw_speed(panel: Axes, frame: pd.DataFrame) -> None:
    """Draw the speed-up over the dense model with its interval.

    Images/s have none and stay in the CSV, as do the printed ones, which are of another device.
    """
    measured, _ = over_numbers(frame.dropna(subset=["speedup_pct"]))
    panel.axhline(0, color=style.GREY, linestyle="--", linewidth=1)
    style.with_interval(panel, measured, "speedup_pct", color=style.colour(2), linestyle="-")
    panel.set_ylabel("speed-up (%)")
    panel.yaxis.set_major_locator(MaxNLocator(4))


def mark_chosen(panel: Axes, frame: pd.DataFrame) -> None:
    """Draw a line at the value that the paper chose."""
    for x in frame["x"][frame["chosen"]]:
        panel.axvline(x, color=style.GREY, linestyle=":", linewidth=1, zorder=0, label="the paper's choice")
