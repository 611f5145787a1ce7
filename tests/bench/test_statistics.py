"""What interleaved rounds tell, and how sure a speed-up is."""

import random

import pytest

from workflow.bench import statistics, throughput
from workflow.bench.throughput import TimedModel
from workflow.storage import warnings


def rounds(count: int, speed: float, noise: float, seed: int) -> list[float]:
    draw = random.Random(seed)
    return [speed * (1 + noise * draw.gauss(0, 1)) for _ in range(count)]


def test_the_speed_up_is_taken_within_the_rounds():
    baseline = statistics.neighbours([2.0, 4.0, 6.0, 2.0, 2.0, 2.0])
    assert baseline == pytest.approx([8**0.5, 24**0.5, 12**0.5, 2, 2])
    summary = statistics.summarise([3.0, 6.0, 9.0, 3.0, 3.0], baseline)
    assert summary["images_per_s"] == 3.0
    assert summary["quartiles"] == [3.0, 6.0]
    assert summary["rounds"] == [3.0, 6.0, 9.0, 3.0, 3.0]
    assert summary["speedup"] == 1.5


def test_each_model_is_compared_with_the_baseline_around_it():
    """A B A C A B A C: the first model is timed between the first two timings of the baseline."""
    shares = [1.0, 4.0, 9.0, 16.0, 1.0]
    assert statistics.neighbours(shares, 0, 2) == pytest.approx([2, 12])
    assert statistics.neighbours(shares, 1, 2) == pytest.approx([6, 4])


def test_the_baseline_is_its_own_measure():
    summary = statistics.summarise([2.0, 4.0, 6.0])
    assert summary["speedup"] == 1
    assert summary["speedup_interval"] == summary["speedup_quartiles"] == [1, 1]


@pytest.mark.parametrize("noise", [0.005, 0.02, 0.03])
def test_the_interval_holds_the_true_ratio_almost_as_often_as_it_says(noise):
    """Also where rounds end as soon as it is narrow, by five at least and ten at most."""
    held, trials = 0, 100
    for seed in range(trials):
        evo, dense = rounds(10, 150, noise, seed), rounds(11, 100, noise, seed + 1000)
        taken = next(n for n in range(5, 11) if enough(evo[:n], dense[:n]))
        low, high = statistics.speedup(evo[:taken], statistics.neighbours(dense[: taken + 1]))["interval"]
        held += low <= 1.5 <= high
    assert held >= 85 * trials / 100


def enough(evo: list[float], dense: list[float]) -> bool:
    """Whether the engine would stop after these rounds."""
    models = [TimedModel(None, None, rates=rates) for rates in (dense, evo)]
    return throughput.are_enough(models, least=5)


def test_few_rounds_leave_out_less_of_their_resampled_medians():
    normal = 0.025
    tails = [statistics.tail_share(count) for count in (5, 10, 30, 10_000)]
    assert tails == sorted(tails)
    assert tails[0] == pytest.approx(0.0012, abs=3e-4)  # of Student's t, 0.00096
    assert tails[-1] == pytest.approx(normal, rel=1e-3)
    values = rounds(5, 1.5, 0.05, seed=3)
    assert statistics.interval(values) == [min(values), max(values)]


def test_a_common_drift_changes_nothing():
    """The device slows down all the while, by a third in the end, whichever model is timed."""
    slower = [0.99**i for i in range(31)]
    dense, evo = [100 * s for s in slower[::2]], [150 * s for s in slower[1::2]]
    estimate = statistics.speedup(evo, statistics.neighbours(dense))
    assert estimate["ratio"] == pytest.approx(1.5, rel=1e-3)
    assert estimate["width"] < 0.01


def test_a_wide_interval_brings_a_warning():
    steady = statistics.summarise(rounds(15, 150, 0.005, 1), rounds(15, 100, 0.005, 2))
    assert steady["warnings"] == []
    shaken = statistics.summarise(rounds(15, 150, 0.2, 1), rounds(15, 100, 0.2, 2))
    (warning,) = warnings.read(shaken)
    assert warning.code == "wide_interval"
    assert warning.text.startswith(f"the interval of the speed-up {shaken['speedup']:.2f} is wide: ")


def test_percentiles_are_milliseconds():
    shown = statistics.percentiles([i / 1000 for i in range(1, 102)])
    assert shown == pytest.approx({"p50": 51, "p90": 91, "p95": 96, "p99": 100})
