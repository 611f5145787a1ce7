"""How sure a speed-up is."""

import random

import pytest

from workflow.bench import statistics, turns
from workflow.bench.timing import Contestant
from workflow.storage import warnings


def rounds(count: int, speed: float, noise: float, seed: int) -> list[float]:
    draw = random.Random(seed)
    return [speed * (1 + noise * draw.gauss(0, 1)) for _ in range(count)]


def test_the_speed_up_is_taken_within_the_rounds():
    beside = statistics.beside([2.0, 4.0, 6.0, 2.0, 2.0, 2.0])
    assert beside == pytest.approx([8**0.5, 24**0.5, 12**0.5, 2, 2])
    found = statistics.summarise([3.0, 6.0, 9.0, 3.0, 3.0], beside)
    assert found["images_per_s"] == 3.0
    assert found["quartiles"] == [3.0, 6.0]
    assert found["rounds"] == [3.0, 6.0, 9.0, 3.0, 3.0]
    assert found["speedup"] == 1.5


def test_each_model_is_held_to_the_shares_beside_it():
    """A B A C A B A C: the first model stands between the first two shares of the baseline."""
    shares = [1.0, 4.0, 9.0, 16.0, 1.0]
    assert statistics.beside(shares, 0, 2) == pytest.approx([2, 12])
    assert statistics.beside(shares, 1, 2) == pytest.approx([6, 4])


def test_the_baseline_is_its_own_measure():
    found = statistics.summarise([2.0, 4.0, 6.0])
    assert found["speedup"] == 1
    assert found["speedup_interval"] == found["speedup_quartiles"] == [1, 1]


@pytest.mark.parametrize("noise", [0.005, 0.02, 0.03])
def test_the_interval_holds_the_true_ratio_almost_as_often_as_it_says(noise):
    """Also where rounds end as soon as it is narrow, by five at least and ten at most."""
    held, trials = 0, 100
    for seed in range(trials):
        evo, dense = rounds(10, 150, noise, seed), rounds(11, 100, noise, seed + 1000)
        taken = next(n for n in range(5, 11) if enough(evo[:n], dense[:n]))
        low, high = statistics.speedup(evo[:taken], statistics.beside(dense[: taken + 1]))["interval"]
        held += low <= 1.5 <= high
    assert held >= 85 * trials / 100


def enough(evo: list[float], dense: list[float]) -> bool:
    """Whether the engine would stop after these rounds."""
    contestants = [Contestant(None, None, rates=rates) for rates in (dense, evo)]
    return turns.enough(contestants, least=5)


def test_few_rounds_leave_out_less_of_their_resampled_medians():
    normal = 0.025
    tails = [statistics.tail_of(count) for count in (5, 10, 30, 10_000)]
    assert tails == sorted(tails)
    assert tails[0] == pytest.approx(0.0012, abs=3e-4)  # of Student's t, 0.00096
    assert tails[-1] == pytest.approx(normal, rel=1e-3)
    values = rounds(5, 1.5, 0.05, seed=3)
    assert statistics.interval(values) == [min(values), max(values)]


def test_a_common_drift_changes_nothing():
    """The device slows down all the while, by a third in the end, whoever's turn it is."""
    slower = [0.99**i for i in range(31)]
    dense, evo = [100 * s for s in slower[::2]], [150 * s for s in slower[1::2]]
    found = statistics.speedup(evo, statistics.beside(dense))
    assert found["ratio"] == pytest.approx(1.5, rel=1e-3)
    assert found["width"] < 0.01


def test_a_wide_interval_brings_a_warning():
    steady = statistics.summarise(rounds(15, 150, 0.005, 1), rounds(15, 100, 0.005, 2))
    assert steady["warnings"] == []
    shaken = statistics.summarise(rounds(15, 150, 0.2, 1), rounds(15, 100, 0.2, 2))
    (warning,) = warnings.read(shaken)
    assert warning.code == "wide_interval"
    assert warning.text.startswith(f"the interval of the speed-up {shaken['speedup']:.2f} is wide: ")


def test_percentiles_are_milliseconds():
    found = statistics.percentiles([i / 1000 for i in range(1, 102)])
    assert found == pytest.approx({"p50": 51, "p90": 91, "p95": 96, "p99": 100})
