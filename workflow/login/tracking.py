"""The mirror: one process that follows journals and records on disk into MLflow.

Jobs never talk to MLflow. Killed at any point and started again, the mirror loses and doubles
nothing: it asks MLflow what it already holds. `python -m workflow.login.tracking --once` catches
up; snakemake starts `--follow` when jobs begin. `MLFLOW_TRACKING_URI` is honoured; without it a
database in the repository's root serves, where a bare `mlflow ui` finds it.
"""

import argparse
import hashlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from workflow import locks, records
from workflow.login import executors
from workflow.login.sources import AttemptSource, TableSource, sources

POLL_S = 5.0
LEFT_JOBS_POLL_S = 60.0  # once snakemake is gone, only jobs that it left are waited for
BATCH = 500  # points per request; the server takes 1000
QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # an unreachable server is asked again at the next poll
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "GIT_PYTHON_REFRESH": "quiet",
}


def tracking_uri(root: Path) -> str:
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root.resolve() / 'mlflow.db'}"


def lock_path(root: Path) -> Path:
    """One lock for each database that this tree is mirrored into."""
    name = hashlib.sha256(tracking_uri(root).encode()).hexdigest()[:12]
    return root / ".snakemake" / f"mlflow-{name}.lock"


def first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


class Mirror:
    """Brings what lies below `root` into one MLflow database."""

    def __init__(self, root: Path):
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
        import mlflow

        logging.getLogger("alembic").setLevel(logging.ERROR)
        logging.getLogger("mlflow").setLevel(logging.ERROR)
        self.root, self.mlflow = root, mlflow
        self.client = mlflow.MlflowClient(tracking_uri(root))
        self.experiments: dict[str, str] = {}
        self.known: dict[str, object] = {}  # identity -> MLflow run
        self.held: dict[str, set] = {}  # run id -> (metric, step) that MLflow holds
        self.seen: dict[str, tuple] = {}  # identity -> signature when last mirrored

    def pass_over(self) -> int:
        """Mirror all that changed since the last pass; -> how many runs were touched."""
        touched = 0
        for source in sources(self.root):
            signature = source.signature()
            if self.seen.get(source.identity) == signature:
                continue
            self._experiment(source.experiment)
            if self._mirror(source):
                touched += 1
            self.seen[source.identity] = signature
        return touched

    def _experiment(self, name: str) -> None:
        """Make or find the experiment, and learn which of our runs it holds."""
        if name in self.experiments:
            return
        found = self.client.get_experiment_by_name(name)
        if found is None:
            here = (self.root.resolve() / "mlruns").as_uri()
            local = tracking_uri(self.root).startswith("sqlite:")
            self.experiments[name] = self.client.create_experiment(
                name, artifact_location=f"{here}/{name}" if local else None
            )
            return
        token = None
        while True:
            page = self.client.search_runs([found.experiment_id], page_token=token)
            for run in page:
                if identity := run.data.tags.get("identity"):
                    self.known[identity] = run
            token = page.token
            if not token:
                break
        self.experiments[name] = found.experiment_id

    def _mirror(self, source: AttemptSource | TableSource) -> bool:
        run = self.known.get(source.identity)
        if run is None:
            run = self.client.create_run(
                self.experiments[source.experiment],
                start_time=source.started_ms(),
                run_name=source.name,
                tags={"identity": source.identity, **source.tags()},
            )
            self.known[source.identity] = run
        elif run.info.status == "FINISHED":
            return False
        run_id = run.info.run_id
        self._log(run_id, source)
        status = source.status()
        if status == "FINISHED":
            for path in source.artifacts():
                self.client.log_artifact(run_id, str(path))
            self.client.set_terminated(run_id, status, source.ended_ms())
        elif status != run.info.status:
            self.client.update_run(run_id, status=status)
        self.known[source.identity] = self.client.get_run(run_id)
        return True

    def _log(self, run_id: str, source: AttemptSource | TableSource) -> None:
        """Parameters, tags, and the points that MLflow does not hold yet."""
        entities = self.mlflow.entities
        held = self._held(run_id)
        points = []
        for key, value, timestamp_ms, step in source.points():
            if (key, step) not in held:
                held.add((key, step))
                points.append(entities.Metric(key, value, timestamp_ms, step))
        params = [entities.Param(key, value) for key, value in source.params().items()]
        tags = [entities.RunTag(key, value) for key, value in source.tags().items()]
        try:
            self.client.log_batch(run_id, params=params, tags=tags)
            for first in range(0, len(points), BATCH):
                self.client.log_batch(run_id, metrics=points[first : first + BATCH])
        except Exception:
            self.held.pop(run_id)  # what arrived is asked for anew
            raise

    def _held(self, run_id: str) -> set:
        if run_id not in self.held:
            keys = self.client.get_run(run_id).data.metrics
            self.held[run_id] = {
                (key, point.step)
                for key in keys
                for point in self.client.get_metric_history(run_id, key)
            }
        return self.held[run_id]


class Follower:
    """Polls until nothing more can come: the workflow has ended and no job that it left lives."""

    def __init__(self, root: Path, workflow_pid: int):
        self.root = root
        self.workflow = (workflow_pid, executors.process_start(workflow_pid))
        self.stop = threading.Event()
        self.complaint: str | None = None
        signal.signal(signal.SIGTERM, lambda number, frame: self.stop.set())

    def follow(self) -> None:
        mirror = None
        while True:
            last = self.stop.is_set()
            alone = executors.process_start(self.workflow[0]) != self.workflow[1]
            last = last or (alone and not any(source.is_alive() for source in self._attempts()))
            try:
                mirror = mirror or Mirror(self.root)
                mirror.pass_over()
                self.complaint = None
            except Exception as error:  # whatever ails MLflow, the runs go on and it is asked again
                self._complain(error)
            if last:
                return
            self.stop.wait(LEFT_JOBS_POLL_S if alone else POLL_S)

    def _attempts(self) -> list[AttemptSource]:
        return [source for source in sources(self.root) if isinstance(source, AttemptSource)]

    def _complain(self, error: Exception) -> None:
        sentence = f"MLflow at {tracking_uri(self.root)}: {first_line(error)}"
        if sentence != self.complaint:
            print(time.strftime("%Y-%m-%d %H:%M:%S"), sentence, flush=True)
        self.complaint = sentence


def start_mirror(root: Path = records.ROOT) -> subprocess.Popen:
    """Start the mirror beside the calling workflow; it outlives a kill and ends by itself."""
    log = root / ".snakemake" / "mlflow-mirror.log"
    log.parent.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "workflow.login.tracking"]
    command += ["--follow", str(os.getpid()), "--root", str(root)]
    with open(log, "a") as stream:
        return subprocess.Popen(
            command,
            cwd=records.ROOT,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )


def finish_mirror(process: subprocess.Popen, patience_s: float = 60.0) -> None:
    """Ask for a last pass and wait for it, within bounds."""
    process.terminate()
    try:
        process.wait(patience_s)
    except subprocess.TimeoutExpired:
        print("MLflow is not up to date yet; catch up with `make ui`.", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--once", action="store_true", help="catch up and end")
    mode.add_argument("--follow", type=int, metavar="PID", help="until this process has ended")
    parser.add_argument("--root", type=Path, default=records.ROOT, help="where results/ lies")
    arguments = parser.parse_args()
    follower = None if arguments.once else Follower(arguments.root, arguments.follow)
    try:
        with locks.exclusive(lock_path(arguments.root), patience_s=2 * POLL_S):
            if follower is not None:
                follower.follow()
                return
            mirror = Mirror(arguments.root)
            touched = mirror.pass_over()
            print(f"{touched} runs brought up to date in {tracking_uri(arguments.root)}")
    except locks.Held as error:
        print(f"Another mirror is at work ({error}).")
    except Exception as error:  # one sentence for the user; the runs on disk are unharmed
        sys.exit(f"MLflow at {tracking_uri(arguments.root)}: {first_line(error)}")


if __name__ == "__main__":
    main()
