"""Figure 6: the same sum of placeholder tokens, spread over the layers in several ways."""

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from workflow.campaign import specs
from workflow.campaign.config import Config
from workflow.paper import results, style, sweeps
from workflow.paper.results import Records
from workflow.paper.tables import Row

WIDTH = 0.8  # of an architecture's profile, where architectures are 1 apart


def frame_of(rows: list[Row], config: Config) -> pd.DataFrame:
    """Return a line for each architecture.

    It holds top-1 in % over the seeds, keeping ratios from the first layer to the last, and the sum of their
    placeholders in images' worth of patches.
    """
    frame = sweeps.frame_of(rows).drop(columns=["top1_paper", "throughput_paper", "source_paper"])
    kept = [specs.model_of(config, run)["kwargs"]["keep_ratio"] for run in frame["run"]]
    frame.insert(3, "keep_ratio", [" ".join(f"{ratio:g}" for ratio in ratios) for ratios in kept])
    frame.insert(4, "placeholders", [sum(1 - ratio for ratio in ratios) for ratios in kept])
    return frame


def figure6(records: Records) -> tuple[Figure, pd.DataFrame]:
    """Draw how each architecture keeps tokens layer by layer (above) and its accuracy (below)."""
    rows = sweeps.rows_of("figure6", records)
    frame = frame_of(rows, records.config)
    figure, (above, below) = plt.subplots(2, sharex=True, height_ratios=[1, 2], figsize=(style.COLUMN, 3.2))
    for position, ratios in enumerate(frame["keep_ratio"]):
        kept = [float(ratio) for ratio in ratios.split()]
        edges = [position + WIDTH * (i / len(kept) - 0.5) for i in range(len(kept) + 1)]
        label = "kept in layers 1 to 12" if position == 0 else None
        above.stairs(kept, edges, fill=True, color=style.colour(0), alpha=0.35, linewidth=0, label=label)
        above.stairs(kept, edges, color=style.colour(0), linewidth=1)
    above.set(ylim=(0, 1.05), yticks=[0, 0.5, 1], ylabel="share kept")
    above.set_title(sweeps.title(rows, records), fontsize=7)
    known = frame.assign(x=range(len(frame))).dropna(subset=["top1"])
    if known.empty:
        style.say(below, "no accuracy measured")
    else:
        style.with_interval(below, known, color=style.colour(0), linestyle="none")
    for position in frame["chosen"].to_numpy().nonzero()[0]:
        below.axvline(position, color=style.GREY, linestyle=":", linewidth=1, zorder=0, label="the paper's choice")
    below.set_xticks(range(len(frame)), frame["x"])
    below.set(ylabel="top-1 accuracy (%)", xlim=(-0.6, len(frame) - 0.4))
    below.margins(y=0.15)
    style.note(below, results.describe_doubt(row.accuracy for row in rows))
    below.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    handles, names = above.get_legend_handles_labels()
    more_handles, more_names = below.get_legend_handles_labels()
    figure.legend([*handles, *more_handles], [*names, *more_names], loc="outside lower center", ncols=2)
    return figure, frame
