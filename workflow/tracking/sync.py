"""The mirror: whatever attempts and tables lie under results/ appears in MLflow, each point once.

    python -m workflow.tracking.sync --once                     catch up and end
    python -m workflow.tracking.sync --follow --until-gone PID  keep up while PID or a job lives

The only module that imports mlflow, and only in the mirror's own process. Jobs know nothing of it:
MLflow away, locked or broken costs a training nothing, and a mirror killed at any point goes on
from what MLflow says that it holds.
"""

import argparse
import logging
import os
import sys
import time
from pathlib import Path

from workflow import command_line
from workflow.campaign.config import ConfigError
from workflow.storage import files, locks, records
from workflow.tracking import artifact_store, troubles
from workflow.tracking.content import Content
from workflow.tracking.process import (
    FILE,
    UNUSABLE,
    Followed,
    Stop,
    database_file,
    finish_mirror,
    lock_path,
    start_mirror,
    tracking_uri,
    turn,
    without_password,
)
from workflow.tracking.run_metrics import Point
from workflow.tracking.sources import Results, Source

__all__ = ["Mirror", "finish_mirror", "start_mirror"]

POLL_S = 5.0
QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",  # we say ourselves what went wrong, in one sentence
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "GIT_PYTHON_REFRESH": "quiet",
    # mlflow must not repeat a request by itself: a run that was made but whose answer got lost
    # would be made twice. The next poll asks first, and a late answer is no lost one.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}
REFUSED = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST")  # of one run; the others go on


class Held:
    """What MLflow holds of a run."""

    def __init__(self, run, new: bool = False):
        self.run_id, self.tags, self.status = run.info.run_id, run.data.tags, run.info.status
        self.artifacts = run.info.artifact_uri
        self.params, self.metrics = run.data.params, run.data.metrics
        self.deleted = run.info.lifecycle_stage == "deleted"
        self.points: set[tuple[str, int]] | None = set() if new else None


class Mirror:
    """Sends what is new under `root` to `uri`; after any trouble it asks anew what is there."""

    def __init__(self, root: Path, uri: str, say=print):
        self.root, self.uri, self.say = root, uri, say
        self.results = Results(root)
        self.database = database_file(uri)
        self.unusable = False
        self.client = None
        self.experiments: dict[str, str] = {}
        self.deleted: dict[str, str] = {}  # experiments, and their numbers
        self.deleted_runs: set[str] = set()
        self.held: dict[str, Held] = {}
        self.seen: dict[Path, str] = {}
        self.troubles: dict[Path | str | None, str] = {}

    def catch_up(self) -> bool:
        """One pass over all that changed; False if something is left for the next."""
        try:
            sources = [*self.results.attempts(), *self.results.items()]
        except (OSError, ConfigError) as error:
            self._trouble(None, "The results can't be read", error)
            return False
        try:
            if self.client is None or (any(map(self._is_new, sources)) and self._experiments_changed()):
                self._connect()
            for source in filter(self._is_new, sources):
                if source.setting in self.deleted:
                    self._say_deleted(source.setting)
                else:
                    self._mirror(source)
        except Exception as error:  # whatever mlflow and its many parts may raise
            self.client = None
            self.unusable = troubles.is_unusable(str(error))
            self._trouble(None, f"MLflow at {self.uri} can't be written", error)
            return False
        if self.troubles.pop(None, None):
            self.say(f"MLflow at {without_password(self.uri)} is up to date again.")
        return not self.troubles

    def _is_new(self, source: Source) -> bool:
        return self.seen.get(source.path) != source.signature

    def _trouble(self, key: Path | str | None, what: str, error: Exception | str) -> None:
        """Said once, until it is another; the disk keeps everything, so nothing is lost."""
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:400]
        reason = reason.split(". ")[0].rstrip(".")  # MLflow adds advice that does not apply here
        if remedy := troubles.remedy(reason, self.uri, self.database):
            reason = f"{reason}: {remedy}"
        text = without_password(f"{what}: {reason}; results/ has everything, it is tried again.")
        if self.troubles.get(key) != text:
            self.troubles[key] = text
            self.say(text)

    def _say_deleted(self, setting: str) -> None:
        """One sentence about an experiment that somebody deleted in MLflow's UI."""
        number, uri = self.deleted[setting], without_password(self.uri)
        self._trouble(
            setting,
            f"The experiment {setting!r} was deleted in MLflow",
            f"to have it and its runs again, MLFLOW_TRACKING_URI={uri} mlflow experiments restore "
            f"--experiment-id {number}",
        )

    def _say_deleted_run(self, name: str, run_id: str) -> None:
        """One sentence, once: somebody did not want the run, so it is no trouble."""
        if run_id not in self.deleted_runs:
            self.deleted_runs.add(run_id)
            self.say(
                f"The run {name!r} was deleted in MLflow and gets nothing more; to have it again, "
                f"MLFLOW_TRACKING_URI={without_password(self.uri)} mlflow runs restore "
                f"--run-id {run_id}"
            )

    def _experiments_changed(self) -> bool:
        """Whether an experiment was deleted or restored since the last pass."""
        known, self.deleted = self.deleted, {}
        for setting in self.results.config.settings:
            self.experiments[setting] = self._experiment(self.client, setting)
        for setting in known.keys() - self.deleted:
            self.troubles.pop(setting, None)
        return known != self.deleted

    def _connect(self) -> None:
        """Open, or make, the database and one experiment a setting; read which runs it holds."""
        os.environ.update({key: os.environ.get(key, value) for key, value in QUIET.items()})
        for name in ("alembic", "mlflow"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        from mlflow import MlflowClient
        from mlflow.entities import ViewType

        if self.database:
            troubles.check_rights(self.database)
            if not self.database.exists() or not self.database.stat().st_size:
                self._make_database()
        client = MlflowClient(self.uri)
        self.deleted = {}
        for setting in self.results.config.settings:
            self.experiments[setting] = self._experiment(client, setting)
        if self.database:
            artifact_store.follow_clone(self.database, self.root, self.experiments)
        self.held, self.seen, token = {}, {}, None
        while token != "":
            page = client.search_runs(
                list(self.experiments.values()),
                run_view_type=ViewType.ALL,  # a run that the user deleted is not made again
                order_by=["attributes.start_time ASC"],
                page_token=token,
            )
            for run in page:
                self._hold(client, run)
            token = page.token or ""
        self.client = client

    def _make_database(self) -> None:
        """Make the whole database or none: MLflow can't go on with one that it half made before a
        kill or a full disk."""
        from mlflow import MlflowClient

        with files.replacing(self.database) as beside:
            # a new name each time: MLflow keeps its connections to a file by name
            new = beside.with_name(f"{beside.name}.{time.time_ns()}")
            try:
                new.touch()  # with the umask's rights; SQLite would give none to a group
                MlflowClient(f"{FILE}{new}").search_experiments(max_results=1)
                new.replace(beside)
            finally:
                new.unlink(missing_ok=True)

    def _hold(self, client, run) -> None:
        """Take the run for what MLflow holds of its attempt, or of its table, the last one.

        An attempt has two where the server made one after we had given up waiting: the empty one
        goes.
        """
        held, tags = Held(run), run.data.tags
        if twin := self.held.get(tags.get("attempt_id", "")):
            held, other = sorted((twin, held), key=lambda one: (one.deleted, not one.metrics))
            if not (other.deleted or other.metrics):
                client.delete_run(other.run_id)
        if key := tags.get("attempt_id") or tags.get("file"):
            self.held[key] = held

    def _experiment(self, client, setting: str) -> str:
        if found := client.get_experiment_by_name(setting):
            if found.lifecycle_stage == "deleted":
                self.deleted[setting] = found.experiment_id
            return found.experiment_id
        artifacts = None  # a server knows its own place for them
        if "://" in self.uri and not self.uri.startswith("http"):
            artifacts = artifact_store.location(self.root, setting)
        return client.create_experiment(setting, artifact_location=artifacts)

    def _mirror(self, source: Source) -> None:
        from mlflow.exceptions import MlflowException

        try:
            content = self.results.describe(source)
        except (OSError, ValueError, KeyError, TypeError) as error:
            self._trouble(source.path, f"{source.path} can't be read", error)
            return
        try:
            self._send(content, source.signature)
        except MlflowException as error:
            if error.error_code not in REFUSED:
                raise
            if self._was_deleted(content):
                self._say_deleted_run(content.name, self.held[content.key].run_id)
            else:
                self._trouble(source.path, f"MLflow does not take {source.path}", error)
        else:
            self.troubles.pop(source.path, None)
        if content.settled:
            self.seen[source.path] = source.signature

    def _send(self, content: Content, signature: str) -> None:
        """Everything of one run; its tag `mirrored` comes last and says that all before arrived."""
        held = self._run(content)
        if held.tags.get("mirrored") == signature and held.status == content.status:
            return
        if held.deleted and self._was_deleted(content):
            self._say_deleted_run(content.name, held.run_id)
            return
        self._log(held, content)
        closed = content.status != "RUNNING"
        if closed:
            if self.database:
                experiment, run_id = content.experiment, held.run_id
                artifact_store.keep_run_here(self.database, self.root, experiment, run_id, held.artifacts)
            for path in content.artifacts:
                self.client.log_artifact(held.run_id, str(path))
            if content.table:
                self.client.log_dict(held.run_id, content.table, f"{content.name}.json")
            self.client.set_terminated(held.run_id, content.status, content.ended_ms)
            self.client.set_tag(held.run_id, "mirrored", signature)
            held.points = None
        elif held.status != content.status:
            self.client.update_run(held.run_id, content.status)
        held.status = content.status

    def _was_deleted(self, content: Content) -> bool:
        """Whether the user deleted the run meanwhile; then it is left alone."""
        if held := self.held.get(content.key):
            held.deleted = Held(self.client.get_run(held.run_id)).deleted
        return held is not None and held.deleted

    def _run(self, content: Content) -> Held:
        """The run with this identity, made if there is none. Tables: if the last is another."""
        held = self.held.get(content.key)
        if held is None or any(held.tags.get(k) != v for k, v in content.identity.items()):
            run = self.client.create_run(
                self.experiments[content.experiment],
                start_time=content.started_ms,
                tags=content.identity | content.tags,
                run_name=content.name,
            )
            held = self.held[content.key] = Held(run, new=True)
        return held

    def _log(self, held: Held, content: Content) -> None:
        """Params, tags and points that MLflow does not hold, in one call unless they are many."""
        from mlflow.entities import Metric, Param, RunTag

        if held.points is None:
            held.points = {
                (metric.key, metric.step)
                for key in held.metrics
                for metric in self.client.get_metric_history(held.run_id, key)
            }
        new: dict[tuple[str, int], Point] = {}
        for point in content.points:
            if (point.key, point.step) not in held.points:
                new.setdefault((point.key, point.step), point)
        metrics = [Metric(p.key, p.value, p.time_ms, p.step) for p in new.values()]
        params = [Param(k, v) for k, v in content.params.items() if k not in held.params]
        tags = [RunTag(k, v) for k, v in content.tags.items() if held.tags.get(k) != v]
        while metrics or params or tags:
            self.client.log_batch(held.run_id, metrics[:800], params[:100], tags[:100])
            metrics, params, tags = metrics[800:], params[100:], tags[100:]
        held.points |= set(new)
        held.metrics = dict.fromkeys(key for key, _ in held.points)
        held.params, held.tags = held.params | content.params, held.tags | content.tags


def follow(mirror: Mirror, followed: Followed, stop: Stop) -> bool:
    """Keep up until asked to end, or nobody is followed and no job lives; then one last pass."""
    while not stop.asked:
        mirror.catch_up()
        if not followed.lives() and not mirror.results.a_job_lives(grace=True):
            break
        stop.wait(POLL_S)
    return mirror.catch_up()


def run(arguments: argparse.Namespace, stop: Stop) -> int:
    root, uri = arguments.root.resolve(), tracking_uri(arguments.root)
    followed = Followed(arguments.until_gone)
    try:
        with turn(lock_path(root, uri), followed, stop):
            mirror = Mirror(root, uri, lambda text: print(text, file=sys.stderr, flush=True))
            done = follow(mirror, followed, stop) if arguments.follow else mirror.catch_up()
    except locks.Held as error:
        print(f"Another mirror is at work ({error}); it sends everything, this one ends.")
        return 0
    except OSError as error:  # the lock can't be made: no rights, no room, no locks
        print(f"Nothing is mirrored in {without_password(uri)}: {error}", file=sys.stderr)
        return 1
    if done:
        print(f"{len(mirror.held)} runs mirrored in {without_password(uri)}.")
        return 0
    print("Not everything is mirrored; `python -m workflow.tracking.sync --once` catches up.")
    return UNUSABLE if mirror.unusable else 1


def main() -> None:
    parser = command_line.parser(__doc__)
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--once", action="store_true", help="catch up and end")
    mode.add_argument("--follow", action="store_true", help="keep up while a job lives")
    parser.add_argument("--until-gone", type=int, metavar="PID", help="and while this process does")
    parser.add_argument("--root", type=Path, default=records.ROOT, help="where results/ lies")
    arguments = parser.parse_args()
    sys.exit(run(arguments, Stop()))


if __name__ == "__main__":
    command_line.run(main)
