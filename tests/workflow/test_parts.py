"""A measurement that is killed keeps the parts it has."""

import pytest

from workflow import runs
from workflow.node import throughput, training_cost
from workflow.node.parts import Parts
from workflow.records import write_json

SPEC = {"kind": "throughput", "batch_sizes": [1, 2]}


def test_a_part_is_measured_once(tmp_path):
    assert Parts(tmp_path, SPEC, "a GPU").get("b1", lambda: {"rate": 1.5}) == {"rate": 1.5}
    again = Parts(tmp_path, SPEC, "a GPU")
    assert again.get("b1", lambda: {"rate": 2.5}) == {"rate": 1.5}
    assert again.get("b2", lambda: 3.5) == 3.5
    assert again.kept == 1


@pytest.mark.parametrize("other", [(SPEC, "another GPU"), ({**SPEC, "rounds": 9}, "a GPU")])
def test_a_part_of_another_device_or_spec_is_measured_again(tmp_path, other):
    Parts(tmp_path, SPEC, "a GPU").get("b1", lambda: 1.5)
    assert Parts(tmp_path, *other).get("b1", lambda: 2.5) == 2.5


@pytest.mark.parametrize(
    "name", ["workflow.node.parts.code_hash", "workflow.records.versions", "platform.node"]
)
def test_a_part_of_other_code_or_packages_or_another_host_is_measured_again(
    tmp_path, monkeypatch, name
):
    Parts(tmp_path, SPEC, "a GPU").get("b1", lambda: 1.5)
    monkeypatch.setattr(name, lambda: "other")
    assert Parts(tmp_path, SPEC, "a GPU").get("b1", lambda: 2.5) == 2.5


def test_out_of_memory_is_a_part_too(tmp_path):
    Parts(tmp_path, SPEC, "a GPU").get("b1", lambda: None)
    assert Parts(tmp_path, SPEC, "a GPU").get("b1", lambda: 2.5) is None


@pytest.mark.parametrize("damage", [b"", b'{"part": 1', b"[]", b"{}", b"\xff"])
def test_a_damaged_part_is_measured_again(tmp_path, damage):
    write_json(tmp_path / "parts/b1.json", {})
    (tmp_path / "parts/b1.json").write_bytes(damage)
    assert Parts(tmp_path, SPEC, "a GPU").get("b1", lambda: 2.5) == 2.5


def test_without_a_folder_nothing_is_kept():
    assert Parts(None, SPEC, "a GPU").get("b1", lambda: 1.5) == 1.5
    assert Parts(None, SPEC, "a GPU").get("b1", lambda: 2.5) == 2.5


def killed_in_the_second(monkeypatch, module, name: str) -> list:
    """Let the module's function of that name be killed in its second call; -> what it returned."""
    function, returned = getattr(module, name), []

    def killed(*args, **kwargs):
        if len(returned) == 1:
            returned.append(None)
            raise KeyboardInterrupt
        returned.append(function(*args, **kwargs))
        return returned[-1]

    monkeypatch.setattr(module, name, killed)
    return returned


@pytest.mark.integration
def test_a_sweep_goes_on_where_it_was_killed(tmp_path, monkeypatch):
    model = {"run": "tiny", "name": "plain_deit_tiny_patch16_224"}
    model["kwargs"] = {"img_size": 32, "embed_dim": 24, "num_heads": 3, "depth": 2}
    spec = {
        "kind": "throughput", "section": "tiny", "models": [model], "device": "cpu", "rounds": 5,
        "mode": "fused", "precision": "fp32", "channels_last": False, "cuda_graphs": 0,
        "threads": 1, "batch_sizes": [1, 2, 3],
    }  # fmt: skip
    returned = killed_in_the_second(monkeypatch, throughput, "measure_batch")
    with pytest.raises(KeyboardInterrupt):
        throughput.measure_section(spec, folder=tmp_path)
    found = throughput.measure_section(spec, folder=tmp_path)
    assert [size["batch_size"] for size in found["sizes"]] == [1, 2, 3]
    assert found["sizes"][0] == {"batch_size": 1, **returned[0]}
    assert len(returned) == 4  # three sizes, and the one that was killed


def test_training_costs_go_on_where_they_were_killed(tmp_path, monkeypatch, config):
    size = {"img_size": 64, "embed_dim": 24, "num_heads": 3, "depth": 2}
    recipe = runs.recipe_of(config, None, "deit_tiny")
    models = [
        {"run": name, "model": {"name": name, "kwargs": size}, "recipe": recipe}
        for name in ("plain_deit_tiny_patch16_224", "plain_deit_small_patch16_224")
    ]
    spec = {
        "kind": "training_cost", "section": "tiny", "models": models, "device": "cpu", "rounds": 2,
        "mode": "fused", "precision": "fp32", "threads": 1, "batch_sizes": [2],
        "memory_gib": None, "extrapolate_to": [],
    }  # fmt: skip
    monkeypatch.setattr(training_cost, "ROUND_S", 0.0)
    returned = killed_in_the_second(monkeypatch, training_cost, "measure_round")
    with pytest.raises(KeyboardInterrupt):
        training_cost.measure_section(spec, folder=tmp_path)
    found = training_cost.measure_section(spec, folder=tmp_path)
    assert len(returned) == 3  # two rounds, and the one that was killed
    assert found["kept_parts"] == 1
    for place, method in enumerate(found["methods"]):
        assert method["sizes"][0]["step_s_last_rounds"][0] == returned[0][0][place]["last"][0]
