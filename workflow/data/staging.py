"""A copy of the images on the node's own disk, made once per node."""

import hashlib
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from workflow.data import layout, readers
from workflow.storage import locks, records

WRITERS = 16
PATIENCE_S = 24 * 3600


def stage(data: dict, root: str, folder: str, results: str | None = None) -> str:
    """Copy the images of both splits below `folder` unless they are there; -> where the copy lies.

    `folder` may name environment variables ($USER, $SLURM_TMPDIR). The node's other processes
    wait for the first one. A copy counts once it is complete and as long as neither its source nor
    the manifest in the setting's `results` has changed. Raises DataError for a disk that can't hold
    it, and for files in a split that are not used.
    """
    if "reader" in data:
        raise layout.DataError(
            f"stage: {folder} (the profile) can't hold what `reader: {data['reader']}` reads; leave stage out."
        )
    place = Path(os.path.expanduser(os.path.expandvars(folder)))
    if "$" in str(place):
        raise layout.DataError(f"stage: {folder} names a variable that this node does not set.")
    splits = [data["train"], data["val"]]
    copy = place / hashlib.sha256(str(Path(root).resolve()).encode()).hexdigest()[:12]
    note = copy / "staged.json"
    try:
        with locks.exclusive(place / f"{copy.name}.lock", PATIENCE_S):
            seen = {split: signature(Path(root) / split) for split in splits}
            site = {"data_root": root} | ({"root": results} if results else {})
            seen["manifest"] = (readers.looked_through(site) or {}).get("hash")
            if not is_copy_of(note, seen):
                by_split = {split: readers.open_reader(data, site, split) for split in splits}
                make_copy(Path(root), copy, by_split, seen)
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


def make_copy(root: Path, copy: Path, by_split: dict[str, readers.ImageReader], seen: dict) -> None:
    """All of it, or nothing that takes up the disk; a whole copy is never touched for an error,
    for another training may read it."""
    shutil.rmtree(copy, ignore_errors=True)
    try:
        for split, reader in by_split.items():
            copy_split(root / split, copy / split, reader.files())
        records.write_json(copy / "staged.json", seen)  # a kill leaves no half of it
    except BaseException:
        shutil.rmtree(copy, ignore_errors=True)
        raise


def signature(split: Path) -> list:
    """Changes when a file joins or leaves a class folder, or a tar file is another."""
    entries = sorted(split.iterdir()) if split.is_dir() else [split]
    return [[entry.name, *_status(entry)] for entry in entries]


def _status(path: Path) -> tuple[int | None, int | None]:
    """Return a file's size and time; None for a link that leads nowhere: it is refused later."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None, None
    return status.st_size, status.st_mtime_ns


def copy_split(split: Path, to: Path, names: list[str]) -> None:
    """Copy a split's files ("" is the split itself, a tar file), one folder after the other in each
    of several threads. The time stamps stay, as tar files' indices are known by them."""
    folders: dict[str, list[str]] = {}
    for name in names:
        folders.setdefault(os.path.dirname(name), []).append(name)

    def copy_folder(folder: str) -> None:
        (to / folder if names != [""] else to.parent).mkdir(parents=True, exist_ok=True)
        for name in folders[folder]:
            shutil.copy2(split / name if name else split, to / name if name else to)

    with ThreadPoolExecutor(WRITERS) as pool:
        list(pool.map(copy_folder, folders))
