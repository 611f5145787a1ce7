"""Read the layout of a data set on disk: which files are images, and which class each belongs to.

This is the only definition of a split in class folders; the check, training, evaluation, search and figures use it.
Standard library only: the login node checks the layout before anything is launched.
"""

import fnmatch
import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".pgm", ".ppm", ".tif", ".tiff", ".webp")
# files that file managers and timm's tar reader leave behind
IGNORED = (".DS_Store", "._*", "Thumbs.db", "desktop.ini", "_*_tarinfos.pickle")
Unused = tuple[str, str]  # the path of a file or folder, and why it is not used


class DataError(RuntimeError):
    """The images are not as they should be; the message names path, fault and remedy."""


def refuse(unused: list[Unused]) -> None:
    """Raise DataError with the first path by name, if anything in a split belongs to no class or is no image."""
    if not unused:
        return
    path, reason = min(unused)
    others = len(unused) - 1
    more = f" (not used either: {others} more)" if others else ""
    raise DataError(f"{printable(path)} {reason}{more}.")


def printable(path: str | Path) -> str:
    """Return a path in which everything that is not printable text is escaped."""
    text = os.fsencode(str(path)).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def natural_key(name: str) -> tuple:
    """Return timm's sort key, which compares numbers by value, with the name to break ties.

    `A` and `a`, or `1` and `01`, are equal to timm, which then numbers classes by a set's order.
    """
    parts: list = re.split(r"(\d+)", name.lower())
    parts[1::2] = map(int, parts[1::2])
    return parts, name


def is_ignored(name: str) -> bool:
    """Return whether a file of this name is skipped without a message."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in IGNORED)


def is_utf8(name: str) -> bool:
    return name.isascii() or not any("\ud800" <= c <= "\udfff" for c in name)


def image_fault(name: str) -> str | None:
    """Return why a file of this name is not read as an image; None if it is read."""
    if not is_utf8(name):
        return "has a name that is not UTF-8; rename it"
    if not name.lower().endswith(IMAGE_SUFFIXES):
        suffixes = ", ".join(IMAGE_SUFFIXES)
        return f"is not read as an image (only {suffixes} are); convert it, or move it elsewhere"
    return None


def expand(path: str, key: str) -> Path:
    """Return a path of the YAML with `~` and environment variables replaced.

    Raises DataError, naming the key, for a variable that is not set.
    """
    expanded = os.path.expanduser(os.path.expandvars(path))
    unset = re.search(r"\$(\w+|\{[^}]*\})", expanded)
    if unset and not os.path.exists(expanded):  # a folder's name may contain the sign
        raise DataError(f"{key} is {path}, but the variable {unset[0]} is not set; set it, or write the path.")
    if expanded.startswith("~"):
        raise DataError(f"{key} is {path}, but no such home folder is known; write the path.")
    return Path(expanded)


def _entries(folder: Path) -> list[tuple[os.DirEntry, int | None]]:
    """Return a folder's entries without the ignored files, each with the type of what it is or links to.

    The type is one of `stat`'s file types, None for a link that leads nowhere.
    """
    try:
        with os.scandir(folder) as listing:
            entries = [(entry, _file_type(entry)) for entry in listing]
    except OSError as error:
        raise DataError(f"{printable(folder)} can't be read ({error.strerror}); correct its permissions.") from None
    return [(entry, kind) for entry, kind in entries if kind == stat.S_IFDIR or not is_ignored(entry.name)]


def _file_type(entry: os.DirEntry) -> int | None:
    try:
        if entry.is_file():  # mostly without a system call
            return stat.S_IFREG
        return stat.S_IFMT(entry.stat().st_mode)
    except OSError:  # it leads to nothing, or round in a circle
        return None


def _other_fault(kind: int | None) -> str:
    if kind is None:
        return "is a symbolic link that leads nowhere; restore its target, or delete it"
    return "is no regular file (a socket, pipe or device); delete it"


def class_folders(split: Path) -> list[str]:
    """Return the names of a split's class folders, in the order of their labels.

    Links to folders count. Raises DataError for anything that belongs to no class; a split without any class folder has
    [], whatever else it holds.
    """
    entries = _entries(split)
    unused: list[Unused] = []
    names = []
    if not any(kind == stat.S_IFDIR for _, kind in entries):
        return []
    for entry, kind in entries:
        if kind == stat.S_IFDIR and not is_utf8(entry.name):
            unused.append((entry.path, "has a name that is not UTF-8; rename it"))
        elif kind == stat.S_IFDIR and entry.name.startswith("."):
            unused.append((entry.path, "is a hidden folder, and no class; move it elsewhere"))
        elif kind == stat.S_IFDIR:
            names.append(entry.name)
        elif kind == stat.S_IFREG:
            unused.append((entry.path, "is not in a class folder, so it has no class; move it into one, or elsewhere"))
        else:
            unused.append((entry.path, _other_fault(kind)))
    refuse(unused)
    _check_different(split, [entry for entry, kind in entries if kind == stat.S_IFDIR])
    return sorted(names, key=natural_key)


def _check_different(split: Path, folders: list[os.DirEntry]) -> None:
    """Raise DataError if a link makes one folder two classes."""
    if not any(entry.is_symlink() for entry in folders):
        return
    names: dict[tuple[int, int], str] = {}
    for entry in sorted(folders, key=lambda entry: entry.name):
        status = entry.stat()
        other = names.setdefault((status.st_dev, status.st_ino), entry.name)
        if other != entry.name:
            raise DataError(
                f"{printable(split / entry.name)} and {printable(other)} are the same folder, so "
                "its images would have two classes; delete one of them."
            )


def class_images(split: Path, classes: Iterable[str]) -> list[tuple[str, int]]:
    """Return (name below the split, label) of every image, sorted by `natural_key`.

    Raises DataError for anything else in a class folder, and for a class without images.
    """
    images: list[tuple[str, int]] = []
    unused: list[Unused] = []
    for label, name in enumerate(classes):
        before = len(images)
        for entry, kind in _entries(split / name):
            if kind == stat.S_IFREG:
                fault = image_fault(entry.name)
                if fault is None:
                    images.append((f"{name}/{entry.name}", label))
                else:
                    unused.append((entry.path, fault))
            elif kind == stat.S_IFDIR:
                unused.append((entry.path, "is a folder inside a class folder; move its images up, or elsewhere"))
            else:
                unused.append((entry.path, _other_fault(kind)))
        if len(images) == before and not unused:
            raise DataError(f"{printable(split / name)} is empty; restore its images.")
    refuse(unused)
    return sorted(images, key=lambda image: natural_key(image[0]))


def tar_files(split: Path) -> list[Path]:
    """Return the tar files that a split consists of: the split itself, or those in its folder; mostly none.

    Raises DataError for anything else in a folder of tar files.
    """
    if split.suffix == ".tar" and os.path.isfile(split):
        return [split]
    if not os.path.isdir(split):
        return []
    entries = _entries(split)
    unused: list[Unused] = []
    tars = []
    folders = sorted(entry.name for entry, kind in entries if kind == stat.S_IFDIR)
    for entry, kind in entries:
        if kind == stat.S_IFREG and entry.name.endswith(".tar") and is_utf8(entry.name):
            tars.append(Path(entry.path))
        else:
            unused.append((entry.path, "is in a folder of tar files and is none itself; move it elsewhere"))
    if tars and folders:
        raise DataError(
            f"{split} holds tar files ({min(tars).name}) and folders ({printable(folders[0])}); "
            "keep either in it, and move the others elsewhere."
        )
    if tars:
        refuse(unused)
    return sorted(tars, key=lambda path: natural_key(path.name))


def check(setting: str, data: dict) -> None:
    """Raise DataError unless `data["root"]` holds both splits, as tar files or a folder per class.

    `data` is a setting's data block; without `num_classes` any number of classes will do. Only the names of folders are
    read here; the data job reads the images, tar files, and the data set that `reader` names.
    """
    key = f"settings.yaml, {setting}.data.root: {data['root']}"
    root = Path(data["root"])
    reader = data.get("reader")
    if reader:
        if not reader.startswith("hfds/"):
            raise DataError(
                f"settings.yaml, {setting}.data.reader: {reader} is no `hfds/<name>`; other "
                "readers give streams, in which no training can go on where it was stopped."
            )
        return
    shape = f"{root}/{{{data['train']},{data['val']}}}/<class>/<image>"
    classes = {}
    for split in (data["train"], data["val"]):
        folder = root / split
        if tar_files(folder):
            continue
        if os.path.isfile(folder):
            raise DataError(
                f"{folder} is neither a folder nor a file *.tar (workflow/config/{key}); unpack it "
                "(gunzip) and name it *.tar, or unpack it into class folders."
            )
        if not os.path.isdir(folder):
            raise DataError(
                f"No folder {folder} (workflow/config/{key}); expected {shape}. Link or set the folder there."
            )
        classes[folder] = class_folders(folder)
        if not classes[folder]:
            raise DataError(_flat(folder, root / data["train"], key, shape))
    every = {name for names in classes.values() for name in names}
    differences = []
    for folder, names in classes.items():
        missing = every - set(names)
        if missing:
            differences.append(f"{folder} lacks {min(missing)!r}")
    for folder, names in classes.items():
        if len(names) != data.get("num_classes", len(names)):
            expected = "; ".join([shape, *differences])
            raise DataError(
                f"{folder} holds {len(names)} class folders, not {data['num_classes']} (workflow/config/{key}); "
                f"expected {expected}; add what is missing, or move what is no class elsewhere."
            )
    if differences:
        raise DataError(
            f"{differences[0]}, which the other split has (workflow/config/{key}); both splits need the "
            "same class folders: add it here, or move it elsewhere there."
        )


def count_classes(setting: str, data: dict) -> int:
    """Return how many classes a setting's images have whose `data` doesn't say so: that of its class folders.

    Raises DataError for splits that are not in class folders, or not in the same ones.
    """
    key = f"settings.yaml, {setting}.data"
    root = expand(data["root"], f"{key}.root")
    check(setting, {**data, "root": str(root)})
    train = root / data["train"]
    if "reader" in data or tar_files(train):
        raise DataError(
            f"workflow/config/{key} lacks num_classes, and only class folders are counted before a start; add it."
        )
    return len(class_folders(train))


def _flat(folder: Path, train: Path, key: str, shape: str) -> str:
    """Return the sentence about a split without class folders."""
    images = sum(kind == stat.S_IFREG for _, kind in _entries(folder))
    if images == 0:
        return f"{folder} is empty (workflow/config/{key}); expected {shape}. Put the images there, or set the folder."
    if images == 50_000 and any(folder.glob("ILSVRC2012_val_*.JPEG")):
        return (
            f"{folder} is the flat ImageNet validation set of 50,000 files (workflow/config/{key}); move each image "
            f"into its class folder, as in {train}/<wnid>/ (the ILSVRC2012 devkit's ground truth says which)."
        )
    return f"{folder} holds no class folders but {images} files (workflow/config/{key}); expected {shape}."
