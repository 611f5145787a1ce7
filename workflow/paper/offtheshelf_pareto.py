"""What methods cost and gain on trained dense models as they are: the change of top-1 against the speed-up."""

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workflow.campaign.config import HOST
from workflow.paper import offtheshelf, style
from workflow.paper.results import Records

HEIGHT = 3.9


def offtheshelf_pareto(records: Records) -> tuple[Figure, pd.DataFrame]:
    """Draw a panel for each dense model, and in it a curve over the strengths of each method."""
    contents = records.of_kind("offtheshelf")
    frame = offtheshelf.frame_of(contents, records.config)
    hosts = list(frame["host"].unique()) or [None]
    width = style.COLUMN if len(hosts) == 1 else style.PAGE
    figure, panels = plt.subplots(1, len(hosts), figsize=(width, HEIGHT), squeeze=False, sharey=True)
    for panel, host in zip(panels[0], hosts, strict=True):
        draw_panel(panel, frame[frame["host"] == host], host)
    panels[0][0].set_ylabel("change of top-1 (points)")
    handles, names = panels[0][0].get_legend_handles_labels()
    if names:
        figure.legend(handles, names, loc="outside lower center", ncols=4)
    figure.suptitle("\n".join(titles(frame, records)), fontsize=7)
    return figure, frame


def draw_panel(panel: Axes, frame: pd.DataFrame, host: str | None) -> None:
    """Draw the methods on one dense model, which is at the crossing of the two grey lines."""
    panel.set(xlabel="speed-up (%)")
    known = frame[frame["method"] != offtheshelf.DENSE].dropna(subset=["top1_change", "speedup_pct"])
    if known.empty:
        style.say(panel, "no method both evaluated and timed")
        panel.set(xticks=[], yticks=[])
        return
    panel.set_title(host)
    panel.axhline(0, color=style.GREY, linestyle="--", linewidth=0.8)
    panel.axvline(0, color=style.GREY, linestyle="--", linewidth=0.8)
    for method, points in known.groupby("method", sort=False):
        across = [points["speedup_pct"] - points["speedup_pct_low"], points["speedup_pct_high"] - points["speedup_pct"]]
        up = [points["top1_change"] - points["top1_change_low"], points["top1_change_high"] - points["top1_change"]]
        marker, colour, larger = style.marker_of(method)
        # many bars cross, so they are paler than the curves
        panel.errorbar(points["speedup_pct"], points["top1_change"], up, across, fmt="none", ecolor=colour, alpha=0.3,
                       elinewidth=0.6)  # fmt: skip
        marks = {"marker": marker, "markersize": 4 * larger, "markeredgewidth": 0, "linewidth": 1}
        panel.plot(points["speedup_pct"], points["top1_change"], color=colour, label=method, **marks)
    panel.margins(0.08)
    if (known["top1_change_low"] <= 0).all() and (known["top1_change_high"] >= 0).all():
        style.note(panel, f"all changes are within their intervals ({known['val_images'].iloc[0]} images)")


def titles(frame: pd.DataFrame, records: Records) -> list[str]:
    """Say on which images the models were evaluated, and how they were timed, for people who see nothing else."""
    if frame.empty:
        return []
    data = records.config.settings[records.setting]["data"]["name"]
    is_host = HOST in records.config.settings[records.setting]  # which was fine-tuned where its classes were others
    what = "no method trained" if is_host else "nothing trained"
    texts = [f"{what}; {style.DATA.get(data, data)}, {frame['val_images'].iloc[0]} validation images"]
    for line in frame.dropna(subset=["throughput"]).drop_duplicates(["device", "mode", "batch_size"]).itertuples():
        texts.append(f"{line.device}, {line.mode}, {line.precision}, batch {line.batch_size}")
    return [*texts, "curves: from the mildest strength to the strongest; bars: 95 %"]
