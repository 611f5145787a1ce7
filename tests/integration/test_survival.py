"""What a training survives, through the real launcher: kills, a process's error, bad weights."""

import contextlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.integration.project import command, edit, environment, leave_out_mlflow, snakemake
from workflow.launch import follow
from workflow.storage import journal, records

pytestmark = pytest.mark.integration
RECORD = "results/demo/runs/evo_deit_tiny/train.json"
DEMO = ("--profile", "demo")
KILLS = 5


@pytest.fixture(scope="module")
def trained(tree) -> Path:
    """The tree, after one training that nothing disturbed."""
    edit(tree, "settings", lambda c: c["demo"]["recipe"].update(epochs=6))
    leave_out_mlflow(tree)
    snakemake(tree, RECORD, *DEMO)
    return tree


def attempt(tree: Path, number: int) -> Path:
    return tree / f"results/demo/runs/evo_deit_tiny/attempts/{number}"


def starts(folder: Path) -> int:
    return sum(event["event"] == "start" for event, _ in journal.read(folder / "journal.jsonl"))


def newest_step(folder: Path) -> int:
    steps = [int(path.stem.removeprefix("step-")) for path in folder.glob("checkpoints/step-*.pt")]
    return max(steps, default=0)


def curve(folder: Path) -> list[dict]:
    """Every epoch's metrics but the times."""
    timed = {"train_s", "epoch_s"}
    epochs = journal.epochs(folder / "journal.jsonl")
    return [{k: v for k, v in epoch.items() if k not in timed} for epoch in epochs]


def living(session: int) -> list[int]:
    """Its processes but zombies: those of a job whose parent is gone stay until init reaps them."""
    found = []
    for pid in (int(path.name) for path in Path("/proc").glob("[0-9]*")):
        with contextlib.suppress(ProcessLookupError):
            if os.getsid(pid) == session and follow.process_start(pid) is not None:
                found.append(pid)
    return found


def kill(process: subprocess.Popen, folder: Path) -> None:
    """kill -9 of snakemake, its launchers and the job."""
    sessions = [process.pid, json.loads((folder / "job.json").read_text())["session"]]
    assert living(sessions[1])
    for session in sessions:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(session, signal.SIGKILL)
    process.wait()


def test_killed_five_times_its_curve_is_the_undisturbed_one(trained):
    again = [RECORD, *DEMO, "--set-resources", "train:checkpoint_minutes=0"]
    folder = attempt(trained, 2)
    for kills in range(KILLS):
        forced = [] if folder.exists() else ["--forcerun", RECORD]
        process = subprocess.Popen(
            command(*again, *forced), cwd=trained, env=environment(trained),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        before = newest_step(folder)
        while starts(folder) <= kills or newest_step(folder) < before + 17:
            assert process.poll() is None
            time.sleep(0.05)
        kill(process, folder)
    assert not (folder / "record.json").exists()
    snakemake(trained, *again)
    assert starts(folder) == KILLS + 1
    assert curve(folder) == curve(attempt(trained, 1))
    assert len(curve(folder)) == 6
    assert not attempt(trained, 3).exists()


def test_one_processs_error_ends_all_with_its_reason(trained):
    """An image goes bad after all were looked through; one of two processes draws it."""
    image = sorted((trained / "results/demo/digits/train").rglob("*.png"))[0]
    whole = image.read_bytes()
    image.write_bytes(b"?" * len(whole))
    two = [RECORD, *DEMO, "--forcerun", RECORD, "--set-resources", "train:tasks=2"]
    try:
        said = snakemake(trained, *two, code=1)
    finally:
        image.write_bytes(whole)
    assert f"{image.relative_to(trained)} can't be decoded" in said
    folder = max((trained / "results/demo/runs/evo_deit_tiny/attempts").iterdir())
    session = json.loads((folder / "job.json").read_text())["session"]
    assert living(session) == []


def test_any_checkpoint_is_evaluated_as_a_target_of_its_own(trained):
    target = "results/demo/evaluations/best.json"
    path = attempt(trained, 1) / "checkpoints/best.pt"
    checkpoint = {"file": str(path.relative_to(trained)), "sha256": records.sha256(path)}

    def ask(**changes) -> None:
        best = {"run": "evo_deit_tiny", "checkpoint": {**checkpoint, **changes}}
        edit(trained, "settings", lambda c: c["demo"].update(evaluations={"best": best}))

    ask()
    snakemake(trained, target, *DEMO)
    results = records.read(trained / target)["results"]
    noted = json.loads(path.with_suffix(".json").read_text())
    assert results["top1"] == pytest.approx(noted["value"])
    ask(sha256="0" * 64)
    assert "has the sha256" in snakemake(trained, target, *DEMO, code=1)
    ask(file="nowhere.pt")
    assert "nowhere.pt" in snakemake(trained, target, *DEMO, code=1)
