"""Write files so that a reader never sees half of one, and check who may write them.

Standard library only: launchers import this.
"""

import json
import os
import pwd
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

APPENDED = (".log", ".jsonl", ".lock")  # a job opens these again; it replaces all others


class NotWritable(PermissionError):
    """This user may not write there; the message names path, owner and remedy."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder, which is renamed onto `path` if the block ends well, else removed.

    Raises NotWritable if this user may not write in the folder.
    """
    check_writable(path.parent)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)  # of a killed process with this number; it may be a link
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write(path: Path, content: str) -> None:
    """Replace the file by this text."""
    with replacing(path) as temporary:
        temporary.write_text(content, encoding="utf-8")


def read_json(path: Path) -> dict:
    """Return the object in a JSON file; an empty dictionary if the file is missing or damaged."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def check_writable(path: Path) -> None:
    """Raise NotWritable if this user may not write the path or, where it is missing, make it."""
    existing = next(above for above in (path, *path.absolute().parents) if os.path.lexists(above))
    if os.statvfs(existing).f_flag & os.ST_RDONLY:
        raise NotWritable(
            f"{existing.absolute()} is on a file system that is mounted read-only; "
            "work in a clone elsewhere, or have it mounted writable."
        )
    if not os.access(existing, os.W_OK):
        raise NotWritable(
            f"{existing.absolute()} belongs to {owner(existing)}, and {user_name(os.geteuid())} may not write it; in "
            "a clone that a group shares, each one sets `umask 002` before each start and once `chmod -R g+rwX` on "
            "what is theirs; else work in a clone of your own."
        )


def check_folder(folder: Path, appended: tuple[str, ...] = APPENDED) -> None:
    """Raise NotWritable unless this user may write the folder, those below it, and their files that end with one of
    `appended`."""
    check_writable(folder)
    for name, _, names in os.walk(folder):
        check_writable(Path(name))
        for file in names:
            if file.endswith(appended):
                check_writable(Path(name, file))


def owner(path: Path) -> str:
    """Return the name of the path's owner."""
    return user_name(path.stat().st_uid)


def user_name(number: int) -> str:
    """Return a user's name, or "user <number>" in a container that knows none."""
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"user {number}"
