"""The registry of job kinds, and the records that it derives from the YAML."""

import importlib.util
import re

import pytest

from workflow.campaign import benchmarks, kinds, specs, targets
from workflow.campaign.kinds import KINDS


def test_every_kind_has_its_module_and_a_target_of_its_own():
    assert [name for name, kind in KINDS.items() if kind.name != name] == []
    assert len({kind.rule for kind in KINDS.values()}) == len({kind.target for kind in KINDS.values()}) == len(KINDS)
    for kind in KINDS.values():
        assert kind.module is None or importlib.util.find_spec(kind.module), kind.name


def test_which_jobs_are_alone_go_on_or_are_several_processes():
    def those(flag: str) -> set[str]:
        return {name for name, kind in KINDS.items() if getattr(kind, flag)}

    assert those("exclusive") == {"throughput", "training_cost", "offtheshelf"}
    assert those("resumable") == {"train", "search"}
    assert those("distributed") == {"train", "evaluate"}
    assert {kind.device_share for kind in KINDS.values()} == {1, 100}


@pytest.mark.parametrize(
    ("name", "folders"),
    [
        ("train", "runs/*"),
        ("search", "runs/*/search"),
        ("evaluate", "evaluations/*"),
        ("analysis", "analyses/*"),
        ("throughput", "throughput/*/*"),
        ("training_cost", "training/*/*"),
        ("offtheshelf", "offtheshelf/*"),
        ("dense_prediction", "dense_prediction/*"),
    ],
)
def test_mlflow_finds_the_jobs_of_all_kinds_that_it_shows(name, folders):
    assert KINDS[name].metrics
    assert KINDS[name].folders == folders


def test_a_record_is_its_path_its_spec_and_its_hash(config):
    path, spec, spec_hash = kinds.record(config, "train", "demo", run="deit_tiny-s1")
    assert path == "results/demo/runs/deit_tiny-s1/train.json"
    assert spec == specs.train_spec(config, "demo", "deit_tiny-s1")
    assert spec_hash == specs.spec_hash(spec)


def test_a_spec_is_derived_once(config, monkeypatch):
    first = kinds.record(config, "preflight", "demo")
    monkeypatch.setattr(kinds.specs, "spec_hash", None)
    assert kinds.record(config, "preflight", "demo") is first


def test_every_target_is_derived_as_its_path_says(config):
    for path in targets.every(config):
        spec = targets.spec_of(config, path)
        assert (spec is None) == (path not in config.records)
        if spec is not None and "results/demo" in path:
            name = path.removeprefix("results/demo/")
            assert [kind.name for kind in KINDS.values() if kind.pattern.fullmatch(name)] == [spec["kind"]]


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("train", {"run": "deit_tin"}),
        ("search", {"run": "deit_tiny"}),
        ("evaluate", {"evaluation": "x"}),
        ("analysis", {"analysis": "x"}),
        ("offtheshelf", {"host": "deit_small"}),
        ("dense_prediction", {"host": "deit_small"}),
        ("fetch", {"tag": "x"}),
        ("throughput", {"group": "x", "configuration": "cpu-fused-fp32-b32"}),
        ("throughput", {"group": "methods_host", "configuration": "cpu-fused-fp32-b32"}),
        ("train", {"run": "host"}),
    ],
)
def test_names_that_name_no_job_are_refused(config, kind, names):
    with pytest.raises(KeyError):
        kinds.record(config, kind, "demo", **names)


@pytest.mark.parametrize("kind", ["throughput", "training_cost"])
def test_a_configuration_that_can_not_be_measured_is_refused(config, kind):
    with pytest.raises(benchmarks.BenchmarkError, match=re.escape("cpu-fast-fp32-b32 is no <device>")):
        kinds.record(config, kind, "demo", group="deit_tiny", configuration="cpu-fast-fp32-b32")


def test_checks_come_before_what_they_check(config):
    first = {name: kinds.first_records({"kind": name}) for name in KINDS}
    assert first["data"] == first["preflight"] == first["fetch"] == []
    assert first["throughput"] == first["training_cost"] == ["preflight.json"]
    assert first["search"] == ["data.json", "preflight.json"]
