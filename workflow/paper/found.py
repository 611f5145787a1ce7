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


def interval(values: list[float], images: int) -> tuple[float, float]:
    """The 95 % interval of the mean of so many seeds' accuracies, in %: from their spread by
    Student's t, or below three seeds at least that of a test set of so many images (Wilson's)."""
    mean, seeds, spread = statistics.mean(values), len(values), 0.0
    if seeds > 1:
        spread = statistics.stdev(values) / math.sqrt(seeds)
    if seeds > 2:
        half = float(stats.t.ppf(0.975, seeds - 1)) * spread
        return max(0.0, mean - half), min(100.0, mean + half)
    right = stats.binomtest(round(mean / 100 * images), images)
    low, high = (100 * end for end in right.proportion_ci(0.95, method="wilson"))
    wide = NORMAL * spread
    return min(low, max(0.0, mean - wide)), max(high, min(100.0, mean + wide))


def quotient(one: tuple[float, float, float], two: tuple[float, float, float]) -> tuple:
    """(value, low, high) of one over the other, both (value, low, high) and above 0: their relative
    errors add as squares."""
    (top, *ends), (bottom, *others) = one, two
    down = math.hypot(math.log(top / ends[0]), math.log(others[1] / bottom))
    up = math.hypot(math.log(ends[1] / top), math.log(bottom / others[0]))
    value = top / bottom
    return value, value * math.exp(-down), value * math.exp(up)
