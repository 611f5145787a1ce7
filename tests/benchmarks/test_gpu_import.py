"""What came back from a machine with a GPU becomes a committed measurement."""

import csv
import sys

import pytest

from benchmarks.gpu import import_results, speed, train, transport
from workflow.campaign import specs
from workflow.storage import journal, records

H100 = "NVIDIA H100 80GB HBM3"


def call(monkeypatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["import_results", *words])
    with pytest.raises(SystemExit) as ended:
        import_results.main()
    return ended.value.code


def method(run: str, **values) -> dict:
    measured = {"images_per_s": 100.0, "speedup": 1.4, "speedup_interval": [1.38, 1.42], "warnings": []}
    measured |= {"ceilings": {"macs": 1.51, "roofline": 1.45}, "latency_ms": None, "peak_memory_mib": 512.3}
    return {"run": run, "out_of_memory": False, **measured, **values}


@pytest.fixture
def speeds(config, tmp_path):
    """A function: an output of the command speed, with a record of its first step, changed."""

    def make(device: str = H100, **changes) -> str:
        spec = speed.plan(config)[0] | {"cuda_graphs": 0} | changes
        methods = [method("deit_small", speedup=1.0), method("evo_deit_small", warnings=[{"code": "x", "text": "odd"}])]
        results = {"device": device, "methods": methods, "warnings": []}
        work, output = tmp_path / "work", tmp_path / "output"
        output.mkdir(exist_ok=True)
        records.write_json(work / "deit_small.json", records.make(spec, results, 0.0))
        (work / "deit_tiny.fault").write_text("the measuring process ended with code -11\n")
        transport.pack(output / speed.ARCHIVE, work, work.iterdir())
        return str(output)

    return make


@pytest.fixture
def trainings(config, tmp_path):
    """A function: an output of the command train, with a record of deit_tiny and an unfinished run."""

    def make(**changes) -> str:
        spec = specs.train_spec(config, "cifar10", "deit_tiny") | changes
        work, output = tmp_path / "trained", tmp_path / "output"
        output.mkdir(exist_ok=True)
        for run in ("deit_tiny", "evo_deit_tiny"):
            records.write_json(work / f"runs/{run}/spec.json", specs.train_spec(config, "cifar10", run))
        records.write_json(work / "runs/deit_tiny/train.json", records.make(spec, {"top1": 80.0}, 0.0))
        journal.Journal(work / "runs/evo_deit_tiny/attempts/1/journal.jsonl").write("epoch", epoch=1, metrics={})
        transport.pack(output / train.ARCHIVE, work, [path for path in work.rglob("*") if path.is_file()])
        return str(output)

    return make


def test_speeds_go_to_their_machine_s_folder(speeds, tmp_path, monkeypatch, capsys):
    root = tmp_path / "measured"
    assert call(monkeypatch, speeds(), "--root", str(root)) == 0
    folder = root / "nvidia-h100-80gb-hbm3"
    assert records.read(folder / "gpu/deit_small.json")["results"]["device"] == H100
    assert H100 in (folder / "README.md").read_text()
    with open(folder / "gpu" / speed.TABLE) as file:
        dense, evo = csv.DictReader(file)
    assert (dense["model"], evo["speedup"], evo["peak_mib"], evo["note"]) == ("deit_small", "1.4", "512", "odd")
    printed = capsys.readouterr().out
    assert "deit_tiny: was not measured: the measuring process ended with code -11" in printed
    assert printed.endswith("1 imported, 0 left\n")
    assert call(monkeypatch, str(tmp_path / "output"), "--root", str(root)) == 0
    assert "there already" in capsys.readouterr().out


def test_a_record_is_never_replaced(speeds, tmp_path, monkeypatch, capsys):
    root = str(tmp_path / "measured")
    assert call(monkeypatch, speeds(), "--root", root) == 0
    assert call(monkeypatch, speeds(rounds=9), "--root", root) == 1
    assert "left: another record is there" in capsys.readouterr().out


def test_what_smoke_made_is_no_measurement(speeds, trainings, tmp_path, monkeypatch, capsys):
    speeds(smoke=True, device="an AMD EPYC")
    root = tmp_path / "measured"
    assert call(monkeypatch, trainings(smoke=True), "--root", str(root)) == 1
    assert "made with --smoke" in capsys.readouterr().out
    assert not root.exists()


def test_trainings_go_to_their_setting_s_folder(trainings, tmp_path, monkeypatch, capsys):
    root = tmp_path / "measured"
    assert call(monkeypatch, trainings(), "--root", str(root)) == 0
    assert records.read(root / "cifar10/runs/deit_tiny/train.json")["results"] == {"top1": 80.0}
    assert (root / "cifar10/README.md").exists()
    assert "evo_deit_tiny: unfinished, 1 of " in capsys.readouterr().out


def test_a_training_of_another_spec_is_left_with_the_difference(trainings, tmp_path, monkeypatch, capsys):
    assert call(monkeypatch, trainings(seed=5), "--root", str(tmp_path / "measured")) == 1
    assert "left: seed is 5, but 0 is asked for (workflow/config/)" in capsys.readouterr().out


def test_a_damaged_archive_is_one_sentence(speeds, tmp_path, monkeypatch):
    archive = tmp_path / "output" / speed.ARCHIVE
    speeds()
    archive.write_bytes(archive.read_bytes()[:-100])
    code = call(monkeypatch, str(tmp_path / "output"), "--root", str(tmp_path / "measured"))
    assert f"{archive} is damaged" in code


def test_a_folder_of_something_else_is_one_sentence(tmp_path, monkeypatch):
    code = call(monkeypatch, str(tmp_path))
    assert "holds neither speed.tar.gz nor trainings.tar.gz" in code
