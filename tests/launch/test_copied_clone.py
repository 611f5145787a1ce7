"""A clone that was moved or copied while its jobs live: a copy's jobs are the original's."""

import os
import shutil
from pathlib import Path

import pytest

from workflow.campaign import specs
from workflow.launch import follow, submit
from workflow.launch.slurm import Queue, Status
from workflow.storage import attempts


@pytest.fixture
def original(tmp_path, config) -> Path:
    """A job's folder with an attempt whose job lives: this process."""
    folder = tmp_path / "original/results/demo/runs/deit_tiny"
    attempt = attempts.begin(folder, specs.train_spec(config, "demo", "deit_tiny"))
    attempt.note_job(launcher="local", job_id=str(os.getpid()), session=0, submitted=1.0,
                     host=os.uname().nodename, started=follow.process_start(os.getpid()),
                     resources={})  # fmt: skip
    return tmp_path / "original"


def attempt_in(clone: Path) -> attempts.Attempt:
    return attempts.newest(clone / "results/demo/runs/deit_tiny")


def alive(clone: Path, **options) -> bool:
    attempt = attempt_in(clone)
    return follow.is_alive(attempt.job(), attempt.folder, **options)


def test_a_moved_clone_finds_its_own_job(original):
    assert alive(original)
    moved = original.with_name("moved")
    shutil.move(original, moved)
    assert alive(moved)


def test_a_copied_clone_does_not_follow_the_originals_job(original):
    copy = original.with_name("copy")
    shutil.copytree(original, copy)
    attempt = attempt_in(copy)
    status = follow.status(attempt.job(), attempt.folder)
    assert not status.alive
    assert "copied" in status.note
    assert alive(original)
    attempt.note_job(**{**attempt.job(), "host": "x"})  # its own job
    assert not attempts.was_copied(attempt.job(), attempt.folder)


def test_a_job_on_slurm_as_well(original, tmp_path):
    noted = attempt_in(original)
    noted.note_job(launcher="slurm", job_id="7", submitted=1.0, resources={})
    copy = original.with_name("copy")
    shutil.copytree(original, copy)
    queue = Queue(tmp_path, lambda *command: ("7|RUNNING|None|n1|N/A", ""))
    assert alive(original, queue=queue)
    assert not alive(copy, queue=queue)


def test_a_copy_ends_no_job_of_the_original(original, monkeypatch):
    """Not when its spec changed, nor on Ctrl-C."""
    copy = original.with_name("copy")
    shutil.copytree(original, copy)
    ended = []
    monkeypatch.setattr(follow, "cancel", lambda job, folder: ended.append(job) or "")
    attempt, messages = attempt_in(copy), []
    submit.Launcher(attempt, {}, {"on_interrupt": "cancel"}, messages.append).leave()
    folder = attempt.folder.parent.parent
    fresh = submit.choose_attempt({**attempt.spec, "seed": 9}, folder, Path("x.json"), messages.append)
    assert fresh.number == 2
    assert not ended
    assert "no job of this attempt" in messages[0]


def test_a_job_noted_by_an_older_version_is_taken_as_it_was(original):
    attempt = attempt_in(original)
    job = {key: value for key, value in attempt.job().items() if key != "place"}
    assert follow.status(job, attempt.folder) == Status("RUNNING")
