"""The follower that snakemake starts: it ends with its parent after a last pass, and may be killed at any point."""

import random
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.tracking.conftest import COMMAND, PATIENCE_S, REPO, expected, finish, shown, write_epochs
from workflow.launch import follow
from workflow.storage import locks, records
from workflow.tracking import sync


def once(root: Path) -> subprocess.CompletedProcess:
    command = [*COMMAND, str(root), "--once"]
    return subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=True)


@pytest.mark.integration
def test_a_second_sync_ends_at_once(root):
    with locks.exclusive(sync.lock_path(root, sync.tracking_uri(root))):
        assert "Another MLflow sync is at work" in once(root).stdout


@pytest.mark.integration
def test_snakemakes_follower_ends_with_a_last_pass(root, attempt, capsys):
    folder = attempt("deit_tiny")
    write_epochs(folder, 1, 2)
    follower = sync.start(root)
    write_epochs(folder, 3, 3)
    sync.finish(follower, root, PATIENCE_S)
    assert "`make ui` shows every run" in capsys.readouterr().err
    assert shown(root)["deit_tiny", "1"][1] == expected(folder)


@pytest.mark.integration
def test_a_follower_whose_snakemake_is_killed_ends_with_a_last_pass(root, attempt):
    folder = attempt("deit_tiny")
    write_epochs(folder, 1, 2)
    code = (
        "import sys, time; from pathlib import Path; from workflow.tracking import sync\n"
        "follower = sync.start(Path(sys.argv[1])); print('started', flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", code, str(root)]
    snakemake = subprocess.Popen(command, cwd=REPO, stdout=subprocess.PIPE, text=True)
    assert snakemake.stdout.readline() == "started\n"
    write_epochs(folder, 3, 3)
    snakemake.kill()
    snakemake.wait()
    deadline = time.monotonic() + PATIENCE_S
    while "1 runs are in sqlite:///" not in (root / sync.LOG).read_text():
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert shown(root)["deit_tiny", "1"][1] == expected(folder)


@pytest.mark.integration
def test_a_killed_follower_is_reported_and_the_next_sync_catches_up(root, attempt, capsys):
    folder = attempt("deit_tiny")
    follower = sync.start(root)
    follower.kill()
    follower.wait()
    write_epochs(folder, 1, 2)
    sync.finish(follower, root, PATIENCE_S)
    assert "Not everything is in MLflow yet" in capsys.readouterr().err
    once(root)
    assert shown(root)["deit_tiny", "1"][1] == expected(folder)


class Ended:
    """A follower that ends as it is told to."""

    pid = 7

    def __init__(self, code: int):
        self.code, self.asked = code, False
        self.stdin = SimpleNamespace(close=self.close)

    def close(self) -> None:
        self.asked = True

    def wait(self, seconds: float) -> int:
        assert self.asked
        return self.code


def test_a_last_pass_that_failed_is_reported(root, capsys):
    sync.finish(Ended(1), root)
    message = capsys.readouterr().err
    assert "Not everything is in MLflow yet" in message
    assert "tracking --once` catches up" in message
    assert "shows every run" not in message


def test_jobs_that_go_on_without_snakemake_are_reported(root, attempt, capsys):
    folder = attempt("deit_tiny")
    records.write_json(folder / "job.json", {"launcher": "local", "host": "x", "job_id": "7"})
    with locks.exclusive(folder / "rank0.lock"):
        sync.finish(Ended(0), root)
    assert "Jobs go on" in capsys.readouterr().err


def test_a_job_that_is_just_being_requeued_is_waited_for(root, attempt, monkeypatch):
    """For a moment Slurm shows it as ended."""
    folder = attempt("deit_tiny")
    job = {"launcher": "slurm", "job_id": "7", "submitted": 1.0}
    records.write_json(folder / "job.json", job)
    states = ["PREEMPTED"] * 3 + ["PENDING"] * 4 + ["COMPLETED"] * 90
    passes, waited = [], []
    now = time.monotonic
    monkeypatch.setattr(time, "sleep", waited.append)  # takes no time but is counted
    monkeypatch.setattr(time, "monotonic", lambda: now() + sum(waited))
    current = SimpleNamespace(results=sync.Results(root), catch_up=lambda: passes.append(1) or True)
    current.results.queue.max_age_s = 0

    def ask(*command):
        assert "--me" in command  # no question about a single job
        return f"7|{states[len(passes) - 1]}|None|node1|N/A", ""

    current.results.queue.ask = ask
    assert sync.follow_jobs(current)
    grace_s = follow.GRACE_S["slurm"]
    assert len(passes) - 7 >= grace_s / sync.POLL_S
    assert sum(waited) < 2 * grace_s + 40


def test_old_jobs_cost_one_question_together(root, attempt):
    asked = []
    for number, run in enumerate(("deit_tiny", "deit_small", "evo_deit_tiny"), 1):
        job = {"launcher": "slurm", "job_id": str(number), "submitted": 1.0}
        records.write_json(attempt(run) / "job.json", job)
    results = sync.Results(root)
    results.queue.ask = lambda *command: asked.append(command) or ("", "")
    assert not results.a_job_lives()
    assert len(asked) == 1


@pytest.mark.integration
def test_killed_at_random_points_it_loses_and_doubles_nothing(root, attempt):
    names = ("deit_tiny", "evo_deit_tiny", "dynamic_deit_tiny", "deit_small")
    folders = [attempt(run) for run in names]
    chance = random.Random(3)
    hasty = "from workflow.tracking import __main__, sync; sync.POLL_S = 0.01; __main__.main()"
    command = [sys.executable, "-c", hasty, "--root", str(root), "--until-closed"]
    for kill in range(4):
        untouched = (root / "mlflow.db").stat().st_mtime_ns
        follower = subprocess.Popen(command, cwd=REPO, stdin=subprocess.PIPE)
        epoch, until = 50 * kill, float("inf")
        while time.monotonic() < until and epoch < 50 * kill + 50:
            epoch += 1
            for folder in folders:
                write_epochs(folder, epoch, epoch)
            if until == float("inf"):
                while (root / "mlflow.db").stat().st_mtime_ns == untouched:
                    assert follower.poll() is None
                    time.sleep(0.005)
                until = time.monotonic() + 0.6 * chance.random()
        finish(folders[kill])
        time.sleep(0.1 * chance.random())
        follower.kill()
        follower.wait()
    once(root)
    runs = shown(root)
    assert {name for name, _ in runs} == set(names)
    for (name, _), (run, points) in runs.items():
        folder = root / "results/demo/runs" / name / "attempts/1"
        per_epoch = {key: point for key, point in points.items() if key[0] in ("loss", "top1")}
        assert per_epoch == expected(folder)
        assert all(len(values) == 1 for values in points.values())
        assert run.info.status == "FINISHED"
        assert run.data.tags["device"] == "a processor"
