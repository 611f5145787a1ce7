"""`snakemake --profile slurm` on the real Slurm, as a user types it."""

import contextlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from tests.integration.project import command, environment
from workflow import records

TABLE = "results/demo/table1.csv"
SLURM = ("--profile", "slurm")
RUN = "results/demo/runs/deit_tiny"


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

    def begin(*arguments: str) -> subprocess.Popen:
        here = {**environment(campaign), "SLURM_CONF": str(cluster.conf)}
        return subprocess.Popen(
            command(*arguments, *SLURM), cwd=campaign, env=here, text=True, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    return begin


@pytest.fixture
def ends(start):
    """A function that runs snakemake to its end; -> what it said."""

    def run(*arguments: str, code: int = 0) -> str:
        process = start(*arguments)
        said, _ = process.communicate(timeout=600)
        assert process.returncode == code, said
        return said

    return run


def notes(tree: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in tree.glob("results/demo/**/job.json")]


def wait(condition, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ("train:runtime=99999", "partition gpu allows 1440"),
        ("train:slurm_partition=nowhere", "Invalid partition name specified"),
        ("throughput:constraint=a100", "Invalid feature specification"),
        ("train:gpus=9", "Requested node configuration is not available"),
        ("train:gpsu=1", "did you mean 'gpus'?"),
    ],
)
def test_what_slurm_can_never_run_is_refused_before_anything_is_submitted(
    ends, campaign, wanted, words
):
    said = ends(TABLE, "--set-resources", wanted, code=1)
    assert words in said
    assert "Traceback" not in said
    assert not notes(campaign)


def test_ctrl_c_leaves_the_jobs_and_starts_nothing_new(start, campaign, cluster):
    process = start(TABLE)
    wait(lambda: len(notes(campaign)) == 2)  # data and preflight, all that can run at first
    process.send_signal(signal.SIGINT)
    os.killpg(process.pid, signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert "goes on; the next start re-attaches to it" in said
    before = cluster.run("squeue", "--states=all", "--noheader", "--format=%i").split()
    time.sleep(5)
    assert cluster.run("squeue", "--states=all", "--noheader", "--format=%i").split() == before
    assert len(notes(campaign)) == 2


def test_killed_with_one_of_its_jobs_it_ends_with_every_job_run_by_slurm(
    start, ends, campaign, cluster
):
    process = start(TABLE)
    wait(lambda: (campaign / RUN / "attempts/1/job.json").exists())
    second = start(TABLE)
    refused, _ = second.communicate(timeout=60)
    assert second.returncode != 0
    assert "Another snakemake works in this folder" in refused
    job = json.loads((campaign / RUN / "attempts/1/job.json").read_text())["job_id"]
    wait(lambda: cluster.processes(job))
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    for pid in cluster.processes(job):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    known = {note["job_id"] for note in notes(campaign)} - {job}
    ends(TABLE)
    assert (campaign / TABLE).exists()
    found = notes(campaign)
    assert {note["launcher"] for note in found} == {"slurm"}
    # nothing but the killed job was submitted twice
    assert known <= {note["job_id"] for note in found}
    assert len(list(campaign.glob("results/demo/**/attempts/2"))) == 0
    for note in found:
        wait(lambda job_id=note["job_id"]: cluster.job(job_id)["JobState"] == "COMPLETED")
    trained = records.read(campaign / RUN / "train.json")
    assert trained["results"]["epochs"] == 2
    assert "Nothing to be done" in ends(TABLE)
