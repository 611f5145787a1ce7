"""Figure 6: the same sum of placeholder tokens, spread over the layers in several ways."""

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from workflow.campaign import specs
from workflow.paper import style, sweeps
from workflow.paper.columns import Records

NAME = "figure6"
WIDTH = 0.8  # of an architecture's profile, where architectures are 1 apart


def frame(found: Records) -> pd.DataFrame:
    """One row per architecture: top-1 in % over the seeds, keeping ratios from the first layer to
    the last, and their placeholders' sum in images' worth of patches."""
    points = sweeps.measured(NAME, found)
    kept = [specs.model_of(found.config, run)["kwargs"]["keep_ratio"] for run in points["run"]]
    points.insert(3, "keep_ratio", [" ".join(f"{ratio:g}" for ratio in one) for one in kept])
    points.insert(4, "placeholders", [sum(1 - ratio for ratio in one) for one in kept])
    return points.drop(columns=["top1_paper", "throughput_paper", "source_paper"])


def draw(found: Records) -> tuple[Figure, pd.DataFrame]:
    """Above, how each architecture keeps tokens layer by layer; below, its accuracy."""
    points = frame(found)
    figure, (above, below) = plt.subplots(2, sharex=True, height_ratios=[1, 2], figsize=(style.COLUMN, 2.9))
    for place, ratios in enumerate(points["keep_ratio"]):
        kept = [float(ratio) for ratio in ratios.split()]
        edges = [place + WIDTH * (i / len(kept) - 0.5) for i in range(len(kept) + 1)]
        above.stairs(kept, edges, fill=True, color=style.colour(0), alpha=0.35, linewidth=0,
                     label=None if place else "kept in layers 1 to 12")  # fmt: skip
        above.stairs(kept, edges, color=style.colour(0), linewidth=1)
    above.set(ylim=(0, 1.05), yticks=[0, 0.5, 1], ylabel="kept")
    above.set_title(sweeps.title(points, found), fontsize=7)
    known = points.assign(x=range(len(points))).dropna(subset=["top1"])
    if known.empty:
        style.say(below, "no accuracy measured")
    else:
        style.with_interval(below, known, color=style.colour(0), linestyle="none")
    chosen = points["chosen"].to_numpy().nonzero()[0]
    for place in chosen:
        below.axvline(place, color=style.GREY, linestyle=":", linewidth=1, zorder=0,
                      label="the paper's choice")  # fmt: skip
    below.set_xticks(range(len(points)), points["x"])
    below.set(ylabel="top-1 %", xlim=(-0.6, len(points) - 0.4))
    below.margins(y=0.15)
    below.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    handles, names = (one + two for one, two in zip(
        above.get_legend_handles_labels(), below.get_legend_handles_labels(), strict=True
    ))  # fmt: skip
    figure.legend(handles, names, loc="outside lower center", ncols=2)
    return figure, points
