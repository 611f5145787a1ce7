"""The mirror as a process: where it writes, whom it serves, how snakemake starts and ends it.

Standard library and yaml only, for snakemake imports this.
"""

import hashlib
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

from workflow import job_environment
from workflow.launch import follow
from workflow.storage import locks, records
from workflow.tracking.sources import Results

FINISH_S = 30.0
LOOK_S = 2.0
TAKE_OVER_S = 120.0  # longer than a mirror lives that has nothing to wait for
FILE = "sqlite:///"
UNUSABLE = 3  # exit code of a mirror whose database MLflow can't open at all
LOG = ".snakemake/log/mlflow-mirror.log"


def tracking_uri(root: Path) -> str:
    """MLFLOW_TRACKING_URI, or the file that a bare `mlflow ui` opens in the root."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"{FILE}{root.resolve()}/mlflow.db"
    path = uri.removeprefix(FILE)
    return uri if path == uri else f"{FILE}{Path(path).resolve()}"


def database_file(uri: str) -> Path | None:
    """The file of an SQLite database; None for any other."""
    return Path(uri.removeprefix(FILE)) if uri.startswith(FILE) else None


def lock_path(root: Path, uri: str) -> Path:
    if uri.startswith(FILE):
        return Path(uri.removeprefix(FILE) + ".mirror.lock")
    return root / f".snakemake/mlflow-{hashlib.sha256(uri.encode()).hexdigest()[:8]}.lock"


def without_password(text: str) -> str:
    return re.sub(r"://[^/@\s]*@", "://", text)


class Followed:
    """The process that wants the mirror; one that got its number later is another."""

    def __init__(self, pid: int | None):
        self.pid = pid
        self.started = follow.process_start(pid) if pid else None

    def lives(self) -> bool:
        return follow.is_same_process(self.pid, self.started)


class Stop:
    """Remembers that the process was asked to end; a pass is never cut in the middle."""

    def __init__(self):
        self.asked = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})  # start_mirror blocked it

    def _ask(self, number, frame) -> None:
        self.asked = True

    def wait(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not self.asked and time.monotonic() < deadline:
            time.sleep(0.2)


@contextmanager
def turn(lock: Path, followed: Followed, stop: Stop):
    """Hold the lock. While somebody is followed, wait for another mirror's end: it may be ending
    just now, or be killed, or serve another folder."""
    with ExitStack() as held:
        while followed.lives() and not stop.asked:
            try:
                held.enter_context(locks.exclusive(lock))
                break
            except locks.Held:
                stop.wait(LOOK_S)
        else:
            held.enter_context(locks.exclusive(lock, TAKE_OVER_S if followed.pid else 0))
        yield


def start_mirror(root: Path = records.ROOT) -> subprocess.Popen:
    """Start a mirror that follows this process, detached from its terminal."""
    log = root / LOG
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "workflow.tracking.sync", "--root", str(root.resolve())]
    command += ["--follow", "--until-gone", str(os.getpid())]
    # an early SIGTERM waits until the mirror can heed it, so even that gets its last pass
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        with open(log, "a") as output:
            return subprocess.Popen(
                command,
                cwd=records.ROOT,
                env=job_environment.for_mlflow(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def finish_mirror(mirror: subprocess.Popen, root: Path = records.ROOT, patience_s: float = FINISH_S) -> None:
    """End the mirror after a last pass, unless jobs go on, and say where the runs are seen.

    Only a database file is waited for: a server may be slow or silent, and must delay nothing.
    """

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    if mirror.poll() is not None:
        say(f"MLflow's mirror had ended too early ({root / LOG}); another one catches up.")
        mirror = start_mirror(root)
    if Results(root).a_job_lives():
        say(f"Jobs go on, and so does MLflow's mirror (process {mirror.pid}).")
        mirror.returncode = 0  # nobody waits for it, and Python need not warn of it
        return
    mirror.terminate()
    uri = tracking_uri(root)
    try:
        code = mirror.wait(patience_s if uri.startswith(FILE) else 0)
    except subprocess.TimeoutExpired:
        say(f"MLflow's mirror (process {mirror.pid}) still works, and ends by itself.")
        mirror.returncode = 0
        return
    if code:
        say(f"Not everything is in MLflow yet ({root / LOG} says why); "
            "`python -m workflow.tracking.sync --once` catches up.")  # fmt: skip
        if (log := root / LOG).exists():
            lines = log.read_text(errors="replace").splitlines()
            say("\n".join(f"  {line}" for line in lines[-2:-1]))  # the reason, then that it ended
        return
    own = uri == f"{FILE}{root.resolve()}/mlflow.db"
    say(f"MLflow: {'`mlflow ui` shows every run' if own else without_password(uri)}.")
