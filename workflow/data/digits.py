"""The demo's images: scikit-learn's handwritten digits as an ImageFolder of PNG files."""

import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from workflow.data.layout import DataError

VAL_SHARE = 1 / 3
MARK = ".written-by-evovit"  # tells our folder from one of the user's


def write_digits(root: str | Path, train: str = "train", val: str = "val") -> None:
    """Write 1,797 grey 8x8 scans below root/{train,val}/<digit>/, a third for validation.

    The split is fixed and stratified. The folder appears whole or not at all. Raises DataError
    rather than replace a folder that it did not write.
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
    beside = root.with_name(f"{root.name}.unfinished")
    shutil.rmtree(beside, ignore_errors=True)
    for split, members in ((train, train_indices), (val, val_indices)):
        for index in members:
            folder = beside / split / str(digits.target[index])
            folder.mkdir(parents=True, exist_ok=True)
            pixels = (digits.images[index] * (255 / 16)).round().astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{index:04d}.png")
    (beside / MARK).touch()
    shutil.rmtree(root, ignore_errors=True)
    beside.rename(root)
