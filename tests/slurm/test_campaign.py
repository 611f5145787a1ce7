"""`snakemake --profile slurm` on the real Slurm, as a user types it."""

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from tests.integration.project import command, environment
from tests.slurm.cluster import PATIENCE_S
from tests.slurm.conftest import HOOK, kill
from workflow.launch import slurm
from workflow.storage import journal, records
from workflow.storage.attempts import Attempt

TABLE = "results/demo/table1.csv"
SLURM = ("--profile", "slurm")
RUNS = "results/demo/runs"
EPOCH_S = "2"  # at least: time to kill it halfway


@pytest.fixture(scope="module")
def campaign(tree, cluster) -> Path:
    """The project, its profile edited for this cluster: no GPUs for torch, little memory."""
    path = tree / "workflow/profiles/slurm/config.yaml"
    profile = yaml.safe_load(path.read_text())
    profile["default-resources"] |= {"cpus_per_task": 2, "mem_mb": 3000, "runtime": 30}
    for values in profile["set-resources"].values():
        values.update(gpus=0, runtime=30, mem_mb=3000)
    path.write_text(yaml.safe_dump(profile, sort_keys=False))
    return tree


@pytest.fixture
def start(campaign, cluster):
    """A function that starts snakemake in a session of its own."""

    begun = []

    def begin(*arguments: str) -> subprocess.Popen:
        here = {**environment(campaign), "SLURM_CONF": str(cluster.conf)}
        here |= {"PYTHONPATH": str(HOOK), "EVOVIT_TEST_PACE_S": EPOCH_S}
        process = subprocess.Popen(
            command(*arguments, *SLURM), cwd=campaign, env=here, text=True, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        begun.append(process)
        return process

    yield begin
    for process in begun:
        with contextlib.suppress(ProcessLookupError):  # its launchers may have outlived it
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture
def ends(start):
    """A function that runs snakemake to its end and returns its output."""

    def run(*arguments: str, code: int = 0) -> str:
        process = start(*arguments)
        return end(process, code)

    return run


def end(process: subprocess.Popen, code: int = 0) -> str:
    output, _ = process.communicate(timeout=900)
    assert process.returncode == code, output
    return output


def ctrl_c(process: subprocess.Popen) -> str:
    """As the terminal does it: to snakemake and all that it started."""
    os.killpg(process.pid, signal.SIGINT)
    return end(process, 1)


def submitted(tree: Path) -> list[Attempt]:
    return [Attempt(path.parent) for path in tree.glob("results/demo/**/job.json")]


def wait(condition) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def wait_for(words: str, log: Path) -> None:
    """Snakemake deletes a rule's log before it starts it again."""
    wait(lambda: log.exists() and words in log.read_text())


@pytest.fixture
def full(cluster):
    """Another job has the nodes while the test lasts, and all of ours wait."""
    whole = ("--exclusive", "--nodes=2", "--output=/dev/null", "--wrap=sleep 3600")
    other = cluster.run("sbatch", "--parsable", *whole)
    wait(lambda: cluster.job(other)["JobState"] == "RUNNING")
    yield
    cluster.run("scancel", other)


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ("train:runtime=99999", "partition gpu allows 1440"),
        ("train:slurm_partition=nowhere", "Invalid partition name specified"),
        ("throughput:constraint=a100", "Invalid feature specification"),
        ("train:gpus=9", "Requested node configuration is not available"),
        ("train:gpsu=1", "did you mean 'gpus'"),
    ],
)
def test_what_slurm_can_never_run_is_refused_before_anything_is_submitted(ends, campaign, wanted, words):
    output = ends(TABLE, "--set-resources", wanted, code=1)
    assert words in output
    assert "Traceback" not in output
    assert not submitted(campaign)


def test_nodes_that_are_down_for_now_are_no_reason_to_refuse(cluster, monkeypatch):
    """sbatch itself takes such a job, and it waits for the end of the maintenance."""
    monkeypatch.setenv("SLURM_CONF", str(cluster.conf))
    nodes = ("scontrol", "update", f"NodeName={','.join(cluster.node_names)}")
    cluster.run(*nodes, "State=DRAIN", "Reason=maintenance")
    try:
        slurm.check("train", {"launcher": "slurm", "runtime": 10, "mem_mb": 1000})
    finally:
        cluster.run(*nodes, "State=RESUME")
        wait(lambda: cluster.idle() == cluster.nodes)


def test_ctrl_c_leaves_the_jobs_and_starts_nothing_new(start, campaign, cluster, full):
    process = start(TABLE)
    wait(lambda: len(submitted(campaign)) == 2)  # data and preflight, all that can run at first
    output = ctrl_c(process)
    assert "goes on; the next start re-attaches to it" in output
    ours = sorted(one.job()["job_id"] for one in submitted(campaign))
    for _ in range(2):
        waiting = ("squeue", "--noheader", "--states=pending", "--format=%i")
        assert sorted(cluster.run(*waiting).split()) == ours
        time.sleep(5)


def test_ctrl_c_and_then_kill_9_of_snakemake_alone(start, campaign, cluster):
    """Its launchers live on; those of the next snakemake wait for them and take their records."""
    folder = campaign / RUNS / "deit_tiny"
    target, attempt = f"{RUNS}/deit_tiny/train.json", Attempt(folder / "attempts/1")
    first = start(target)
    wait(lambda: attempt.folder.exists() and attempt.job())
    job_id = attempt.job()["job_id"]
    wait(lambda: cluster.processes(job_id))
    stopped = cluster.processes(job_id)
    kill(stopped, signal.SIGSTOP)  # until the last snakemake is there
    output = ctrl_c(first)
    assert "Jobs go on. MLflow shows what they do from the next start" in output
    second = start(target)
    wait_for("re-attached", folder / "train.log")
    second.kill()
    second.wait()
    third = start(target)
    wait_for("is launching the same job", folder / "train.log")
    kill(stopped, signal.SIGCONT)
    end(third)
    assert len(cluster.jobs_named(attempt.job_name)) == 1
    assert attempt.job()["job_id"] == job_id
    assert not (folder / "attempts/2").exists()
    assert records.read(campaign / target)["results"]["epochs"] == 2


def test_started_twice_at_once_and_killed_with_one_of_its_jobs_halfway(start, ends, campaign, cluster):
    """It ends with every job run by Slurm, the killed one twice and the others once."""
    both = [start(TABLE), start(TABLE)]
    wait(lambda: any(one.poll() is not None for one in both))
    both.sort(key=lambda one: one.poll() is None)
    assert "Another snakemake works in this folder" in end(both[0], 1)
    killed = Attempt(campaign / RUNS / "evo_deit_tiny/attempts/1")
    wait(lambda: killed.progress() > "step-000000000.pt")  # its first epoch's
    os.killpg(both[1].pid, signal.SIGKILL)
    kill(cluster.processes(killed.job()["job_id"]))
    both[1].communicate()
    assert not killed.record.exists()
    ends(TABLE)
    assert (campaign / TABLE).exists()
    for attempt in submitted(campaign):
        assert attempt.number == 1
        job = attempt.job()
        assert job["launcher"] == "slurm"
        wait(lambda job_id=job["job_id"]: cluster.job(job_id)["JobState"] == "COMPLETED")
        submissions = 2 if attempt.folder == killed.folder else 1
        assert len(cluster.jobs_named(attempt.job_name)) == submissions
    trained = records.read(campaign / RUNS / "evo_deit_tiny/train.json")
    assert trained["results"]["epochs"] == 2
    events = [event for event, _ in journal.read(killed.journal)]
    assert [event["epoch"] for event in events if event["event"] == "start"] == [0, 1]
    assert "Nothing to be done" in ends(TABLE)
