"""The mirror as a process: where it writes, whom it serves, how snakemake starts and ends it.

Standard library and yaml only, for snakemake imports this.
"""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from workflow import records
from workflow.login import executors
from workflow.login.mirror_sources import Results

FINISH_S = 30.0


def tracking_uri(root: Path) -> str:
    """MLFLOW_TRACKING_URI, or the file that a bare `mlflow ui` opens in the root."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root.resolve()}/mlflow.db"
    path = uri.removeprefix("sqlite:///")
    return uri if path == uri else f"sqlite:///{Path(path).resolve()}"


def lock_path(root: Path, uri: str) -> Path:
    if uri.startswith("sqlite:///"):
        return Path(uri.removeprefix("sqlite:///") + ".mirror.lock")
    return root / f".snakemake/mlflow-{hashlib.sha256(uri.encode()).hexdigest()[:8]}.lock"


def without_password(text: str) -> str:
    return re.sub(r"://[^/@\s]*@", "://", text)


class Followed:
    """The processes that want a mirror, noted beside the lock: whoever holds it serves them all.

    So a snakemake that finds the mirror of a killed predecessor at work loses nothing by it.
    """

    def __init__(self, lock: Path):
        self.folder = lock.with_suffix(".followed")

    def add(self, pid: int) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        note = {"host": os.uname().nodename, "started": executors.process_start(pid)}
        beside = self.folder / f".{pid}"
        beside.write_text(json.dumps(note))
        beside.replace(self.folder / str(pid))

    def any_lives(self) -> bool:
        """Whether one of them, on this machine, lives; the dead are forgotten."""
        lives = False
        for path in self.folder.glob("[0-9]*"):
            note = json.loads(path.read_text())
            if note["host"] != os.uname().nodename:
                continue
            if note["started"] and executors.process_start(path.name) == note["started"]:
                lives = True
            else:
                path.unlink(missing_ok=True)
        return lives


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


def start_mirror(root: Path = records.ROOT) -> int:
    """Start a mirror that follows this process, detached from its terminal; -> its process id."""
    log = root / ".snakemake/log/mlflow-mirror.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "workflow.login.tracking", "--root", str(root.resolve())]
    command += ["--follow", "--until-gone", str(os.getpid())]
    # an early SIGTERM waits until the mirror can heed it, so even that gets its last pass
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        with open(log, "a") as output:
            process = subprocess.Popen(
                command,
                cwd=records.ROOT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    process.returncode = 0  # it is not waited for here, and Python need not warn of it
    return process.pid


def _is_mirror(pid: int) -> bool:
    try:
        return b"workflow.login.tracking" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def finish_mirror(pid: int, root: Path = records.ROOT, patience_s: float = FINISH_S) -> None:
    """End the mirror after a last pass, unless jobs go on, and say where the runs are seen."""

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    if Results(root).a_job_lives(set()):
        say(f"Jobs go on, and so does MLflow's mirror (process {pid}).")
        return
    if _is_mirror(pid):
        os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + patience_s
    while executors.process_start(pid) and _is_mirror(pid):
        if time.monotonic() >= deadline:
            say(f"MLflow's mirror (process {pid}) still works, and ends by itself.")
            return
        time.sleep(0.1)
    uri = tracking_uri(root)
    own = uri == f"sqlite:///{root.resolve()}/mlflow.db"
    say(f"MLflow: {'`mlflow ui` shows every run' if own else without_password(uri)}.")
