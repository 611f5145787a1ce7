"""Latency of one image in the runtimes that models are deployed in."""

import argparse
import csv
import importlib.util
import json
import subprocess
import sys

import pytest
import torch

from tests.bench.timed import shorten
from workflow.bench import latency, modes, process
from workflow.bench.process import MeasurementError
from workflow.storage import records

SIZE = {"img_size": 32, "embed_dim": 24, "num_classes": 10, "depth": 3}
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def short_rounds(monkeypatch):
    shorten(monkeypatch)
    monkeypatch.setattr(latency, "TIMING_S", 0.005)


def tiny_spec(*runtimes: str) -> dict:
    models = [
        {"run": "dense", "name": "plain_deit_tiny_patch16_224", "kwargs": SIZE},
        {"run": "tome", "name": "tome_deit_tiny_patch16_224", "kwargs": {**SIZE, "r": 1}},
    ]
    spec = {"kind": "latency", "section": "latency", "groups": [models], "runtimes": list(runtimes), "device": "cpu"}
    return spec | {"precision": "fp32", "batch_size": 1, "channels_last": False, "threads": 1, "rounds": 5}


def parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    latency.add_arguments(parser)
    return parser.parse_args(list(words))


def refuse(monkeypatch, which):
    """Models for which `which(host, runtime)` holds can't be run."""
    make_run = latency.make_run

    def refusing(host, runtime, spec):
        if which(host, runtime):
            raise modes.Refused("Model can't be run")
        return make_run(host, runtime, spec)

    monkeypatch.setattr(latency, "make_run", refusing)


def test_models_are_timed_in_each_runtime_and_give_eagers_outputs():
    pytest.importorskip("onnxruntime")
    results = latency.measure(tiny_spec("eager", "onnxruntime"))
    timed = [(method["runtime"], method["run"]) for method in results["methods"]]
    assert timed == [(runtime, run) for runtime in ("eager", "onnxruntime") for run in ("dense", "tome")]
    assert results["left_out"] == {}
    for method in results["methods"]:
        assert method["check"]["distance"] <= method["check"]["tolerance"]
        assert 0 < method["latency_ms"]["p50"] <= method["latency_ms"]["p95"]
        assert method["passes"] >= 5
    dense, tome = results["methods"][2:]
    assert dense["ceiling"] == 1
    assert tome["ceiling"] == dense["macs_g"] / tome["macs_g"] > 1
    assert tome["speedup_interval"][0] <= tome["speedup"] <= tome["speedup_interval"][1]
    assert results["environment"]["threads"] == 1
    assert "cpu_taken_by_others" in results["seen"]


def test_other_outputs_than_eagers_are_an_error(monkeypatch):
    make_run = latency.make_run
    monkeypatch.setattr(latency, "make_run", lambda *arguments: lambda x: 1.1 * make_run(*arguments)(x))
    with pytest.raises(MeasurementError, match="gives other outputs"):
        latency.measure(tiny_spec("eager"))


def test_a_machine_without_onnx_runtime_times_the_others(monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if "onnx" in name else find_spec(name))
    results = latency.measure(tiny_spec("onnxruntime", "eager"))
    sentence = "onnxruntime is left out: onnx and onnxruntime not installed; pip install onnx onnxruntime."
    assert results["left_out"] == {"onnxruntime": sentence}
    assert {method["runtime"] for method in results["methods"]} == {"eager"}


def test_a_machine_without_a_compiler_is_told_what_it_needs(monkeypatch):
    def make_run(module, images, spec):
        try:
            raise RuntimeError("No working C++ compiler found\nin any of 3 places")
        except RuntimeError as error:
            raise modes.Refused("Linear can't be compiled") from error

    monkeypatch.setattr(modes, "make_run", make_run)
    reason = latency.missing("compiled", CPU, tiny_spec())
    assert reason.startswith("torch.compile fails on this machine (No working C++ compiler found); it needs a C++")


def test_onnx_runtime_is_not_timed_on_a_gpu():
    assert "say --device cpu" in latency.missing("onnxruntime", torch.device("cuda"), tiny_spec())


@pytest.mark.parametrize(("psutil", "remedy"), [(None, "pip install psutil"), (object(), "say fewer --threads")])
def test_onnx_runtime_s_threads_need_processors_of_their_own(monkeypatch, psutil, remedy):
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(latency, "worker_processors", lambda threads: None)
    monkeypatch.setattr(latency.monitor, "psutil", psutil)
    assert remedy in latency.missing("onnxruntime", CPU, tiny_spec())


def test_a_model_that_a_runtime_refuses_is_noted(monkeypatch):
    refuse(monkeypatch, lambda host, runtime: host.method["run"] == "tome")
    results = latency.measure(tiny_spec("eager"))
    dense, tome = results["methods"]
    assert dense["passes"] > 0
    assert tome["refused"] == "Model can't be run"
    assert [row["model"] for row in latency.rows_of(results)] == ["dense"]


def test_without_the_dense_model_nothing_is_timed(monkeypatch):
    refuse(monkeypatch, lambda host, runtime: host.method["run"] == "dense")
    results = latency.measure(tiny_spec("eager"))
    assert [method["refused"] for method in results["methods"]] == [
        "Model can't be run",
        "its dense model does not run",
    ]
    assert latency.rows_of(results) == []


def test_each_size_has_its_dense_model():
    spec = latency.make_spec(parse("--models", "evo_deit_small_patch16_224", "deit_tiny_patch16_224"))
    names = [[model["name"] for model in models] for models in spec["groups"]]
    assert names == [["deit_small_patch16_224", "evo_deit_small_patch16_224"], ["deit_tiny_patch16_224"]]
    groups = latency.make_spec(parse())["groups"]
    assert [len(models) for models in groups] == [4, 4]
    assert {models[0]["name"] for models in groups} == set(latency.DENSE.values())


def test_rows_and_record_are_written(monkeypatch, tmp_path, capsys):
    results = latency.measure(tiny_spec("eager"))
    results["left_out"] = {"compiled": "compiled is left out: no compiler."}
    monkeypatch.setattr(process, "run", lambda *arguments: records.make(tiny_spec("eager"), results, 0.0))
    output = tmp_path / "new" / "latency.csv"
    latency.main(argparse.ArgumentParser(), parse("--output", str(output), "--threads", "1"))
    printed = capsys.readouterr()
    assert printed.err == "compiled is left out: no compiler.\n"
    assert "eager        dense" in printed.out
    with output.open() as file:
        dense, tome = csv.DictReader(file)
    assert list(dense) == latency.FIELDS
    assert (dense["runtime"], dense["model"], dense["threads"], dense["speedup"]) == ("eager", "dense", "1", "1.0")
    assert float(tome["p50_ms"]) == pytest.approx(results["methods"][1]["latency_ms"]["p50"], abs=1e-3)
    assert records.read(output.with_suffix(".json"))["results"]["left_out"] == results["left_out"]


def test_an_output_without_csv_is_refused(capsys):
    with pytest.raises(SystemExit):
        latency.main(argparse.ArgumentParser(), parse("--output", "latency"))
    assert "--output latency: name a file that ends in .csv" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("threads", "own", "processors", "expected"),
    [(1, {3}, {3}, []), (2, {3}, {3, 5}, [5]), (2, {3, 5}, {3, 5}, []), (2, {3}, {3}, None)],
)
def test_a_session_s_threads_get_the_other_processors(monkeypatch, threads, own, processors, expected):
    monkeypatch.setattr(latency.os, "sched_getaffinity", lambda process: own, raising=False)
    monkeypatch.setattr(latency.monitor, "processors", lambda: processors)
    assert latency.worker_processors(threads) == expected


@pytest.mark.integration  # it compiles, which takes half a minute for the smallest model
def test_the_compiled_runtime():
    dense = {"run": "dense", "name": "plain_deit_tiny_patch16_224", "kwargs": {**SIZE, "depth": 1}}
    results = latency.measure(tiny_spec("compiled") | {"groups": [[dense]]})
    assert results["left_out"] == {}
    (compiled,) = results["methods"]
    assert (compiled["run"], compiled["runtime"]) == ("dense", "compiled")
    assert compiled["check"]["distance"] <= compiled["check"]["tolerance"]
    assert compiled["passes"] >= 5


@pytest.mark.integration  # of a model of the usual size, in a process of its own
def test_the_command(tmp_path):
    pytest.importorskip("onnxruntime")
    output = tmp_path / "latency.csv"
    command = [sys.executable, "-m", "workflow.bench", "latency", "--models", "deit_tiny_patch16_224"]
    command += ["--runtimes", "eager", "onnxruntime", "--threads", "2", "--rounds", "5", "--output", str(output)]
    done = subprocess.run(command, cwd=records.ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with output.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["runtime"] for row in rows] == ["eager", "onnxruntime"], done.stderr
    record = json.loads(output.with_suffix(".json").read_text())
    assert record["results"]["environment"]["allocator"] == process.ALLOCATOR
