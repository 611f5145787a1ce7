"""Files that a reader never sees half written. Standard library only: launchers import this."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside this one to write to, renamed onto it if the block ends well, else removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.unlink(missing_ok=True)  # of a killed process with this number; it may be a link
    try:
        yield beside
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def write(path: Path, content: str) -> None:
    """Replace the file by this text."""
    with replacing(path) as beside:
        beside.write_text(content, encoding="utf-8")
