"""Labels beside points, each where it covers no point and no other label.

adjustText 1.4 left names of the Pareto figure across points and lines.
"""

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

DISTANCES = (6, 9, 13, 18, 24)  # of a label from its point, in typographic points
BESIDE = 6  # so near, a label needs no line to its point
DIRECTIONS = [i * math.pi / 4 for i in (5, 1, 3, 7, 6, 2, 4, 0)]  # diagonals first
POINT = 4  # half the width of what a point covers


def place(panel: Axes, anchors: Sequence[tuple[float, float, str, dict]], points, lines=()) -> None:
    """Write each (x, y, text, text's properties) of `anchors` near its point, in their order, free
    of all `points` (count, 2), `lines` (each (2, 2), its ends) and earlier labels where there is
    room; a thin line leads from a label that is further off.

    Call it when limits, scales and layout are final.
    """
    pixel = panel.figure.dpi / 72
    taken = [around(spot, POINT * pixel) for spot in panel.transData.transform(points)]
    for line in lines:
        (start, end) = panel.transData.transform(line)
        steps = int(math.dist(start, end) / pixel) + 1
        taken += [around(start + (end - start) * i / steps, pixel / 2) for i in range(steps + 1)]
    for x, y, words, also in anchors:
        text = panel.annotate(words, (x, y), xytext=(0, 0), textcoords="offset points", **also)
        taken.append(settle(text, panel.bbox, taken))
        if math.hypot(*text.get_position()) > BESIDE + 1:
            lead(panel, text)


def lead(panel: Axes, text: Annotation) -> None:
    panel.annotate("", text.xy, text.get_position(), textcoords="offset points", zorder=1,
                   arrowprops={"arrowstyle": "-", "color": text.get_color(), "linewidth": 0.5,
                               "shrinkA": 0, "shrinkB": 2})  # fmt: skip


def around(spot, half: float) -> Bbox:
    x, y = spot
    return Bbox.from_extents(x - half, y - half, x + half, y + half)


def settle(text: Annotation, inside: Bbox, taken: list[Bbox]) -> Bbox:
    """Move the text to the first spot that is free, or to that which covers least; its box."""
    best = None
    for distance in DISTANCES:
        for angle in DIRECTIONS:
            spot = (distance * math.cos(angle), distance * math.sin(angle))
            box = move(text, spot)
            outside = box.x0 < inside.x0 or box.x1 > inside.x1
            outside = outside or box.y0 < inside.y0 or box.y1 > inside.y1
            covered = sum(box.overlaps(other) for other in taken) + 5 * outside
            if covered == 0:
                return box
            if best is None or covered < best[0]:
                best = (covered, spot)
    return move(text, best[1])


def move(text: Annotation, spot: tuple[float, float]) -> Bbox:
    """Write the text outward from the spot, which is relative to its point; its box in pixels."""
    across, up = (round(value, 3) for value in spot)
    text.set_position(spot)
    text.set_ha("left" if across > 0 else "right" if across < 0 else "center")
    text.set_va("bottom" if up > 0 else "top" if up < 0 else "center")
    return text.get_window_extent()
