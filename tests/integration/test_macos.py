"""The demo's jobs where nothing is that only Linux has: no /proc, no os.sched_*, no fork.

A Mac was not at hand; this hides Linux's interfaces instead.
"""

import re
import subprocess
from pathlib import Path

import pytest

from tests.integration.project import command, edit, environment, leave_out_mlflow
from workflow.campaign import benchmarks
from workflow.campaign.config import FILES, Config
from workflow.storage import records

ROOT = Path(__file__).parent.parent.parent
HOOK = ROOT / "tests/workflow/like_macos"
# name of Linux's -> the files that may ask for it, since they go on without it
GUARDED = {
    "/proc/cpuinfo": ("storage/provenance.py",),
    "/dev/shm": ("data/worker_processes.py",),
    "os.sched_getaffinity": ("bench/process.py", "bench/monitor.py", "bench/latency.py"),
    "os.sched_setaffinity": ("bench/process.py",),
}


def test_no_code_but_the_guarded_asks_for_linux():
    for path in (ROOT / "workflow").rglob("*.py"):
        for name in re.findall(r"/proc/\w+|/dev/shm|os\.sched_\w+|preexec_fn", path.read_text()):
            assert str(path).endswith(GUARDED.get(name, ())), f"{path}: {name}"


@pytest.mark.integration
def test_the_demos_jobs_run(tree):
    """The data job, a training of one epoch with a loader process, and a measured section."""
    edit(tree, "settings", lambda c: c["demo"]["recipe"].update(epochs=1, warmup_epochs=0))
    edit(tree, "settings", lambda c: c["demo"]["data"].update(workers=1))
    leave_out_mlflow(tree)
    config = Config.load({name: tree / path.relative_to(ROOT) for name, path in FILES.items()})
    point = benchmarks.throughput_configuration(config, "demo", "deit_tiny")
    throughput = benchmarks.throughput_path("results/demo", "deit_tiny", point)
    training = "results/demo/runs/deit_tiny/train.json"
    here = {**environment(tree), "PYTHONPATH": str(HOOK)}
    done = subprocess.run(
        command("--profile", "demo", training, throughput), cwd=tree, env=here,
        capture_output=True, text=True, timeout=1200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert records.read(tree / training)["results"]["epochs"] == 1
    measured = records.read(tree / throughput)["results"]
    assert len(measured["methods"]) > 1
    assert measured["methods"][0]["images_per_s"] > 0
