"""Where images come from: class folders, tar files, and data sets of Hugging Face, read by timm."""

import tarfile
from pathlib import Path
from typing import BinaryIO

from PIL import Image
from timm.data.dataset import ImageDataset
from timm.data.readers import create_reader
from timm.data.readers.reader import Reader
from timm.data.readers.reader_image_in_tar import CACHE_FILENAME_SUFFIX, ReaderImageInTar

from workflow import layout
from workflow.layout import DataError

UNREADABLE = (OSError, SyntaxError, ValueError, tarfile.TarError)


class StrictImageDataset(ImageDataset):
    """timm's dataset of any of its readers that can be asked for one image.

    Modifications:
    - an image that can't be read raises DataError with its path; timm takes the next image.
    """

    def __getitem__(self, index: int):
        try:
            stream, target = self.reader[index]
            with stream, Image.open(stream) as image:
                pixels = image.convert(self.input_img_mode)
        except UNREADABLE as error:
            raise DataError(
                f"{self.place(index)} can't be decoded ({error}); replace it with the original "
                "image."
            ) from None
        return self.transform(pixels), target

    def place(self, index: int) -> str:
        """Where an image lies, for people."""
        inside = getattr(self.reader, "root", None) or ""
        return str(Path(inside) / str(self.filename(index, absolute=True)))


def open_split(data: dict, root: str | Path, split: str, transform=None) -> StrictImageDataset:
    """The images of a setting's `data` in one split. Raises DataError if they can't be listed."""
    return StrictImageDataset(str(root), reader=open_reader(data, root, split), transform=transform)


def open_reader(data: dict, root: str | Path, split: str) -> Reader:
    """timm's reader for <root>/<split>, or for the data set that `data["reader"]` names."""
    path = Path(root) / split
    try:
        if name := data.get("reader"):
            return create_reader(name, root=str(root), split=split)
        if layout.tar_files(path):
            check_index(path)
            return ReaderImageInTar(str(path))
        return create_reader("", root=str(path))
    except (*UNREADABLE, ImportError, RuntimeError) as error:
        raise DataError(
            f"{data.get('reader') or path}: {split} can't be listed ({error}); "
            "see `data` in workflow/config/settings.yaml."
        ) from None


def check_index(path: Path) -> None:
    """timm keeps an index of more than 10 GB of tar files beside them, and trusts it for good.

    Raises DataError if it is older than one of them.
    """
    folder, name = (path, path.name) if path.is_dir() else (path.parent, path.stem)
    index = folder / f"_{name}{CACHE_FILENAME_SUFFIX}"
    for tar in layout.tar_files(path) if index.exists() else []:
        if tar.stat().st_mtime > index.stat().st_mtime:
            raise DataError(f"{index} is older than {tar}; delete it, it is made again.")


class Folder:
    """Every file below a split's class folders, also those that timm would not read."""

    def __init__(self, path: Path):
        self.path, self.classes = path, layout.class_folders(path)
        for label in self.classes:
            if not any(entry.is_file() for entry in (path / label).iterdir()):
                raise DataError(f"{path / label} is empty; restore its images.")
        found = sorted(entry for entry in path.rglob("*") if entry.is_file())
        self.names = [str(entry.relative_to(path)) for entry in found]
        self.sizes = [entry.stat().st_size for entry in found]

    def open(self, index: int) -> BinaryIO:
        return open(self.path / self.names[index], "rb")

    def place(self, index: int) -> str:
        return str(self.path / self.names[index])


class Listed:
    """The images of a split that a reader lists: in tar files, or of Hugging Face."""

    def __init__(self, dataset: StrictImageDataset):
        self.dataset, reader = dataset, dataset.reader
        self.place = dataset.place
        if isinstance(reader, ReaderImageInTar):
            self.classes = sorted(reader.class_name_to_idx)
            inside = [(tar, child and child.name, info) for info, tar, child in reader.samples]
            self.names = ["/".join(filter(None, (a, b, info.path))) for a, b, info in inside]
            self.sizes = [info.size for *_, info in inside]
        else:  # its sizes are known once it is read
            self.classes = sorted(reader.class_to_idx)
            self.names = [str(dataset.filename(index)) for index in range(len(dataset))]
            self.sizes = [len(self.open(index).read()) for index in range(len(dataset))]

    def open(self, index: int) -> BinaryIO:
        return self.dataset.reader[index][0]


def listing(data: dict, root: str | Path, split: str) -> Folder | Listed:
    """What lies in a split: classes, names and sizes in bytes, and each to be opened.

    Raises DataError for an empty class: the splits would number their classes differently.
    """
    path = Path(root) / split
    if data.get("reader") or layout.tar_files(path):
        return Listed(open_split(data, root, split))
    return Folder(path)
