"""The job on the node, before its kind's own module takes over."""

from types import SimpleNamespace

import pytest
import submitit

from workflow.login import jobs


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
