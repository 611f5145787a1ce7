"""The job on the node, before its kind's own module takes over."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import submitit

from workflow import layout
from workflow.login import jobs
from workflow.node import train


@pytest.fixture
def environment(monkeypatch):
    """Two tasks as Slurm would start them; which one we are is `global_rank`."""
    found = SimpleNamespace(global_rank=0, num_tasks=2)
    monkeypatch.setattr(submitit, "JobEnvironment", lambda: found)
    distributed = SimpleNamespace(export=lambda **options: None)
    monkeypatch.setattr(submitit.helpers, "TorchDistributedEnvironment", lambda: distributed)
    return found


def test_a_job_of_one_process_runs_once_whatever_resources_it_was_given(
    environment, tmp_path, monkeypatch
):
    done = []
    module = SimpleNamespace(run=lambda spec, site, folder: done.append(spec["kind"]) or {})
    monkeypatch.setattr(jobs.importlib, "import_module", lambda name: module)
    for kind in jobs.MODULES:
        for environment.global_rank in (0, 1):
            jobs.Job({"kind": kind}, {}, str(tmp_path))()
    twice = [kind for kind in jobs.MODULES if done.count(kind) == 2]
    assert twice == ["evaluate", "train"]
    assert set(done) == jobs.MODULES.keys()
    assert (tmp_path / "record.json").exists()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_image_is_one_sentence_also_from_a_loaders_process(workers, site, tiny_spec):
    """Gone bad after the data job looked; jobs keep the sentence, launchers show it."""
    spec = tiny_spec("deit_tiny")
    (Path(site["data_root"]) / "train/3/1.png").write_bytes(b"no image")
    folder = Path(site["root"]) / "runs/deit_tiny/attempts/1"
    with pytest.raises(layout.DataError) as raised:
        train.run(spec, site | {"workers": workers}, folder)
    jobs.Job._keep_error(folder, 0, raised.value)
    said = json.loads((folder / "error-rank0.json").read_text())["sentence"]
    assert said.startswith(f"{site['data_root']}/train/3/1.png can't be decoded (")
    assert said.endswith("replace it with the original image.")
    assert "\n" not in said
