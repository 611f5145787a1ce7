"""What became of a job, in words, and whether it is submitted once more."""

import json
import os
import subprocess

import pytest

from workflow.launch import follow, submit
from workflow.launch.slurm import Status
from workflow.runtime import job
from workflow.storage import attempts


@pytest.fixture
def attempt(tmp_path):
    begun = attempts.begin(tmp_path / "runs/x", {"kind": "train"})
    begun.note_job(launcher="slurm", job_id="7", submitted=0.0, resources={"mem_mb": 4000})
    (begun.folder / "logs").mkdir()
    return begun


def error(attempt, **values) -> None:
    content = {"rank": 0, "sentence": None, "stopped": False, "traceback": "a\nb", **values}
    (attempt.folder / "error-rank0.json").write_text(json.dumps(content))


def save(attempt, step: int) -> None:
    (attempt.folder / "checkpoints").mkdir(exist_ok=True)
    (attempt.folder / f"checkpoints/step-{step:09d}.pt").touch()


@pytest.mark.parametrize("state", ["PREEMPTED", "NODE_FAIL", "BOOT_FAIL", "TIMEOUT"])
def test_what_the_cluster_ended_is_submitted_again(attempt, state):
    assert follow.Patience(attempt).another(Status(state), was_left=False)


def test_a_requeue_that_slurm_refused_is_made_good_for(attempt):
    """JobRequeue=0, or no controller at the notice: the job ends with its checkpoint saved."""
    refused = subprocess.CalledProcessError(1, ["scontrol", "requeue", "7"])
    job.keep_error(attempt.folder, 0, refused)
    assert follow.Patience(attempt).another(Status("FAILED"), was_left=False)
    job.keep_error(attempt.folder, 0, FileNotFoundError(2, "No such file", "scontrol"))
    assert follow.Patience(attempt).another(Status("FAILED"), was_left=False)
    job.keep_error(attempt.folder, 0, FileNotFoundError(2, "No such file", "images/1.png"))
    assert not follow.Patience(attempt).another(Status("FAILED"), was_left=False)


@pytest.mark.parametrize("state", ["FAILED", "OUT_OF_MEMORY", "UNKNOWN", "CANCELLED", "COMPLETED"])
def test_what_failed_by_itself_is_not(attempt, state):
    assert not follow.Patience(attempt).another(Status(state), was_left=False)


def test_a_job_that_was_asked_to_stop_is_unless_the_user_cancelled_it(attempt):
    error(attempt, stopped=True)
    assert follow.Patience(attempt).another(Status("FAILED"), was_left=False)
    assert not follow.Patience(attempt).another(Status("CANCELLED"), was_left=False)


def test_a_job_that_raised_is_not_even_if_its_node_died_later(attempt):
    error(attempt)
    assert not follow.Patience(attempt).another(Status("NODE_FAIL"), was_left=False)


def test_not_for_ever_at_the_same_checkpoint(attempt):
    patience = follow.Patience(attempt)
    tries = [patience.another(Status("NODE_FAIL"), was_left=False) for _ in range(4)]
    assert tries == [True, True, True, False]
    for step in range(5):
        save(attempt, step)
        assert patience.another(Status("NODE_FAIL"), was_left=False)


def test_a_job_that_was_dying_when_its_launcher_came_back_is_submitted_once(attempt):
    patience = follow.Patience(attempt)
    assert patience.another(Status("FAILED"), was_left=True)
    assert not patience.another(Status("FAILED"), was_left=False)
    save(attempt, 3)
    assert not patience.another(Status("FAILED"), was_left=True)  # it lived when we came


def test_a_job_that_was_left_and_says_why_it_failed_is_not(attempt):
    """It may have begun hours after its new launcher came; its reason is what is to be read."""
    assert not follow.Patience(attempt).another(Status("OUT_OF_MEMORY"), was_left=True)
    log = attempt.folder / "logs/7_0_log.err"
    log.write_text("slurmstepd: error: Job 7 exceeded memory limit (5 > 4), being killed")
    assert not follow.Patience(attempt).another(Status("FAILED"), was_left=True)
    log.unlink()
    error(attempt)
    assert not follow.Patience(attempt).another(Status("FAILED"), was_left=True)


def test_a_job_that_waited_was_not_dying(attempt, monkeypatch):
    for state, dying in (("PENDING", False), ("RUNNING", True)):
        monkeypatch.setattr(follow, "status", lambda *_, state=state: Status(state))
        assert submit.Launcher(attempt, {}, {}, lambda text: None).attach() == dying


def test_a_local_job_is_never(attempt):
    attempt.note_job(launcher="local", job_id="7", submitted=0.0, resources={})
    assert not follow.Patience(attempt).another(Status("NODE_FAIL"), was_left=True)


def test_the_log_of_the_process_that_failed_first_is_shown(attempt):
    logs = attempt.folder / "logs"
    (logs / "7_0_log.err").write_text("srun: error: node2: task 3: Killed\nsrun: error: node1: tasks 0-2: Terminated\n")
    (logs / "7_3_log.err").write_text("\n".join(f"line {i}" for i in range(50)))
    messages = []
    sentence = follow.why_failed(attempt, Status("FAILED"), messages.append)
    assert "Slurm job 7 ended as FAILED without a record" in sentence
    assert str(logs) in sentence
    assert "rank 3" in messages[0]
    assert messages[-1] == "  line 49"
    assert len(messages) == 31


@pytest.mark.parametrize(
    ("state", "text"),
    [
        ("OUT_OF_MEMORY", ""),
        ("FAILED", "slurmstepd: error: Job 7 exceeded memory limit (5 > 4), being killed"),
        ("FAILED", "Detected 1 oom_kill event in StepId=7.0"),
    ],
)
def test_too_little_memory_is_named(attempt, state, text):
    (attempt.folder / "logs/7_0_log.err").write_text(text)
    sentence = follow.why_failed(attempt, Status(state), lambda line: None)
    assert "more than 4000 MB of memory (mem_mb)" in sentence


def test_an_error_of_ours_is_its_sentence_and_any_other_its_traceback(attempt):
    messages = []
    error(attempt, sentence="The image is bad.")
    assert follow.why_failed(attempt, Status("FAILED"), messages.append) == "The image is bad."
    assert not messages
    error(attempt)
    assert "rank 0" in follow.why_failed(attempt, Status("FAILED"), messages.append)
    assert messages == ["  a", "  b"]


def test_without_accounting_the_record_file_is_the_witness(attempt):
    ended = Status("UNKNOWN", note="Slurm has forgotten the job, and sacct can't say (disabled)")
    assert "sacct can't say" in follow.why_failed(attempt, ended, lambda line: None)


def test_a_reused_process_id_is_another_process():
    other = subprocess.Popen(["sleep", "60"])
    started = follow.process_start(other.pid)
    assert follow.is_same_process(other.pid, started)
    other.kill()
    other.wait()
    assert not follow.is_same_process(other.pid, started)
    assert not follow.is_same_process(os.getpid(), started + 100)
    assert not follow.is_same_process(os.getpid(), None)
