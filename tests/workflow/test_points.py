"""Points of measurement and the names of their records."""

import re

import pytest

from workflow.campaign import benchmarks
from workflow.campaign.benchmarks import BenchmarkError


@pytest.mark.parametrize(
    "name",
    [
        "cuda-paper-fp32-b256",
        "cpu-fused-bf16-b1",
        "cuda-amp-fp16-b64",
        "cuda-compiled-bf16-sweep",
        "cpu-fused-fp32-b32-channels_last",
    ],
)
def test_a_name_says_its_point_and_a_point_its_name(name, config):
    shown = benchmarks.throughput_configuration(config, "imagenet", "deit_small")
    point = benchmarks.parse(name, shown)
    assert benchmarks.name(point) == name
    assert (point["threads"], point["rounds"]) == (shown["threads"], shown["rounds"])
    assert ("batch_size" in point) != ("batch_sizes" in point)
    assert re.fullmatch(benchmarks.THROUGHPUT, name)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("cuda-paper-bf16-b256", "mode paper is fp32"),
        ("cuda-amp-fp32-b256", "say mode fused"),
        ("cpu-fused-fp16-b32", "needs a GPU"),
        ("cuda-fast-fp32-b256", "is no <device>"),
        ("cuda-fused-fp32-b0", "is no <device>"),
    ],
)
def test_what_nothing_can_run_is_refused_with_its_reason(name, why, config):
    with pytest.raises(BenchmarkError, match=why):
        benchmarks.parse(name, benchmarks.throughput_configuration(config, "imagenet", "deit_small"))


def test_a_training_step_is_measured_in_the_modes_that_train():
    pattern = benchmarks.TRAINING_COST
    for name, known in (("cuda-paper-fp16", True), ("cpu-fused-fp32", True),
                        ("cuda-compiled-bf16", False), ("cuda-amp-fp16", False)):  # fmt: skip
        assert bool(re.fullmatch(pattern, name)) == known


def test_auto_is_a_gpu_where_one_may_be_seen(monkeypatch):
    monkeypatch.setattr(benchmarks, "gpu_is_here", lambda: True)
    assert benchmarks.device_of({"device": "auto"}) == "cuda"
    assert benchmarks.device_of({"device": "cpu"}) == "cpu"
    monkeypatch.setattr(benchmarks, "gpu_is_here", lambda: False)
    assert benchmarks.device_of({"device": "auto"}) == "cpu"
