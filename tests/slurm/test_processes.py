"""Several processes on several nodes: the same numbers, the right GPUs, and one that fails."""

import json
import subprocess
import sys

import pytest

from tests.slurm.conftest import curve
from workflow.storage import records


def losses(path) -> list[float]:
    return [epoch["loss"] for epoch in curve(path)]


def test_two_nodes_with_two_processes_each_train_what_one_does(training, undisturbed, cluster):
    epochs = 4
    one = training(epochs=epochs, nodes=2, tasks=4)
    one.launch()
    code, output = one.end()
    assert code == 0, output
    record = records.read(one.output)
    assert record["provenance"]["world_size"] == 4
    assert cluster.job(one.job_id)["NumNodes"] == "2"
    alone = [epoch["loss"] for epoch in undisturbed(one.spec)]
    assert losses(one.attempt.journal) == pytest.approx(alone, rel=1e-4)


def test_a_process_that_fails_ends_the_job_and_its_reason_is_what_is_read(training, images):
    """One process draws an image that went bad; the others would wait for it for ever."""
    next(images.glob("train/3/*.png")).write_bytes(b"no image")
    one = training(nodes=2, tasks=2)
    one.launch()
    code, output = one.end()
    assert code == 1
    assert "can't be decoded" in output
    assert str(images / "train/3") in output
    assert "Traceback" not in output


PROBE = """
import json, os, sys, time
from workflow.runtime.job import Job

class Probe(Job):
    def __call__(self):
        self._wait_for_device = lambda: None
        self._run = self.look
        super().__call__()

    def look(self, folder):
        names = ("CUDA_VISIBLE_DEVICES", "LOCAL_RANK", "RANK", "WORLD_SIZE")
        path = folder / f"rank{os.environ.get('RANK', 0)}.json"
        path.write_text(json.dumps({name: os.environ.get(name) for name in names}))
        ranks = range(int(os.environ.get("WORLD_SIZE", 1)))
        others = [folder / f"rank{rank}.json" for rank in ranks]
        others += [folder.parent / number / "rank0.json" for number in "12"]
        while not all(path.exists() for path in others):  # so that the first two run at once
            time.sleep(0.1)
        return {}
"""
SUBMIT = """
import json, sys
from pathlib import Path
from probe import Probe
from workflow.launch import submit
from workflow.storage.attempts import Attempt
for number, gpus in (("1", 1), ("2", 1), ("3", 4)):
    attempt = Attempt(Path(sys.argv[1]) / number)
    job = Probe(attempt.spec, {}, str(attempt.folder))
    place = {"slurm_extra": "--nodelist=node1"} if gpus == 1 else {"nodes": 2}
    resources = {"runtime": 5, "gpus": gpus, "cpus_per_task": 1, "mem_mb": 2000, **place}
    submit.submit_to_slurm(attempt, job, resources)
"""


def test_every_process_sees_the_gpus_that_slurm_gave_its_job(cluster, tmp_path):
    """Two jobs on one node must not both take the first GPU."""
    (tmp_path / "probe.py").write_text(PROBE)
    for number in "123":
        (tmp_path / "jobs" / number).mkdir(parents=True)
        (tmp_path / "jobs" / number / "spec.json").write_text('{"kind": "train"}')
    path = f"{tmp_path}:{records.ROOT}"
    here = {**cluster.environment, "PYTHONPATH": path}
    subprocess.run([sys.executable, "-c", SUBMIT, str(tmp_path / "jobs")], env=here, check=True)
    cluster.wait(lambda: len(list(tmp_path.glob("jobs/*/record.json"))) == 3)

    def seen(number: str) -> list[dict]:
        paths = sorted((tmp_path / "jobs" / number).glob("rank?.json"))
        return [json.loads(path.read_text()) for path in paths]

    alone = [seen(number)[0]["CUDA_VISIBLE_DEVICES"] for number in "12"]
    assert sorted(alone) == ["0", "1"]
    four = seen("3")
    assert [one["RANK"] for one in four] == ["0", "1", "2", "3"]
    assert [one["LOCAL_RANK"] for one in four] == ["0", "1", "0", "1"]
    assert {one["CUDA_VISIBLE_DEVICES"] for one in four} == {"0,1"}  # chosen by local rank
