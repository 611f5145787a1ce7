"""Benchmark configurations, the names of their records, and their specs."""

import json
import re
from pathlib import Path

import pytest

from workflow.campaign import benchmarks, kinds, specs, targets
from workflow.campaign.benchmarks import BenchmarkError
from workflow.campaign.config import ConfigError


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
def test_a_name_says_its_configuration_and_a_configuration_its_name(name, config):
    shown = benchmarks.throughput_configuration(config, "imagenet", "deit_small")
    configuration = benchmarks.parse(name, shown)
    assert benchmarks.name(configuration) == name
    assert (configuration["threads"], configuration["rounds"]) == (shown["threads"], shown["rounds"])
    assert ("batch_size" in configuration) != ("batch_sizes" in configuration)
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


def test_throughput_measures_the_papers_size_in_every_setting(config):
    configuration = benchmarks.throughput_configuration(config, "demo", "deit_tiny")
    assert configuration["device"] in ("cpu", "cuda")
    spec = benchmarks.throughput_spec(config, "demo", "deit_tiny", configuration)
    kwargs = {model["run"]: model["kwargs"] for model in spec["models"]}
    profiled = ["ps_deit_tiny", "ia_red2_deit_tiny"]
    for run in profiled:
        assert kwargs.pop(run) == config.items["profiles"][run]
    assert all(set(own) <= {"drop_path_rate"} for own in kwargs.values())  # which only training uses
    assert [model["run"] for model in spec["models"] if "profile" in model] == profiled
    assert "setting" not in spec


def test_after_training_the_weights_are_measured_that_decide_the_speed(config):
    spec = benchmarks.throughput_spec(config, "imagenet", "deit_tiny", {"batch_size": 256})
    trained = {model["run"]: model["weights"] for model in spec["models"] if "weights" in model}
    assert list(trained) == ["ps_deit_tiny", "ia_red2_deit_tiny"]
    for run, needed in trained.items():
        assert needed["spec_hash"] == specs.spec_hash(specs.train_spec(config, "imagenet", run))
    assert specs.needed_records(spec) == [f"runs/{run}/train.json" for run in trained]
    assert not any("profile" in model for model in spec["models"])
    assert spec["images"]["data"]["name"] == "imagenet"
    demo = benchmarks.throughput_spec(config, "demo", "deit_tiny", {"batch_size": 256})
    assert "images" not in demo
    assert specs.needed_records(demo) == []


# -- the device of `auto`

MEASURED_ON_AUTO = "demo"


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """An empty clone, and a function that moves it to a machine with or without a GPU."""
    monkeypatch.chdir(tmp_path)
    return lambda gpu: monkeypatch.setattr(benchmarks, "gpu_is_here", lambda: gpu)


def shown_device(config) -> str:
    return benchmarks.throughput_configuration(config, MEASURED_ON_AUTO, "deit_tiny")["device"]


def test_auto_is_a_gpu_where_one_may_be_seen(machine, config, tmp_path):
    machine(gpu=True)
    assert shown_device(config) == "cuda"
    machine(gpu=False)
    assert shown_device(config) == "cpu"
    assert benchmarks.training_cost_configuration(config, MEASURED_ON_AUTO)["device"] == "cpu"
    assert not list(tmp_path.iterdir())  # who only asks writes nothing


@pytest.mark.parametrize(("gpu", "device"), [(True, "cuda"), (False, "cpu")])
def test_another_machine_finds_the_records_of_the_first(machine, config, gpu, device):
    """A table is compiled where there is no such device; deleting the file asks again."""
    machine(gpu)
    benchmarks.keep_device(config, MEASURED_ON_AUTO)
    record = kinds.throughput_record(config, MEASURED_ON_AUTO, "deit_tiny")
    assert record.spec["device"] == device
    machine(not gpu)
    benchmarks.keep_device(config, MEASURED_ON_AUTO)
    assert kinds.throughput_record(config, MEASURED_ON_AUTO, "deit_tiny") == record
    assert record.path in targets.item_records(config, "results/demo", "table1")
    benchmarks.device_file(config, MEASURED_ON_AUTO).unlink()
    assert shown_device(config) != device
    benchmarks.keep_device(config, MEASURED_ON_AUTO)
    assert json.loads(Path("results/demo/device.json").read_text())["device"] == shown_device(config)


def test_a_setting_that_names_its_device_keeps_none(machine, config, tmp_path):
    machine(gpu=False)
    benchmarks.keep_device(config, "imagenet")
    assert not list(tmp_path.iterdir())
    assert benchmarks.throughput_configuration(config, "imagenet", "deit_tiny")["device"] == "cuda"


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"device": "tpu"}'])
def test_a_damaged_note_of_the_device_says_what_to_do(machine, config, content):
    machine(gpu=False)
    path = benchmarks.device_file(config, MEASURED_ON_AUTO)
    path.parent.mkdir(parents=True)
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"^results/demo/device.json names no device.*or delete it"):
        shown_device(config)


# -- methods off the shelf ----------------------------------------------------------------------


def test_methods_off_the_shelf_have_four_strengths_each_and_their_host_first(config):
    spec = benchmarks.offtheshelf_spec(config, "demo", "deit_tiny")
    first, *others = spec["models"]
    assert first == {"run": "dense", "method": None, "kwargs": {}}
    assert len(others) == 4 * len(config.items["offtheshelf"])
    assert len({model["run"] for model in spec["models"]}) == len(spec["models"])
    assert {"run": "evo-0.5", "method": "evo", "kwargs": {"keep_ratio": 0.5}} in others
    assert {"run": "tome-13", "method": "tome", "kwargs": {"r": 13}} in others
    assert spec["batch_size"] == 256
    shown = benchmarks.throughput_configuration(config, "demo", "offtheshelf")
    assert spec["rounds"] == shown["rounds"]


def test_a_host_off_the_shelf_is_trained_here_or_given(config, monkeypatch):
    trained = benchmarks.offtheshelf_spec(config, "demo", "deit_tiny")
    assert trained["start"] == specs.reference(specs.train_spec(config, "demo", "deit_tiny"))
    assert specs.needed_records(trained) == ["runs/deit_tiny/train.json"]
    given = benchmarks.offtheshelf_spec(config, "imagenet", "deit_small")
    assert given["checkpoint"] == {"timm": "deit_small_patch16_224.fb_in1k"}
    assert "start" not in given
    assert specs.needed_records(given) == ["weights/deit_small_patch16_224.fb_in1k.json"]
    # the host's weights are the table's alone: the campaign's own run is trained as ever
    assert specs.train_spec(config, "imagenet", "deit_small")["kind"] == "train"


def test_weights_that_two_places_name_are_fetched_once(config, monkeypatch):
    tag = "deit_tiny_patch16_224.fb_in1k"
    monkeypatch.setitem(config.settings["imagenet"]["checkpoints"], "deit_tiny", {"timm": tag})
    tags = [names["tag"] for names in kinds.KINDS["fetch"].jobs(config, "imagenet")]
    assert tags.count(tag) == 1
    assert len(tags) == len(set(tags))
