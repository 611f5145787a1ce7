"""The speeds that a machine with a GPU is asked for, at small size on the CPU; killed, too."""

import csv
import os
import signal
import subprocess
import sys
import tarfile
import time

import pytest
import torch

from benchmarks.gpu import speed, transport
from tests.bench.timed import shorten
from workflow.bench import process
from workflow.storage import records


@pytest.fixture
def steps(loaded_config, monkeypatch) -> list[dict]:
    """The steps at small size, each measured in a moment."""
    shorten(monkeypatch)
    return speed.plan(loaded_config, smoke=True)


def test_the_most_telling_comes_first(config):
    steps = speed.plan(config)
    names = [spec["section"] for spec in steps]
    assert names[:6] == [
        "deit_small",
        "deit_tiny",
        "deit_small-b1",
        "deit_tiny-b1",
        "deit_small-paper",
        "deit_tiny-paper",
    ]
    assert len(set(names)) == len(names)
    measured = {model["run"] for spec in steps for model in spec["models"]}
    for size in ("small", "tiny"):
        others = config.items["sections"][f"methods_{size}"][2:]
        assert set(others) <= measured
        assert not any(run.startswith("evo") for run in others)
    assert {"evo_deit_base", "evo_levit_256", "evo_deit_small_384"} <= measured


def test_deferred_scores_are_turned_off_for_comparison(config):
    first = speed.plan(config)[0]
    _, evo, undeferred = first["models"]
    assert evo["kwargs"] == undeferred["kwargs"]
    assert "defers_scores" not in evo
    assert undeferred["defers_scores"] is False
    assert speed.names_of(first) == ["deit_small", "deit_small-graph"]
    paper = next(spec for spec in speed.plan(config) if spec["mode"] == "paper")
    assert speed.names_of(paper) == [paper["section"]]


def test_methods_whose_speed_depends_on_weights_have_their_profile(config):
    steps = {spec["section"]: spec for spec in speed.plan(config)}
    model = steps["methods-ats_deit_small"]["models"][1]
    assert model["kwargs"]["keep_profile"] == config.items["profiles"]["ats_deit_small"]["keep_profile"]
    assert model["profile"] == "assumed"


def test_a_step_s_record(steps):
    made = {}
    speed.Bench().measure(steps[0], made.__setitem__)
    assert list(made) == ["deit_small"]
    results = made["deit_small"]["results"]
    dense, evo, undeferred = results["methods"]
    assert (dense["run"], evo["run"], undeferred["run"]) == (
        "deit_small",
        "evo_deit_small",
        "evo_deit_small-undeferred",
    )
    assert dense["speedup"] == 1
    assert evo["speedup_interval"][0] <= evo["speedup"] <= evo["speedup_interval"][1]
    assert evo["ceilings"]["macs"] > 1
    assert evo["check"]["distance"] <= evo["check"]["tolerance"]
    assert made["deit_small"]["spec"]["smoke"] is True


def test_a_dense_model_is_prepared_once_for_steps_in_a_row(steps, monkeypatch):
    bench, prepared = speed.Bench(), []
    prepare_model = bench.prepare_model
    monkeypatch.setattr(bench, "prepare_model", lambda m, *rest: prepared.append(m["run"]) or prepare_model(m, *rest))
    made = {}
    one_other = steps[0] | {"models": steps[0]["models"][:2]}
    for _ in range(2):
        bench.measure(one_other, made.__setitem__)
    assert prepared == ["deit_small", "evo_deit_small", "evo_deit_small"]
    assert len(made["deit_small"]["results"]["methods"][0]["rounds"]) == speed.ROUNDS + 1  # of its own step alone
    bench.measure(one_other | {"batch_size": 1}, made.__setitem__)
    assert prepared[3:] == ["deit_small", "evo_deit_small"]


def test_what_can_not_be_measured_is_noted_and_the_next_step_goes_on(steps, monkeypatch, tmp_path):
    measure = speed.Bench.measure

    def failing(self, spec, keep):
        if spec["section"] == "deit_small":
            raise process.MeasurementError("it gives other outputs")
        measure(self, spec, keep)

    monkeypatch.setattr(speed.Bench, "measure", failing)
    monkeypatch.setattr(speed, "plan", lambda config, smoke=False: steps)
    speed.measure_all(tmp_path, smoke=True)
    assert (tmp_path / "deit_small.fault").read_text() == "it gives other outputs\n"
    assert all(speed.is_over(tmp_path, spec) for spec in steps)
    speed.write_table(tmp_path)
    with open(tmp_path / speed.TABLE) as file:
        rows = list(csv.DictReader(file))
    assert [(row["step"], row["model"]) for row in rows] == [
        ("deit_small-paper", "deit_small"),
        ("deit_small-paper", "evo_deit_small"),
    ]
    assert rows[1]["cuda_graph"] == "False"
    assert float(rows[1]["low"]) <= float(rows[1]["speedup"]) <= float(rows[1]["high"])


def test_a_model_that_does_not_run_leaves_the_others(steps, monkeypatch):
    bench, made = speed.Bench(), {}
    prepare_model = bench.prepare_model

    def refusing(model, *rest):
        if model["run"].endswith("undeferred"):
            raise process.MeasurementError("it can't be compiled")
        return prepare_model(model, *rest)

    monkeypatch.setattr(bench, "prepare_model", refusing)
    bench.measure(steps[0], made.__setitem__)
    _, evo, undeferred = speed.rows_of(made["deit_small"])
    assert evo["speedup"] > 0
    assert (undeferred["speedup"], undeferred["note"]) == ("", "it can't be compiled")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
def test_graphs_and_deferred_scores_on_a_gpu(config):
    spec = speed.plan(config)[0] | {"batch_size": 4}
    spec["models"] = [model | {"kwargs": model["kwargs"] | speed.SMOKE} for model in spec["models"]]
    made = {}
    speed.Bench().measure(spec, made.__setitem__)
    assert list(made) == ["deit_small", "deit_small-graph"]
    for name, record in made.items():
        for method in record["results"]["methods"]:
            assert method["speedup"] > 0
            assert method["cuda_graph"] == name.endswith("-graph")
            assert method["peak_memory_mib"] > 0


def test_a_state_in_parts_comes_back(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(transport, "PART_BYTES", 4096)
    work, output, other = tmp_path / "work", tmp_path / "output", tmp_path / "other"
    (work / "runs").mkdir(parents=True)
    output.mkdir()
    (work / "runs/weights.pt").write_bytes(os.urandom(10_000))
    transport.pack_state(output, work, [work / "runs/weights.pt"])
    assert len(list(output.glob("state.tar.*"))) > 2
    transport.unpack_state(output, other)
    assert (other / "runs/weights.pt").read_bytes() == (work / "runs/weights.pt").read_bytes()
    (output / "state.tar.1").write_bytes(os.urandom(4096))  # of another state
    transport.unpack_state(output, tmp_path / "third")
    assert "are no parts of one state" in capsys.readouterr().err
    transport.pack_state(output, work, [])
    assert list(output.iterdir()) == []


# -- the command, in processes of its own -------------------------------------------------------


def command(tmp_path, *words: str) -> list[str]:
    output, work = str(tmp_path / "output"), str(tmp_path / "work")
    return [sys.executable, "-m", "benchmarks.gpu.speed", "--smoke", "--output", output, "--work", work, *words]


@pytest.mark.integration
def test_killed_and_called_again_it_goes_on(tmp_path, bare):
    options = {"cwd": records.ROOT, "env": bare}
    first = tmp_path / "work/smoke/deit_small.json"
    killed = subprocess.Popen(command(tmp_path), **options)
    while not first.exists():
        assert killed.poll() is None
        time.sleep(0.1)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    kept = first.read_text()
    done = subprocess.run(command(tmp_path), **options, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "not measured yet: nothing" in done.stdout
    assert first.read_text() == kept
    assert [path.name for path in (tmp_path / "output").iterdir()] == [speed.ARCHIVE]
    with tarfile.open(tmp_path / "output" / speed.ARCHIVE) as tar:
        assert sorted(tar.getnames()) == ["deit_small-paper.json", "deit_small.json", speed.TABLE]


@pytest.mark.integration
def test_it_ends_when_its_minutes_are_over(tmp_path, bare):
    started = time.time()
    done = subprocess.run(
        command(tmp_path, "--minutes", "0.26"), cwd=records.ROOT, env=bare, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "deit_small" in done.stdout.splitlines()[-1]
    assert time.time() - started < 60


def test_without_a_gpu_it_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["speed", "--output", str(tmp_path)])
    with pytest.raises(SystemExit, match="torch sees no GPU; --smoke tests this command on the CPU"):
        speed.main()
