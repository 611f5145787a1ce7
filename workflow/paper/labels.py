"""Labels beside points, each where it covers no point and no other label."""

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.transforms import Bbox

DISTANCES = (4, 8, 13, 19)  # of a label from its point, in points
DIRECTIONS = [i * math.pi / 4 for i in (1, 7, 3, 5, 2, 6, 0, 4)]  # diagonals first


def place(
    panel: Axes, anchors: Sequence[tuple[float, float, str]], points: Sequence, **also
) -> None:
    """Write each (x, y, text) of `anchors` near its point, free of all `points` (x, y) if it can
    be; call it when limits, scales and layout are final."""
    figure = panel.figure
    renderer = figure.canvas.get_renderer()
    pixel = figure.dpi / 72
    to_screen = panel.transData.transform
    taken = []
    for x, y in to_screen(points) if len(points) else ():
        taken.append(Bbox.from_extents(x - 4 * pixel, y - 4 * pixel, x + 4 * pixel, y + 4 * pixel))
    for x, y, words in anchors:
        label = panel.annotate(
            words, (x, y), textcoords="offset points", xytext=(0, 0), annotation_clip=False, **also
        )
        label.set_in_layout(False)
        best = None
        for distance in DISTANCES:
            for angle in DIRECTIONS:
                across, up = math.cos(angle), math.sin(angle)
                label.set_position((distance * across, distance * up))
                label.set_ha("left" if across > 0.1 else "right" if across < -0.1 else "center")
                label.set_va("bottom" if up > 0.1 else "top" if up < -0.1 else "center")
                box = label.get_window_extent(renderer)
                outside = not panel.bbox.contains(*box.min) or not panel.bbox.contains(*box.max)
                covered = sum(box.overlaps(other) for other in taken) + 5 * outside
                if best is None or covered < best[0]:
                    best = (covered, label.get_position(), label.get_ha(), label.get_va(), box)
            if best[0] == 0:
                break
        _, position, across, up, box = best
        label.set(position=position, ha=across, va=up)
        taken.append(box)
