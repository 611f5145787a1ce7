"""Accuracy of the methods of token reduction in the common protocol, against their speed-up."""

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workflow.paper import results, style, tables
from workflow.paper.pareto import place_labels
from workflow.paper.results import Records

BASELINE, OURS = "Baseline", "Evo-ViT"
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
    figure, panels = plt.subplots(1, len(backbones), figsize=(width, 3.4), squeeze=False)
    for panel, backbone in zip(panels[0], backbones, strict=True):
        draw_panel(panel, both[both["backbone"] == backbone], dense[dense["backbone"] == backbone], backbone)
    data = records.config.settings[records.setting]["data"]["name"]
    title = f"trained on {style.DATA.get(data, data)}, speed at full size; 95 % intervals"
    timing = results.describe_timing(row.speed for row in rows if row.names[2] == "common")
    figure.suptitle("\n".join(filter(None, (title, *timing))), fontsize=7)
    label(figure, panels[0], both)
    return figure, frame[COLUMNS]


def draw_panel(panel: Axes, known: pd.DataFrame, dense: pd.DataFrame, backbone: str | None) -> None:
    """Draw one backbone's methods; the dense model, trained on by the same recipe, is a line with its interval."""
    panel.set(xlabel="speed-up %", ylabel="top-1 %")
    if known.empty:
        style.say(panel, "no method both trained and timed")
        panel.set(xticks=[], yticks=[])
        return
    panel.set_title(backbone)
    for line in dense.itertuples():
        panel.axhspan(line.top1_low, line.top1_high, color=style.GREY, alpha=0.12, linewidth=0)
        panel.axhline(line.top1, color=style.GREY, linestyle="--", linewidth=1)
        panel.annotate("dense", (1, line.top1), (-2, 2), panel.get_yaxis_transform(), "offset points",
                       ha="right", fontsize=6, color=style.GREY)  # fmt: skip
    for line in known.itertuples():
        colour = style.colour(1) if line.method == OURS else style.colour(0)
        across = [[line.speedup_pct - line.speedup_pct_low], [line.speedup_pct_high - line.speedup_pct]]
        up = [[line.top1 - line.top1_low], [line.top1_high - line.top1]]
        # many bars cross, so they are paler than the points
        panel.errorbar(line.speedup_pct, line.top1, up, across, fmt="none", ecolor=colour, alpha=0.3, elinewidth=0.6)
        mark = {"marker": "*", "s": 60} if line.method == OURS else {"marker": "o", "s": 16}
        panel.scatter(line.speedup_pct, line.top1, color=colour, zorder=3, **mark)
    panel.margins(0.12)


def label(figure: Figure, panels, known: pd.DataFrame) -> None:
    """Write each method's name near its point."""
    figure.canvas.draw()  # labels must know where the layout puts everything
    figure.set_layout_engine("none")
    for panel in panels:
        shown = known[known["backbone"] == panel.get_title()]
        points = shown[["speedup_pct", "top1"]].to_numpy()
        anchors = [(line.speedup_pct, line.top1, line.method, {"fontsize": 6}) for line in shown.itertuples()]
        if anchors:
            place_labels(panel, anchors, points)
