"""Trainings side by side on a machine with a GPU, at small size on the CPU; killed, too."""

import argparse
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from benchmarks.gpu import train, transport
from workflow.campaign import specs
from workflow.storage import journal, records


@pytest.fixture
def listed(tmp_path):
    """A function: a list of runs as a file."""

    def write(*lines: str) -> Path:
        path = tmp_path / "list.txt"
        path.write_text("\n".join(lines) + "\n")
        return path

    return write


@pytest.fixture
def campaign(tmp_path) -> train.Campaign:
    """A dense model, what goes on from it, and one more."""
    made = train.make_specs("cifar10", ["deit_tiny", "deit_tiny-continued", "evo_deit_tiny"], smoke=True)
    return train.Campaign(made, tmp_path / "work", argparse.Namespace(state_mib=1.0))


def publish(campaign: train.Campaign, run: str) -> None:
    """Let a run be trained."""
    results = {"top1": 50.0, "epochs": 3}
    records.write_json(campaign.folder(run) / "train.json", records.make(campaign.specs[run], results, 0.0))


def test_the_committed_list_can_be_trained():
    runs = train.read_list(Path(train.__file__).with_name("runs.txt"))
    made = train.make_specs("cifar10_gpu", runs, smoke=False)
    assert list(made) == runs
    assert len(runs) % 3 == 0


def test_specs_are_the_workflow_s(config):
    made = train.make_specs("cifar10", ["deit_tiny-s1", "evo_deit_tiny-common-s1"], smoke=False)
    assert made["evo_deit_tiny-common-s1"] == specs.train_spec(config, "cifar10", "evo_deit_tiny-common-s1")


def test_comments_and_repetitions_are_no_runs(listed):
    assert train.read_list(listed("# first", "deit_tiny  # dense", "", "evo_deit_tiny", "deit_tiny")) == [
        "deit_tiny",
        "evo_deit_tiny",
    ]
    with pytest.raises(train.ListError, match="names no run"):
        train.read_list(listed("# nothing"))


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        (["deit_tinny"], "deit_tinny is no run of cifar10; did you mean 'deit_tiny'"),
        (["host-evo"], "host-evo is no run of cifar10"),
        (
            ["deit_tiny-s1", "evo_deit_tiny-common"],
            "goes on from deit_tiny, which the list lacks; add deit_tiny",
        ),
        (["deit_tiny", "ps_deit_tiny-common"], "needs a search before its training"),
    ],
)
def test_a_list_that_can_not_be_trained_is_refused(runs, message):
    with pytest.raises(train.ListError, match=message):
        train.make_specs("cifar10", runs, smoke=False)


def test_a_setting_and_a_list_that_are_not_there_are_refused(tmp_path):
    with pytest.raises(train.ListError, match="--setting cifar is unknown; did you mean 'cifar10'"):
        train.make_specs("cifar", ["deit_tiny"], smoke=False)
    with pytest.raises(train.ListError, match="there is no such file"):
        train.read_list(tmp_path / "nowhere.txt")


def test_a_run_waits_for_the_weights_that_it_goes_on_from(campaign):
    assert campaign.next_run() == "deit_tiny"
    campaign.running["deit_tiny"] = None
    assert campaign.next_run() == "evo_deit_tiny"
    del campaign.running["deit_tiny"]
    publish(campaign, "deit_tiny")
    assert campaign.next_run() == "deit_tiny-continued"
    campaign.failed["deit_tiny-continued"] = "out of memory"
    assert campaign.next_run() == "evo_deit_tiny"
    assert campaign.untrained() == ["deit_tiny-continued", "evo_deit_tiny"]


def test_the_state_holds_needed_weights_and_newest_checkpoints(campaign, capsys):
    publish(campaign, "deit_tiny")
    campaign.running["evo_deit_tiny"] = None  # which may replace its checkpoints now
    files = {
        "deit_tiny": ["weights.pt", "checkpoints/step-000000005.pt"],
        "deit_tiny-continued": ["checkpoints/step-000000005.pt", "checkpoints/step-000000010.pt"],
        "evo_deit_tiny": ["checkpoints/step-000000005.pt"],
    }
    for run, names in files.items():
        for name in names:
            path = campaign.folder(run) / "attempts/1" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(bytes(400 << 10))
    assert [path.name for path in campaign.state()] == ["weights.pt"]
    campaign.running.clear()
    kept = [path.relative_to(campaign.work).as_posix() for path in campaign.state()]
    assert kept == [
        "runs/deit_tiny/attempts/1/weights.pt",
        "runs/deit_tiny-continued/attempts/1/checkpoints/step-000000010.pt",
    ]
    assert "evo_deit_tiny: step-000000005.pt does not fit into the state" in capsys.readouterr().err
    publish(campaign, "deit_tiny-continued")
    assert [path.name for path in campaign.state()] == ["step-000000005.pt"]


def test_a_run_whose_weights_are_needed_and_lost_is_trained_again(campaign, capsys):
    publish(campaign, "deit_tiny")
    publish(campaign, "evo_deit_tiny")
    campaign.retrain_lost()
    assert campaign.untrained() == ["deit_tiny", "deit_tiny-continued"]
    assert "deit_tiny is trained again: others go on from its weights" in capsys.readouterr().out
    publish(campaign, "deit_tiny")
    campaign.weights("deit_tiny").parent.mkdir(parents=True)
    campaign.weights("deit_tiny").write_bytes(b"weights")
    campaign.retrain_lost()
    assert campaign.untrained() == ["deit_tiny-continued"]


def test_a_record_of_another_spec_is_trained_again(campaign):
    other = campaign.specs["deit_tiny"] | {"seed": 7}
    records.write_json(campaign.folder("deit_tiny") / "train.json", records.make(other, {}, 0.0))
    assert campaign.next_run() == "deit_tiny"


def test_a_training_that_fails_leaves_the_others(campaign):
    campaign.running["evo_deit_tiny"] = argparse.Namespace(poll=lambda: 1)
    log = campaign.folder("evo_deit_tiny") / "log.txt"
    log.parent.mkdir(parents=True)
    log.write_text("Traceback\nValueError: odd\n\n")
    campaign.reap()
    assert campaign.failed == {"evo_deit_tiny": "ValueError: odd"}
    assert campaign.next_run() == "deit_tiny"


def test_when_the_minutes_are_over_all_is_packed(campaign, tmp_path):
    publish(campaign, "deit_tiny")
    campaign.weights("deit_tiny").parent.mkdir(parents=True)
    campaign.weights("deit_tiny").write_bytes(b"weights")
    (tmp_path / "output").mkdir()
    train.train_until(0.0, 0.0, campaign, tmp_path / "output")
    assert sorted(path.name for path in (tmp_path / "output").iterdir()) == ["state.tar.1", train.ARCHIVE]


# -- the command --------------------------------------------------------------------------------


@pytest.fixture
def cifar(images) -> Path:
    (images / "val").rename(images / "test")
    return images


def options(tmp_path: Path, cifar: Path, listed: Path, work: str = "work") -> list[str]:
    words = ["--smoke", "--list", str(listed), "--images", str(cifar)]
    return [*words, "--work", str(tmp_path / work), "--output", str(tmp_path / f"of-{work}")]


def test_images_that_are_not_there_are_one_sentence(tmp_path, listed, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train", *options(tmp_path, tmp_path / "nowhere", listed("deit_tiny"))])
    with pytest.raises(SystemExit, match="ERROR: No folder"):
        train.main()


def test_failed_trainings_end_the_command_with_their_names(tmp_path, cifar, listed, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train", *options(tmp_path, cifar, listed("deit_tiny"))])
    monkeypatch.setattr(train, "train_until", lambda *arguments: arguments[2].failed.update(deit_tiny="odd"))
    with pytest.raises(SystemExit, match="1 of 1 trainings failed: deit_tiny"):
        train.main()


def kill_when(happened, command: list[str], environment: dict) -> None:
    """Start a command, and kill it as soon as something has happened."""
    process = subprocess.Popen(command, cwd=records.ROOT, env=environment)
    while not happened():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()


def records_in(output: Path) -> dict[str, dict]:
    """The records in an output's archive, by their runs; none without an archive."""
    if not (output / train.ARCHIVE).exists():
        return {}
    with tempfile.TemporaryDirectory() as folder:
        transport.unpack(output / train.ARCHIVE, Path(folder))
        return {path.parent.name: records.read(path) for path in Path(folder).glob("runs/*/train.json")}


@pytest.mark.integration
def test_killed_twice_it_goes_on_here_and_elsewhere(tmp_path, cifar, listed, bare):
    """Here from the epoch in which it was killed, elsewhere with the weights of what was trained before."""
    runs = ["deit_tiny", "deit_tiny-continued"]
    command = [sys.executable, "-m", "benchmarks.gpu.train"]
    call = command + options(tmp_path, cifar, listed(*runs))
    log = tmp_path / "work/smoke/runs/deit_tiny/attempts/1/journal.jsonl"
    kill_when(lambda: journal.epochs(log), call, bare)
    output = tmp_path / "of-work"
    kill_when(lambda: (output / "state.tar.1").exists() and records_in(output), call, bare)
    call = command + options(tmp_path, cifar, listed(*runs), work="elsewhere") + ["--resume", str(output)]
    done = subprocess.run(call, cwd=records.ROOT, env=bare, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "not trained yet: nothing" in done.stdout
    made = records_in(tmp_path / "of-elsewhere")
    assert sorted(made) == runs
    for record in made.values():
        assert [entry["epoch"] for entry in record["results"]["history"]] == [1, 2, 3]
        assert record["provenance"]["manifest"]
    assert records_in(output) == {"deit_tiny": made["deit_tiny"]}
    assert not list((tmp_path / "of-elsewhere").glob("state.tar.*"))  # nothing is left to go on with
