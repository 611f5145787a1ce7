"""The mirror as a process: killed, refused, without a server, and with one that dies."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import ExitStack
from types import SimpleNamespace

import pytest

from tests.mirror.conftest import COMMAND, REPO, expected, finish, shown, write_epochs
from workflow import locks, records
from workflow.login import following, mirror_process, tracking
from workflow.login.mirror_sources import Results

LIVE_S = 30


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
    mirror = tracking.start_mirror(root)
    write_epochs(folder, 3, 3)
    tracking.finish_mirror(mirror, root)
    assert "`mlflow ui` shows every run" in capsys.readouterr().err
    assert shown(root)["deit_tiny", "1"][1] == expected(folder)


def test_a_killed_mirror_is_made_good_for_at_the_end(root, attempt, capsys):
    folder = attempt("deit_tiny")
    mirror = tracking.start_mirror(root)
    mirror.kill()
    mirror.wait()
    write_epochs(folder, 1, 2)
    tracking.finish_mirror(mirror, root)
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


def test_a_server_that_accepts_and_never_answers_delays_nothing(root, attempt, monkeypatch, capsys):
    """snakemake's end waits for the last pass into a file, but for no server."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        write_epochs(attempt("deit_tiny"), 1, 3)
        mirror = tracking.start_mirror(root)
        try:
            started = time.monotonic()
            tracking.finish_mirror(mirror, root)
            assert time.monotonic() - started < 2
            assert "still works, and ends by itself" in capsys.readouterr().err
        finally:
            os.kill(mirror.pid, signal.SIGKILL)


class Server:
    """`mlflow server` over a database of its own; kill -9 ends it with its workers."""

    def __init__(self, folder, backend: str):
        self.folder, self.backend, self.process = folder, backend, None
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
        command += ["--port", str(self.port), "--workers", "1"]
        command += ["--backend-store-uri", self.backend]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        self.process = subprocess.Popen(
            command, cwd=self.folder, start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self.wait(lambda: self.answers() and self.process.poll() is None)

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.wait(lambda: not self.answers())

    def answers(self) -> bool:
        try:
            return urllib.request.urlopen(f"{self.uri}/health", timeout=5).status == 200
        except OSError:
            return False

    @staticmethod
    def wait(condition) -> None:
        deadline = time.monotonic() + 120
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.2)


@pytest.mark.integration
def test_live_through_a_server_that_dies_it_loses_and_doubles_nothing(
    root,
    attempt,
    tmp_path,
    monkeypatch,
):
    """Points come while the server is up, while it is away and while it is killed amid requests."""
    backend = os.environ.get("EVOVIT_TEST_BACKEND", f"sqlite:///{tmp_path}/server.db")
    server = Server(tmp_path, backend)
    server.start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    names = ("deit_tiny", "evo_deit_tiny", "dynamic_deit_tiny")
    folders = [attempt(run) for run in names]
    chance, mirror = random.Random(5), None
    command = [*COMMAND, str(root), "--follow", "--until-gone", str(os.getpid())]
    try:
        for turn in range(3):
            if turn != 1:  # in the second turn the mirror lives on
                mirror = subprocess.Popen(command, cwd=REPO)
            first = 20 * turn + 1
            for folder in folders:
                write_epochs(folder, first, first + 9)
            started = time.monotonic()
            while not is_shown("deit_tiny", first + 9):
                assert time.monotonic() - started < LIVE_S + (30 if turn != 1 else 0)  # its imports
                time.sleep(0.5)
            for epoch in range(first + 10, first + 20):
                for folder in folders:
                    write_epochs(folder, epoch, epoch)
            time.sleep(5 * chance.random())
            server.kill()
            if turn:
                mirror.kill()
                mirror.wait()
            server.start()
        for folder in folders:
            finish(folder)
        subprocess.run([*COMMAND, str(root), "--once"], cwd=REPO, check=True)
        found = shown(root)
        assert {name for name, _ in found} == set(names)
        for (name, _), (run, points) in found.items():
            per_epoch = {key: point for key, point in points.items() if key[0] in ("loss", "top1")}
            assert per_epoch == expected(root / "results/demo/runs" / name / "attempts/1")
            assert run.info.status == "FINISHED"
    finally:
        mirror.kill()
        server.kill()


def is_shown(name: str, epoch: int) -> bool:
    """Whether MLflow shows the run's epoch by now."""
    from mlflow import MlflowClient

    client = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    experiment = client.get_experiment_by_name("demo")
    found = experiment and client.search_runs(
        [experiment.experiment_id], f"attributes.run_name = '{name}'"
    )
    if not found:
        return False
    history = client.get_metric_history(found[0].info.run_id, "loss")
    return any(point.step == epoch for point in history)
