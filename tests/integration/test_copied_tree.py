"""A copy of the clone, made while the original trains: each goes its own way."""

import json
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tests.integration.project import command, edit, environment, snakemake

pytestmark = pytest.mark.integration
RECORD = "results/demo/runs/deit_tiny/train.json"
ATTEMPT = "results/demo/runs/deit_tiny/attempts/1"


def session(root: Path) -> int:
    return json.loads((root / ATTEMPT / "job.json").read_text())["session"]


def artifact_uris(root: Path) -> list[str]:
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{root}/mlflow.db")
    experiment = client.get_experiment_by_name("demo")
    found = client.search_runs([experiment.experiment_id])
    return [experiment.artifact_location, *(run.info.artifact_uri for run in found)]


def test_a_copy_trains_for_itself_and_leaves_the_originals_job_alone(tree, tmp_path):
    edit(tree, "settings", lambda c: c["demo"]["recipe"].update(epochs=4))
    original = subprocess.Popen(command("--profile", "demo", RECORD), cwd=tree,
                                env=environment(tree), stderr=subprocess.DEVNULL)  # fmt: skip
    journal = tree / ATTEMPT / "journal.jsonl"
    deadline = time.monotonic() + 600
    while not (journal.exists() and '"epoch"' in journal.read_text()):
        assert original.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    copy = tmp_path / "a copy"
    shutil.copytree(tree, copy, symlinks=True)
    said = snakemake(copy, "--profile", "demo", RECORD)
    assert original.wait(600) == 0
    assert "re-attached" not in said
    assert session(copy) != session(tree)
    for root in (tree, copy):
        assert (root / RECORD).exists()
        assert (root / ATTEMPT / "record.json").exists()
        uris = artifact_uris(root)
        assert len(uris) == 2
        assert all(uri.startswith(f"{root.as_uri()}/mlruns/demo") for uri in uris)
    assert "Nothing to be done" in snakemake(copy, "--profile", "demo", RECORD)
