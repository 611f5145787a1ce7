"""The mirror loses and doubles nothing, whatever is killed."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from workflow import journal, locks, records, runs
from workflow.journal import Journal
from workflow.login import tracking

REPO = Path(__file__).parent.parent.parent
METRICS = {"loss": 1.5, "top1": 50.0, "lr": 0.1}


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


@pytest.fixture
def attempt(root, config):
    """A function that makes an attempt folder of a demo run."""

    def make(run: str, number: int = 1) -> Path:
        folder = root / "results/demo/runs" / run / "attempts" / str(number)
        runs.write_spec(folder / "spec.json", runs.train_spec(config, "demo", run))
        return folder

    return make


def write_epochs(folder: Path, first: int, last: int) -> None:
    log = Journal(folder / "journal.jsonl")
    for epoch in range(first, last + 1):
        values = {name: value + epoch for name, value in METRICS.items()}
        log.write("epoch", epoch=epoch, metrics=values)
    log.close()


def finish(folder: Path, config, run: str) -> None:
    results = {"best_top1": 60.0, "best_epoch": 2, "val_images": 20}
    spec = runs.train_spec(config, "demo", run)
    records.write_json(folder / "record.json", records.make(spec, results, 0.0, device="cpu"))


def once(root: Path) -> str:
    command = [sys.executable, "-m", "workflow.login.tracking", "--once", "--root", str(root)]
    shown = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)
    return shown.stdout + shown.stderr


def held(root: Path) -> dict:
    """run name -> {(metric, step): [values]} as MLflow has them, and the runs themselves."""
    client = tracking.Mirror(root).client
    experiment = client.get_experiment_by_name("demo")
    found = {}
    for run in client.search_runs([experiment.experiment_id], max_results=1000):
        points: dict = {}
        for key in run.data.metrics:
            for point in client.get_metric_history(run.info.run_id, key):
                points.setdefault((key, point.step), []).append(point.value)
        assert run.info.run_name not in found, "a run was made twice"
        found[run.info.run_name] = (run, points)
    return found


def expected(folder: Path) -> dict:
    return {
        (key, entry["epoch"]): [value]
        for entry in journal.epochs(folder / "journal.jsonl")
        for key, value in entry.items()
        if key != "epoch"
    }


def test_a_run_is_mirrored_and_a_second_pass_doubles_nothing(root, attempt, config):
    folder = attempt("evo_deit_tiny")
    write_epochs(folder, 1, 3)
    write_epochs(folder, 3, 5)  # epoch 3 twice: its job died before the checkpoint
    mirror = tracking.Mirror(root)
    assert mirror.pass_over() == 1
    assert mirror.pass_over() == 0
    tracking.Mirror(root).pass_over()
    run, points = held(root)["evo_deit_tiny"]
    assert points == expected(folder)
    assert run.info.status == "RUNNING"
    assert run.data.params["recipe.epochs"] == str(config.settings["demo"]["recipe"]["epochs"])
    assert run.data.tags["method"] == "Evo-ViT"

    finish(folder, config, "evo_deit_tiny")
    tracking.Mirror(root).pass_over()
    run, points = held(root)["evo_deit_tiny"]
    assert run.info.status == "FINISHED"
    assert run.data.metrics["best_top1"] == 60.0
    assert run.data.tags["device"] == "cpu"
    assert {key: points[key] for key in expected(folder)} == expected(folder)


def test_a_failed_run_says_so_and_is_running_again_when_resumed(root, attempt):
    folder = attempt("deit_tiny")
    write_epochs(folder, 1, 1)
    (folder / "error-rank0.json").write_text('{"rank": 0, "sentence": "x", "traceback": ""}')
    mirror = tracking.Mirror(root)
    mirror.pass_over()
    assert held(root)["deit_tiny"][0].info.status == "FAILED"
    (folder / "error-rank0.json").unlink()
    mirror.pass_over()
    assert held(root)["deit_tiny"][0].info.status == "RUNNING"


def test_a_forced_rerun_is_a_run_of_its_own(root, attempt):
    write_epochs(attempt("deit_tiny", 1), 1, 2)
    write_epochs(attempt("deit_tiny", 2), 1, 1)
    tracking.Mirror(root).pass_over()
    client = tracking.Mirror(root).client
    experiment = client.get_experiment_by_name("demo")
    assert len(client.search_runs([experiment.experiment_id])) == 2


def test_a_table_is_a_run_with_its_csv_and_new_only_when_it_changes(root):
    table = root / "results/demo/table1.csv"
    table.parent.mkdir(parents=True)
    for content, count in (("a,b\n1,2\n", 1), ("a,b\n1,2\n", 1), ("a,b\n1,3\n", 2)):
        table.write_text(content)
        tracking.Mirror(root).pass_over()
        client = tracking.Mirror(root).client
        experiment = client.get_experiment_by_name("demo")
        found = client.search_runs([experiment.experiment_id], "tags.kind = 'table'")
        assert len(found) == count
        names = [artifact.path for artifact in client.list_artifacts(found[0].info.run_id)]
        assert names == ["table1.csv"]


@pytest.mark.integration
def test_killed_at_random_points_it_still_ends_complete(root, attempt, config):
    """Writers go on while the mirror is killed again and again; then every point is compared."""
    tracking.Mirror(root).pass_over()  # the database is made once, before
    folders = {run: attempt(run) for run in ("deit_tiny", "evo_deit_tiny", "deit_small")}
    generator = random.Random(0)
    for round_ in range(5):
        command = [sys.executable, "-m", "workflow.login.tracking", "--root", str(root)]
        mirror = subprocess.Popen([*command, "--follow", str(os.getpid())], cwd=REPO)
        deadline = time.monotonic() + 4 + 5 * generator.random()
        epoch = 20 * round_
        while time.monotonic() < deadline:
            epoch = min(epoch + 1, 20 * round_ + 20)
            for folder in folders.values():
                write_epochs(folder, epoch, epoch)
            time.sleep(0.1)
        mirror.kill()
        mirror.wait()
    finish(folders["deit_tiny"], config, "deit_tiny")
    once(root)
    found = held(root)
    assert set(found) == set(folders)
    for run, folder in folders.items():
        points = {key: value for key, value in found[run][1].items() if key[0] in METRICS}
        assert points == expected(folder)


def test_an_unreachable_server_costs_one_sentence(root, attempt, monkeypatch):
    write_epochs(attempt("deit_tiny"), 1, 1)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    started = time.monotonic()
    said = once(root)
    assert "MLflow at http://127.0.0.1:9" in said
    assert "Traceback" not in said
    assert time.monotonic() - started < 60


def test_a_second_mirror_leaves_the_first_alone(root, monkeypatch):
    monkeypatch.setattr(tracking, "POLL_S", 0.1)
    with locks.exclusive(tracking.lock_path(root)):
        monkeypatch.setattr(sys, "argv", ["tracking", "--once", "--root", str(root)])
        tracking.main()
    assert not (root / "mlflow.db").exists()


def test_the_mirror_ends_with_its_workflow_and_a_last_pass(root, attempt):
    folder = attempt("deit_tiny")
    write_epochs(folder, 1, 2)
    process = tracking.start_mirror(root)
    write_epochs(folder, 3, 3)
    tracking.finish_mirror(process, root)
    assert process.poll() is not None
    assert held(root)["deit_tiny"][1] == expected(folder)
