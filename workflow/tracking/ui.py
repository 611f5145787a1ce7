"""Open MLflow's UI on the database that the MLflow sync writes: `make ui`.

mlflow's own command ignores MLFLOW_TRACKING_URI, so the database is named here.
"""

import os
import subprocess
import sys
from pathlib import Path

from workflow import command_line, job_environment
from workflow.storage import records
from workflow.tracking import sync


def command(uri: str) -> list[str]:
    """Return the UI's command, for this machine only; empty for a server, which has its own UI."""
    if uri.startswith("http"):
        return []
    return [sys.executable, "-m", "mlflow", "ui", "--host", "127.0.0.1", "--backend-store-uri", uri]


def main(root: Path = records.ROOT) -> None:
    """Catch up, and open the UI even if that failed: it shows what is there, and the reason was printed.

    A database that MLflow can't open at all was explained as well; its UI would add a traceback.
    """
    catch_up = [sys.executable, "-m", "workflow.tracking", "--once"]
    if subprocess.run(catch_up, cwd=root, env=job_environment.for_mlflow(), check=False).returncode == sync.UNUSABLE:
        sys.exit(1)
    uri = sync.tracking_uri(root)
    words = command(uri)
    if words:
        os.execv(words[0], words)
    print(f"MLFLOW_TRACKING_URI names a server; every run is on {sync.without_password(uri)}")


if __name__ == "__main__":
    command_line.run(main)
