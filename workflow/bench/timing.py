"""Timing models in turns, A B A C A B A C ...: what drifts, drifts under the baseline A, too."""

import time
from dataclasses import dataclass, field

import torch
from torch import Tensor

from workflow.bench.modes import Run

WARM_UP_PASSES = 2
HEAT_UP_S = {"cpu": 0.0, "cuda": 3.0}
LAUNCHES = 3
ROUND_S = 0.5  # each model's share of a round is at least one pass and about this long
MOST_PASSES = 1000


@dataclass
class Contestant:
    """One model on its images, and what was seen of it so far."""

    run: Run
    images: Tensor
    passes: int = 1  # in its share of a round
    rates: list[float] = field(default_factory=list)  # images per second, of each share
    latencies: list[float] = field(default_factory=list)  # seconds, at batch 1: of each pass
    spans: list[tuple[float, float]] = field(default_factory=list)  # time.time() of its shares
    launch_s: float | None = None  # what the host takes to ask a GPU for one pass


def synchronise(where: torch.device) -> None:
    if where.type == "cuda":
        torch.cuda.synchronize(where)


def time_passes(run: Run, images: Tensor, passes: int, where: torch.device) -> float:
    """Seconds for `passes` forward passes, from an idle device to an idle device.

    On a GPU by its own clock (events), so that a busy host does not count.
    """
    synchronise(where)
    if where.type == "cuda":
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        for _ in range(passes):
            run(images)
        last.record()
        synchronise(where)
        return first.elapsed_time(last) / 1000
    started = time.perf_counter()
    for _ in range(passes):
        run(images)
    return time.perf_counter() - started


def time_each(run: Run, images: Tensor, passes: int, where: torch.device) -> list[float]:
    """Seconds from asking for a pass to having its result, of each of `passes`."""
    found = []
    for _ in range(passes):
        synchronise(where)
        started = time.perf_counter()
        run(images)
        synchronise(where)
        found.append(time.perf_counter() - started)
    return found


def time_launch(run: Run, images: Tensor, where: torch.device) -> float:
    """Seconds until an idle GPU has been asked for a pass, whose result is not waited for."""
    synchronise(where)
    started = time.perf_counter()
    run(images)
    asked = time.perf_counter() - started
    synchronise(where)
    return asked


def warm_up(one: Contestant, where: torch.device) -> None:
    """Run a few passes, and find how many make a share of a round."""
    time_passes(one.run, one.images, WARM_UP_PASSES, where)
    if where.type == "cuda":
        one.launch_s = min(time_launch(one.run, one.images, where) for _ in range(LAUNCHES))
    seconds = time_passes(one.run, one.images, WARM_UP_PASSES, where) / WARM_UP_PASSES
    one.passes = min(MOST_PASSES, max(1, round(ROUND_S / seconds)))


def heat_up(contestants: list[Contestant], where: torch.device) -> None:
    """Take turns without counting until a GPU's clock has settled: models were built one by one."""
    until = time.perf_counter() + HEAT_UP_S[where.type]
    while contestants and time.perf_counter() < until:
        for one in contestants:
            time_passes(one.run, one.images, one.passes, where)


def time_share(one: Contestant, where: torch.device) -> None:
    begun = time.time()
    if len(one.images) == 1:
        seconds = time_each(one.run, one.images, one.passes, where)
        one.latencies += seconds
        taken = sum(seconds)
    else:
        taken = time_passes(one.run, one.images, one.passes, where)
    one.spans.append((begun, time.time()))
    one.rates.append(one.passes * len(one.images) / taken)


def time_round(contestants: list[Contestant], where: torch.device) -> None:
    """One share of each but the first, and one of the first, the baseline, before each."""
    baseline, *others = contestants
    for one in others:
        time_share(baseline, where)
        time_share(one, where)
    if not others:
        time_share(baseline, where)
