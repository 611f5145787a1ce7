"""All of the tables' speeds on a bare machine, and back into the workflow."""

import argparse
import json
import os
import subprocess
import sys

import pytest

from workflow.bench import __main__, import_records, process, suite, throughput
from workflow.campaign import benchmarks, kinds, targets
from workflow.storage import attempts, locks, records

TINY = {"img_size": 32, "embed_dim": 24, "num_classes": 10}


def parse(*words: str):
    parser = argparse.ArgumentParser()
    suite.add_arguments(parser)
    return parser.parse_args(["--output", "measured", *words])


def test_every_row_of_the_tables_is_measured(config):
    tasks = suite.plan(config, parse("--device", "cuda"), "bf16")
    for name in suite.DEFAULT["cuda"]:
        at = f"cuda-{name.format(half='bf16')}-b256"
        sections = {section for section, configuration in tasks if benchmarks.name(configuration) == at}
        measured = {run for section in sections for run in config.items["sections"][section]}
        for table in config.items["tables"]:
            assert {row["run"] for row in config.rows(table)} <= measured
    assert ("deit_small", "cuda-compiled-bf16-sweep") in [(s, benchmarks.name(p)) for s, p in tasks]


def test_its_records_are_those_that_the_setting_asks_for(config):
    ((section, configuration),) = suite.plan(
        config,
        parse("--device", "cuda", "--groups", "levit_256", "--configurations", "paper-fp32-b256"),
        "bf16",
    )
    shown = benchmarks.throughput_configuration(config, "imagenet", section)
    assert configuration == shown
    spec = benchmarks.throughput_spec(config, "imagenet", section, configuration, weights="assumed")
    assert spec == targets.spec_of(config, f"results/throughput/{section}/{benchmarks.name(shown)}.json")


@pytest.mark.parametrize(
    ("option", "name", "message"),
    [
        ("--groups", "levit_999", "--groups levit_999 is unknown; did you mean 'levit_"),
        ("--tables", "table9", "--tables table9 is unknown; did you mean 'table"),
        ("--setting", "imagnet", "--setting imagnet is unknown; did you mean 'imagenet'"),
    ],
)
def test_a_name_that_the_yaml_does_not_have_is_refused(config, option, name, message):
    with pytest.raises(benchmarks.BenchmarkError, match=message):
        suite.plan(config, parse("--device", "cuda", option, name), "bf16")


def test_two_suites_never_share_a_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["bench", "suite", "--output", str(tmp_path), "--device", "cpu"])
    monkeypatch.setattr(suite, "measure_all", None)  # would fail
    with locks.exclusive(tmp_path / "suite.lock"), pytest.raises(SystemExit, match="is held by"):
        __main__.main()


@pytest.fixture
def record(config, tmp_path):
    """A record of the demo's benchmark configuration, as the suite leaves it."""
    configuration = benchmarks.parse(
        "cpu-fused-fp32-b32", benchmarks.throughput_configuration(config, "demo", "levit_256")
    )
    spec = benchmarks.throughput_spec(config, "demo", "levit_256", configuration, weights="assumed")
    path = tmp_path / "measured/throughput/levit_256/cpu-fused-fp32-b32.json"
    records.write_json(path, records.make(spec, {"device": "a CPU", "methods": [], "warnings": []}, 0.0))
    return path


def test_what_is_there_is_not_measured_again(config, record, tmp_path, monkeypatch):
    monkeypatch.setattr(process, "run", None)  # would fail
    output, spec = tmp_path / "measured", json.loads(record.read_text())["spec"]
    configuration = benchmarks.parse(
        "cpu-fused-fp32-b32", benchmarks.throughput_configuration(config, "demo", "levit_256")
    )
    assert suite.spec_of(config, "demo", "levit_256", configuration, None) == spec
    assert suite.measure(spec, configuration, output, "a CPU")["spec"] == spec
    with pytest.raises(process.MeasurementError, match="was measured on a CPU, and this is another"):
        suite.measure(spec, configuration, output, "another")
    with pytest.raises(process.MeasurementError, match="other models, rounds or threads"):
        suite.measure(spec | {"models": spec["models"][:1]}, configuration, output, "a CPU")
    assert record.exists()


def test_some_rows_are_measured_with_their_baseline(config):
    section, rows = "deit_small", ["evo_deit_small"]
    configuration = benchmarks.throughput_configuration(config, "imagenet", section)
    spec = suite.spec_of(config, "imagenet", section, configuration, rows)
    assert [model["run"] for model in spec["models"]] == ["deit_small", "evo_deit_small"]
    tasks = suite.plan(config, parse("--device", "cuda", "--rows", *rows), "bf16")
    assert {name for name, _ in tasks} == {section}
    arguments = parse("--device", "cuda", "--groups", "deit_small", "--rows", "evo_deit_smal")
    with pytest.raises(benchmarks.BenchmarkError, match="--rows evo_deit_smal is unknown; did you mean 'evo"):
        suite.plan(config, arguments, "bf16")


def test_a_gpu_without_units_for_bf16_is_measured_in_fp16(config):
    names = {
        benchmarks.name(configuration) for _, configuration in suite.plan(config, parse("--device", "cuda"), "fp16")
    }
    assert "cuda-compiled-fp16-b256" in names
    assert not any("bf16" in name for name in names)


def test_an_imported_record_is_history(config, record, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    target = "results/demo/throughput/levit_256/cpu-fused-fp32-b32.json"
    assert import_records.import_record(config, record, target) == "imported"
    assert records.read(target) == records.read(record)
    attempt = attempts.newest(kinds.job_folder(target))
    assert attempts.is_over(target, attempt)  # asked for again by force, it is measured anew
    spec = kinds.job_folder(target) / "spec.json"
    assert spec.stat().st_mtime_ns <= os.stat(target).st_mtime_ns  # snakemake finds it made
    assert import_records.import_record(config, record, target) == "left: there already"


def test_a_record_of_something_else_is_left_with_the_difference(config, record, tmp_path):
    content = records.read(record)
    spec = content["spec"] | {"threads": 64}
    records.write_json(record, records.make(spec, content["results"], 0.0))
    target = "results/demo/throughput/levit_256/cpu-fused-fp32-b32.json"
    assert import_records.import_record(config, record, target).startswith("left: threads is 64, but 2 is asked for")


def test_the_first_difference_is_named():
    one = {"a": 1, "models": [{"name": "x", "kwargs": {"k": 1}}]}
    other = {"a": 1, "models": [{"name": "x", "kwargs": {"k": 2}}]}
    assert import_records.difference(one, other) == "models.0.kwargs.k is 1, but 2 is asked for"
    assert import_records.difference(one, one) == "nothing"


@pytest.mark.integration  # it imports torch twice over
def test_the_commands_run_where_only_torch_and_timm_are(tmp_path):
    """They are carried to bare GPU machines: nothing of the login node is imported."""
    kwargs = json.dumps(TINY)
    code = (
        "import runpy, sys\n"
        "for name in ('snakemake', 'submitit', 'mlflow', 'pandas', 'seaborn', 'jsonschema', "
        "             'sklearn', 'captum', 'scipy', 'matplotlib', 'datasets', 'tabulate', 'psutil'):\n"
        "    sys.modules[name] = None\n"
        "runpy.run_module('workflow.bench', run_name='__main__')\n"
    )
    command = [sys.executable, "-c", code, "run", "--model", "evo_deit_tiny_patch16_224"]
    command += ["--baseline", "deit_tiny_patch16_224", "--model-kwargs", kwargs]
    command += ["--baseline-kwargs", kwargs, "--batch-size", "2", "--threads", "1"]
    command += ["--rounds", "5", "--device", "cpu", "--output", str(tmp_path / "f.json")]
    done = subprocess.run(command, cwd=records.ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "evo_deit_tiny_patch16_224" in done.stdout
    assert "ceilings: MACs" in done.stdout
    content = records.read(tmp_path / "f.json")
    assert content["results"]["methods"][0]["run"] == "deit_tiny_patch16_224"


@pytest.mark.integration
def test_an_error_of_the_command_is_one_sentence():
    command = [sys.executable, "-m", "workflow.bench", "run", "--model", "evo_deit_tinny"]
    command += ["--baseline", "deit_tiny_patch16_224", "--device", "cpu", "--threads", "1"]
    done = subprocess.run(command, cwd=records.ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ERROR: No model is called 'evo_deit_tinny'; did you mean")


def test_a_line_for_a_person():
    method = {"out_of_memory": False, "images_per_s": 120.0, "speedup": 1.5, "latency_ms": None}
    method |= {"speedup_interval": [1.48, 1.52], "ceilings": {"macs": 1.51, "roofline": 1.55}}
    assert "x 1.500 (1.480-1.520)  ceilings: MACs 1.51, roofline 1.55" in throughput.line(method)
    assert throughput.line({"out_of_memory": True}) == "out of memory"
