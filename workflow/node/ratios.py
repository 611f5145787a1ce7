"""What rounds say: medians, quartiles, and how sure a speed-up is."""

import statistics

import torch

RESAMPLES = 4000
CONFIDENCE = 0.95
STEADY = 0.05  # widest interval of a speed-up, as a share of it, that is not suspect


def quartiles(values: list[float]) -> list[float]:
    """The lower and the upper one."""
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return [low, high]


def interval(rates: list[float], baseline: list[float]) -> list[float]:
    """The bootstrap interval of the ratio of the medians; rounds are drawn as wholes, for both
    models met the same conditions in each."""
    pairs = torch.tensor([rates, baseline], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(len(rates), (RESAMPLES, len(rates)), generator=generator)
    medians = pairs[:, drawn].quantile(0.5, dim=2)
    tail = (1 - CONFIDENCE) / 2
    ends = torch.tensor([tail, 1 - tail], dtype=torch.float64)
    return (medians[0] / medians[1]).quantile(ends).tolist()


def width(bounds: list[float], ratio: float) -> float:
    """How wide an interval is, as a share of the ratio."""
    return (bounds[1] - bounds[0]) / ratio


def summarise(rates: list[float], baseline: list[float]) -> dict:
    """Images/s and the speed-up over the baseline: medians, quartiles, intervals, every round."""
    speedup = statistics.median(rates) / statistics.median(baseline)
    bounds = interval(rates, baseline)
    within = [rate / dense for rate, dense in zip(rates, baseline, strict=True)]
    found = {
        "images_per_s": statistics.median(rates),
        "quartiles": quartiles(rates),
        "speedup": speedup,
        "speedup_interval": bounds,
        "speedup_quartiles": quartiles(within),
        "rounds": rates,
        "suspect": [],
    }
    if width(bounds, speedup) > STEADY:
        low, high = bounds
        found["suspect"] = [f"speed-up {speedup:.2f} is unsure: {low:.2f} to {high:.2f}"]
    return found


def percentiles(seconds: list[float]) -> dict:
    """In milliseconds."""
    values = torch.tensor(seconds, dtype=torch.float64) * 1000
    return {f"p{p}": values.quantile(p / 100).item() for p in (50, 90, 95, 99)}
