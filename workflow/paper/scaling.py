"""How the gain of Evo-ViT grows with the image: speed-up and its ceilings over the image's side."""

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from workflow.paper import results, style, sweeps
from workflow.paper.results import Records

CEILINGS = {"ceiling_macs_pct": ("ceiling by MACs", "--"), "ceiling_roofline_pct": ("ceiling by roofline", ":")}


def scaling(records: Records) -> tuple[Figure, pd.DataFrame]:
    """Draw the speed-up in % over the image's side in pixels, with its 95 % interval and both ceilings."""
    rows = sweeps.rows_of("scaling", records)
    lines = []
    for row in rows:
        speed = row.speed
        line = {"resolution": row.names[0], "run": row.run, "throughput": speed.throughput}
        for name in ("speedup_pct", "speedup_pct_low", "speedup_pct_high", *CEILINGS, "macs_g", "batch_size"):
            line[name] = getattr(speed, name)
        line |= {"precision": speed.precision, "mode": speed.mode, "device": speed.device}
        line |= {"source": "; ".join(speed.sources) or None, "flags": row.flags}
        lines.append(line)
    frame = pd.DataFrame(lines).astype({"batch_size": "Int64"})

    figure, panel = plt.subplots(figsize=(style.COLUMN, 2.8))
    known = frame.dropna(subset=["speedup_pct"])
    if known.empty:
        style.say(panel, "not timed")
    else:
        points = known.assign(x=known["resolution"])
        style.with_interval(panel, points, "speedup_pct", color=style.colour(0), linestyle="-", label="measured")
        for column, (label, dashes) in CEILINGS.items():
            panel.plot(known["resolution"], known[column], dashes, color=style.GREY, linewidth=1, label=label)
        panel.set_xticks(known["resolution"])
        if results.are_within(known["speedup_pct_low"], known["speedup_pct_high"]):
            style.note(panel, "differences are within the intervals")
        figure.legend(loc="outside lower center", ncols=3)
    panel.set_xlabel("side of the image (pixels)")
    panel.set_ylabel("speed-up (%)")
    timing = results.describe_timing(row.speed for row in rows)
    panel.set_title("\n".join(["Evo-ViT over the dense DeiT-T", *filter(None, timing)]), fontsize=7)
    return figure, frame
