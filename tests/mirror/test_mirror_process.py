"""The mirror as a process: killed, refused, waiting for its turn, and ended."""

import os
import random
import subprocess
import sys
import time
from contextlib import ExitStack
from types import SimpleNamespace

import pytest

from tests.mirror.conftest import COMMAND, PATIENCE_S, REPO, expected, finish, shown, write_epochs
from workflow import locks, records
from workflow.login import following, mirror_process, tracking
from workflow.login.mirror_sources import Results


def test_a_second_mirror_ends_at_once(root):
    with locks.exclusive(tracking.lock_path(root, tracking.tracking_uri(root))):
        command = [*COMMAND, str(root), "--once"]
        ended = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)
    assert ended.returncode == 0
    assert "Another mirror is at work" in ended.stdout


@pytest.mark.integration
def test_snakemakes_mirror_ends_with_a_last_pass(root, attempt, capsys):
    folder = attempt("deit_tiny")
    write_epochs(folder, 1, 2)
    mirror = tracking.start_mirror(root)
    write_epochs(folder, 3, 3)
    tracking.finish_mirror(mirror, root, PATIENCE_S)
    assert "`mlflow ui` shows every run" in capsys.readouterr().err
    assert shown(root)["deit_tiny", "1"][1] == expected(folder)


@pytest.mark.integration
def test_a_killed_mirror_is_made_good_for_at_the_end(root, attempt, capsys):
    folder = attempt("deit_tiny")
    mirror = tracking.start_mirror(root)
    mirror.kill()
    mirror.wait()
    write_epochs(folder, 1, 2)
    tracking.finish_mirror(mirror, root, PATIENCE_S)
    said = capsys.readouterr().err
    assert "had ended too early" in said
    assert "`mlflow ui` shows every run" in said
    assert shown(root)["deit_tiny", "1"][1] == expected(folder)


class Ended:
    """A mirror that ends as it is told to."""

    pid, returncode = 7, None

    def __init__(self, code: int):
        self.code, self.asked = code, False

    def poll(self) -> None:
        return None

    def terminate(self) -> None:
        self.asked = True

    def wait(self, seconds: float) -> int:
        return self.code


def test_a_last_pass_that_failed_is_said(root, capsys):
    tracking.finish_mirror(Ended(1), root)
    said = capsys.readouterr().err
    assert "Not everything is in MLflow yet" in said
    assert "tracking --once` catches up" in said
    assert "shows every run" not in said


def test_it_goes_on_while_a_job_does(root, attempt, capsys):
    folder = attempt("deit_tiny")
    records.write_json(folder / "job.json", {"launcher": "local", "host": "x", "job_id": "7"})
    mirror = Ended(0)
    with locks.exclusive(folder / "rank0.lock"):
        tracking.finish_mirror(mirror, root)
    assert "Jobs go on" in capsys.readouterr().err
    assert not mirror.asked


class Never:
    """A request to end that does not come; waiting takes no time but is counted."""

    def __init__(self, monkeypatch):
        self.asked, self.waited = False, 0.0
        now = time.monotonic
        monkeypatch.setattr(time, "monotonic", lambda: now() + self.waited)

    def wait(self, seconds: float) -> None:
        self.waited += seconds


def test_a_job_that_is_just_being_requeued_is_waited_for(root, attempt, monkeypatch):
    """For a moment Slurm shows it as ended; with snakemake gone the mirror alone can see it."""
    folder = attempt("deit_tiny")
    job = {"launcher": "slurm", "job_id": "7", "submitted": 1.0}
    records.write_json(folder / "job.json", job)
    states = ["PREEMPTED"] * 3 + ["PENDING"] * 4 + ["COMPLETED"] * 90
    passes, stop = [], Never(monkeypatch)
    mirror = SimpleNamespace(results=Results(root), catch_up=lambda: passes.append(1) or True)
    mirror.results.queue.max_age_s = 0

    def ask(*command):
        assert "--me" in command  # no question about a single job
        return f"7|{states[len(passes) - 1]}|None|node1|N/A", ""

    mirror.results.queue.ask = ask
    assert tracking.follow(mirror, mirror_process.Followed(None), stop)
    grace_s = following.GRACE_S["slurm"]
    assert len(passes) - 7 >= grace_s / tracking.POLL_S
    assert stop.waited < 2 * grace_s + 40


def test_old_jobs_cost_one_question_together(root, attempt):
    asked = []
    for number, run in enumerate(("deit_tiny", "deit_small", "evo_deit_tiny"), 1):
        job = {"launcher": "slurm", "job_id": str(number), "submitted": 1.0}
        records.write_json(attempt(run) / "job.json", job)
    results = Results(root)
    results.queue.ask = lambda *command: asked.append(command) or ("", "")
    assert not results.a_job_lives()
    assert len(asked) == 1


def test_a_refused_follower_waits_for_its_turn(root, attempt, monkeypatch):
    """What holds the lock may be ending, or be `--once`, or be killed: somebody must go on."""
    lock = tracking.lock_path(root, tracking.tracking_uri(root))
    us, taken = mirror_process.Followed(os.getpid()), []
    stop, held = SimpleNamespace(asked=False), ExitStack()
    held.enter_context(locks.exclusive(lock))
    stop.wait = lambda seconds: (taken.append("waited"), held.close())
    with mirror_process.turn(lock, us, stop):
        taken.append("ours")
    assert taken == ["waited", "ours"]
    once = mirror_process.turn(lock, mirror_process.Followed(None), stop)
    with locks.exclusive(lock), pytest.raises(locks.Held), once:
        pass


def test_a_reused_process_id_is_another_process():
    other = subprocess.Popen(["sleep", "60"])
    followed = mirror_process.Followed(other.pid)
    assert followed.lives()
    other.kill()
    other.wait()
    assert not followed.lives()
    followed.pid = os.getpid()
    assert not followed.lives()


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
