"""The launcher on this machine: real jobs, killed and interrupted."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from workflow.campaign import specs
from workflow.launch import follow, submit
from workflow.storage import attempts, records
from workflow.train import trainer

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parent.parent.parent
PATIENCE_S = 300  # torch imports for long where much else runs


@pytest.fixture
def job(tmp_path, images, tiny_spec):
    """A function that starts a launcher on a small training; `epochs` long, in a shell with the
    variables of `environ`."""

    def start(epochs: int = 2, workers: int = 0, environ=None, **resources) -> subprocess.Popen:
        spec = tiny_spec("deit_tiny", epochs=epochs)
        specs.write_spec(tmp_path / "demo/runs/deit_tiny/spec.json", spec)
        command = [sys.executable, "-m", "workflow.launch.submit"]
        command += ["--spec", str(tmp_path / "demo/runs/deit_tiny/spec.json")]
        command += ["--output", str(tmp_path / "train.json"), "--log", str(tmp_path / "train.log")]
        command += ["--root", str(tmp_path / "demo")]
        command += ["--data", json.dumps({"root": str(images), "workers": workers})]
        command += ["--resources", json.dumps({"launcher": "local", **resources})]
        shell = {**os.environ, **(environ or {})}
        return subprocess.Popen(command, cwd=ROOT, env=shell, stderr=subprocess.PIPE, text=True)

    return start


def attempt_of(tmp_path):
    return attempts.newest(tmp_path / "demo/runs/deit_tiny")


def wait_for(condition, seconds: float = PATIENCE_S):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


def running(tmp_path) -> bool:
    attempt = attempt_of(tmp_path)
    return bool(attempt and attempt.journal.exists() and "epoch" in attempt.journal.read_text())


def test_a_job_is_followed_and_its_record_published(job, tmp_path):
    launcher = job()
    _, output = launcher.communicate(timeout=PATIENCE_S)
    assert launcher.returncode == 0, output
    record = records.read(tmp_path / "train.json")
    assert record["results"]["epochs"] == 2
    assert "epoch 2/2" in output
    assert "top-1" in (tmp_path / "train.log").read_text()
    assert attempt_of(tmp_path).published.exists()


def test_a_killed_launcher_leaves_the_job_and_the_next_one_finds_it(job, tmp_path):
    first = job(epochs=12)
    wait_for(lambda: running(tmp_path))
    noted = attempt_of(tmp_path).job()
    os.killpg(noted["session"], signal.SIGSTOP)  # until the second launcher has found it
    try:
        first.kill()
        first.wait()
        assert follow.is_alive(noted, attempt_of(tmp_path).folder)
        second = job(epochs=12)
        wait_for(lambda: "re-attached" in (tmp_path / "train.log").read_text())
    finally:
        os.killpg(noted["session"], signal.SIGCONT)
    _, output = second.communicate(timeout=PATIENCE_S)
    assert second.returncode == 0, output
    assert attempt_of(tmp_path).job() == noted  # nothing was submitted twice


def test_a_killed_job_is_resumed_by_the_next_launcher(job, tmp_path):
    first = job(epochs=12)
    wait_for(lambda: list((tmp_path / "demo").rglob("best.pt")))
    os.killpg(attempt_of(tmp_path).job()["session"], signal.SIGKILL)
    _, output = first.communicate(timeout=PATIENCE_S)
    assert first.returncode == 1
    assert "ended without a record" in output
    second = job(epochs=12)
    _, output = second.communicate(timeout=PATIENCE_S)
    assert second.returncode == 0, output
    assert "resumed after epoch" in output
    assert records.read(tmp_path / "train.json")["results"]["epochs"] == 12


@pytest.mark.parametrize(("policy", "alive"), [("cancel", False), ("leave", True)])
def test_ctrl_c_does_what_the_profile_says(job, tmp_path, policy, alive):
    launcher = job(epochs=200, on_interrupt=policy)
    wait_for(lambda: running(tmp_path))
    launcher.send_signal(signal.SIGINT)
    _, output = launcher.communicate(timeout=PATIENCE_S)
    noted, folder = attempt_of(tmp_path).job(), attempt_of(tmp_path).folder
    try:
        assert launcher.returncode == 130
        assert ("goes on" if alive else "is ended") in output
        assert follow.is_alive(noted, folder) == alive
    finally:
        follow.cancel(noted, folder)
    assert not follow.is_alive(noted, folder)


def test_our_own_errors_reach_the_user_as_one_sentence(job, tmp_path, images):
    next(images.glob("train/3/*.png")).write_bytes(b"no image")
    launcher = job()
    _, output = launcher.communicate(timeout=PATIENCE_S)
    assert launcher.returncode == 1
    assert "can't be decoded" in output
    assert str(images / "train/3") in output
    assert "Traceback" not in output
    assert not (tmp_path / "train.json").exists()


def test_what_a_shell_has_left_behind_changes_no_record(job, tmp_path, images, tiny_spec):
    """An interactive allocation, torchrun's leftovers, other digits, a TMPDIR too long for sockets:
    the record is that of a training in an empty shell."""
    long = tmp_path / ("t" * 90)
    long.mkdir()
    leftovers = {
        **{"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "nowhere.invalid"},
        **{"MASTER_PORT": "1", "SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "SLURM_PROCID": "1"},
        **{"OMPI_COMM_WORLD_SIZE": "2", "SUBMITIT_EXECUTOR": "slurm"},
        **{
            "SUBMITIT_PREEMPT_SIGNAL": "KILL",
            "TIMM_FUSED_ATTN": "0",
            "ATEN_CPU_CAPABILITY": "default",
        },
        **{"OMP_THREAD_LIMIT": "1", "ONEDNN_DEFAULT_FPMATH_MODE": "BF16", "PYTHONOPTIMIZE": "2"},
        **{"PYTHONWARNINGS": "error", "LC_ALL": "C", "TMPDIR": str(long)},
    }
    launcher = job(workers=1, environ=leftovers)
    _, output = launcher.communicate(timeout=PATIENCE_S)
    assert launcher.returncode == 0, output
    assert "Not passed on to the job: ATEN_CPU_CAPABILITY, " in output
    assert "is too long for the sockets of loader processes" in output
    record = records.read(tmp_path / "train.json")
    assert record["provenance"]["world_size"] == 1
    site = {
        "root": str(tmp_path / "alone"),
        "data_root": str(images),
        "workers": 0,
        "device": "cpu",
    }
    alone = trainer.run(tiny_spec("deit_tiny"), site, tmp_path / "alone/runs/deit_tiny/attempts/1")
    for key in ("loss", "val_loss", "top1"):
        assert record["results"][key] == alone["results"][key]


def test_two_processes_train_together_whatever_a_shell_has_left_behind(job, tmp_path):
    leftovers = {
        "WORLD_SIZE": "8",
        "RANK": "7",
        "MASTER_ADDR": "nowhere.invalid",
        "MASTER_PORT": "1",
    }
    launcher = job(tasks=2, environ=leftovers)
    _, output = launcher.communicate(timeout=PATIENCE_S)
    assert launcher.returncode == 0, output
    assert records.read(tmp_path / "train.json")["provenance"]["world_size"] == 2


def test_without_a_profile_nothing_runs(tmp_path):
    command = [sys.executable, "-m", "workflow.launch.submit", "--spec", "s", "--output", "o"]
    command += ["--log", "l", "--root", "r", "--data", "{}", "--resources", "{}"]
    refused = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert "--profile slurm or --profile demo" in refused.stderr


@pytest.mark.parametrize("policy", ["cancel", "leave"])
def test_an_interrupt_right_after_the_submission_counts(tmp_path, monkeypatch, tiny_spec, policy):
    def submitted(launcher):
        launcher.attempt.note_job(launcher="local", job_id="7")
        raise submit.Interrupted  # the signal that waited until the job was noted

    cancelled, output = [], []
    monkeypatch.setattr(submit.Launcher, "submit", submitted)
    monkeypatch.setattr(follow, "cancel", lambda job, folder: cancelled.append(job["job_id"]))
    monkeypatch.setattr(follow, "is_alive", lambda job, folder: True)
    spec = tmp_path / "runs/deit_tiny/spec.json"
    specs.write_spec(spec, tiny_spec("deit_tiny"))
    with pytest.raises(submit.Interrupted):
        submit.launch(spec, tmp_path / "train.json", {}, {"on_interrupt": policy}, output.append)
    assert cancelled == (["7"] if policy == "cancel" else [])
    assert ("is ended" if policy == "cancel" else "goes on") in output[-1]
