"""A database that MLflow can't write, and what somebody deleted in its UI: one sentence each."""

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.tracking.conftest import COMMAND, REPO, expected, finish, shown, write_epochs
from workflow.tracking import __main__ as program
from workflow.tracking import sync

pytestmark = pytest.mark.integration  # minutes, all in all


def change(database: Path, statement: str) -> None:
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute(statement)


def test_the_database_has_the_rights_that_the_umask_gives(database):
    """SQLite alone would let nobody but its maker write it."""
    assert database.stat().st_mode & 0o777 == 0o664
    assert {path.name for path in database.parent.iterdir()} <= {"mlflow.db", "results"}


def test_a_database_that_a_kill_left_half_made_is_to_be_moved_away(root, new_sync, attempt, messages):
    (root / "mlflow.db").unlink()
    change(root / "mlflow.db", "CREATE TABLE spans (trace_id INTEGER)")
    assert not new_sync().catch_up()
    assert ".damaged" in messages[0]


def test_a_damaged_database_is_to_be_moved_away(root, new_sync, attempt, messages):
    write_epochs(attempt("deit_tiny"), 1, 2)
    path = root / "mlflow.db"
    path.write_text("not a database")
    current = new_sync()
    assert not current.catch_up()
    assert not current.catch_up()
    assert current.unusable
    assert len(messages) == 1
    assert f"mv {path} {path}.damaged" in messages[0]


def test_a_database_of_another_mlflow_names_both_remedies(root, new_sync, attempt, messages):
    write_epochs(attempt("deit_tiny"), 1, 2)
    change(root / "mlflow.db", "UPDATE alembic_version SET version_num = 'ffffffffffff'")
    current = new_sync()
    assert not current.catch_up()
    assert current.unusable
    assert "mlflow db upgrade sqlite:///" in messages[0]
    assert "MLFLOW_TRACKING_URI" in messages[0]
    assert "\n" not in messages[0]


@pytest.mark.parametrize(
    ("reason", "remedy"),
    [
        ("(sqlite3.OperationalError) database or disk is full", "make room in /there"),
        ("[Errno 28] No space left on device: '/there/mlruns'", "make room in /there"),
        ("[Errno 122] Disk quota exceeded", "quota"),
        ("(sqlite3.OperationalError) disk I/O error", "quota"),
        ("(sqlite3.OperationalError) database is locked", "MLFLOW_TRACKING_URI"),
        ("(sqlite3.OperationalError) unable to open database file", "writable"),
        ("attempt to write a readonly database", "writable"),
        ("(sqlite3.DatabaseError) database disk image is malformed", "mv /there/mlflow.db"),
        ("Connection refused", ""),
    ],
)
def test_each_kind_of_trouble_has_its_remedy(reason, remedy):
    path = Path("/there/mlflow.db")
    text = sync.remedy(reason, f"sqlite:///{path}", path)
    assert remedy in text
    assert bool(text) == bool(remedy)


def test_an_unusable_database_opens_no_ui(root, monkeypatch):
    """MLflow's UI would add its traceback to our sentence."""
    ended = subprocess.CompletedProcess([], sync.UNUSABLE)
    monkeypatch.setattr(program.subprocess, "run", lambda *command, **options: ended)
    monkeypatch.setattr(program.os, "execv", lambda *arguments: pytest.fail("it was opened"))
    with pytest.raises(SystemExit):
        program.open_ui(root)


def test_an_experiment_deleted_in_the_ui_loses_nothing_once_it_is_restored(root, new_sync, attempt, messages):
    folder = attempt("deit_tiny")
    write_epochs(folder, 1, 2)
    table = root / "results/cifar10/table1.csv"
    table.parent.mkdir(parents=True)
    table.write_text("a,b\n1,2\n")
    current = new_sync()
    assert current.catch_up()
    number = current.experiments["demo"]
    current.client.delete_experiment(number)
    write_epochs(folder, 3, 3)
    table.write_text("a,b\n1,3\n")
    for each in (current, current, new_sync()):  # also one that begins only now
        assert not each.catch_up()
    assert len(messages) == 2
    for sentence in messages:
        assert f"mlflow experiments restore --experiment-id {number}" in sentence
    others = current.client.search_runs([current.experiments["cifar10"]])
    assert len(others) == 2  # the other settings go on
    current.client.restore_experiment(number)
    finish(folder)
    assert current.catch_up(), messages
    run, points = shown(root)["deit_tiny", "1"]
    assert points.items() >= expected(folder).items()
    assert run.info.status == "FINISHED"


def test_a_run_restored_after_it_was_deleted_gets_the_rest(root, new_sync, attempt, messages):
    folder = attempt("deit_tiny")
    write_epochs(folder, 1, 1)
    current = new_sync()
    current.catch_up()
    run_id = shown(root)["deit_tiny", "1"][0].info.run_id
    current.client.delete_run(run_id)
    for epoch in (2, 3):
        write_epochs(folder, epoch, epoch)
        assert current.catch_up(), messages
    assert len(messages) == 1
    assert f"mlflow runs restore --run-id {run_id}" in messages[0]
    current.client.restore_run(run_id)
    write_epochs(folder, 4, 4)
    assert current.catch_up()
    assert shown(root)["deit_tiny", "1"][1] == expected(folder)


def test_the_end_of_snakemake_says_why_not_everything_is_there(root, capsys):
    log = root / sync.LOG
    log.parent.mkdir(parents=True)
    log.write_text("older\nMLflow can't be written: disk is full\nNot everything is in MLflow.\n")

    ended = SimpleNamespace(stdin=SimpleNamespace(close=lambda: None), wait=lambda seconds: 1)
    sync.finish(ended, root)
    assert "  MLflow can't be written: disk is full\n" in capsys.readouterr().err


def in_a_tiny_file_system(root: Path, kilobytes: int, script: str) -> subprocess.CompletedProcess:
    """Run a shell script in a mount namespace of its own, with a small tmpfs at root/tiny."""
    (root / "tiny").mkdir()
    mount = f"mount -t tmpfs -o size={kilobytes}k tiny {root}/tiny && {script}"
    return subprocess.run(
        ["unshare", "-m", "bash", "-c", mount], cwd=REPO, capture_output=True, text=True,
        env={**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{root}/tiny/mlflow.db"}, check=False,
    )  # fmt: skip


def can_mount(root: Path) -> bool:
    command = ["unshare", "-m", "mount", "-t", "tmpfs", "tiny", str(root)]
    try:
        return not subprocess.run(command, capture_output=True, check=False).returncode
    except FileNotFoundError:  # no unshare: not Linux
        return False


def test_a_full_disk_is_one_sentence_and_caught_up_with_later(root, attempt):
    if not can_mount(root):
        pytest.skip("a small file system needs root on Linux")
    folder = attempt("deit_tiny")
    write_epochs(folder, 1, 200)
    once = " ".join([sys.executable, *COMMAND[1:], str(root), "--once"])
    size = (root / "mlflow.db").stat().st_size // 1024 + 300
    script = (
        f"cp {root}/mlflow.db {root}/tiny/; "
        f"dd if=/dev/zero of={root}/tiny/other bs=1k 2>/dev/null; "
        f"{once} >&2; echo ended $?; rm {root}/tiny/other; {once}; echo ended $?"
    )
    done = in_a_tiny_file_system(root, size, script)
    beginnings = [line[:9] for line in done.stderr.splitlines()]
    assert beginnings == ["MLflow at", "Not every"], done.stderr
    assert done.stderr.count("make room in") == 1
    assert done.stdout.splitlines()[0] == "ended 1"
    assert done.stdout.splitlines()[-1] == "ended 0"
