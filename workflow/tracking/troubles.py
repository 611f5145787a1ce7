"""What to do when MLflow can't be written: one remedy for each kind of trouble."""

import re
from pathlib import Path

from workflow.storage import files

FULL = r"disk is full|No space left|quota|file too large|disk I/O error"  # SQLite's for a quota
DAMAGED = r"file is not a database|malformed|table \w+ already exists"  # the last: half made
OTHER_VERSION = r"out-of-date database schema|Can't locate revision"


def remedy(reason: str, uri: str, path: Path | None) -> str:
    """What to do about an error's text; "" for a kind that is not known.

    `path` is the database's file, None for a server.
    """
    place = path.parent if path else "its place"
    remedies = {
        FULL: f"make room in {place} (the disk, or your quota)",
        DAMAGED: f"move it away (mv {path} {path}.damaged), then it is made anew from results/",
        OTHER_VERSION: "another version of MLflow made it: back it up and run "
        f"`mlflow db upgrade {uri}` if that one was older, install that one if it was newer, or "
        "name another database in MLFLOW_TRACKING_URI",
        r"database is locked": "another program holds it; if it lies on NFS, name a file on a "
        "local disk in MLFLOW_TRACKING_URI (docs/cluster.md)",
        r"unable to open database|readonly database": f"make {path} and {place} writable, or name "
        "another database in MLFLOW_TRACKING_URI",
    }
    found = (text for words, text in remedies.items() if re.search(words, reason, re.IGNORECASE))
    return next(found, "")


def is_unusable(reason: str) -> bool:
    """Whether MLflow can't even show what the database holds."""
    return bool(re.search(f"{DAMAGED}|{OTHER_VERSION}", reason, re.IGNORECASE))


def check_rights(path: Path) -> None:
    """Raise NotWritable if this user may not write the database or the journal beside it."""
    files.check_writable(path)
    files.check_writable(path.parent)
