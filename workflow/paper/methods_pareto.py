"""Accuracy of the methods of token reduction in the common protocol, against their speed-up."""

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workflow.paper import results, style, tables
from workflow.paper.results import Records

BASELINE = "Baseline"
COLUMNS = [
    *("method", "backbone", "run", "top1", "top1_low", "top1_high", "speedup_pct", "speedup_pct_low"),
    *("speedup_pct_high", "ceiling_macs_pct", "macs_g", "throughput", "seeds", "device", "source", "flags"),
]


def methods_pareto(records: Records) -> tuple[Figure, pd.DataFrame]:
    """Draw a panel for each backbone that was both trained and timed."""
    rows = tables.rows_of("methods", records)
    frame = tables.frame_of("methods", rows, records.config)
    frame = frame[frame["protocol"] == "common"]
    both = frame[frame["method"] != BASELINE].dropna(subset=["top1", "speedup_pct"])
    dense = frame[frame["method"] == BASELINE].dropna(subset=["top1"])
    backbones = list(both["backbone"].unique()) or [None]
    width = style.COLUMN if len(backbones) == 1 else style.PAGE
    figure, panels = plt.subplots(1, len(backbones), figsize=(width, 3.9), squeeze=False)
    sample = results.describe_sample(row.accuracy for row in rows if row.names[2] == "common")
    for panel, backbone in zip(panels[0], backbones, strict=True):
        known, base = both[both["backbone"] == backbone], dense[dense["backbone"] == backbone]
        draw_panel(panel, known, base, backbone)
        style.note(panel, describe_doubt(known, base, sample))
    panels[0][0].set_ylabel("top-1 accuracy (%)")
    handles, names = panels[0][0].get_legend_handles_labels()
    if names:
        figure.legend(handles, names, loc="outside lower center", ncols=4 if len(backbones) == 1 else 6)
    data = records.config.settings[records.setting]["data"]["name"]
    title = f"trained on {style.DATA.get(data, data)}, speed at full size; 95 % intervals"
    timing = results.describe_timing(row.speed for row in rows if row.names[2] == "common")
    figure.suptitle("\n".join(filter(None, (title, *timing))), fontsize=7)
    return figure, frame[COLUMNS]


def draw_panel(panel: Axes, known: pd.DataFrame, dense: pd.DataFrame, backbone: str | None) -> None:
    """Draw one backbone's methods; the dense model, trained on by the same recipe, is a line with its interval."""
    panel.set_xlabel("speed-up (%)")
    if known.empty:
        style.say(panel, "no method both trained and timed")
        panel.set(xticks=[], yticks=[])
        return
    panel.set_title(backbone)
    for line in dense.itertuples():
        panel.axhspan(line.top1_low, line.top1_high, color=style.GREY, alpha=0.12, linewidth=0)
        panel.axhline(line.top1, color=style.GREY, linestyle="--", linewidth=1, label="dense")
    for line in known.itertuples():
        marker, colour, larger = style.marker_of(line.method)
        across = [[line.speedup_pct - line.speedup_pct_low], [line.speedup_pct_high - line.speedup_pct]]
        up = [[line.top1 - line.top1_low], [line.top1_high - line.top1]]
        # many bars cross, so they are paler than the points
        panel.errorbar(line.speedup_pct, line.top1, up, across, fmt="none", ecolor=colour, alpha=0.3, elinewidth=0.6)
        marks = {"marker": marker, "s": 20 * larger**2, "color": colour, "linewidths": 0}
        panel.scatter(line.speedup_pct, line.top1, label=line.method, zorder=3, **marks)
    panel.margins(0.12)


def describe_doubt(known: pd.DataFrame, dense: pd.DataFrame, sample: str) -> str:
    """Say how many methods are within the interval of the dense model, so that they may be as accurate; "" for none."""
    if dense.empty:
        return ""
    count = known["top1"].between(dense["top1_low"].iloc[0], dense["top1_high"].iloc[0]).sum()
    if count == 0:
        return ""
    methods = "all methods are" if count == len(known) else f"{count} of {len(known)} methods are"
    return f"{methods} within the interval\nof the dense model ({sample})"
