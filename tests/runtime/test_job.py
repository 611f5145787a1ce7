"""The job on the node, before its kind's own module takes over."""

import json
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import submitit

from workflow.campaign.kinds import KINDS
from workflow.data import layout
from workflow.runtime import job
from workflow.storage import locks
from workflow.train import train


@pytest.fixture
def environment(monkeypatch):
    """Two tasks as Slurm would start them; which one we are is `global_rank`."""
    found = SimpleNamespace(global_rank=0, num_tasks=2, cluster="slurm")
    monkeypatch.setattr(submitit, "JobEnvironment", lambda: found)
    monkeypatch.setattr(job.job_environment, "clean", lambda: [])  # of pytest's own process
    distributed = SimpleNamespace(export=lambda **options: None)
    monkeypatch.setattr(submitit.helpers, "TorchDistributedEnvironment", lambda: distributed)
    return found


def test_a_job_of_one_process_runs_once_whatever_resources_it_was_given(environment, tmp_path, monkeypatch):
    done = []
    module = SimpleNamespace(run=lambda spec, site, folder: done.append(spec["kind"]) or {})
    monkeypatch.setattr(job.importlib, "import_module", lambda name: module)
    on_nodes = {name for name, kind in KINDS.items() if kind.module}
    for kind in on_nodes:
        for environment.global_rank in (0, 1):
            folder = tmp_path / kind / str(environment.global_rank)
            job.Job({"kind": kind}, {}, str(folder))()
    assert {kind for kind in on_nodes if done.count(kind) == 2} == {"evaluate", "train"}
    assert set(done) == on_nodes
    assert len(list(tmp_path.glob("*/0/record.json"))) == len(on_nodes)
    assert not list(tmp_path.glob("*/1/record.json"))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_image_is_one_sentence_also_from_a_loaders_process(workers, site, tiny_spec):
    """Gone bad after the data job looked; jobs keep the sentence, launchers show it."""
    spec = tiny_spec("deit_tiny")
    (Path(site["data_root"]) / "train/3/1.png").write_bytes(b"no image")
    folder = Path(site["root"]) / "runs/deit_tiny/attempts/1"
    with pytest.raises(layout.DataError) as raised:
        train.run(spec, site | {"workers": workers}, folder)
    job.keep_error(folder, 0, raised.value)
    said = json.loads((folder / "error-rank0.json").read_text())["sentence"]
    assert said.startswith(f"{site['data_root']}/train/3/1.png can't be decoded (")
    assert said.endswith("replace it with the original image.")
    assert "\n" not in said


def test_a_second_copy_waits_for_the_first_and_takes_its_record_for_done(tmp_path, environment, monkeypatch):
    ran = []
    monkeypatch.setattr(job.Job, "_run", lambda self, folder: ran.append(folder) or {})
    second = threading.Thread(target=job.Job({"kind": "train"}, {}, str(tmp_path)))
    with locks.exclusive(tmp_path / "rank0.lock"):
        second.start()
        second.join(timeout=0.5)
        assert second.is_alive()
        (tmp_path / "record.json").write_text("{}")
    second.join(timeout=60)
    assert not second.is_alive()
    assert not ran


def test_a_resumed_job_forgets_what_stopped_it_before(tmp_path, environment, monkeypatch):
    monkeypatch.setattr(job.Job, "_run", lambda self, folder: {})
    job.keep_error(tmp_path, 0, RuntimeError("before"))
    job.Job({"kind": "train"}, {}, str(tmp_path))()
    assert not list(tmp_path.glob("error-*"))


def test_a_time_limit_that_can_not_be_survived_says_so(tmp_path):
    error = submitit.core.utils.UncompletedJobError("timed-out too many times")
    job.keep_error(tmp_path, 0, error)
    content = json.loads((tmp_path / "error-rank0.json").read_text())
    assert "time limit" in content["sentence"]
    assert not content["stopped"]
