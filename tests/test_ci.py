"""The workflow that GitHub runs calls .ci/run and nothing else."""

import os
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent


def test_github_runs_the_same_checks_as_a_developer():
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    assert [step["run"] for step in steps if "run" in step] == [".ci/run"]
    assert os.access(ROOT / ".ci/run", os.X_OK)
