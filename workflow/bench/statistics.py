"""What rounds say: medians, quartiles, and how sure a speed-up is."""

import itertools
import math
import statistics

import torch

from workflow.storage import warnings

RESAMPLES = 4000
CONFIDENCE = 0.95
SURE = 0.04  # interval of a speed-up, as a share of it, with which no more rounds are made
WIDE = 0.05  # an interval of a speed-up that is wider than this share of it brings a warning


def quartiles(values: list[float]) -> list[float]:
    """The lower and the upper one."""
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return [low, high]


def beside(baseline: list[float], place: int = 0, others: int = 1) -> list[float]:
    """The baseline's rate beside each share of the model in that place of `others`: the mean of its
    share before and the one after."""
    means = [math.sqrt(one * two) for one, two in itertools.pairwise(baseline)]
    return means[place::others]


def within_rounds(rates: list[float], baseline: list[float]) -> list[float]:
    """The ratio of each share to the baseline beside it: what drifts slowly cancels out."""
    return [rate / at_once for rate, at_once in zip(rates, baseline, strict=True)]


def tail_of(count: int) -> float:
    """The share of resampled medians to leave out at each end, so few values being resampled: the
    bootstrap knows neither the t distribution nor that their spread is too small by n - 1 over n
    (the expanded percentile interval of Hesterberg 2015)."""
    normal, free = statistics.NormalDist(), count - 1
    z = normal.inv_cdf((1 + CONFIDENCE) / 2)
    student = z + (z**3 + z) / (4 * free) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * free**2)
    return normal.cdf(-student * math.sqrt(count / free))


def interval(ratios: list[float]) -> list[float]:
    """The bootstrap interval of their median; of five it is from the least to the most.

    Rounds end when it is narrow (turns.enough), so it holds the truth less often than it
    says: in about 89 of 100 trials (tests/workflow/test_ratios.py).
    """
    values = torch.tensor(ratios, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(len(ratios), (RESAMPLES, len(ratios)), generator=generator)
    tail = tail_of(len(ratios))
    ends = torch.tensor([tail, 1 - tail], dtype=torch.float64)
    return values[drawn].quantile(0.5, dim=1).quantile(ends).tolist()


def speedup(rates: list[float], baseline: list[float]) -> dict:
    """The median ratio to the baseline `beside`, its interval, and how wide that is, relatively."""
    ratios = within_rounds(rates, baseline)
    ratio, (low, high) = statistics.median(ratios), interval(ratios)
    return {"ratio": ratio, "interval": [low, high], "width": (high - low) / ratio}


def summarise(rates: list[float], baseline: list[float] | None = None) -> dict:
    """Images/s and the speed-up over the baseline (None: it is the baseline): medians, quartiles,
    interval, every share.

    The speed-up is the median of the ratios to the baseline beside each share, so it need not be
    the quotient of the two medians.
    """
    if baseline is None:
        found = {"ratio": 1.0, "interval": [1.0, 1.0], "width": 0.0}
    else:
        found = speedup(rates, baseline)
    summary = {
        "images_per_s": statistics.median(rates),
        "quartiles": quartiles(rates),
        "speedup": found["ratio"],
        "speedup_interval": found["interval"],
        "speedup_quartiles": quartiles(within_rounds(rates, baseline)) if baseline else [1.0, 1.0],
        "rounds": rates,
        "warnings": [],
    }
    if found["width"] > WIDE:
        low, high = found["interval"]
        text = f"the interval of the speed-up {found['ratio']:.2f} is wide: {low:.2f} to {high:.2f}"
        summary["warnings"] = warnings.to_json([warnings.Warning("wide_interval", text)])
    return summary


def percentiles(seconds: list[float]) -> dict:
    """In milliseconds."""
    values = torch.tensor(seconds, dtype=torch.float64) * 1000
    return {f"p{p}": values.quantile(p / 100).item() for p in (50, 90, 95, 99)}
