"""Code that is committed or edited while a training runs, through snakemake and real kills."""

import contextlib
import csv
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.project import command, edit, environment, leave_out_mlflow, snakemake
from workflow.storage import records

pytestmark = pytest.mark.integration
RUN = "results/demo/runs/deit_tiny"
RECORD = f"{RUN}/train.json"
TABLE = "results/demo/table1.partial.csv"
DEMO = ("--profile", "demo")
# the whole text of deit.py is imported, so any change of it is other code
EDITED = "baselines/deit.py"


def git(root: Path, *arguments: str) -> str:
    named = ("-c", "user.name=A", "-c", "user.email=a@example.org")
    done = subprocess.run(["git", *named, *arguments], cwd=root, env=environment(root),
                          capture_output=True, text=True, check=True)  # fmt: skip
    return done.stdout.strip()


def commit(root: Path, text: str) -> str:
    """Commit a change of the code; -> the commit."""
    with open(root / EDITED, "a") as stream:
        stream.write(f"# {text}\n")
    git(root, "add", "--all")
    git(root, "commit", "--message", text)
    return git(root, "rev-parse", "HEAD")


@pytest.fixture(scope="module")
def clone(tree) -> Path:
    """The tree as a clone, with a training of some seconds."""
    edit(tree, "settings", lambda c: c["demo"]["recipe"].update(epochs=4))
    leave_out_mlflow(tree)
    ignored = ("results/", ".snakemake/", "mlruns/", "mlflow.db*", "__pycache__/")
    (tree / ".gitignore").write_text("\n".join(ignored) + "\n")
    git(tree, "init", "--initial-branch=main")
    commit(tree, "first")
    return tree


def attempt(root: Path, number: int) -> Path:
    return root / RUN / "attempts" / str(number)


def is_training(folder: Path) -> bool:
    """Whether its first epoch is saved."""
    return any(int(path.stem[5:]) > 0 for path in folder.glob("checkpoints/step-*.pt"))


def start(root: Path, *arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        command(RECORD, *DEMO, *arguments), cwd=root, env=environment(root),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip


def wait_for(process: subprocess.Popen, true: Callable[[], bool]) -> None:
    while not true():
        assert process.poll() is None
        time.sleep(0.05)


def test_a_commit_while_it_trains_is_not_named(clone):
    head = git(clone, "rev-parse", "HEAD")
    process = start(clone)
    wait_for(process, lambda: is_training(attempt(clone, 1)))
    assert commit(clone, "while it trains") != head
    assert not (attempt(clone, 1) / "record.json").exists()
    assert process.wait(timeout=600) == 0
    for record in (RECORD, "results/demo/data.json", "results/demo/preflight.json"):
        known = records.read(clone / record)["provenance"]
        assert (known["commit"], known["dirty"]) == (head, False)
        assert [version["commit"] for version in known["code"]] == [head]


def test_resumed_under_other_code_it_is_refused_or_flagged(clone):
    head, folder = git(clone, "rev-parse", "HEAD"), attempt(clone, 2)
    process = start(clone, "--forcerun", RECORD)
    wait_for(process, lambda: is_training(folder))
    session = json.loads((folder / "job.json").read_text())["session"]
    for group in (process.pid, session):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
    process.wait()
    assert not (folder / "record.json").exists()
    (clone / EDITED).write_text((clone / EDITED).read_text() + "# not committed\n")

    again = (RECORD, *DEMO, "--set-resources")
    said = snakemake(clone, *again, "train:other_code=refused", code=1)
    assert "Rule train has other_code: 'refused'" in said
    assert "it is warn or refuse" in said
    said = snakemake(clone, *again, "train:other_code=refuse", code=1)
    sentence = next(line for line in said.splitlines() if "was made by commit" in line)
    assert f"The checkpoint of deit_tiny was made by commit {head[:10]} (source " in sentence
    assert f"but commit {head[:10]} (with uncommitted changes, source " in sentence
    assert "train:other_code=warn" in sentence
    assert "Traceback" not in said

    said = snakemake(clone, RECORD, *DEMO)
    assert "it goes on under commit" in said
    known = records.read(clone / RECORD)["provenance"]
    assert (known["commit"], known["dirty"]) == ("mixed", True)
    first, second = known["code"]
    assert (first["commit"], first["dirty"], first["from_epoch"]) == (head, False, 0)
    assert (second["commit"], second["dirty"]) == (head, True)
    assert second["from_epoch"] >= 1

    snakemake(clone, TABLE, *DEMO)
    with open(clone / TABLE, newline="") as stream:
        (row,) = [row for row in csv.DictReader(stream) if row["run"] == "deit_tiny"]
    assert "deit_tiny was made by several versions of the code: from epoch 1 on" in row["flags"]
    assert "deit_tiny was made by several versions" in (clone / TABLE).with_suffix(".md").read_text()
