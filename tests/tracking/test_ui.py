"""`make ui` opens the database of the MLflow sync, on this machine only, and even if catching up failed."""

import subprocess

import pytest

from workflow.tracking import __main__ as program


@pytest.fixture
def opened(tmp_path, monkeypatch):
    """A function: the command of the UI that is opened with this MLFLOW_TRACKING_URI, if any."""

    def open_(uri: str | None) -> list[str]:
        started = []
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
        if uri:
            monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        failed = subprocess.CompletedProcess([], 1)
        monkeypatch.setattr(program.subprocess, "run", lambda command, **options: failed)
        monkeypatch.setattr(program.os, "execv", lambda path, command: started.extend(command))
        program.open_ui(tmp_path)
        return started

    return open_


def test_by_default_the_file_in_this_folder(opened, tmp_path):
    command = " ".join(opened(None))
    assert "mlflow ui --host 127.0.0.1" in command
    assert command.endswith(f"--backend-store-uri sqlite:///{tmp_path.resolve()}/mlflow.db")


def test_another_database_where_one_is_named(opened):
    uri = "postgresql://user:secret@host/mlflow"
    command = opened(uri)
    assert command[-1] == uri
    assert command[command.index("--host") + 1] == "127.0.0.1"


def test_of_a_server_only_its_address_is_said(opened, capsys):
    opened("http://user:secret@host:5000")
    messages = capsys.readouterr().out
    assert "http://host:5000" in messages
    assert "secret" not in messages
