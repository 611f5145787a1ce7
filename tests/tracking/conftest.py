"""Attempts as jobs leave them, and what MLflow shows of them."""

import json
import os
import shutil
import sys
import time
from pathlib import Path

import pytest

from workflow.campaign import specs
from workflow.storage import records
from workflow.storage.journal import Journal
from workflow.tracking import sync

REPO = Path(__file__).parent.parent.parent
PATIENCE_S = 300  # MLflow imports for minutes where much else runs
COMMAND = [sys.executable, "-m", "workflow.tracking", "--root"]


@pytest.fixture(scope="session")
def database(tmp_path_factory) -> Path:
    """A root whose database is made once: MLflow takes 5 s for it. A group may write it."""
    root = tmp_path_factory.mktemp("made")
    before = os.umask(0o002)
    assert sync.Sync(root, f"sqlite:///{root}/mlflow.db").catch_up()
    os.umask(before)
    return root / "mlflow.db"


@pytest.fixture
def root(tmp_path, monkeypatch, database) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copy(database, tmp_path)
    return tmp_path


@pytest.fixture
def messages() -> list[str]:
    return []


@pytest.fixture
def new_sync(root, messages):
    """A function that makes a sync as a fresh process would have it."""
    return lambda: sync.Sync(root, sync.tracking_uri(root), messages.append)


@pytest.fixture
def attempt(root, config):
    """A function that makes the attempt folder of a demo run."""

    def make(run: str, number: int = 1) -> Path:
        folder = root / "results/demo/runs" / run / "attempts" / str(number)
        specs.write_spec(folder / "spec.json", specs.train_spec(config, "demo", run))
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

    client = MlflowClient(sync.tracking_uri(root))
    experiment = client.get_experiment_by_name("demo")
    runs: dict = {}
    for run in client.search_runs([experiment.experiment_id]) if experiment else ():
        points: dict = {}
        for key in run.data.metrics:
            for point in client.get_metric_history(run.info.run_id, key):
                points.setdefault((key, point.step), []).append((point.value, point.timestamp))
        name = run.info.run_name, run.data.tags.get("attempt", run.data.tags.get("sha256"))
        assert name not in runs, "a run was made twice"
        runs[name] = run, points
    return runs


def expected(folder: Path) -> dict:
    points = {}
    for line in (folder / "journal.jsonl").read_text().splitlines():
        event = json.loads(line)
        for key, value in event.get("metrics", {}).items():
            if value is not None:
                at = (value, round(1000 * event["time"]))
                points.setdefault((key, event["epoch"]), [at])
    return points
