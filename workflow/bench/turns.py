"""Rounds of models in turns until their speed-ups are known, and the warnings about them."""

import torch

from workflow.bench import statistics, timing, watch
from workflow.bench.timing import Contestant
from workflow.storage import warnings

MOST_ROUNDS = 2  # times as many as asked for, while a speed-up is unsure


def shares(contestants: list[Contestant]) -> list[tuple[list[float], list[float] | None]]:
    """Each one's rates, and the baseline's beside them (of the baseline itself: None)."""
    first, *others = contestants
    closed = len(first.rates) == 1 + sum(len(one.rates) for one in others)
    baseline = first.rates if closed else [*first.rates, first.rates[-1]]
    return [(first.rates, None)] + [
        (one.rates, statistics.beside(baseline, place, len(others))) for place, one in enumerate(others)
    ]


def enough(contestants: list[Contestant], least: int) -> bool:
    """Whether more rounds would add little."""
    done = len(contestants[-1].rates)
    if done < least:
        return False
    if done >= MOST_ROUNDS * least:
        return True
    widths = (statistics.speedup(*both)["width"] for both in shares(contestants)[1:])
    return all(width <= statistics.SURE for width in widths)


def take(contestants: list[Contestant], rounds: int, where: torch.device) -> watch.Watch:
    """At least so many rounds of all, the first being the baseline; -> what was seen meanwhile."""
    timing.heat_up(contestants, where)
    with watch.watch(where) as seen:
        while contestants and not enough(contestants, rounds):
            timing.time_round(contestants, where)
        if len(contestants) > 1:
            timing.time_share(contestants[0], where)  # after the last one's
    return seen


def noticed(contestants: list[Contestant], seen: watch.Watch, where: torch.device) -> dict:
    """Return for the record {"seen": the watch's summary, "warnings": those about all models}."""
    summary = seen.summary(span for one in contestants for span in one.spans)
    return {"seen": summary, "warnings": warnings.to_json(watch.find_warnings(summary, where))}
