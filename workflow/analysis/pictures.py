"""Images to look at, of the validation split and photographs: as model input, and as shown."""

import hashlib
import mimetypes
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor

from workflow.campaign import specs
from workflow.data import layout, loaders, readers
from workflow.data.layout import DataError, printable

SHOWN = 224  # pixels at least, so that people can see what a small model sees in 24


class Pictures(NamedTuple):
    """n images; both versions have the same crop."""

    inputs: Tensor  # (n, 3, H, W), normalised
    shown: np.ndarray  # (n, S, S, 3) uint8, S a multiple of the grid's side
    names: list[str]
    sha256: list[str | None]  # of a photograph's pixels; a manifest vouches for the others


def gather(spec: dict, site: dict, model_cfg: dict, grid: int) -> Pictures:
    """The validation images and the photographs that the spec asks for.

    Args:
        grid: patches along a side of the model's grid.
    """
    size = grid * -(-SHOWN // grid)
    to_input = _transform(spec, model_cfg["input_size"], model_cfg["mean"], model_cfg["std"])
    to_show = _transform(spec, (3, size, size), (0.0,) * 3, (1.0,) * 3)
    inputs, shown, names, hashes = [], [], [], []
    for name, digest, image in _images(spec, site):
        inputs.append(to_input(image))
        shown.append((255 * to_show(image)).round().byte().permute(1, 2, 0).numpy())
        names.append(name)
        hashes.append(digest)
    return Pictures(torch.stack(inputs), np.stack(shown), names, hashes)


def _images(spec: dict, site: dict) -> Iterator[tuple[str, str | None, Image.Image]]:
    """Name, hash and RGB image, one after the other."""
    split, wanted = spec["data"]["val"], spec["images"]
    dataset = readers.open_split(spec["data"], site, split, transform=_same)
    for index in loaders.spaced(len(dataset), wanted["validation"]):
        yield f"{split}/{dataset.filename(index)}", None, dataset[index][0]
    if place := wanted.get("photographs"):
        found = _sample_images() if place == specs.SAMPLE_IMAGES else _folder(place, spec["setting"])
        for name, image in found:
            yield name, hashlib.sha256(image.tobytes()).hexdigest(), image


def _same(image: Image.Image) -> Image.Image:
    return image


def _sample_images() -> Iterator[tuple[str, Image.Image]]:
    """The two photographs that ship with scikit-learn."""
    from sklearn.datasets import load_sample_images

    sample = load_sample_images()
    for name, pixels in zip(sample.filenames, sample.images, strict=True):
        yield Path(name).name, Image.fromarray(pixels)


def _folder(place: str, setting: str) -> Iterator[tuple[str, Image.Image]]:
    """Yield the user's photographs, upright, by name.

    Raises DataError if there are none, or for a picture that is not read or is no image.
    """
    key = f"workflow/config/settings.yaml, {setting}.photographs"
    folder = layout.expand(place, key)
    paths = sorted(folder.glob("*")) if folder.is_dir() else []
    paths = [path for path in paths if _is_picture(path)]
    if not paths:
        raise DataError(
            f"{folder} ({key}) holds no {', '.join(layout.IMAGE_SUFFIXES)} files; put photographs "
            f"there, or say `photographs: {specs.SAMPLE_IMAGES}`."
        )
    for path in paths:
        if fault := layout.image_fault(path.name):
            raise DataError(f"{printable(path)} ({key}) {fault}.")
    for path in paths:
        try:
            with open(path, "rb") as stream:
                yield path.name, readers.decode(stream, upright=True)
        except (OSError, readers.ImageError) as error:
            raise DataError(f"{printable(path)} ({key}) can't be decoded ({error}); replace or delete it.") from None


def _is_picture(path: Path) -> bool:
    """Return whether a file is meant as a picture, also of a kind that is not read (.heic)."""
    kind = mimetypes.guess_type(path.name)[0] or ""
    return path.is_file() and kind.startswith("image/") and not layout.is_ignored(path.name)


def _transform(spec: dict, size: tuple[int, int, int], mean: tuple, std: tuple):
    """PIL image to tensor (3, H, W), as in evaluation: resize, centre crop."""
    recipe = spec["recipe"]
    return create_transform(
        size,
        is_training=False,
        interpolation=recipe["interpolation"],
        crop_pct=recipe["crop_pct"],
        mean=mean,
        std=std,
    )
