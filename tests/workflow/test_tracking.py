"""The mirror loses and doubles nothing, whatever is killed."""

import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from workflow import locks, records, runs
from workflow.journal import Journal
from workflow.login import mirror_process, tracking

REPO = Path(__file__).parent.parent.parent
COMMAND = [sys.executable, "-m", "workflow.login.tracking", "--root"]


@pytest.fixture(scope="session")
def database(tmp_path_factory) -> Path:
    """A root whose database is made once: MLflow takes 5 s for it."""
    root = tmp_path_factory.mktemp("made")
    assert tracking.Mirror(root, f"sqlite:///{root}/mlflow.db").catch_up()
    return root / "mlflow.db"


@pytest.fixture
def root(tmp_path, monkeypatch, database) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copy(database, tmp_path)
    return tmp_path


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def mirror(root, said):
    """A function that makes a mirror as a fresh process would have it."""
    return lambda: tracking.Mirror(root, tracking.tracking_uri(root), said.append)


@pytest.fixture
def attempt(root, config):
    """A function that makes the attempt folder of a demo run."""

    def make(run: str, number: int = 1) -> Path:
        folder = root / "results/demo/runs" / run / "attempts" / str(number)
        runs.write_spec(folder / "spec.json", runs.train_spec(config, "demo", run))
        return folder

    return make


def write_epochs(folder: Path, first: int, last: int, shift: float = 0.0) -> None:
    log = Journal(folder / "journal.jsonl")
    log.write("start", epochs=20, epoch=first - 1)
    for epoch in range(first, last + 1):
        metrics = {"loss": epoch + shift, "top1": 50.0 + epoch + shift, "ema_top1": None}
        log.write("epoch", epoch=epoch, metrics=metrics)
    log.close()


def write_record(folder: Path, results: dict) -> None:
    spec = json.loads((folder / "spec.json").read_text())
    made = records.make(spec, results, time.time() - 60, device="a processor")
    records.write_json(folder / "record.json", made)


def finish(folder: Path) -> None:
    write_record(folder, {"top1": 53.0, "epochs": 3, "best_top1": 60.0, "train_s": 9.0})


def shown(root: Path) -> dict:
    """(run name, attempt) -> (MLflow's run, {(metric, step): values}); each may stand once only."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking.tracking_uri(root))
    experiment = client.get_experiment_by_name("demo").experiment_id
    found = {}
    for run in client.search_runs([experiment]):
        points: dict = {}
        for key in run.data.metrics:
            for point in client.get_metric_history(run.info.run_id, key):
                points.setdefault((key, point.step), []).append((point.value, point.timestamp))
        name = run.info.run_name, run.data.tags.get("attempt", run.data.tags.get("sha256"))
        assert name not in found, "a run was made twice"
        found[name] = run, points
    return found


def expected(folder: Path) -> dict:
    points = {}
    for line in (folder / "journal.jsonl").read_text().splitlines():
        event = json.loads(line)
        for key, value in event.get("metrics", {}).items():
            if value is not None:
                at = (value, round(1000 * event["time"]))
                points.setdefault((key, event["epoch"]), [at])
    return points


def test_every_point_of_the_journal_stands_once(root, mirror, attempt, config):
    folder = attempt("evo_deit_tiny")
    write_epochs(folder, 1, 3)
    write_epochs(folder, 3, 5, shift=0.5)  # resumed; its predecessor left epoch 3 unsaved
    first = mirror()
    assert first.catch_up()
    write_epochs(folder, 5, 6, shift=0.25)
    assert first.catch_up()
    assert mirror().catch_up()
    run, points = shown(root)["evo_deit_tiny", "1"]
    assert points == expected(folder)
    assert run.info.status == "RUNNING"
    wanted = runs.train_spec(config, "demo", "evo_deit_tiny")
    assert run.data.params["recipe.epochs"] == str(wanted["recipe"]["epochs"])
    assert run.data.params["model.name"] == wanted["model"]["name"]
    tags = {"kind": "train", "method": "Evo-ViT", "backbone": "DeiT-T", "table": "1", "seed": "0"}
    assert run.data.tags.items() >= tags.items()


def test_a_finished_run_has_its_numbers_and_files_and_is_left_alone(root, mirror, attempt):
    folder = attempt("deit_tiny")
    write_epochs(folder, 1, 3)
    finish(folder)
    (folder.parent.parent / "train.log").write_text("said\n")
    assert mirror().catch_up()
    before = shown(root)["deit_tiny", "1"]
    run, points = before
    assert run.info.status == "FINISHED"
    assert run.data.metrics["best_top1"] == 60.0
    assert run.data.metrics["total_train_s"] == 9.0
    assert points.items() >= expected(folder).items()
    assert run.data.tags["device"] == "a processor"
    held = Path(run.info.artifact_uri.removeprefix("file://"))
    assert {path.name for path in held.iterdir()} == {"spec.json", "record.json", "train.log"}
    again = mirror()
    again._connect()
    again.client.log_batch = again.client.log_artifact = None  # any writing would fail
    assert again.catch_up()
    assert shown(root)["deit_tiny", "1"][1] == points


def test_a_measurement_shows_each_model(root, mirror, config):
    point = {"device": "cpu", "mode": "fused", "precision": "fp32", "batch_size": 32}
    spec = runs.throughput_spec(config, "demo", "deit_tiny", {**point, "threads": 2, "rounds": 5})
    folder = root / "results/demo/throughput/deit_tiny/cpu-fused-fp32-b32/attempts/1"
    runs.write_spec(folder / "spec.json", spec)
    method = {"images_per_s": 20.0, "speedup": 1.5, "macs_g": 0.7, "params_m": 5.9}
    write_record(folder, {"methods": [{"run": "evo_deit_tiny", **method}]})
    assert mirror().catch_up()
    run, _ = shown(root)["deit_tiny/cpu-fused-fp32-b32", "1"]
    assert run.data.metrics["speedup_pct.evo_deit_tiny"] == 50.0
    assert run.data.metrics["images_per_s.evo_deit_tiny"] == 20.0
    assert run.data.params["batch_size"] == "32"
    assert run.data.tags.items() >= {"kind": "throughput", "backbone": "DeiT-T"}.items()


def test_failed_then_running_then_replaced(root, mirror, attempt):
    folder = attempt("deit_tiny")
    dead = {"launcher": "local", "host": os.uname().nodename, "job_id": "999999", "started": "1"}
    records.write_json(folder / "job.json", dead)
    write_epochs(folder, 1, 1)
    mine = mirror()

    def status() -> str:
        assert mine.catch_up()
        return shown(root)["deit_tiny", "1"][0].info.status

    assert status() == "RUNNING"  # killed, without an error: to be resumed
    (folder / "error-rank0.json").write_text("{}")
    with locks.exclusive(folder / "rank0.lock"):
        assert status() == "RUNNING"  # its first process still works
    assert status() == "FAILED"
    (folder / "error-rank0.json").unlink()
    assert status() == "RUNNING"
    write_epochs(attempt("deit_tiny", 2), 1, 2)
    assert status() == "KILLED"
    assert shown(root)["deit_tiny", "2"][0].info.status == "RUNNING"


def test_a_deleted_folder_made_anew_is_another_run(root, mirror, attempt):
    folder = attempt("deit_tiny")
    write_epochs(folder, 1, 2)
    mirror().catch_up()
    shutil.rmtree(folder)
    write_epochs(attempt("deit_tiny"), 1, 2, shift=7.0)
    mirror().catch_up()
    with pytest.raises(AssertionError, match="twice"):
        shown(root)


def test_a_run_deleted_in_the_ui_stays_so_and_bars_no_other(root, mirror, attempt, said):
    folder = attempt("deit_tiny")
    write_epochs(folder, 1, 1)
    mine = mirror()
    mine.catch_up()
    mine.client.delete_run(shown(root)["deit_tiny", "1"][0].info.run_id)
    write_epochs(folder, 2, 2)
    write_epochs(attempt("evo_deit_tiny"), 1, 1)
    mine.catch_up()
    assert mine.catch_up(), said
    assert set(shown(root)) == {("evo_deit_tiny", "1")}


def test_a_table_is_a_new_run_only_when_it_changes(root, mirror):
    table = root / "results/demo/table1.partial.csv"
    table.parent.mkdir(parents=True)
    for content, count in (("a,b\n1,2\n", 1), ("a,b\n1,2\n", 1), ("a,b\n1,3\n", 2)):
        table.write_text(content)
        assert mirror().catch_up()
        assert len(shown(root)) == count
    for (name, _), (run, _) in shown(root).items():
        assert (name, run.info.status) == ("table1.partial", "FINISHED")
        held = Path(run.info.artifact_uri.removeprefix("file://"))
        assert json.loads((held / "table1.partial.json").read_text())["columns"] == ["a", "b"]
        assert run.data.tags["table"] == "1"


def test_a_damaged_attempt_bars_no_other(root, mirror, attempt, said):
    (attempt("deit_small") / "spec.json").write_text("{")
    write_epochs(attempt("evo_deit_tiny"), 1, 1)
    mine = mirror()
    assert not mine.catch_up()
    assert not mine.catch_up()
    assert set(shown(root)) == {("evo_deit_tiny", "1")}
    assert len(said) == 1
    assert "deit_small/attempts/1 can't be read" in said[0]


def test_an_answer_that_got_lost_makes_no_second_run(root, mirror, attempt):
    """The server made the run, but the mirror never heard of it."""
    write_epochs(attempt("deit_tiny"), 1, 2)
    mine = mirror()
    mine._connect()
    make = mine.client.create_run

    def lost(*arguments, **values):
        make(*arguments, **values)
        raise ConnectionError("reset by peer")

    mine.client.create_run = lost
    assert not mine.catch_up()
    assert mine.catch_up()
    assert len(shown(root)) == 1


def test_an_unreachable_server_costs_a_sentence(root, attempt, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:9")
    write_epochs(attempt("deit_tiny"), 1, 1)
    started = time.monotonic()
    command = [*COMMAND, str(root), "--once"]
    ended = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "MLflow at http://127.0.0.1:9 can't be written" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert "secret" not in ended.stderr + ended.stdout
    assert len((ended.stderr + ended.stdout).splitlines()) == 2
    assert time.monotonic() - started < 30


def test_a_second_mirror_ends_at_once(root):
    with locks.exclusive(tracking.lock_path(root, tracking.tracking_uri(root))):
        command = [*COMMAND, str(root), "--once"]
        ended = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)
    assert ended.returncode == 0
    assert "Another mirror is at work" in ended.stdout


def test_snakemakes_mirror_ends_with_a_last_pass(root, attempt, capsys):
    folder = attempt("deit_tiny")
    write_epochs(folder, 1, 2)
    pid = tracking.start_mirror(root)
    write_epochs(folder, 3, 3)
    tracking.finish_mirror(pid, root)
    assert "`mlflow ui` shows every run" in capsys.readouterr().err
    assert shown(root)["deit_tiny", "1"][1] == expected(folder)


def test_it_follows_who_was_refused(root, attempt):
    """A killed snakemake's mirror serves the next snakemake too, and ends after it."""
    lock = tracking.lock_path(root, tracking.tracking_uri(root))
    ours = subprocess.Popen(["sleep", "60"])
    followed = mirror_process.Followed(lock)
    assert not followed.any_lives()
    followed.add(ours.pid)
    assert followed.any_lives()
    ours.kill()
    ours.wait()
    assert not followed.any_lives()
    assert not list(followed.folder.glob("[0-9]*"))


@pytest.mark.integration
def test_killed_at_random_points_it_loses_and_doubles_nothing(root, attempt):
    names = ("deit_tiny", "evo_deit_tiny", "dynamic_deit_tiny", "deit_small")
    folders = [attempt(run) for run in names]
    chance = random.Random(3)
    hasty = "from workflow.login import tracking as t; t.POLL_S = 0.01; t.main()"
    command = [sys.executable, "-c", hasty, "--root", str(root), "--follow"]
    for kill in range(4):
        untouched = (root / "mlflow.db").stat().st_mtime_ns
        mirror = subprocess.Popen([*command, "--until-gone", str(os.getpid())], cwd=REPO)
        epoch, until = 50 * kill, float("inf")
        while time.monotonic() < until and epoch < 50 * kill + 50:
            epoch += 1
            for folder in folders:
                write_epochs(folder, epoch, epoch)
            if until == float("inf"):
                while (root / "mlflow.db").stat().st_mtime_ns == untouched:
                    assert mirror.poll() is None
                    time.sleep(0.005)
                until = time.monotonic() + 0.6 * chance.random()
        finish(folders[kill])
        time.sleep(0.1 * chance.random())
        mirror.kill()
        mirror.wait()
    subprocess.run([*COMMAND, str(root), "--once"], cwd=REPO, check=True)
    found = shown(root)
    assert {name for name, _ in found} == set(names)
    for (name, _), (run, points) in found.items():
        folder = root / "results/demo/runs" / name / "attempts/1"
        per_epoch = {key: point for key, point in points.items() if key[0] in ("loss", "top1")}
        assert per_epoch == expected(folder)
        assert all(len(values) == 1 for values in points.values())
        assert run.info.status == "FINISHED"
        assert run.data.tags["device"] == "a processor"
