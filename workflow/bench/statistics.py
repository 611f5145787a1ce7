"""Compute medians, quartiles, and the interval of a speed-up from interleaved rounds."""

import itertools
import math
import statistics

import torch

from workflow.storage.warnings import Warning, to_json

LEAST_ROUNDS = 5  # with fewer no interval is known
RESAMPLES = 4000
CONFIDENCE = 0.95
NARROW = 0.04  # interval of a speed-up, as a share of it, with which no more rounds are made
WIDE = 0.10  # an interval of a speed-up that is wider than this share of it (5 % to each side) brings a warning


def quartiles(values: list[float]) -> list[float]:
    """Return the lower and the upper quartile."""
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return [low, high]


def percentiles(seconds: list[float]) -> dict:
    """Return percentiles in milliseconds."""
    values = torch.tensor(seconds, dtype=torch.float64) * 1000
    return {f"p{p}": values.quantile(p / 100).item() for p in (50, 90, 95, 99)}


def neighbours(baseline: list[float], index: int = 0, others: int = 1) -> list[float]:
    """Return the baseline's rate around each timing of the model at that index of `others`.

    In the order A B A C A B A C A each B and C is between two timings of A; the rate is the geometric mean of these
    two.
    """
    means = [math.sqrt(before * after) for before, after in itertools.pairwise(baseline)]
    return means[index::others]


def tail_share(count: int) -> float:
    """Return the share of resampled medians to leave out at each end, with `count` values.

    The bootstrap knows neither the t distribution nor that the spread of few values is too small by n - 1 over n (the
    expanded percentile interval of Hesterberg 2015).
    """
    normal = statistics.NormalDist()
    free = count - 1
    z = normal.inv_cdf((1 + CONFIDENCE) / 2)
    student = z + (z**3 + z) / (4 * free) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * free**2)
    return normal.cdf(-student * math.sqrt(count / free))


def interval(values: list[float]) -> list[float]:
    """Return the bootstrap interval of the median; of five values it is from least to most.

    Rounds end when it is narrow (throughput.are_enough), so it holds the truth less often than it says: in about 89 of
    100 trials (tests/bench/test_statistics.py).
    """
    tensor = torch.tensor(values, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(len(values), (RESAMPLES, len(values)), generator=generator)
    tail = tail_share(len(values))
    ends = torch.tensor([tail, 1 - tail], dtype=torch.float64)
    return tensor[drawn].quantile(0.5, dim=1).quantile(ends).tolist()


def speedup(rates: list[float], baseline: list[float]) -> dict:
    """Return the median ratio of each rate to the baseline around it, its interval, quartiles and relative width.

    What drifts slowly cancels out in each ratio.
    """
    ratios = [rate / around for rate, around in zip(rates, baseline, strict=True)]
    ratio = statistics.median(ratios)
    low, high = interval(ratios)
    return {"ratio": ratio, "interval": [low, high], "quartiles": quartiles(ratios), "width": (high - low) / ratio}


def summarise(rates: list[float], baseline: list[float] | None = None) -> dict:
    """Return images/s and the speed-up over the baseline (None: the model is the baseline).

    The speed-up is the median of the ratios to the baseline around each rate (`neighbours`), so it need not be the
    quotient of the two medians.
    """
    summary = {
        "images_per_s": statistics.median(rates),
        "quartiles": quartiles(rates),
        "speedup": 1.0,
        "speedup_interval": [1.0, 1.0],
        "speedup_quartiles": [1.0, 1.0],
        "rounds": rates,
        "warnings": [],
    }
    if baseline is None:
        return summary
    estimate = speedup(rates, baseline)
    summary["speedup"] = estimate["ratio"]
    summary["speedup_interval"] = estimate["interval"]
    summary["speedup_quartiles"] = estimate["quartiles"]
    if estimate["width"] > WIDE:
        low, high = estimate["interval"]
        text = f"the interval of the speed-up {estimate['ratio']:.2f} is wide: {low:.2f} to {high:.2f}"
        summary["warnings"] = to_json([Warning("wide_interval", text)])
    return summary
