"""Seconds and bytes of a training step."""

import copy
import weakref

import pytest
import torch

from workflow.bench import throughput, training_step
from workflow.campaign import benchmarks
from workflow.runtime.device import DeviceError

SIZE = {"img_size": 64, "embed_dim": 24, "num_heads": 3, "depth": 6}


@pytest.fixture
def spec(config):
    """A function: the demo's spec of two small models."""

    def make(**changes) -> dict:
        configuration = benchmarks.training_cost_configuration(config, "demo") | {"device": "cpu", "threads": 1}
        configuration |= {"rounds": 2, **changes}
        whole = benchmarks.training_cost_spec(config, "demo", "deit_small_384", configuration)
        for model in whole["models"]:
            model["model"] = copy.deepcopy(model["model"])
            model["model"]["kwargs"] |= SIZE
        return whole

    return make


@pytest.fixture(autouse=True)
def short_rounds(monkeypatch):
    monkeypatch.setattr(training_step, "TIMING_S", 0.0)


def test_only_models_that_train_from_scratch_with_the_papers_recipe_are_measured(config):
    configuration = benchmarks.training_cost_configuration(config, "demo")
    models = benchmarks.training_cost_spec(config, "demo", "deit_small", configuration)["models"]
    assert [model["run"] for model in models] == [
        "deit_small",
        "svite_deit_small",
        "evo_deit_small",
    ]
    assert {model["recipe"]["epochs"] for model in models} == {300}


@pytest.mark.integration
def test_reduced_models_keep_fewer_bytes(spec):
    results = training_step.measure_cost(spec(extrapolate_to=[8]))
    assert results["bytes_are"] == "counted"
    dense, evo = results["methods"]
    assert evo["macs_g"] < dense["macs_g"]
    for method in (dense, evo):
        two, four = method["sizes"]
        assert [two["batch_size"], four["batch_size"]] == [2, 4]
        assert 0 < two["bytes"] < four["bytes"] < 2 * two["bytes"]  # weights do not double
        assert two["step_s_first"] > 0
        (further,) = method["extrapolated"]
        assert further["bytes"] == pytest.approx(four["bytes"] + 2 * (four["bytes"] - two["bytes"]))
    # what the batch adds, weights aside
    added = [m["sizes"][1]["bytes"] - m["sizes"][0]["bytes"] for m in (dense, evo)]
    assert added[1] < added[0]


def test_counted_bytes_are_those_of_weights_gradients_moments_and_kept_tensors(spec):
    model = spec()["models"][0]
    training = training_step.make_training(model, spec(), 2, torch.device("cpu"))
    training.start_epoch()
    weights = sum(4 * p.numel() for p in training.model.parameters())
    buffers = sum(b.untyped_storage().nbytes() for b in training.task.buffers())
    before, _ = training_step.static_bytes(training)
    assert before == 2 * weights + buffers  # the averaged weights beside them
    training.train_step(training.loader.batches(0))
    after, known = training_step.static_bytes(training)
    steps = 4 * len(list(training.model.parameters()))  # AdamW counts its steps
    assert after == 5 * weights + buffers + steps
    kept = training_step.SavedTensors()
    with kept:
        a = torch.ones(1000, requires_grad=True)
        b = a.exp()  # keeps its result
        b.exp()
    assert kept.bytes(set()) == 2 * 4000
    assert kept.bytes({b.untyped_storage().data_ptr()}) == 4000
    gone = weakref.ref(kept)
    del kept
    assert gone() is None  # with all that it held, without a collector of cycles
    assert known


@pytest.mark.integration
def test_running_out_of_memory_is_a_result(spec, monkeypatch):
    measure_once = training_step.measure_once

    def small_gpu(model, spec, batch_size, device, counts):
        if batch_size == 4 and model["run"] == "deit_small_384":
            return None
        return measure_once(model, spec, batch_size, device, counts)

    monkeypatch.setattr(training_step, "measure_once", small_gpu)
    dense, evo = training_step.measure_cost(spec())["methods"]
    assert dense["sizes"][1] == {"batch_size": 4, "out_of_memory": True}
    assert not dense["sizes"][0]["out_of_memory"]
    assert not evo["sizes"][1]["out_of_memory"]
    assert dense["extrapolated"] == []


def test_the_allocators_error_is_that_result_and_nothing_stays_behind(spec, monkeypatch):
    def full(*arguments):
        raise torch.cuda.OutOfMemoryError("full")

    monkeypatch.setattr(training_step, "time_steps", full)
    once = training_step.measure_once(spec()["models"][0], spec(), 2, torch.device("cpu"), True)
    assert once is None


def test_larger_batches_are_compared_with_the_gpu_that_is_meant(spec):
    sizes = [{"batch_size": n, "bytes": n * 2**30, "out_of_memory": False} for n in (2, 4)]
    requested = {"extrapolate_to": [16, 64], "memory_gib": 32}
    assert training_step.extrapolate(sizes, requested) == [
        {"batch_size": 16, "bytes": 16 * 2**30, "over_limit": False},
        {"batch_size": 64, "bytes": 64 * 2**30, "over_limit": True},
    ]


@pytest.mark.parametrize("measure", [training_step.measure_cost, training_step.measure_speed])
def test_fp16_on_a_cpu_is_refused(spec, measure):
    with pytest.raises(DeviceError, match="fp16 needs a GPU"):
        measure(spec(precision="fp16") | {"batch_size": 2})


@pytest.mark.integration
def test_interleaved_steps_are_those_of_the_last_epochs(spec, monkeypatch):
    monkeypatch.setattr(throughput, "TIMING_S", 0.0)
    results = training_step.measure_speed(spec(rounds=5) | {"batch_size": 2})
    alone = training_step.measure_cost(spec(batch_sizes=[2]))
    for method, other in zip(results["methods"], alone["methods"], strict=True):
        assert method["saved_bytes"] == other["sizes"][0]["saved_bytes_last"]
        assert method["macs_g"] == other["macs_g"]
    dense, evo = results["methods"]
    assert evo["saved_bytes"] < alone["methods"][1]["sizes"][0]["saved_bytes_first"]
    assert 5 <= len(evo["rounds"]) <= 10
    assert len(dense["rounds"]) == len(evo["rounds"]) + 1  # before each of its shares, and after
    low, high = evo["speedup_interval"]
    assert low <= evo["speedup"] <= high
