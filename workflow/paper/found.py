"""A number that was found, between what it may be, and what is known of how; for verdicts."""

import math
import statistics
from dataclasses import dataclass, field

from scipy import stats

NORMAL = 1.96  # standard errors on either side that hold 95 %


@dataclass(frozen=True)
class Found:
    """A number between `low` and `high`; `n`: how often measured, `runs`: the records behind it,
    `barred`: why it decides nothing at this scale, `doubts`: why no percentage; `point`: how and
    where images/s were timed."""

    value: float
    low: float
    high: float
    n: tuple[str, ...] = ()
    runs: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    barred: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    point: str = ""
    as_printed: bool = True  # measured as the paper measured it
    text: str = field(default="", compare=False)  # instead of the number

    def __sub__(self, other: "Found") -> "Found":
        """The difference of two that were measured apart: their errors add as squares."""
        value = self.value - other.value
        return Found(
            value,
            value - math.hypot(self.value - self.low, other.high - other.value),
            value + math.hypot(self.high - self.value, other.value - other.low),
            *(together(getattr(self, name), getattr(other, name))
              for name in ("n", "runs", "notes", "barred", "doubts")),
            as_printed=self.as_printed and other.as_printed,
        )  # fmt: skip


def together(*several: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(one for some in several for one in some))


def exactly(value: float, **rest) -> Found:
    return Found(value, value, value, **rest)


def half_width(values: list[float], images: int) -> float:
    """Of the interval around the mean of so many seeds' accuracies, in points: from their spread
    by Student's t, or below three seeds at least the error of a test set of so many images."""
    seeds, spread = len(values), 0.0
    if seeds > 1:
        spread = statistics.stdev(values) / math.sqrt(seeds)
    if seeds > 2:
        return float(stats.t.ppf(0.975, seeds - 1)) * spread
    share = statistics.mean(values) / 100
    return NORMAL * max(spread, 100 * math.sqrt(share * (1 - share) / images))
