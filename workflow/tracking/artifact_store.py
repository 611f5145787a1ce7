"""Where MLflow keeps the files of its runs: below the clone's own mlruns/, wherever the clone is.

MLflow stores the folder's absolute path with each experiment and run, and offers no call that
changes it; so after a move or a copy of the clone the paths are corrected in its SQLite file.
Standard library only.
"""

import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

FOLDER = "mlruns"
PATHS = (  # table and column
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
)
PATIENCE_S = 30


def location(root: Path, experiment: str, run_id: str = "") -> str:
    """The URI of an experiment's folder in this clone, or of one of its runs' files."""
    folder = root.resolve() / FOLDER / experiment
    return (folder / run_id / "artifacts" if run_id else folder).as_uri()


def follow_clone(database: Path, root: Path, experiments: Iterable[str]) -> None:
    """Correct the paths in the database if the clone was moved, or copied with its database.

    A database outside the clone that another living clone made is left as it is: they share it.
    """
    root = root.resolve()
    with closing(sqlite3.connect(database, timeout=PATIENCE_S)) as connection, connection:
        stored = dict(connection.execute("SELECT name, artifact_location FROM experiments"))
        former = {clone_of(stored[name], name) for name in experiments if name in stored}
        for clone in former - {None, root}:
            if database.resolve().is_relative_to(root) or not (clone / FOLDER).exists():
                for table, column in PATHS:
                    for old, new in ((clone.as_uri(), root.as_uri()), (str(clone), str(root))):
                        _replace(connection, table, column, f"{old}/{FOLDER}/", f"{new}/{FOLDER}/")
                _replace(connection, "tags", "value", f"{clone}/", f"{root}/", "AND key = 'file'")


def keep_run_here(database: Path, root: Path, experiment: str, run_id: str, uri: str) -> None:
    """Keep a run's files in this clone if `uri`, where MLflow has them, lies in another clone.

    So does a run in a database that two clones share. Any other place, such as a bucket, was
    chosen by somebody and stays.
    """
    here = location(root, experiment, run_id)
    other = clone_of(uri.removesuffix(f"/{run_id}/artifacts"), experiment)
    if uri != here and other is not None and other != root.resolve():
        with closing(sqlite3.connect(database, timeout=PATIENCE_S)) as connection, connection:
            connection.execute("UPDATE runs SET artifact_uri = ? WHERE run_uuid = ?", (here, run_id))


def clone_of(uri: str, experiment: str) -> Path | None:
    """The clone in which an experiment's folder lies; None if it lies in none."""
    parts = urlsplit(uri)
    if parts.scheme not in ("", "file"):
        return None
    path = Path(url2pathname(parts.path) if parts.scheme else uri)
    return path.parent.parent if path.parts[-2:] == (FOLDER, experiment) else None


def _replace(connection: sqlite3.Connection, table: str, column: str, old: str, new: str, more: str = "") -> None:
    """Replace the beginning `old` of a column's values by `new`."""
    connection.execute(
        f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ? {more}",
        (new, len(old) + 1, len(old), old),
    )
