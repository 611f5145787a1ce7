"""Slurm: one answer of squeue for all launchers, what silence means, and what is refused before submission."""

import time

import pytest

from workflow.launch import slurm
from workflow.launch.slurm import Queue, RequestError

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
    statuses = [Queue(tmp_path, slurm).status(job, NOW - 60) for job in ("7", "8") for _ in range(30)]
    assert len(slurm.asked) == 1
    assert statuses[0].words == "running on node3"
    assert statuses[-1].words == "queued (Resources)"
    assert all(status.alive for status in statuses)


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

    def status(after_s: float):
        later = time.monotonic() + after_s
        with monkeypatch.context() as patch:
            patch.setattr(time, "monotonic", lambda: later)
            return queue.status("3", NOW - 600)

    assert [status(after).state for after in (0, 40)] == ["UNANSWERED"] * 2
    assert status(80).state == "UNKNOWN"
    assert "Connection refused" in status(80).note
    queue = Queue(tmp_path, slurm)
    assert status(0).alive
    slurm.sacct = ("PREEMPTED|node1\n", "")
    assert status(40).state == "PREEMPTED"


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
    assert slurm.ask("surely-no-such-program") == ("", "no surely-no-such-program here")
    assert slurm.ask("false")[1]


# -- requests --------------------------------------------------------------------------------------

PARTITIONS = """\
PartitionName=gpu AllowGroups=ALL Default=YES MaxTime=1-00:00:00 TotalNodes=2
PartitionName=short AllowGroups=ALL Default=NO MaxTime=00:02:00 TotalNodes=2
PartitionName=long AllowGroups=ALL Default=NO MaxTime=UNLIMITED TotalNodes=2
"""


def asking(sbatch: str = ""):
    """A Slurm with these partitions that answers `sbatch --test-only` so."""

    def ask(*command: str) -> tuple[str, str]:
        return (PARTITIONS, "") if command[0] == "scontrol" else ("", sbatch)

    return ask


def test_gpus_are_shared_by_the_nodes_one_process_each():
    request = slurm.options({"runtime": 60, "nodes": 2, "gpus": 8, "mem_mb": 1000})
    assert request["gpus_per_node"] == 4
    assert request["ntasks_per_node"] == 4
    assert request["mem"] == "1000MB"
    assert "gres" not in request


def test_a_cluster_without_gpus_per_node_is_asked_by_gres():
    request = slurm.options({"runtime": 60, "nodes": 2, "gpus": 8, "gres": "gpu:v100"})
    assert request["gres"] == "gpu:v100:4"
    assert "gpus_per_node" not in request
    assert "gres" not in slurm.options({"runtime": 60, "gres": "gpu:v100"})


@pytest.mark.parametrize(
    ("resources", "words"),
    [
        ({"nodes": 3, "gpus": 8}, "gpus: 8 can't be shared equally by nodes: 3"),
        ({"gpus": 2, "tasks": 4}, "a process has one GPU"),
        ({"slurm_extra": "nice 10"}, "'nice' is no `--option=value`"),
        ({"setup": "nowhere.sh"}, "no file nowhere.sh"),
        ({"slurm_partition": "short"}, "partition short allows 2"),
        ({"slurm_partition": "short,gpu", "runtime": 2000}, "gpu allows 1440, partition short"),
        ({"runtime": 2000}, "partition gpu allows 1440"),
    ],
)
def test_what_can_never_run_is_one_sentence_with_its_remedy(resources, words):
    with pytest.raises(RequestError) as refused:
        slurm.check("train", {"runtime": 60, **resources}, asking())
    assert words in str(refused.value)
    assert "workflow/profiles/slurm/config.yaml" in str(refused.value)


def test_one_of_several_partitions_that_allows_the_time_is_enough():
    slurm.check("train", {"runtime": 60, "slurm_partition": "short,gpu"}, asking())
    slurm.check("train", {"runtime": 2000, "slurm_partition": "gpu,long"}, asking())


def test_a_job_may_be_requeued_where_slurm_would_not_by_itself():
    """At a time limit `scontrol requeue` puts it back, which JobRequeue=0 bars."""
    assert "--requeue" in slurm.flags(slurm.options({"runtime": 60}))
    given = slurm.options({"runtime": 60, "slurm_extra": "--no-requeue"})
    assert slurm.flags(given)[-1] == "--no-requeue"
    assert "--requeue" not in slurm.flags(given)


def test_slurms_own_refusal_is_passed_on_with_what_was_asked():
    ask = asking("sbatch: error: x\nallocation failure: Invalid feature specification")
    with pytest.raises(RequestError, match=r"--constraint=a100.*Invalid feature specification"):
        slurm.check("throughput", {"runtime": 60, "constraint": "a100"}, ask)


def test_without_sbatch_the_profile_is_the_wrong_one():
    with pytest.raises(RequestError, match="--profile demo"):
        slurm.check("train", {"runtime": 60}, asking("no sbatch here"))


def test_a_controller_that_is_away_refuses_nothing():
    ask = asking("allocation failure: Unable to contact slurm controller (connect failure)")
    slurm.check("train", {"runtime": 60, "slurm_partition": "long"}, ask)


@pytest.mark.parametrize(
    ("error", "temporary"),
    [
        ("sbatch: error: Batch job submission failed: Unable to contact slurm controller", True),
        ("sbatch: error: QOSMaxSubmitJobPerUserLimit", True),
        ("sbatch: error: AssocGrpSubmitJobsLimit", True),
        ("sbatch: error: QOSGrpSubmitJobsLimit", True),
        ("Socket timed out on send/recv operation", True),
        ("Slurm temporarily unable to accept job, sleeping and retrying", True),
        ("sbatch: error: invalid partition specified: nowhere", False),
        ("Requested node configuration is not available", False),
        ("sbatch: error: QOSMaxWallDurationPerJobLimit", False),
    ],
)
def test_what_is_worth_waiting_for(error, temporary):
    assert slurm.is_temporary(error) == temporary


@pytest.mark.parametrize(("limit", "minutes"), [("1-00:00:00", 1440), ("00:02:00", 2), ("2-12:30:00", 3630)])
def test_slurms_time_limits(limit, minutes):
    assert slurm.minutes(limit) == minutes
    assert slurm.minutes("UNLIMITED") > 10**5


def test_any_other_option_of_sbatch_is_passed_on():
    request = slurm.options({"runtime": 5, "slurm_extra": "--reservation=x --nice"})
    assert slurm.flags(request)[-2:] == ["--reservation=x", "--nice"]


def test_the_setup_file_is_sourced_and_its_failure_ends_the_job(tmp_path):
    path = tmp_path / "setup.sh"
    path.write_text("module load cuda\n")
    (line,) = slurm.setup_lines({"setup": str(path)})
    assert line.startswith(f"source {path} || ")
    assert "exit 1" in line


@pytest.mark.parametrize(("states", "refused"), [("idle\nidle", True), ("idle\ndrained", False)])
def test_nodes_that_are_away_for_now_are_waited_for(states, refused):
    """`sbatch --test-only` has the same words for them as for what no node will ever have."""

    def ask(*command: str) -> tuple[str, str]:
        if command[0] == "sinfo":
            return states, ""
        away = "allocation failure: Requested node configuration is not available"
        return (PARTITIONS, "") if command[0] == "scontrol" else ("", away)

    if refused:
        with pytest.raises(RequestError, match="node configuration is not available"):
            slurm.check("train", {"runtime": 60}, ask)
    else:
        slurm.check("train", {"runtime": 60}, ask)
