"""Do the images' folders stand where the YAML says? Standard library only: the login node asks
before anything is launched, the node once more before it reads."""

import os
from pathlib import Path


class DataError(RuntimeError):
    """The images are not as they should be; the message names place, fault and remedy."""


def class_folders(split: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(split) if entry.is_dir())


def tar_files(split: Path) -> list[Path]:
    """The tar files that a split consists of: itself, or those in its folder; mostly none."""
    if split.suffix == ".tar":
        return [split] if split.is_file() else []
    return sorted(split.glob("*.tar")) if split.is_dir() else []


def check(setting: str, data: dict) -> None:
    """Raise DataError unless `data["root"]` holds both splits, as tar files or a folder per class.

    `data` is a setting's data block; only folder names are read, no images. What is in tar files,
    or in the data set that its `reader` names, the data job will see.
    """
    key = f"settings.yaml, {setting}.data.root: {data['root']}"
    root = Path(data["root"])
    if reader := data.get("reader"):
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
        if not folder.is_dir():
            raise DataError(
                f"No folder {folder} (workflow/config/{key}); expected {shape}. "
                "Link or set the folder there."
            )
        found = class_folders(folder)
        if not found:
            raise DataError(_flat(folder, root / data["train"], key, shape))
        if len(found) != data["num_classes"]:
            raise DataError(
                f"{folder} holds {len(found)} class folders, not {data['num_classes']} "
                f"(workflow/config/{key}); expected {shape}."
            )
        classes[split] = set(found)
    if len(classes) == 2 and (odd := sorted(set.symmetric_difference(*classes.values()))):
        raise DataError(
            f"The class {odd[0]!r} is in one of {root}/{{{data['train']},{data['val']}}} alone "
            f"(workflow/config/{key}); both splits need the same class folders."
        )


def _flat(folder: Path, train: Path, key: str, shape: str) -> str:
    """A split without class folders: what to do about it."""
    images = sum(entry.is_file() for entry in os.scandir(folder))
    if images == 50_000 and any(folder.glob("ILSVRC2012_val_*.JPEG")):
        return (
            f"{folder} is the flat ImageNet validation set of 50,000 files "
            f"(workflow/config/{key}); move each image into its class folder, as in "
            f"{train}/<wnid>/ (the ILSVRC2012 devkit's ground truth says which)."
        )
    return (
        f"{folder} holds no class folders but {images} files "
        f"(workflow/config/{key}); expected {shape}."
    )
