"""The process of a measurement, and what one that is killed keeps."""

import pytest

from workflow.bench import process, throughput, training_step
from workflow.bench.process import PartialResults
from workflow.campaign import specs
from workflow.storage import provenance
from workflow.storage.records import write_json

SPEC = {"kind": "throughput", "batch_sizes": [1, 2]}


def test_a_measuring_process_is_tuned_and_nothing_else(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    environ = process.process_environment({"threads": 2, "device": "cpu"})
    assert environ["OMP_NUM_THREADS"] == "2"
    assert environ["MALLOC_MMAP_THRESHOLD_"] == "4000000000"
    assert "TORCHDYNAMO_DISABLE" not in environ


def test_a_partial_result_is_measured_once(tmp_path):
    assert PartialResults(tmp_path, SPEC, "a GPU").get("b1", lambda: {"rate": 1.5}) == {"rate": 1.5}
    again = PartialResults(tmp_path, SPEC, "a GPU")
    assert again.get("b1", lambda: {"rate": 2.5}) == {"rate": 1.5}
    assert again.get("b2", lambda: 3.5) == 3.5
    assert again.kept == 1


@pytest.mark.parametrize("other", [(SPEC, "another GPU"), ({**SPEC, "rounds": 9}, "a GPU")])
def test_a_partial_result_of_another_device_or_spec_is_measured_again(tmp_path, other):
    PartialResults(tmp_path, SPEC, "a GPU").get("b1", lambda: 1.5)
    assert PartialResults(tmp_path, *other).get("b1", lambda: 2.5) == 2.5


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("workflow.storage.provenance.running", {**provenance.running(), "source_hash": "other"}),
        ("workflow.storage.provenance.running", {**provenance.running(), "versions": {"torch": "other"}}),
        ("platform.node", "other"),
    ],
)
def test_a_partial_result_of_other_code_packages_or_host_is_measured_again(tmp_path, monkeypatch, name, value):
    PartialResults(tmp_path, SPEC, "a GPU").get("b1", lambda: 1.5)
    monkeypatch.setattr(name, lambda: value)
    assert PartialResults(tmp_path, SPEC, "a GPU").get("b1", lambda: 2.5) == 2.5


def test_out_of_memory_is_a_partial_result_too(tmp_path):
    PartialResults(tmp_path, SPEC, "a GPU").get("b1", lambda: None)
    assert PartialResults(tmp_path, SPEC, "a GPU").get("b1", lambda: 2.5) is None


@pytest.mark.parametrize("damage", [b"", b'{"part": 1', b"[]", b"{}", b"\xff"])
def test_a_damaged_partial_result_is_measured_again(tmp_path, damage):
    write_json(tmp_path / "parts/b1.json", {})
    (tmp_path / "parts/b1.json").write_bytes(damage)
    assert PartialResults(tmp_path, SPEC, "a GPU").get("b1", lambda: 2.5) == 2.5


def test_without_a_folder_nothing_is_kept():
    assert PartialResults(None, SPEC, "a GPU").get("b1", lambda: 1.5) == 1.5
    assert PartialResults(None, SPEC, "a GPU").get("b1", lambda: 2.5) == 2.5


def killed_in_the_second(monkeypatch, module, name: str) -> list:
    """Let the module's function of that name be killed in its second call, and return its results."""
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
    returned = killed_in_the_second(monkeypatch, throughput, "measure_batch_size")
    with pytest.raises(KeyboardInterrupt):
        throughput.measure_group(spec, folder=tmp_path)
    results = throughput.measure_group(spec, folder=tmp_path)
    assert [size["batch_size"] for size in results["sizes"]] == [1, 2, 3]
    assert results["sizes"][0] == {"batch_size": 1, **returned[0]}
    assert len(returned) == 4  # three sizes, and the one that was killed


def test_training_costs_go_on_where_they_were_killed(tmp_path, monkeypatch, config):
    size = {"img_size": 64, "embed_dim": 24, "num_heads": 3, "depth": 2}
    recipe = specs.recipe_of(config, None, "deit_tiny")
    models = [
        {"run": name, "model": {"name": name, "kwargs": size}, "recipe": recipe}
        for name in ("plain_deit_tiny_patch16_224", "plain_deit_small_patch16_224")
    ]
    spec = {
        "kind": "training_cost", "section": "tiny", "models": models, "device": "cpu", "rounds": 2,
        "mode": "fused", "precision": "fp32", "threads": 1, "batch_sizes": [2],
        "memory_gib": None, "extrapolate_to": [],
    }  # fmt: skip
    monkeypatch.setattr(training_step, "TIMING_S", 0.0)
    returned = killed_in_the_second(monkeypatch, training_step, "measure_round")
    with pytest.raises(KeyboardInterrupt):
        training_step.measure_cost(spec, folder=tmp_path)
    results = training_step.measure_cost(spec, folder=tmp_path)
    assert len(returned) == 3  # two rounds, and the one that was killed
    assert results["kept_parts"] == 1
    for place, method in enumerate(results["methods"]):
        assert method["sizes"][0]["step_s_last_rounds"][0] == returned[0][0][place]["last"][0]
