"""MLflow's UI on what the mirror wrote, wherever that is: `make ui`.

mlflow's own command reads MLFLOW_TRACKING_URI for nothing, so it is told here.
"""

import os
import subprocess
import sys
from pathlib import Path

from workflow import command_line, job_environment
from workflow.storage import records
from workflow.tracking.process import UNUSABLE, tracking_uri, without_password


def command(uri: str) -> list[str]:
    """The UI's, for this machine alone; empty for a server, which has its own."""
    if uri.startswith("http"):
        return []
    start = [sys.executable, "-m", "mlflow", "ui", "--host", "127.0.0.1"]
    return [*start, "--backend-store-uri", uri]


def main(root: Path = records.ROOT) -> None:
    """Catch up, and open the UI even if that failed: it shows what is there, and was said why.

    A database that MLflow can't open at all was explained as well; its UI would add a traceback.
    """
    catch_up = [sys.executable, "-m", "workflow.tracking.sync", "--once"]
    if subprocess.run(catch_up, cwd=root, env=job_environment.for_mlflow(), check=False).returncode == UNUSABLE:
        sys.exit(1)
    uri = tracking_uri(root)
    if given := command(uri):
        os.execv(given[0], given)
    print(f"MLFLOW_TRACKING_URI names a server; every run is on {without_password(uri)}")


if __name__ == "__main__":
    command_line.run(main)
