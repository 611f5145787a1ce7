"""All of the tables' speeds on a bare machine, and back into the workflow."""

import json
import os
import subprocess
import sys

import pytest

from workflow.bench import by_hand, fresh, import_records, suite
from workflow.campaign import benchmarks, points, targets
from workflow.campaign.config import Config
from workflow.storage import attempts, locks, records

TINY = {"img_size": 32, "embed_dim": 24, "num_classes": 10}


def asked(*arguments: str):
    return suite.parser(Config.load()).parse_args(["--output", "measured", *arguments])


def test_every_row_of_the_tables_is_measured(config):
    wanted = suite.plan(config, asked("--device", "cuda"), "bf16")
    for name in suite.DEFAULT["cuda"]:
        at = f"cuda-{name.format(half='bf16')}-b256"
        sections = {section for section, point in wanted if points.name(point) == at}
        measured = {run for section in sections for run in config.items["sections"][section]}
        for table in config.items["tables"]:
            assert {row["run"] for row in config.items["tables"][table]} <= measured
    assert ("deit_small", "cuda-compiled-bf16-sweep") in [(s, points.name(p)) for s, p in wanted]


def test_its_records_are_those_that_the_setting_asks_for(config):
    ((section, point),) = suite.plan(
        config,
        asked("--device", "cuda", "--sections", "levit_256", "--points", "paper-fp32-b256"),
        "bf16",
    )
    shown = benchmarks.throughput_point(config, "imagenet", section)
    assert point == shown
    spec = benchmarks.throughput_spec(config, "imagenet", section, point, weights="assumed")
    assert spec == targets.spec_of(config, f"results/throughput/{section}/{points.name(shown)}.json")


def test_a_section_that_there_is_not_is_refused(config):
    with pytest.raises(points.PointError, match="--sections: levit_999: none of deit_tiny, "):
        suite.plan(config, asked("--device", "cuda", "--sections", "levit_999"), "bf16")


def test_two_surveys_never_share_a_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["survey", "--output", str(tmp_path), "--device", "cpu"])
    monkeypatch.setattr(suite, "measure_all", None)  # would fail
    with locks.exclusive(tmp_path / "survey.lock"), pytest.raises(SystemExit, match="is held by"):
        suite.main()


@pytest.fixture
def record(config, tmp_path):
    """A record of the demo's point of measurement, as the survey leaves it."""
    point = points.parse("cpu-fused-fp32-b32", benchmarks.throughput_point(config, "demo", "levit_256"))
    spec = benchmarks.throughput_spec(config, "demo", "levit_256", point, weights="assumed")
    path = tmp_path / "measured/throughput/levit_256/cpu-fused-fp32-b32.json"
    records.write_json(path, records.make(spec, {"device": "a CPU", "methods": [], "warnings": []}, 0.0))
    return path


def test_what_is_there_is_not_measured_again(config, record, tmp_path, monkeypatch):
    monkeypatch.setattr(fresh, "run", None)  # would fail
    output, spec = tmp_path / "measured", json.loads(record.read_text())["spec"]
    point = points.parse("cpu-fused-fp32-b32", benchmarks.throughput_point(config, "demo", "levit_256"))
    assert suite.spec_of(config, "demo", "levit_256", point, None) == spec
    assert suite.measure(spec, point, output, "a CPU")["spec"] == spec
    with pytest.raises(fresh.MeasurementError, match="was measured on a CPU, and this is another"):
        suite.measure(spec, point, output, "another")
    with pytest.raises(fresh.MeasurementError, match="other models, rounds or threads"):
        suite.measure(spec | {"models": spec["models"][:1]}, point, output, "a CPU")
    assert record.exists()


def test_some_rows_are_measured_with_their_baseline(config):
    section, rows = "deit_small", ["evo_deit_small"]
    point = benchmarks.throughput_point(config, "imagenet", section)
    spec = suite.spec_of(config, "imagenet", section, point, rows)
    assert [model["run"] for model in spec["models"]] == ["deit_small", "evo_deit_small"]
    wanted = suite.plan(config, asked("--device", "cuda", "--rows", *rows), "bf16")
    assert {name for name, _ in wanted} == {section}
    given = asked("--device", "cuda", "--sections", "deit_small", "--rows", "evo_deit_smal")
    with pytest.raises(points.PointError, match="evo_deit_smal is in none of deit_small"):
        suite.plan(config, given, "bf16")


def test_a_gpu_without_units_for_bf16_is_measured_in_fp16(config):
    wanted = {points.name(point) for _, point in suite.plan(config, asked("--device", "cuda"), "fp16")}
    assert "cuda-compiled-fp16-b256" in wanted
    assert not any("bf16" in name for name in wanted)


def test_a_record_is_taken_in_and_is_history(config, record, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    target = "results/demo/throughput/levit_256/cpu-fused-fp32-b32.json"
    assert import_records.take(config, record, target) == "taken in"
    assert records.read(target) == records.read(record)
    attempt = attempts.newest(targets.job_folder(target))
    assert attempts.is_over(target, attempt)  # asked for again by force, it is measured anew
    spec = targets.job_folder(target) / "spec.json"
    assert spec.stat().st_mtime_ns <= os.stat(target).st_mtime_ns  # snakemake finds it made
    assert import_records.take(config, record, target) == "left: there already"


def test_a_record_of_something_else_is_left_with_the_difference(config, record, tmp_path):
    found = records.read(record)
    spec = found["spec"] | {"threads": 64}
    records.write_json(record, records.make(spec, found["results"], 0.0))
    target = "results/demo/throughput/levit_256/cpu-fused-fp32-b32.json"
    assert import_records.take(config, record, target).startswith("left: threads is 64, wanted is 2")


def test_the_first_difference_is_named():
    one = {"a": 1, "models": [{"name": "x", "kwargs": {"k": 1}}]}
    other = {"a": 1, "models": [{"name": "x", "kwargs": {"k": 2}}]}
    assert import_records.difference(one, other) == "models.0.kwargs.k is 1, wanted is 2"
    assert import_records.difference(one, one) == "nothing"


@pytest.mark.integration  # it imports torch twice over
def test_the_commands_run_where_only_torch_and_timm_are(tmp_path):
    """They are carried to bare GPU machines: nothing of the login node is imported."""
    kwargs = json.dumps(TINY)
    code = (
        "import runpy, sys\n"
        "for name in ('snakemake', 'submitit', 'mlflow', 'pandas', 'seaborn', 'jsonschema', "
        "             'sklearn', 'captum', 'scipy', 'matplotlib', 'datasets', 'tabulate'):\n"
        "    sys.modules[name] = None\n"
        "import workflow.bench.suite\n"
        "runpy.run_module('workflow.bench.throughput', run_name='__main__')\n"
    )
    command = [sys.executable, "-c", code, "--model", "evo_deit_tiny_patch16_224"]
    command += ["--baseline", "deit_tiny_patch16_224", "--model-kwargs", kwargs]
    command += ["--baseline-kwargs", kwargs, "--batch-size", "2", "--threads", "1"]
    command += ["--rounds", "5", "--device", "cpu", "--output", str(tmp_path / "f.json")]
    done = subprocess.run(command, cwd=records.ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "evo_deit_tiny_patch16_224" in done.stdout
    assert "ceilings: MACs" in done.stdout
    found = records.read(tmp_path / "f.json")
    assert found["results"]["methods"][0]["run"] == "deit_tiny_patch16_224"


@pytest.mark.integration
def test_an_error_of_the_command_is_one_sentence():
    command = [sys.executable, "-m", "workflow.bench.throughput", "--model", "evo_deit_tinny"]
    command += ["--baseline", "deit_tiny_patch16_224", "--device", "cpu", "--threads", "1"]
    done = subprocess.run(command, cwd=records.ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ERROR: No model is called 'evo_deit_tinny'; did you mean")


def test_a_line_for_a_person():
    method = {"out_of_memory": False, "images_per_s": 120.0, "speedup": 1.5, "latency_ms": None}
    method |= {"speedup_interval": [1.48, 1.52], "ceilings": {"macs": 1.51, "roofline": 1.55}}
    assert "x 1.500 (1.480-1.520)  ceilings: MACs 1.51, roofline 1.55" in by_hand.line(method)
    assert by_hand.line({"out_of_memory": True}) == "out of memory"
