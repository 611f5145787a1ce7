"""The MLflow sync: whatever attempts, tables and figures exist under results/ appears in MLflow, each value once.

snakemake starts one follower (`start`), which ends with it: when snakemake closes the pipe between them, or dies, the
follower makes a last pass and ends. After a kill of the follower, the next start of snakemake or
`python -m workflow.tracking` asks MLflow what it holds, and sends the rest.

Jobs know nothing of MLflow, so an MLflow that is away, locked or broken costs a training nothing. Only the follower's
process imports mlflow.
"""

import contextlib
import hashlib
import json
import logging
import os
import re
import select
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from workflow import job_environment
from workflow.campaign.config import ConfigError
from workflow.launch import follow
from workflow.storage import files, records
from workflow.tracking.runs import Dataset, Results, Run, Source, experiment_tags

LOG = ".snakemake/log/mlflow.log"
SQLITE = "sqlite:///"
POLL_S = 5.0
FINISH_S = 30.0
UNUSABLE = 3  # exit code where MLflow can't open the database at all


# -- snakemake's side -----------------------------------------------------------------------------


def start(root: Path = records.ROOT) -> subprocess.Popen:
    """Start the follower, in a session of its own, so that Ctrl-C in the terminal does not reach it."""
    log = root / LOG
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "a") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "workflow.tracking", "--until-closed", "--root", str(root.resolve())],
            cwd=records.ROOT,
            env=job_environment.for_mlflow(),
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def finish(follower: subprocess.Popen, root: Path = records.ROOT, patience_s: float = FINISH_S) -> None:
    """Let the follower make its last pass and end, and print what MLflow has.

    Only a database file is waited for: a server may be slow or silent, and must delay nothing.
    """

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    follower.stdin.close()
    with contextlib.suppress(OSError, ConfigError):  # the follower's sentence about them comes below
        if Results(root).a_job_lives():
            say(
                "Jobs go on. MLflow shows what they do from the next start on, or while "
                "`python -m workflow.tracking --follow` runs."
            )
    uri = tracking_uri(root)
    try:
        code = follower.wait(patience_s if uri.startswith(SQLITE) else 0)
    except subprocess.TimeoutExpired:
        say(f"The MLflow sync (process {follower.pid}) still works, and ends by itself.")
        follower.returncode = 0  # nobody waits for it, so Python must not warn of it
        return
    if code:
        say(
            f"Not everything is in MLflow yet ({root / LOG} says why); `python -m workflow.tracking --once` catches up."
        )
        if code > 0 and (root / LOG).exists():  # not killed: its last lines are the reason, and that it ended
            for line in (root / LOG).read_text(errors="replace").splitlines()[-2:-1]:
                say(f"  {line}")
    elif uri == default_uri(root):
        say("MLflow: `make ui` shows every run.")
    else:
        say(f"MLflow: {without_password(uri)}.")


# -- the follower ---------------------------------------------------------------------------------


def follow_until_closed(sync: "Sync") -> bool:
    """Keep MLflow up to date until standard input is closed. Return whether everything arrived."""
    while True:
        sync.catch_up()
        readable, _, _ = select.select([0], [], [], POLL_S)
        if readable and not os.read(0, 1024):
            return sync.catch_up()


def follow_jobs(sync: "Sync") -> bool:
    """Keep MLflow up to date while a job waits or runs. Return whether everything arrived.

    A requeued job is for a moment in the state that it ended with, so only one that stays away is gone.
    """
    alive_at = time.monotonic()
    while True:
        done = sync.catch_up()
        if sync.results.a_job_lives():
            alive_at = time.monotonic()
        elif time.monotonic() - alive_at >= follow.GRACE_S["slurm"]:
            return done
        time.sleep(POLL_S)


# -- where MLflow is ------------------------------------------------------------------------------


def default_uri(root: Path) -> str:
    """Return the file that a bare `mlflow ui` opens in the root."""
    return f"{SQLITE}{root.resolve()}/mlflow.db"


def tracking_uri(root: Path) -> str:
    """Return MLFLOW_TRACKING_URI, with the whole path of an SQLite file, or the default."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or default_uri(root)
    return f"{SQLITE}{Path(uri.removeprefix(SQLITE)).resolve()}" if uri.startswith(SQLITE) else uri


def lock_path(root: Path, uri: str) -> Path:
    """Return the lock that keeps two processes from syncing one clone's results into one database."""
    return root / f".snakemake/mlflow-{hashlib.sha256(uri.encode()).hexdigest()[:8]}.lock"


def without_password(text: str) -> str:
    return re.sub(r"://[^/@\s]*@", "://", text)


# -- one pass -------------------------------------------------------------------------------------

QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",  # the sync says itself what went wrong, in one sentence
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "GIT_PYTHON_REFRESH": "quiet",
    # mlflow must not repeat a request by itself: where the answer got lost, the run would be made twice.
    # The next pass asks first.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}
REFUSED = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST")  # MLflow refuses this run; the others go on
SYNCED = "synced"  # the tag that comes last, with the signature of what arrived


class Stored:
    """What MLflow holds of a run."""

    def __init__(self, run, new: bool = False):
        self.run_id = run.info.run_id
        self.status = run.info.status
        self.artifacts = run.info.artifact_uri
        self.tags = run.data.tags
        self.params = run.data.params
        self.metrics = run.data.metrics
        self.steps: set[tuple[str, int]] | None = set() if new else None  # of each metric; None: not asked yet


class Sync:
    """Sends what is new under `root` to `uri`; after any trouble it asks MLflow anew what it holds."""

    def __init__(self, root: Path, uri: str, say=print):
        self.root, self.uri, self.say = root, uri, say
        self.results = Results(root)
        self.database = Path(uri.removeprefix(SQLITE)) if uri.startswith(SQLITE) else None
        self.unusable = False
        self.client: Any = None  # an MlflowClient, once connected
        self.experiments: dict[str, str] = {}  # the number of each setting's experiment
        self.stored: dict[str, Stored] = {}
        self.sent: dict[Path, str] = {}  # signatures
        self.troubles: dict[Path | None, str] = {}
        self.deleted_runs: set[str] = set()

    def catch_up(self) -> bool:
        """Make one pass over all that changed. Return False if something is left for the next."""
        try:
            sources = self.results.sources()
        except (OSError, ConfigError) as error:
            self._trouble(None, "The results can't be read", error)
            return False
        try:
            if self.client is None:
                self._connect()
            for source in sources:
                if self.sent.get(source.path) != source.signature:
                    self._send_source(source)
        except Exception as error:  # whatever mlflow and its many parts may raise
            self.client = None
            self.unusable = is_unusable(str(error))
            self._trouble(None, f"MLflow at {self.uri} can't be written", error)
            return False
        if self.troubles.pop(None, None):
            self.say(f"MLflow at {without_password(self.uri)} is up to date again.")
        return not self.troubles

    def _connect(self) -> None:
        """Open or make the database, and read which runs it holds of the settings' experiments."""
        for key, value in QUIET.items():
            os.environ.setdefault(key, value)
        for name in ("alembic", "mlflow"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        from mlflow import MlflowClient
        from mlflow.entities import ViewType

        if self.database:
            files.check_writable(self.database)
            files.check_writable(self.database.parent)  # SQLite's journal
            if not self.database.exists() or not self.database.stat().st_size:
                make_database(self.database)
        client = MlflowClient(self.uri)
        for setting in self.results.config.settings:
            experiment = client.get_experiment_by_name(setting)
            if experiment:
                self.experiments[setting] = experiment.experiment_id
                active = experiment.lifecycle_stage == "active"
                for key, value in experiment_tags(self.results.config, setting).items():
                    if active and key not in experiment.tags:  # a user's own text stays
                        client.set_experiment_tag(experiment.experiment_id, key, value)
        if self.database:
            move_artifacts_with_clone(self.database, self.root, self.experiments)
        self.stored, self.sent, token = {}, {}, None
        while token != "" and self.experiments:
            page = client.search_runs(
                list(self.experiments.values()),
                run_view_type=ViewType.ALL,  # a run that the user deleted is not made again
                order_by=["attributes.start_time ASC"],  # the last one of a table counts
                page_token=token,
            )
            for run in page:
                key = run.data.tags.get("attempt_id") or run.data.tags.get("file")
                if key:
                    self.stored[key] = Stored(run)
            token = page.token or ""
        self.client = client

    def _experiment(self, setting: str) -> str:
        """Return the number of a setting's experiment, which is made for its first run."""
        if setting not in self.experiments:
            location = None  # a server has its own folder for artifacts
            if "://" in self.uri and not self.uri.startswith("http"):
                location = artifact_location(self.root, setting)
            tags = experiment_tags(self.results.config, setting)
            self.experiments[setting] = self.client.create_experiment(setting, artifact_location=location, tags=tags)
        return self.experiments[setting]

    def _send_source(self, source: Source) -> None:
        from mlflow.exceptions import MlflowException

        try:
            run = self.results.describe(source)
        except (OSError, ValueError, KeyError, TypeError) as error:
            self._trouble(source.path, f"{source.path} can't be read", error)
            return
        try:
            self._send(run, source.signature)
            self.troubles.pop(source.path, None)
        except MlflowException as error:
            if error.error_code not in REFUSED:
                raise
            if self._experiment_is_deleted(source):
                return
            if self._run_is_deleted(run):
                self.troubles.pop(source.path, None)
            else:
                self._trouble(source.path, f"MLflow does not take {source.path}", error)
        if run.settled:
            self.sent[source.path] = source.signature

    def _send(self, run: Run, signature: str) -> None:
        """Send everything of one run; the last tag says that all before it arrived."""
        stored = self._find_or_create(run)
        if stored.tags.get(SYNCED) == signature and stored.status == run.status:
            return
        self._log(stored, run)
        if run.status != "RUNNING":
            if self.database:
                keep_artifacts_in_clone(self.database, self.root, run.experiment, stored)
            for path in run.artifacts:
                self.client.log_artifact(stored.run_id, str(path))
            if run.datasets:
                self.client.log_inputs(stored.run_id, [dataset_input(dataset) for dataset in run.datasets])
            self.client.set_terminated(stored.run_id, run.status, run.ended_ms)
            self.client.set_tag(stored.run_id, SYNCED, signature)
        elif stored.status != run.status:
            self.client.update_run(stored.run_id, run.status)
        stored.status = run.status

    def _find_or_create(self, run: Run) -> Stored:
        """Return the run with this identity, made if there is none. A changed table is another run."""
        stored = self.stored.get(run.key)
        if stored is None or any(stored.tags.get(key) != value for key, value in run.identity.items()):
            made = self.client.create_run(
                self._experiment(run.experiment),
                start_time=run.started_ms,
                tags=run.identity | run.tags,
                run_name=run.name,
            )
            stored = self.stored[run.key] = Stored(made, new=True)
        return stored

    def _log(self, stored: Stored, run: Run) -> None:
        """Send params, tags and metrics that MLflow does not hold, in one call unless they are many."""
        from mlflow.entities import Metric, Param, RunTag

        if stored.steps is None:
            stored.steps = {
                (metric.key, metric.step)
                for key in stored.metrics
                for metric in self.client.get_metric_history(stored.run_id, key)
            }
        new: dict[tuple, Any] = {}
        for metric in run.metrics:
            if (metric.key, metric.step) not in stored.steps:
                new.setdefault((metric.key, metric.step), metric)
        metrics = [Metric(*metric) for metric in new.values()]
        params = [Param(key, value) for key, value in run.params.items() if key not in stored.params]
        tags = [RunTag(key, value) for key, value in run.tags.items() if stored.tags.get(key) != value]
        while metrics or params or tags:
            self.client.log_batch(stored.run_id, metrics[:800], params[:100], tags[:100])
            metrics, params, tags = metrics[800:], params[100:], tags[100:]
        stored.steps |= new.keys()  # only now that all have arrived
        stored.params = stored.params | run.params
        stored.tags = stored.tags | run.tags

    def _experiment_is_deleted(self, source: Source) -> bool:
        """Ask MLflow whether somebody deleted the source's experiment in its UI, and say how it is restored."""
        number = self._experiment(source.setting)
        if self.client.get_experiment(number).lifecycle_stage != "deleted":
            return False
        self._trouble(
            source.path,
            f"The experiment {source.setting!r} was deleted in MLflow",
            f"to have it and its runs again, MLFLOW_TRACKING_URI={without_password(self.uri)} mlflow experiments "
            f"restore --experiment-id {number}",
        )
        return True

    def _run_is_deleted(self, run: Run) -> bool:
        """Ask MLflow whether somebody deleted the run in its UI. They did not want it, so it is no trouble."""
        stored = self.stored.get(run.key)
        if stored is None or self.client.get_run(stored.run_id).info.lifecycle_stage != "deleted":
            return False
        if stored.run_id not in self.deleted_runs:
            self.deleted_runs.add(stored.run_id)
            self.say(
                f"The run {run.name!r} was deleted in MLflow and gets nothing more; to have it again, "
                f"MLFLOW_TRACKING_URI={without_password(self.uri)} mlflow runs restore --run-id {stored.run_id}"
            )
        return True

    def _trouble(self, key: Path | None, what: str, error: Exception | str) -> None:
        """Say a trouble once, until it is another one; the disk keeps everything, so nothing is lost."""
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:400]
        reason = reason.split(". ")[0].rstrip(".")  # MLflow adds advice that does not apply here
        advice = remedy(reason, self.uri, self.database)
        if advice:
            reason = f"{reason}: {advice}"
        text = without_password(f"{what}: {reason}; results/ has everything, it is tried again.")
        if text not in self.troubles.values():
            self.say(text)
        self.troubles[key] = text


def dataset_input(dataset: Dataset):
    """Return MLflow's form of the images that a run used."""
    from mlflow import entities

    source = json.dumps({"split": dataset.split})
    content = entities.Dataset(f"{dataset.name}/{dataset.split}", dataset.digest, "local", source)
    return entities.DatasetInput(content, [entities.InputTag("mlflow.data.context", dataset.context)])


# -- troubles -------------------------------------------------------------------------------------

FULL = r"disk is full|No space left|quota|file too large|disk I/O error"  # SQLite's for a quota
DAMAGED = r"file is not a database|malformed|table \w+ already exists"  # the last: half made
OTHER_VERSION = r"out-of-date database schema|Can't locate revision"


REMEDIES = {  # of errors whose text has these words; the database is the file {path} in {folder}
    FULL: "make room in {folder} (the disk, or your quota)",
    DAMAGED: "move it away (mv {path} {path}.damaged), then it is made again from results/",
    OTHER_VERSION: "another version of MLflow made it: back it up and run `mlflow db upgrade {uri}` if that version "
    "was older, install that version if it was newer, or name another database in MLFLOW_TRACKING_URI",
    r"database is locked": "another program holds it; if it is on NFS, name a file on a local disk in "
    "MLFLOW_TRACKING_URI (docs/cluster.md)",
    r"unable to open database|readonly database": "make {path} and {folder} writable, or name another database in "
    "MLFLOW_TRACKING_URI",
}


def remedy(reason: str, uri: str, path: Path | None) -> str:
    """Return what to do about an error's text; "" for an unknown kind. `path` is the database's file, if any."""
    for words, advice in REMEDIES.items():
        if re.search(words, reason, re.IGNORECASE):
            return advice.format(uri=uri, path=path, folder=path.parent if path else "its folder")
    return ""


def is_unusable(reason: str) -> bool:
    """Return whether MLflow can't even show what the database holds."""
    return bool(re.search(f"{DAMAGED}|{OTHER_VERSION}", reason, re.IGNORECASE))


# -- the database's file --------------------------------------------------------------------------

# MLflow stores the absolute path of the artifacts with each experiment and run, and offers no call
# that changes it. After a move or a copy of the clone the paths are corrected in its SQLite file.

ARTIFACTS = "mlruns"
ARTIFACT_PATHS = (  # table and column
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
)
SQLITE_PATIENCE_S = 30


def make_database(path: Path) -> None:
    """Make the whole database or none: MLflow can't use one that a kill or a full disk left half made."""
    from mlflow import MlflowClient

    with files.replacing(path) as draft:
        # a new name each time: MLflow keeps its connections to a file by name
        new = draft.with_name(f"{draft.name}.{time.time_ns()}")
        try:
            new.touch()  # with the umask's rights; SQLite would give none to a group
            MlflowClient(f"{SQLITE}{new}").search_experiments(max_results=1)
            new.replace(draft)
        finally:
            new.unlink(missing_ok=True)


def artifact_location(root: Path, experiment: str) -> str:
    """Return the URI of an experiment's artifacts in this clone."""
    return (root.resolve() / ARTIFACTS / experiment).as_uri()


def move_artifacts_with_clone(database: Path, root: Path, experiments: dict[str, str]) -> None:
    """Correct the paths in the database if the clone was moved, or copied with its database.

    A database outside the clone that another living clone made is left as it is: they share it.
    """
    root = root.resolve()
    with closing(sqlite3.connect(database, timeout=SQLITE_PATIENCE_S)) as connection, connection:
        stored = dict(connection.execute("SELECT name, artifact_location FROM experiments"))
        clones = {clone_of(stored[name], name) for name in experiments if name in stored}
        for clone in clones - {None, root}:
            if database.resolve().is_relative_to(root) or not (clone / ARTIFACTS).exists():
                for table, column in ARTIFACT_PATHS:
                    for old, new in ((clone.as_uri(), root.as_uri()), (str(clone), str(root))):
                        _replace_prefix(connection, table, column, f"{old}/{ARTIFACTS}/", f"{new}/{ARTIFACTS}/")
                _replace_prefix(connection, "tags", "value", f"{clone}/", f"{root}/", "AND key = 'file'")


def keep_artifacts_in_clone(database: Path, root: Path, experiment: str, stored: Stored) -> None:
    """Keep a run's artifacts in this clone if MLflow has them in another clone that shares the database.

    Any other folder, such as a bucket, was chosen by somebody and stays.
    """
    suffix = f"/{stored.run_id}/artifacts"
    clone = clone_of(stored.artifacts.removesuffix(suffix), experiment)
    if clone is not None and clone != root.resolve():
        with closing(sqlite3.connect(database, timeout=SQLITE_PATIENCE_S)) as connection, connection:
            uri = artifact_location(root, experiment) + suffix
            connection.execute("UPDATE runs SET artifact_uri = ? WHERE run_uuid = ?", (uri, stored.run_id))


def clone_of(uri: str, experiment: str) -> Path | None:
    """Return the clone that holds an experiment's artifacts; None if they are in no clone."""
    parts = urlsplit(uri)
    if parts.scheme not in ("", "file"):
        return None
    path = Path(url2pathname(parts.path) if parts.scheme else uri)
    return path.parent.parent if path.parts[-2:] == (ARTIFACTS, experiment) else None


def _replace_prefix(connection, table: str, column: str, old: str, new: str, condition: str = "") -> None:
    """Replace the beginning `old` of a column's values by `new`."""
    connection.execute(
        f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ? {condition}",
        (new, len(old) + 1, len(old), old),
    )
