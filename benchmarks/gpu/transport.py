"""Pack what a command made into an archive, unpack it elsewhere, and end a child with its parent.

Shared by the commands of benchmarks/gpu/. Standard library and workflow.storage only.
"""

import os
import signal
import sys
import tarfile
import threading
import time
import zlib
from collections.abc import Iterable
from pathlib import Path

from workflow.storage import files

PART_BYTES = 15 << 20  # of the state, so that a machine which returns files of at most 16 MiB returns it
STATE = "state.tar"


class ArchiveError(RuntimeError):
    """An archive can't be read; the message says which and what to do."""


def pack(archive: Path, folder: Path, paths: Iterable[Path]) -> None:
    """Write a compressed archive of files below `folder`, which replaces the archive as a whole."""
    with files.replacing(archive) as temporary, tarfile.open(temporary, "w:gz") as tar:
        for path in sorted(paths):
            tar.add(path, path.relative_to(folder).as_posix())


def unpack(archive: Path, folder: Path) -> None:
    """Write the archive's files below `folder`, over those that are there. Raises ArchiveError for a damaged one."""
    try:
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise ArchiveError(f"{archive} is damaged ({error}); copy it again from where it was made.") from error


def pack_state(output: Path, folder: Path, paths: Iterable[Path]) -> None:
    """Write files below `folder` into the output's state.tar.1, state.tar.2 and so on, of PART_BYTES each.

    An earlier state is deleted; without files there is none.
    """
    whole = folder / STATE
    kept = list(paths)
    with tarfile.open(whole, "w") as tar:
        for path in kept:
            tar.add(path, path.relative_to(folder).as_posix())
    for old in output.glob(f"{STATE}.*"):
        old.unlink()
    if not kept:
        whole.unlink()
        return
    with open(whole, "rb") as stream:
        number = 1
        while part := stream.read(PART_BYTES):
            with files.replacing(output / f"{STATE}.{number}") as temporary:
                temporary.write_bytes(part)
            number += 1
    whole.unlink()


def unpack_state(source: Path, folder: Path) -> None:
    """Join the parts of a state in `source`, if there are any, and write its files below `folder`.

    A kill may leave parts of two states. They are no archive, and are left out with a sentence.
    """
    parts = sorted(source.glob(f"{STATE}.*"), key=lambda path: int(path.suffix[1:]))
    if not parts:
        return
    folder.mkdir(parents=True, exist_ok=True)
    whole = folder / STATE
    with open(whole, "wb") as stream:
        for part in parts:
            stream.write(part.read_bytes())
    try:
        unpack(whole, folder)
    except ArchiveError:
        print(f"{source}/{STATE}.* are no parts of one state; trainings that it held begin anew.", file=sys.stderr)
    finally:
        whole.unlink()


def end_with_parent(grace_s: float = 60.0) -> None:
    """Send this process SIGTERM when its parent, which holds the other end of its standard input, is gone.

    If it still runs after `grace_s`, it is killed.
    """

    def watch() -> None:
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(grace_s)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
