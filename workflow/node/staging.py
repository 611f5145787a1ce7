"""A copy of the images on the node's own disk, made once per node."""

import hashlib
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from workflow import layout, locks, records

WRITERS = 16
PATIENCE_S = 24 * 3600


def stage(data: dict, root: str, folder: str) -> str:
    """Copy both splits from `root` below `folder` unless they are there; -> where the copy lies.

    `folder` may name environment variables ($USER, $SLURM_TMPDIR). The node's other processes
    wait for the first one. A copy counts once it is complete and as long as its source has not
    changed. Raises DataError for a disk that can't hold it.
    """
    if "reader" in data:
        raise layout.DataError(
            f"stage: {folder} (the profile) can't hold what `reader: {data['reader']}` reads; "
            "leave stage out."
        )
    place = Path(os.path.expandvars(folder))
    if "$" in str(place):
        raise layout.DataError(f"stage: {folder} names a variable that this node does not set.")
    splits = [data["train"], data["val"]]
    copy = place / hashlib.sha256(str(Path(root).resolve()).encode()).hexdigest()[:12]
    note = copy / "staged.json"
    try:
        with locks.exclusive(place / f"{copy.name}.lock", PATIENCE_S):
            seen = {split: signature(Path(root) / split) for split in splits}
            if not is_copy_of(note, seen):
                make_copy(Path(root), copy, seen)
    except (OSError, shutil.Error) as error:
        reason = error.args[0][0][2] if isinstance(error, shutil.Error) else error
        raise layout.DataError(
            f"The images of {root} can't be copied to {place} on {os.uname().nodename} ({reason}); "
            "free it, or leave `stage` out of the profile."
        ) from None
    return str(copy)


def is_copy_of(note: Path, seen: dict) -> bool:
    try:
        return json.loads(note.read_text()) == seen
    except (FileNotFoundError, json.JSONDecodeError):
        return False


def make_copy(root: Path, copy: Path, seen: dict) -> None:
    """All of it, or nothing that takes up the disk; a whole copy is never touched for an error,
    for another training may read it."""
    shutil.rmtree(copy, ignore_errors=True)
    try:
        for split in seen:
            copy_split(root / split, copy / split)
        records.write_json(copy / "staged.json", seen)  # a kill leaves no half of it
    except BaseException:
        shutil.rmtree(copy, ignore_errors=True)
        raise


def signature(split: Path) -> list:
    """Changes when a file joins or leaves a class folder, or a tar file is another."""
    entries = sorted(split.iterdir()) if split.is_dir() else [split]
    return [[entry.name, entry.stat().st_size, entry.stat().st_mtime_ns] for entry in entries]


def copy_split(split: Path, to: Path) -> None:
    """A tar file, or a folder whose class folders are copied side by side."""
    if split.is_file():
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(split, to)
        return
    to.mkdir(parents=True)
    entries = list(split.iterdir())
    with ThreadPoolExecutor(WRITERS) as pool:
        copies = pool.map(
            lambda entry: (shutil.copytree if entry.is_dir() else shutil.copyfile)(
                entry, to / entry.name
            ),
            entries,
        )
        list(copies)
