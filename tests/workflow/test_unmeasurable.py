"""Models that a device or a mode can't run: recorded with the reason, and the others are timed."""

import pytest
import torch

from tests.workflow.timed import breaking, out_of_memory, shorten, spec
from workflow import points
from workflow.node import by_hand, checks, modes, roofline, throughput


@pytest.fixture(autouse=True)
def short_rounds(monkeypatch):
    shorten(monkeypatch)


def refusing(*ignored):
    raise modes.Refused("EvoVisionTransformer can't be captured as a CUDA graph: it waits")


@pytest.mark.integration
def test_a_model_that_the_mode_refuses_leaves_the_others(monkeypatch):
    breaking(monkeypatch, refusing)
    dense, evo = throughput.measure_section(spec())["methods"]
    assert "can't be captured" in points.no_speed(evo) == evo["refused"]
    assert "images_per_s" not in evo
    assert points.no_speed(dense) is None
    assert by_hand.line(evo) == evo["refused"]


def test_without_the_baseline_there_is_nothing_to_measure(monkeypatch):
    breaking(monkeypatch, refusing)
    models = spec()["models"]
    with pytest.raises(modes.Refused):
        throughput.measure_section(spec(models=models[::-1]))


def test_running_out_of_memory_is_a_result(monkeypatch):
    breaking(monkeypatch, out_of_memory)
    dense, evo = throughput.measure_section(spec())["methods"]
    assert evo["out_of_memory"]
    assert "images_per_s" not in evo
    assert not dense["out_of_memory"]
    assert len(dense["rounds"]) == 5


def test_running_out_of_memory_amid_a_sweep_loses_nothing(monkeypatch):
    measure_batch = throughput.measure_batch

    def second_fails(point, *rest):
        return (out_of_memory if point["batch_size"] == 2 else measure_batch)(point, *rest)

    monkeypatch.setattr(throughput, "measure_batch", second_fails)
    whole = spec(batch_sizes=[1, 2])
    del whole["batch_size"]
    one, two = throughput.measure_section(whole)["sizes"]
    assert one["methods"][1]["images_per_s"] > 0
    assert [method["out_of_memory"] for method in two["methods"]] == [True, True]
    assert two["methods"][0]["macs_g"] == one["methods"][0]["macs_g"]


def test_what_could_not_be_checked_is_suspect(monkeypatch):
    """The reference, in fp32 and unfused, may need memory that the timed path does not."""
    compare = checks.compare

    def exact_fails(outputs, reference, precision, name):
        if precision == "fp32":
            out_of_memory(None, None)
        return compare(outputs, reference, precision, name)

    monkeypatch.setattr(checks, "compare", exact_fails)
    evo = throughput.measure_section(spec(precision="bf16"))["methods"][1]
    assert evo["check"] is None
    assert not evo["out_of_memory"]
    why = "outputs not checked: in fp32, unfused, out of memory"
    assert evo["suspect"][-2:] == [why, f"its baseline: {why}"]


def test_without_a_baseline_there_is_no_speed_up(monkeypatch):
    breaking(monkeypatch, out_of_memory)
    turned = spec()
    turned["models"].reverse()
    evo, dense = throughput.measure_section(turned)["methods"]
    assert evo["out_of_memory"]
    assert dense["images_per_s"] > 0
    assert dense["speedup"] is None
    assert dense["suspect"] == []
    assert "ceilings" not in dense


def test_operations_of_too_large_a_batch_are_those_of_a_smaller_one(monkeypatch):
    whole = roofline.operations

    def small(run, images):
        return out_of_memory() if len(images) > 2 else whole(run, images)

    module, images = torch.nn.Linear(4, 3, bias=False), torch.ones(5, 4)
    ((name, flops, moved),) = whole(module, images)
    monkeypatch.setattr(roofline, "operations", small)
    ((again, scaled, more),) = throughput.operations_of(module, images)
    assert (again, scaled) == (name, flops)
    assert moved < more < 2.5 * moved  # the weights, which do not grow, were scaled, too
    with pytest.raises(torch.OutOfMemoryError):
        throughput.operations_of(lambda images: out_of_memory(), images[:1])
