"""The cluster, once for all tests of this folder, and trainings on it."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.slurm import cluster as clusters
from tests.slurm.cluster import PATIENCE_S
from workflow.campaign import specs
from workflow.storage import attempts, journal, records
from workflow.train import trainer

EPOCHS, PACE_S = 20, 0.5  # of the trainings here, which take 10 s at least
NOTICE_S = 90  # within which a launcher must see that its job died
HOOK = Path(__file__).parent / "hook"


def pytest_collection_modifyitems(items):
    for item in items:
        if "tests/slurm" in str(item.path):
            item.add_marker(pytest.mark.integration)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    if lacking := clusters.missing():
        reason = f"no {', '.join(lacking)} here: apt-get install slurm-wlm munge"
        (pytest.fail if "SLURM_IS_HERE" in os.environ else pytest.skip)(reason)
    if not clusters.names_resolve(2):
        pytest.skip("node1 and node2 do not resolve: add `127.0.0.1 node1 node2` to /etc/hosts")
    one = clusters.Cluster(tmp_path_factory.mktemp("slurm"))
    try:
        one.start()
        yield one
    finally:
        one.stop()


class Training:
    """A small training on the cluster, followed by the real launcher.

    `bin` may hold programs that take precedence over Slurm's.
    """

    def __init__(self, cluster, folder: Path, data: Path, spec: dict, **resources):
        self.cluster, self.folder, self.data = cluster, folder, data
        self.bin = folder / "bin"
        self.resources = {"launcher": "slurm", "runtime": 10, "cpus_per_task": 1, "mem_mb": 3000}
        self.resources |= {"checkpoint_minutes": 15, "signal_delay_s": 10, **resources}
        self.job_folder = folder / "results/demo/runs/deit_tiny"
        specs.write_spec(self.job_folder / "spec.json", spec)
        self.spec = spec
        self.output, self.log = folder / "train.json", folder / "train.log"
        self.grows = folder / "grows"  # once it exists, the training takes 1 GB more
        self.launcher: subprocess.Popen | None = None

    def launch(self) -> subprocess.Popen:
        command = [sys.executable, "-m", "workflow.launch.submit"]
        command += ["--spec", str(self.job_folder / "spec.json"), "--output", str(self.output)]
        command += ["--log", str(self.log), "--root", str(self.folder / "results/demo")]
        command += ["--data", json.dumps({"root": str(self.data), "workers": 0})]
        command += ["--resources", json.dumps(self.resources)]
        self.launcher = self.begin(command)
        return self.launcher

    def begin(self, command: list[str]) -> subprocess.Popen:
        """Start a program of ours as on a login node, where the results are."""
        found = self.cluster.environment
        # the shared answer of squeue lies below the working directory, the code elsewhere
        found |= {"PATH": f"{self.bin}:{found['PATH']}", "PYTHONPATH": f"{HOOK}:{records.ROOT}"}
        found |= {"EVOVIT_TEST_PACE_S": str(PACE_S), "EVOVIT_TEST_GROWS": str(self.grows)}
        found.pop("MLFLOW_TRACKING_URI", None)
        return subprocess.Popen(
            command, cwd=self.folder, env=found, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, start_new_session=True,
        )  # fmt: skip

    def end(self, seconds: float = PATIENCE_S) -> tuple[int, str]:
        """Wait for the launcher. Return its exit code and output."""
        output, _ = self.launcher.communicate(timeout=seconds)
        return self.launcher.returncode, output

    @property
    def attempt(self) -> attempts.Attempt:
        return attempts.newest(self.job_folder)

    @property
    def job_id(self) -> str:
        self.wait(lambda: self.attempt and self.attempt.job())
        return self.attempt.job()["job_id"]

    def epochs(self) -> int:
        return len(journal.epochs(self.attempt.journal)) if self.attempt else 0

    def wait_for_epochs(self, count: int = 3) -> None:
        """Until so many more epochs are done than now."""
        goal = self.epochs() + count
        self.wait(lambda: self.epochs() >= goal)

    def wait(self, condition, seconds: float = PATIENCE_S) -> None:
        """Until the condition holds; the launcher must live or have ended well."""
        deadline = time.monotonic() + seconds
        while not condition():
            output = self.log.read_text()[-3000:] if self.log.exists() else ""
            assert time.monotonic() < deadline, f"waited in vain; {output}"
            assert not (self.launcher and self.launcher.poll()) or condition(), output
            time.sleep(0.2)

    def starts(self) -> list[dict]:
        found = [event for event, _ in journal.read(self.attempt.journal)]
        return [event for event in found if event["event"] == "start"]

    def saved_step(self) -> int:
        """The step before which the newest checkpoint was taken."""
        return int("".join(filter(str.isdigit, self.attempt.progress())) or 0)

    def submissions(self) -> int:
        """How many jobs Slurm was ever given for this attempt."""
        return len(self.cluster.jobs_named(self.attempt.job_name))

    def state(self) -> str:
        return self.cluster.job(self.job_id)["JobState"]

    def wait_for_requeue(self) -> None:
        """Until the job is pending again; then let it start at once."""
        self.wait(lambda: self.state() == "PENDING")
        self.cluster.release(self.job_id)
        self.wait(lambda: self.state() == "RUNNING")

    def kill_launcher(self) -> None:
        os.killpg(self.launcher.pid, signal.SIGKILL)
        self.launcher.wait()


def curve(path: Path) -> list[dict]:
    """Every epoch's metrics but the times, and nothing lost on the way to them."""
    epochs, standing = [], 0
    for event, _ in journal.read(path):
        if event["event"] == "start":
            # an epoch may be noted whose checkpoint its death forestalled
            assert event["epoch"] >= standing - 1
        elif event["event"] == "epoch":
            standing = event["epoch"]
    timed = {"train_s", "epoch_s"}
    for epoch in journal.epochs(path):
        epochs.append({key: value for key, value in epoch.items() if key not in timed})
    return epochs


@pytest.fixture
def training(cluster, tmp_path, images, tiny_spec):
    """A function that makes a training; what it leaves on the cluster is ended."""
    made = []

    def make(epochs: int = EPOCHS, batch_size: int = 8, **resources) -> Training:
        spec = tiny_spec("deit_tiny", epochs=epochs, batch_size=batch_size)
        if resources.get("tasks", 1) > 1:
            spec["model"]["kwargs"].pop("drop_path_rate", None)  # each process draws its own
        made.append(Training(cluster, tmp_path, images, spec, **resources))
        return made[-1]

    yield make
    for one in made:
        if one.launcher and one.launcher.poll() is None:
            one.kill_launcher()
    cluster.run("scancel", "--full", "--me", check=False)
    states = "--states=pending,running,completing"
    cluster.wait(lambda: not cluster.run("squeue", "--noheader", states))


@pytest.fixture(scope="session")
def curves() -> dict[str, list]:
    """Curves of trainings that nothing disturbed, by their specs' hashes."""
    return {}


@pytest.fixture
def undisturbed(curves, site, tmp_path):
    """A function: the curve of the same training, run here, with nothing happening to it."""

    def make(spec: dict) -> list[dict]:
        key = specs.spec_hash(spec)
        if key not in curves:
            folder = tmp_path / "runs/deit_tiny/attempts/1"
            trainer.run(spec, site, folder)
            curves[key] = curve(folder / "journal.jsonl")
        return curves[key]

    return make


@pytest.fixture
def whole(undisturbed):
    """A function that ends a training's test: it has its record, and the undisturbed curve."""

    def check(training, output: str | None = None) -> None:
        if output is None:
            code, output = training.end()
            assert code == 0, output
        assert training.attempt.number == 1
        assert curve(training.attempt.journal) == undisturbed(training.spec)
        assert training.output.exists()

    return check


def again(training) -> None:
    """A second start, which ends well."""
    training.launch()
    code, output = training.end()
    assert code == 0, output


def kill(pids: list[int], number: int = signal.SIGKILL) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
