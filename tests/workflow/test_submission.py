"""Submitting once: what is waited for, what is refused, what is found again."""

import pytest

from workflow.launch import executors, slurm_queue, submission, submit
from workflow.launch.slurm_request import RequestError
from workflow.launch.submission import LaunchError
from workflow.storage import attempts

SLURM = {"launcher": "slurm", "runtime": 10}


@pytest.fixture
def attempt(tmp_path):
    one = attempts.begin(tmp_path / "runs/x", {"kind": "train"})
    (one.folder / "logs").mkdir()
    return one


@pytest.fixture
def slurm(monkeypatch, attempt):
    """What squeue and each try of a submission answer; the commands and pauses that there were."""

    class Slurm:
        queue, tries, asked, pauses = "", [], [], []

    def ask(*command):
        Slurm.asked.append(command)
        return Slurm.queue, ""

    def in_a_child(function):
        error = Slurm.tries.pop(0)
        if not error:
            attempt.note_job(launcher="slurm", job_id="9", submitted=1.0, resources={})
        return error

    Slurm.tries, Slurm.asked, Slurm.pauses = [], [], []
    monkeypatch.setattr(slurm_queue, "ask", ask)
    monkeypatch.setattr(submission, "in_a_child", in_a_child)
    monkeypatch.setattr(submission.time, "sleep", Slurm.pauses.append)
    return Slurm


def test_slurm_away_is_waited_for_with_growing_pauses(attempt, slurm):
    slurm.tries = ["sbatch: error: Unable to contact slurm controller"] * 8 + [""]
    said = []
    assert submission.submit(attempt, {}, SLURM, said.append)["job_id"] == "9"
    assert slurm.pauses == [5, 10, 20, 40, 80, 160, 300, 300]
    assert "Unable to contact slurm controller" in said[0]
    assert len(said) == 8


def test_a_refusal_is_an_error_at_once(attempt, slurm):
    slurm.tries = ["sbatch: error: Invalid qos specification"]
    with pytest.raises(LaunchError, match="Invalid qos specification"):
        submission.submit(attempt, {}, SLURM, print)
    assert not slurm.pauses


def test_a_time_limit_is_checked_again_now_that_slurm_answers(attempt, slurm, monkeypatch):
    """snakemake may have asked in vain at its start; the job would pend for ever."""
    shown = "PartitionName=short Default=YES MaxTime=00:02:00"
    monkeypatch.setattr(slurm_queue, "ask", lambda *command: (shown if command[0] == "scontrol" else "", ""))
    with pytest.raises(RequestError, match=r"10 minutes .*partition short allows 2"):
        submission.submit(attempt, {}, SLURM, print)


@pytest.mark.parametrize("error", ["", "scancel: error: Kill job error: Invalid job id specified"])
def test_a_job_of_another_spec_is_ended_even_if_slurm_was_away(attempt, slurm, monkeypatch, error):
    attempt.note_job(launcher="slurm", job_id="17", submitted=1.0, resources={})
    answers = ["scancel: error: Unable to contact slurm controller", error]
    monkeypatch.setattr(slurm_queue, "ask", lambda *command: ("", answers.pop(0)))
    submission.end_replaced(attempt, print)
    assert not answers
    assert slurm.pauses == [5]


def test_a_job_of_another_spec_that_can_not_be_ended_stops_the_launcher(attempt, monkeypatch, tmp_path):
    """Else nothing would know of it any more."""
    attempt.note_job(launcher="slurm", job_id="17", submitted=1.0, resources={})
    monkeypatch.setattr(executors, "is_alive", lambda job, folder: True)
    monkeypatch.setattr(slurm_queue, "ask", lambda *command: ("", "Access/permission denied"))
    with pytest.raises(LaunchError, match=r"job 17 of .*permission denied; end it \(scancel 17\)"):
        submit.choose_attempt({"kind": "search"}, tmp_path / "runs/x", tmp_path / "o.json", print)
    assert attempts.newest(tmp_path / "runs/x").number == 1


def test_a_job_that_nobody_noted_is_taken_over(attempt, slurm):
    slurm.queue = "17\n"
    (attempt.folder / "logs/17_submitted.pkl").touch()
    assert submission.submit(attempt, {}, SLURM, print)["job_id"] == "17"
    assert attempt.job_name in slurm.asked[0][-2]
    assert len(slurm.asked) == 1


def test_a_job_that_can_not_start_is_ended_and_made_anew(attempt, slurm):
    slurm.queue, slurm.tries = "17\n", [""]
    assert submission.submit(attempt, {}, SLURM, print)["job_id"] == "9"
    assert ("scancel", "17") in slurm.asked


def test_a_job_that_was_cancelled_from_here_is_left_to_die(attempt, slurm):
    attempt.note_job(launcher="slurm", job_id="17", submitted=1.0, resources={})
    attempt.note_cancelled()
    slurm.queue, slurm.tries = "17\n", [""]
    assert submission.submit(attempt, {}, SLURM, print)["job_id"] == "9"
    assert ("scancel", "17") not in slurm.asked


def test_two_attempts_never_share_a_name(tmp_path):
    places = [tmp_path / place / "runs/x" for place in ("a", "b")]
    names = [attempts.begin(place, {"kind": "train"}).job_name for place in places]
    names.append(attempts.begin(places[0], {"kind": "train"}).job_name)
    assert len(set(names)) == 3
    assert all(name.startswith("x-") for name in names)


def test_the_childs_error_reaches_the_parent():
    def fails():
        raise ValueError("why")

    assert submission.in_a_child(fails) == "why"
    assert submission.in_a_child(lambda: None) == ""
