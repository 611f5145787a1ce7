"""One answer of squeue for all launchers, and what silence means."""

import time

import pytest

from workflow.launch import slurm_queue
from workflow.launch.slurm_queue import Queue

NOW = time.time()


class Slurm:
    """Answers as told, and counts the questions."""

    def __init__(self, jobs: str = "", error: str = "", sacct: tuple = ("", "disabled")):
        self.jobs, self.error, self.sacct, self.asked = jobs, error, sacct, []

    def __call__(self, *command: str) -> tuple[str, str]:
        self.asked.append(command)
        if command[0] == "sacct":
            return self.sacct
        if self.error:
            return "", self.error
        wanted = [word.partition("=")[2] for word in command if word.startswith("--jobs=")]
        lines = [line for line in self.jobs.splitlines() if not wanted or line.split("|")[0] in wanted]
        return ("\n".join(lines), "") if lines or not wanted else ("", "Invalid job id specified")


@pytest.fixture
def old(monkeypatch):
    """A function that makes every answer so far old."""

    def make() -> None:
        now = time.time()
        monkeypatch.setattr(time, "time", lambda: now + 100)
        later = time.monotonic() + 100
        monkeypatch.setattr(time, "monotonic", lambda: later)

    return make


RUNNING = "7|RUNNING|None|node3|2026-01-01T00:00:00"
WAITING = "8|PENDING|Resources||N/A"


def test_many_launchers_ask_once(tmp_path):
    slurm = Slurm(f"{RUNNING}\n{WAITING}")
    found = [Queue(tmp_path, slurm).status(job, NOW - 60) for job in ("7", "8") for _ in range(30)]
    assert len(slurm.asked) == 1
    assert found[0].words == "running on node3"
    assert found[-1].words == "queued (Resources)"
    assert all(status.alive for status in found)


def test_a_new_job_is_alive_before_it_stands_in_the_answer(tmp_path):
    queue = Queue(tmp_path, Slurm(RUNNING))
    assert queue.status("9", time.time() + 1).alive


def test_a_silent_controller_says_nothing_about_a_job(tmp_path, old):
    slurm = Slurm(RUNNING)
    queue = Queue(tmp_path, slurm)
    assert queue.status("7", NOW - 60).alive
    slurm.error = "slurm_load_jobs error: Unable to contact slurm controller"
    old()
    assert queue.status("7", NOW - 60).state == "RUNNING"
    assert queue.status("6", NOW - 60).state == "UNANSWERED"
    assert queue.status("6", NOW - 60).alive


@pytest.mark.parametrize(
    ("sacct", "state", "note"),
    [
        (("NODE_FAIL|node1\n", ""), "NODE_FAIL", ""),
        (("CANCELLED by 0|node1\n", ""), "CANCELLED", ""),
        (("", "Slurm accounting storage is disabled"), "UNKNOWN", "storage is disabled"),
        (("", "no sacct here"), "UNKNOWN", "no sacct here"),
    ],
)
def test_of_a_forgotten_job_accounting_is_asked_if_there_is_any(tmp_path, sacct, state, note):
    status = Queue(tmp_path, Slurm(RUNNING, sacct=sacct)).status("3", NOW - 600)
    assert status.state == state
    assert not status.alive
    assert note in status.note


def test_an_accounting_that_is_away_is_asked_again_but_not_for_ever(tmp_path, monkeypatch):
    slurm = Slurm(RUNNING, sacct=("", "Unable to contact slurmdbd: Connection refused"))
    queue = Queue(tmp_path, slurm)

    def found(after_s: float):
        later = time.monotonic() + after_s
        with monkeypatch.context() as patch:
            patch.setattr(time, "monotonic", lambda: later)
            return queue.status("3", NOW - 600)

    assert [found(after).state for after in (0, 40)] == ["UNANSWERED"] * 2
    assert found(80).state == "UNKNOWN"
    assert "Connection refused" in found(80).note
    queue = Queue(tmp_path, slurm)
    assert found(0).alive
    slurm.sacct = ("PREEMPTED|node1\n", "")
    assert found(40).state == "PREEMPTED"


def test_who_only_looks_asks_nothing_about_single_jobs(tmp_path):
    slurm = Slurm(RUNNING)
    queue = Queue(tmp_path, slurm, list_only=True)
    assert queue.status("7", NOW - 600).alive
    assert not any(queue.status(str(job), NOW - 600).alive for job in range(100, 200))
    assert len(slurm.asked) == 1


def test_a_forgotten_job_is_asked_for_once_in_a_while(tmp_path, old):
    slurm = Slurm(RUNNING)
    queue = Queue(tmp_path, slurm)
    for _ in range(20):
        queue.status("3", NOW - 600)
    assert len(slurm.asked) == 3  # all jobs, this job, accounting
    old()
    queue.status("3", NOW - 600)
    assert len(slurm.asked) == 6


def test_without_slurm_here_no_job_lives(tmp_path):
    assert not Queue(tmp_path, Slurm(error="no squeue here")).status("7", NOW).alive


def test_a_damaged_answer_is_asked_for_again(tmp_path):
    queue = Queue(tmp_path, Slurm(RUNNING))
    queue.path.write_text("{")
    assert queue.status("7", NOW - 60).alive


def test_a_program_that_fails_or_is_missing_is_an_answer_too():
    assert slurm_queue.ask("surely-no-such-program") == ("", "no surely-no-such-program here")
    assert slurm_queue.ask("false")[1]
