"""Bring results/ into MLflow: `python -m workflow.tracking --once`, or `--follow` while a job waits or runs.

Needed after a kill, or while jobs go on without snakemake; otherwise snakemake starts the sync itself.
`--ui` (`make ui`) opens MLflow's UI.
"""

import os
import subprocess
import sys
from pathlib import Path

from workflow import command_line, job_environment
from workflow.storage import locks, records
from workflow.tracking import sync

WAIT_FOR_LAST_PASS_S = 120  # of a follower that is just ending


def main() -> None:
    parser = command_line.parser(__doc__, prog="python -m workflow.tracking")
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--once", action="store_true", help="catch up and end")
    mode.add_argument("--follow", action="store_true", help="keep up while a job waits or runs")
    mode.add_argument("--until-closed", action="store_true", help="keep up until standard input is closed")
    mode.add_argument("--ui", action="store_true", help="catch up, then open MLflow's UI")
    parser.add_argument("--root", type=Path, default=records.ROOT, help="the folder that holds results/")
    arguments = parser.parse_args()
    root = arguments.root.resolve()
    if arguments.ui:
        open_ui(root)
        return
    uri = sync.tracking_uri(root)
    patience_s = 0 if arguments.once else WAIT_FOR_LAST_PASS_S
    current = sync.Sync(root, uri, lambda text: print(text, file=sys.stderr, flush=True))
    try:
        with locks.exclusive(sync.lock_path(root, uri), patience_s):
            if arguments.once:
                done = current.catch_up()
            elif arguments.follow:
                done = sync.follow_jobs(current)
            else:
                done = sync.follow_until_closed(current)
    except locks.Held as error:
        print(f"Another MLflow sync is at work ({error}); it sends everything, and this one ends.")
        return
    except OSError as error:  # the lock can't be made: no rights, no room, no locks
        sys.exit(f"Nothing is sent to {sync.without_password(uri)}: {error}")
    if not done:
        print("Not everything is in MLflow; `python -m workflow.tracking --once` catches up.")
        sys.exit(sync.UNUSABLE if current.unusable else 1)
    print(f"{len(current.stored)} runs are in {sync.without_password(uri)}.")


def open_ui(root: Path) -> None:
    """Catch up, and open MLflow's UI even if that failed: it shows what is there, and the reason was printed.

    A database that MLflow can't open at all was explained as well; its UI would add a traceback. MLflow's own command
    ignores MLFLOW_TRACKING_URI, so the database is named here. The UI answers this machine only; a server has its own.
    """
    catch_up = [sys.executable, "-m", "workflow.tracking", "--once", "--root", str(root)]
    ended = subprocess.run(catch_up, cwd=records.ROOT, env=job_environment.for_mlflow(), check=False)
    if ended.returncode == sync.UNUSABLE:
        sys.exit(1)
    uri = sync.tracking_uri(root)
    if uri.startswith("http"):
        print(f"MLFLOW_TRACKING_URI names a server; every run is on {sync.without_password(uri)}")
        return
    ui = [sys.executable, "-m", "mlflow", "ui", "--host", "127.0.0.1", "--workers", "1", "--backend-store-uri", uri]
    # one process answers one user; MLflow's own jobs (of its pages for generative AI) would start more
    os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
    os.execv(ui[0], ui)


if __name__ == "__main__":
    command_line.run(main)
