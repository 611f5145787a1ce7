"""A clone that was moved or copied with its database, and clones that share one."""

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.tracking.conftest import finish, shown, write_epochs
from workflow.campaign import specs
from workflow.tracking import sync

pytestmark = pytest.mark.integration  # minutes, all in all


def catch_up(root: Path, uri: str | None = None) -> None:
    messages = []
    assert sync.Sync(root, uri or sync.tracking_uri(root), messages.append).catch_up(), messages


def artifacts(root: Path, run: str, attempt: str = "1", uri: str | None = None) -> Path:
    stored = shown(root)[run, attempt][0]
    return Path(stored.info.artifact_uri.removeprefix("file://"))


def stored_paths(database: Path) -> set[str]:
    with closing(sqlite3.connect(database)) as connection:
        rows = [connection.execute(f"SELECT {column} FROM {table}").fetchall()
                for table, column in sync.ARTIFACT_PATHS]  # fmt: skip
        files = connection.execute("SELECT value FROM tags WHERE key = 'file'").fetchall()
    return {value for (value,) in sum(rows, files)}


def add_run(config, root: Path, run: str) -> None:
    folder = root / "results/demo/runs" / run / "attempts/1"
    specs.write_spec(folder / "spec.json", specs.train_spec(config, "demo", run))
    write_epochs(folder, 1, 2)
    finish(folder)


@pytest.fixture
def clone(root, config) -> Path:
    """A synchronised clone with one run and one table."""
    clone = root / "first clone"  # a space, which a URI quotes
    clone.mkdir()
    shutil.move(root / "mlflow.db", clone)
    add_run(config, clone, "deit_tiny")
    (clone / "results/demo/table1.csv").write_text("a,b\n1,2\n")
    catch_up(clone)
    return clone


@pytest.mark.parametrize("way", ["moved", "copied"])
def test_a_clone_keeps_its_artifacts_where_it_is_now(clone, config, way):
    new = clone.with_name("second")
    (shutil.move if way == "moved" else shutil.copytree)(clone, new)
    before = {path: path.stat().st_mtime_ns for path in clone.rglob("*")}
    add_run(config, new, "evo_deit_tiny")
    catch_up(new)
    for run in ("deit_tiny", "evo_deit_tiny"):
        held = artifacts(new, run)
        assert held.is_relative_to(new)
        assert {path.name for path in held.iterdir()} == {"spec.json", "record.json"}
    assert len(shown(new)) == 3  # the table has no twin
    paths = stored_paths(new / "mlflow.db")
    assert not [path for path in paths if "first" in path]
    assert {path: path.stat().st_mtime_ns for path in clone.rglob("*")} == before
    assert clone.exists() == (way == "copied")


def test_two_clones_that_share_a_database_write_each_into_its_own_folder(clone, config, monkeypatch):
    uri = f"sqlite:///{clone.parent}/shared.db"
    shutil.move(clone / "mlflow.db", clone.parent / "shared.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    new = clone.with_name("second")
    shutil.copytree(clone, new)
    (new / "results/demo/table1.csv").unlink()
    add_run(config, new, "evo_deit_tiny")
    before = set(clone.rglob("*"))
    catch_up(new)
    assert set(clone.rglob("*")) == before
    assert artifacts(new, "evo_deit_tiny").is_relative_to(new)
    assert (artifacts(new, "evo_deit_tiny") / "record.json").exists()
    assert "first%20clone" in shown(new)["deit_tiny", "1"][0].info.artifact_uri


def test_a_moved_clone_whose_database_lies_elsewhere(clone, monkeypatch):
    uri = f"sqlite:///{clone.parent}/shared.db"
    shutil.move(clone / "mlflow.db", clone.parent / "shared.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    new = clone.with_name("second")
    shutil.move(clone, new)
    catch_up(new)
    assert (artifacts(new, "deit_tiny") / "record.json").exists()


def test_a_bucket_that_somebody_chose_stays(clone):
    assert sync.clone_of("s3://bucket/mlruns/demo", "demo") is None
    assert sync.clone_of("/elsewhere/demo", "demo") is None
    assert sync.clone_of("file:///a%20b/mlruns/demo", "demo") == Path("/a b")
    assert sync.clone_of("/a b/mlruns/demo", "demo") == Path("/a b")
