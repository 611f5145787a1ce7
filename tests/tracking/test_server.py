"""The MLflow sync before a server: one that is not there, one that is silent, and one that dies."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from tests.tracking.conftest import COMMAND, PATIENCE_S, REPO, expected, finish, shown, write_epochs
from workflow.tracking import sync

LIVE_S = 30


@pytest.mark.integration
def test_an_unreachable_server_costs_a_sentence(root, attempt, monkeypatch):
    """And no more time than a file takes, nearly all of it MLflow's import: nothing is retried."""

    def once() -> tuple[float, subprocess.CompletedProcess]:
        command, started = [*COMMAND, str(root), "--once"], time.monotonic()
        ended = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)
        return time.monotonic() - started, ended

    write_epochs(attempt("deit_tiny"), 1, 1)
    usual_s, _ = once()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:9")
    took_s, ended = once()
    assert took_s < 4 * usual_s
    assert ended.returncode == 1
    assert "MLflow at http://127.0.0.1:9 can't be written" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert "secret" not in ended.stderr + ended.stdout
    assert len((ended.stderr + ended.stdout).splitlines()) == 2


def test_a_server_that_accepts_and_never_answers_delays_nothing(root, attempt, monkeypatch, capsys):
    """snakemake's end waits for the last pass into a file, but for no server."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        write_epochs(attempt("deit_tiny"), 1, 3)
        follower = sync.start(root)
        try:
            started = time.monotonic()
            sync.finish(follower, root)
            assert time.monotonic() - started < 2
            assert "still works, and ends by itself" in capsys.readouterr().err
        finally:
            os.kill(follower.pid, signal.SIGKILL)


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
        deadline = time.monotonic() + PATIENCE_S
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
    chance, follower = random.Random(5), None
    command = [*COMMAND, str(root), "--until-closed"]
    try:
        for turn in range(3):
            if turn != 1:  # in the second turn the follower lives on, and has all its imports
                follower = subprocess.Popen(command, cwd=REPO, stdin=subprocess.PIPE)
            first = 20 * turn + 1
            for folder in folders:
                write_epochs(folder, first, first + 9)
            started = time.monotonic()
            while not is_shown("deit_tiny", first + 9):
                assert time.monotonic() - started < (LIVE_S if turn == 1 else PATIENCE_S)
                time.sleep(0.5)
            for epoch in range(first + 10, first + 20):
                for folder in folders:
                    write_epochs(folder, epoch, epoch)
            time.sleep(5 * chance.random())
            server.kill()
            if turn:
                follower.kill()
                follower.wait()
            server.start()
        for folder in folders:
            finish(folder)
        subprocess.run([*COMMAND, str(root), "--once"], cwd=REPO, check=True)
        runs = shown(root)
        assert {name for name, _ in runs} == set(names)
        for (name, _), (run, points) in runs.items():
            per_epoch = {key: point for key, point in points.items() if key[0] in ("loss", "top1")}
            assert per_epoch == expected(root / "results/demo/runs" / name / "attempts/1")
            assert run.info.status == "FINISHED"
    finally:
        follower.kill()
        server.kill()


def is_shown(name: str, epoch: int) -> bool:
    """Whether MLflow shows the run's epoch by now; a server too busy to answer shows nothing."""
    from mlflow import MlflowClient, MlflowException

    client, named = MlflowClient(os.environ["MLFLOW_TRACKING_URI"]), f"run_name = '{name}'"
    try:
        experiment = client.get_experiment_by_name("demo")
        runs = experiment and client.search_runs([experiment.experiment_id], f"attributes.{named}")
        history = client.get_metric_history(runs[0].info.run_id, "loss") if runs else []
    except MlflowException:
        return False
    return any(point.step == epoch for point in history)
