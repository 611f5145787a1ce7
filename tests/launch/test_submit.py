"""Submitting once: what is waited for, what is refused, what is found again."""

import pytest

from workflow.launch import follow, slurm, submit
from workflow.launch.slurm import RequestError
from workflow.launch.submit import Launcher, LaunchError
from workflow.storage import attempts

SLURM = {"launcher": "slurm", "runtime": 10}


@pytest.fixture
def attempt(tmp_path):
    begun = attempts.begin(tmp_path / "runs/x", {"kind": "train"})
    (begun.folder / "logs").mkdir()
    return begun


@pytest.fixture
def cluster(monkeypatch, attempt):
    """What squeue and each try of a submission answer; the commands and pauses that there were."""

    class Cluster:
        queue, tries, asked, pauses = "", [], [], []

    def ask(*command):
        Cluster.asked.append(command)
        return Cluster.queue, ""

    def in_a_child(function):
        error = Cluster.tries.pop(0)
        if not error:
            attempt.note_job(launcher="slurm", job_id="9", submitted=1.0, resources={})
        return error

    Cluster.tries, Cluster.asked, Cluster.pauses = [], [], []
    monkeypatch.setattr(slurm, "ask", ask)
    monkeypatch.setattr(submit, "in_a_child", in_a_child)
    monkeypatch.setattr(submit.time, "sleep", Cluster.pauses.append)
    return Cluster


def test_slurm_away_is_waited_for_with_growing_pauses(attempt, cluster):
    cluster.tries = ["sbatch: error: Unable to contact slurm controller"] * 8 + [""]
    messages = []
    assert Launcher(attempt, {}, SLURM, messages.append).submit()["job_id"] == "9"
    assert cluster.pauses == [5, 10, 20, 40, 80, 160, 300, 300]
    assert "Unable to contact slurm controller" in messages[0]
    assert len(messages) == 8


def test_a_refusal_is_an_error_at_once(attempt, cluster):
    cluster.tries = ["sbatch: error: Invalid qos specification"]
    with pytest.raises(LaunchError, match="Invalid qos specification"):
        Launcher(attempt, {}, SLURM, print).submit()
    assert not cluster.pauses


def test_a_time_limit_is_checked_again_now_that_slurm_answers(attempt, cluster, monkeypatch):
    """snakemake may have asked in vain at its start; the job would pend for ever."""
    shown = "PartitionName=short Default=YES MaxTime=00:02:00"
    monkeypatch.setattr(slurm, "ask", lambda *command: (shown if command[0] == "scontrol" else "", ""))
    with pytest.raises(RequestError, match=r"10 minutes .*partition short allows 2"):
        Launcher(attempt, {}, SLURM, print).submit()


@pytest.mark.parametrize("error", ["", "scancel: error: Kill job error: Invalid job id specified"])
def test_a_job_of_another_spec_is_ended_even_if_slurm_was_away(attempt, cluster, monkeypatch, error):
    attempt.note_job(launcher="slurm", job_id="17", submitted=1.0, resources={})
    answers = ["scancel: error: Unable to contact slurm controller", error]
    monkeypatch.setattr(slurm, "ask", lambda *command: ("", answers.pop(0)))
    submit.end_replaced(attempt, print)
    assert not answers
    assert cluster.pauses == [5]


def test_a_job_of_another_spec_that_can_not_be_ended_stops_the_launcher(attempt, monkeypatch, tmp_path):
    """Else nothing would know of it any more."""
    attempt.note_job(launcher="slurm", job_id="17", submitted=1.0, resources={})
    monkeypatch.setattr(follow, "is_alive", lambda job, folder: True)
    monkeypatch.setattr(slurm, "ask", lambda *command: ("", "Access/permission denied"))
    with pytest.raises(LaunchError, match=r"job 17 of .*permission denied; end it \(scancel 17\)"):
        submit.choose_attempt({"kind": "search"}, tmp_path / "runs/x", tmp_path / "o.json", print)
    assert attempts.newest(tmp_path / "runs/x").number == 1


def test_a_job_that_nobody_noted_is_taken_over(attempt, cluster):
    cluster.queue = "17\n"
    (attempt.folder / "logs/17_submitted.pkl").touch()
    assert Launcher(attempt, {}, SLURM, print).submit()["job_id"] == "17"
    assert attempt.job_name in cluster.asked[0][-2]
    assert len(cluster.asked) == 1


def test_a_job_that_can_not_start_is_ended_and_made_anew(attempt, cluster):
    cluster.queue, cluster.tries = "17\n", [""]
    assert Launcher(attempt, {}, SLURM, print).submit()["job_id"] == "9"
    assert ("scancel", "17") in cluster.asked


def test_a_job_that_was_cancelled_from_here_is_left_to_die(attempt, cluster):
    attempt.note_job(launcher="slurm", job_id="17", submitted=1.0, resources={})
    attempt.note_cancelled()
    cluster.queue, cluster.tries = "17\n", [""]
    assert Launcher(attempt, {}, SLURM, print).submit()["job_id"] == "9"
    assert ("scancel", "17") not in cluster.asked


def test_two_attempts_never_share_a_name(tmp_path):
    places = [tmp_path / place / "runs/x" for place in ("a", "b")]
    names = [attempts.begin(place, {"kind": "train"}).job_name for place in places]
    names.append(attempts.begin(places[0], {"kind": "train"}).job_name)
    assert len(set(names)) == 3
    assert all(name.startswith("x-") for name in names)


def test_the_childs_error_reaches_the_parent():
    def fails():
        raise ValueError("why")

    assert submit.in_a_child(fails) == "why"
    assert submit.in_a_child(lambda: None) == ""
