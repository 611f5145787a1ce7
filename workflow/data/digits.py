"""Write the demo's images: scikit-learn's handwritten digits as PNG files in class folders."""

import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from workflow.data.layout import DataError

VAL_SHARE = 1 / 3
MARK = ".written-by-evovit"  # distinguishes our folder from the user's


def write_digits(root: str | Path, train: str = "train", val: str = "val") -> None:
    """Write 1,797 grey images of 8x8 pixels below root/{train,val}/<digit>/, a third of them for validation.

    The split is fixed and stratified. The folder appears whole or not at all. Raises DataError rather than replace a
    folder that this function did not write.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    indices = np.arange(len(digits.target))
    train_indices, val_indices = train_test_split(indices, test_size=VAL_SHARE, random_state=0, stratify=digits.target)
    root = Path(root)
    if root.exists() and not (root / MARK).exists():
        raise DataError(
            f"{root} exists and was not written by this workflow, so the digits are not written "
            "over it; set another `data.root` for them in workflow/config/settings.yaml."
        )
    unfinished = root.with_name(f"{root.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    for split, members in ((train, train_indices), (val, val_indices)):
        for index in members:
            folder = unfinished / split / str(digits.target[index])
            folder.mkdir(parents=True, exist_ok=True)
            pixels = (digits.images[index] * (255 / 16)).round().astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{index:04d}.png")
    (unfinished / MARK).touch()
    shutil.rmtree(root, ignore_errors=True)
    unfinished.rename(root)
