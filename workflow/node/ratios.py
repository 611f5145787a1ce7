"""What rounds say: medians, quartiles, and how sure a speed-up is."""

import math
import statistics

import torch

RESAMPLES = 4000
CONFIDENCE = 0.95
STEADY = 0.05  # widest interval of a speed-up, as a share of it, that is not suspect


def quartiles(values: list[float]) -> list[float]:
    """The lower and the upper one."""
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return [low, high]


def within_rounds(rates: list[float], baseline: list[float]) -> list[float]:
    """The ratio in each round, to the mean of the baseline's shares before and after: what drifts
    slowly cancels out."""
    after = [*baseline[1:], baseline[-1]]
    both = zip(rates, baseline, after, strict=True)
    return [rate / math.sqrt(first * second) for rate, first, second in both]


def interval(ratios: list[float]) -> list[float]:
    """The bootstrap interval of their median."""
    values = torch.tensor(ratios, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(len(ratios), (RESAMPLES, len(ratios)), generator=generator)
    tail = (1 - CONFIDENCE) / 2
    ends = torch.tensor([tail, 1 - tail], dtype=torch.float64)
    return values[drawn].quantile(0.5, dim=1).quantile(ends).tolist()


def speedup(rates: list[float], baseline: list[float]) -> dict:
    """The median ratio to the baseline, its interval, and how wide that is, as a share of it."""
    ratios = within_rounds(rates, baseline)
    ratio, (low, high) = statistics.median(ratios), interval(ratios)
    return {"ratio": ratio, "interval": [low, high], "width": (high - low) / ratio}


def summarise(rates: list[float], baseline: list[float]) -> dict:
    """Images/s and the speed-up over the baseline: medians, quartiles, interval, every round.

    The speed-up is the median of the ratios within the rounds, so it need not be the quotient of
    the two medians.
    """
    itself = rates is baseline
    found = {"ratio": 1.0, "interval": [1.0, 1.0], "width": 0.0}
    found = found if itself else speedup(rates, baseline)
    ratios = [1.0] * len(rates) if itself else within_rounds(rates, baseline)
    summary = {
        "images_per_s": statistics.median(rates),
        "quartiles": quartiles(rates),
        "speedup": found["ratio"],
        "speedup_interval": found["interval"],
        "speedup_quartiles": quartiles(ratios),
        "rounds": rates,
        "suspect": [],
    }
    if found["width"] > STEADY:
        low, high = found["interval"]
        summary["suspect"] = [f"speed-up {found['ratio']:.2f} is unsure: {low:.2f} to {high:.2f}"]
    return summary


def percentiles(seconds: list[float]) -> dict:
    """In milliseconds."""
    values = torch.tensor(seconds, dtype=torch.float64) * 1000
    return {f"p{p}": values.quantile(p / 100).item() for p in (50, 90, 95, 99)}
