"""Read the images of a split and their classes, from class folders, tar files or Hugging Face.

Every job reads images through `open_split`, and the check of the data set reads them through the same readers, so what
is checked is what is trained on. A file in a split that is not used is refused by its path.
"""

import contextlib
import hashlib
import io
import json
import os
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from PIL import Image, ImageOps
from torch.utils.data import Dataset

from workflow.data import layout
from workflow.data.layout import DataError, Unused, natural_key, printable
from workflow.storage import files, records

# Modes whose values RGB with 8 bits can hold; of 16-bit colours Pillow reads the upper 8 bits.
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "LAB")
OPEN_FILES = 64


class ImageError(ValueError):
    """A file that is no image, or one that RGB can't hold; the message says why, without a path."""


def decode(stream: IO[bytes], upright: bool = False) -> Image.Image:
    """Return the RGB image in a stream, as the check and every other job read it.

    Args:
        upright: turn the image as its EXIF orientation says. Training and evaluation do not: ImageNet's protocol
            takes the pixels as they are stored.

    Raises ImageError.
    """
    try:
        with Image.open(stream) as image:
            _check_kind(image)
            turned = ImageOps.exif_transpose(image) if upright else image
            return turned.convert("RGB")
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(f"{str(error).partition(',')[0]}; scale it down") from None
    except Exception as error:  # Pillow's plugins raise many kinds for damaged files
        reason = str(error).partition(" <")[0] or type(error).__name__
        raise ImageError(" ".join(reason.split())) from None


def _check_kind(image: Image.Image) -> None:
    most = Image.MAX_IMAGE_PIXELS
    if most and image.width * image.height > most:
        raise ImageError(f"it has {image.width} x {image.height} pixels, and Pillow allows {most}; scale it down")
    if image.mode not in MODES:
        raise ImageError(f"its mode {image.mode} has values that 8 bits can't hold; save it as 8-bit grey or RGB")
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # a camera's JPEG with its preview
        raise ImageError(f"it holds {frames} pictures; save each in a file of its own")


class ImageReader:
    """Read one split's images.

    Attributes:
        classes: names of the classes; their positions are the labels.
        names: each image's name in the split.
        labels: each image's label.
    """

    classes: list[str]
    names: list[str]
    labels: list[int]

    def __len__(self) -> int:
        return len(self.names)

    def open(self, index: int) -> IO[bytes]:
        """Return an image's bytes as a stream."""
        raise NotImplementedError

    def location(self, index: int) -> str:
        """Return the full path of an image, or its row in a data set, for messages."""
        raise NotImplementedError

    def sizes(self) -> list[int]:
        """Return each image's size in bytes."""
        raise NotImplementedError

    def digest(self) -> str:
        """Return a hash of every image's name and class."""
        digest = hashlib.sha256(json.dumps(self.classes).encode())
        for name, label in zip(self.names, self.labels, strict=True):
            digest.update(f"{label} {name}\n".encode())
        return digest.hexdigest()[:16]


class FolderReader(ImageReader):
    """Images in a folder per class."""

    def __init__(self, path: Path):
        self.path = path
        self.classes = layout.class_folders(path)
        if not self.classes:
            raise DataError(f"{path} holds no class folders; expected {path}/<class>/<image>, or tar files.")
        images = layout.class_images(path, self.classes)
        self.names = [name for name, _ in images]
        self.labels = [label for _, label in images]

    def open(self, index: int) -> IO[bytes]:
        return open(self.path / self.names[index], "rb")

    def location(self, index: int) -> str:
        return str(self.path / self.names[index])

    def sizes(self) -> list[int]:
        return [os.stat(self.path / name).st_size for name in self.names]


class Member(NamedTuple):
    """An image in a tar file."""

    tar: int  # index into the split's tar files
    inner: str  # name of the tar file inside that one, mostly ""
    name: str  # path in the innermost tar file
    offset: int  # of its first byte in the outer tar file
    size: int


class TarReader(ImageReader):
    """Images in a tar file, in a folder of tar files, or in tar files inside a tar file.

    An image's class is its folder, or its tar file if that has no folders.
    """

    def __init__(self, path: Path, index_folder: Path | None = None):
        """Keep the list of the tar files' contents in `index_folder`: reading all headers can take minutes."""
        self.path = path
        self.tars = layout.tar_files(path)
        # as they appear in images' names; "" if the split itself is the tar file
        self.tar_names = [tar.name if path != tar else "" for tar in self.tars]
        self._open: dict[int, IO[bytes]] = {}
        members = self._members(index_folder)
        self.members = sorted(members, key=lambda member: (natural_key(member.name), self._name(member)))
        folders = [self._folder(member) for member in self.members]
        self._check_folders(self.members, folders)
        self.classes = sorted({folder[-1] for folder in folders}, key=natural_key)
        labels = {name: label for label, name in enumerate(self.classes)}
        self.names = [self._name(member) for member in self.members]
        self.labels = [labels[folder[-1]] for folder in folders]

    def _members(self, index_folder: Path | None) -> list[Member]:
        """Return all images in the tar files, from the index of these files if there is one."""
        if index_folder is None:
            return self._scan()
        # the path is part of the key: reproducibly packed tar files have equal names, sizes and times
        status = [(str(tar), tar.stat().st_size, tar.stat().st_mtime_ns) for tar in self.tars]
        key = hashlib.sha256(json.dumps(status).encode()).hexdigest()[:16]
        index = index_folder / f"tar-index-{key}.json"
        with contextlib.suppress(FileNotFoundError, ValueError, TypeError):  # no index, or a damaged one
            return [Member(*values) for values in json.loads(index.read_text())]
        members = self._scan()
        files.write(index, json.dumps(members))
        return members

    def _scan(self) -> list[Member]:
        members: list[Member] = []
        unused: list[Unused] = []
        for number, tar in enumerate(self.tars):
            with open(tar, "rb") as stream:
                before = len(members)
                for inner, name, offset, size in scan_tar(stream, str(tar), unused):
                    members.append(Member(number, inner, name, offset, size))
            if len(members) == before and not unused:
                raise DataError(f"{tar} holds no image; restore its images.")
        layout.refuse(unused)
        return members

    def _folder(self, member: Member) -> tuple[str, ...]:
        """Return the names of the tar files and folders around an image, outermost first."""
        tars = [name for name in (self.tar_names[member.tar], member.inner) if name]
        stems = [PurePosixPath(name).stem for name in tars]
        return (*stems, *PurePosixPath(member.name).parts[:-1])

    def _name(self, member: Member) -> str:
        return "/".join(filter(None, (self.tar_names[member.tar], member.inner, member.name)))

    def _location(self, member: Member) -> str:
        return f"{self.path}/{self._name(member)}"

    def _check_folders(self, members: list[Member], folders: list[tuple[str, ...]]) -> None:
        """Raise DataError unless the class folders of each tar file have the same parent folder."""
        if not any(folders):
            raise DataError(
                f"{self.path} is flat: its {len(members)} images are in no class folders; put "
                "each into its class folder and pack them anew."
            )
        unused: list[Unused] = []
        parents: dict[tuple, Counter] = {}  # of the class folders, for each innermost tar file
        for member, folder in zip(members, folders, strict=True):
            parents.setdefault((member.tar, member.inner), Counter())[folder[:-1]] += 1
        usual = {}  # the parent of most images, the first by name if several have as many
        for tar_file, counts in parents.items():
            usual[tar_file] = min(counts, key=lambda parent: (-counts[parent], parent))
        for member, folder in zip(members, folders, strict=True):
            if not folder or folder[:-1] != usual[member.tar, member.inner]:
                reason = "is not in one of the class folders; pack the tar file without it"
                unused.append((self._location(member), reason))
            elif folder[-1].startswith("."):
                reason = "is in a hidden folder, which is no class; pack the tar file without it"
                unused.append((self._location(member), reason))
        layout.refuse(unused)
        names = Counter((member.tar, member.inner, member.name) for member in members)
        for (tar, inner, name), count in names.items():
            if count > 1:
                location = self._location(Member(tar, inner, name, 0, 0))
                raise DataError(f"{printable(location)} is there {count} times; pack the tar anew.")

    def open(self, index: int) -> IO[bytes]:
        member = self.members[index]
        if member.tar not in self._open:
            if len(self._open) == OPEN_FILES:
                self._open.pop(next(iter(self._open))).close()
            self._open[member.tar] = open(self.tars[member.tar], "rb", buffering=0)  # noqa: SIM115
        descriptor = self._open[member.tar].fileno()
        content = b""  # one call reads at most 2 GB, and may read less
        while len(content) < member.size:
            part = os.pread(descriptor, member.size - len(content), member.offset + len(content))
            if not part:
                raise OSError("the tar file ends before it does")
            content += part
        return io.BytesIO(content)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_open": {}}  # files are opened by each process

    def location(self, index: int) -> str:
        return self._location(self.members[index])

    def sizes(self) -> list[int]:
        return [member.size for member in self.members]


def scan_tar(
    stream: IO[bytes], location: str, unused: list[Unused], inner: str = "", start: int = 0
) -> Iterator[tuple[str, str, int, int]]:
    """Yield (inner tar file, name, offset, size) of every image in an open tar file.

    Everything else, but for folders with images below them, is added to `unused`. Raises DataError for a tar file that
    is damaged or cut short.
    """
    folders = []
    parents: set[str] = set()
    try:
        with tarfile.open(fileobj=stream, mode="r:") as tar:
            while (info := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # tarfile keeps all, a kilobyte each
                name = "/".join(part for part in info.name.split("/") if part not in ("", "."))
                path = f"{location}/{name}"
                fault = layout.image_fault(name)
                if info.isdir():
                    folders.append(name)
                elif layout.is_ignored(PurePosixPath(name).name):
                    continue
                elif not info.isreg() or info.sparse is not None:
                    reason = "is a link or another special file; pack the tar with what it points to"
                    unused.append((path, reason + " (tar --dereference --hard-dereference)"))
                elif name.lower().endswith(".tar") and not inner:
                    parents.update(map(str, PurePosixPath(name).parents))
                    content = tar.extractfile(info)
                    yield from scan_tar(content, path, unused, name, info.offset_data)
                elif fault:
                    unused.append((path, fault))
                else:
                    parents.update(map(str, PurePosixPath(name).parents))
                    yield inner, name, start + info.offset_data, info.size
            _check_end(stream, tar.offset, location)
    except (tarfile.TarError, EOFError) as error:
        raise DataError(
            f"{printable(location)} can't be listed ({error}); replace it with the original tar file, not compressed."
        ) from None
    for name in folders:
        if name and name not in parents:
            unused.append((f"{location}/{name}", "is an empty folder; restore its images, or pack anew"))


def _check_end(stream: IO[bytes], offset: int, location: str) -> None:
    """Raise DataError unless a tar file has its end mark at `offset`, and nothing after it.

    tarfile takes a damaged header, and the end of a file that was cut short, for the end mark.
    """
    stream.seek(offset)
    zeros = 0
    while block := stream.read(1 << 20):
        zeros += len(block)
        if block.strip(b"\0"):
            raise DataError(
                f"{printable(location)} can't be read beyond byte {offset}: it is damaged, cut short "
                "or several tar files in one; replace it with the original, or pack it anew."
            )
    if not zeros:
        raise DataError(
            f"{printable(location)} ends without its end mark, so it was cut short; "
            "replace it with the original tar file."
        )


class HubReader(ImageReader):
    """Images of a data set that Hugging Face's `datasets` loads.

    Attributes:
        dataset: the data set, with encoded images.
        source: its name and split, for messages.
    """

    def __init__(self, data: dict, root: str | Path, split: str):
        try:
            import datasets
        except ImportError:
            raise DataError(
                f"{data['reader']}: {split} can't be listed without the package `datasets`; pip install datasets."
            ) from None
        name = data["reader"].removeprefix("hfds/")
        self.source = f"{data['reader']}, split {split}"
        dataset = datasets.load_dataset(name, split=split, cache_dir=str(root))
        self.image = self._column(dataset, "image", data.get("image_column"), datasets.Image)
        column = self._column(dataset, "label", data.get("label_column"), datasets.ClassLabel)
        try:
            self.dataset = dataset.cast_column(self.image, datasets.Image(decode=False))
        except Exception as error:
            raise DataError(
                f"{self.source}: the column {self.image!r} of type {dataset.features[self.image]} holds no images "
                f"({' '.join(str(error).split())}); name another by `image_column` in workflow/config/settings.yaml."
            ) from None
        self.classes = self._classes(datasets, dataset.features[column], column, data)
        self.labels = self._labels(dataset[column][:], column)
        self.names = [f"{self.classes[label]}/row {index}" for index, label in enumerate(self.labels)]

    def _column(self, dataset, kind: str, requested: str | None, feature_type: type) -> str:
        """Return the requested column; without a request the column named `kind`, or the only one of the type.

        Raises DataError if there is none, or more than one.
        """
        known = list(dataset.features)
        name = requested or kind
        if name in known:
            return name
        candidates = [key for key, feature in dataset.features.items() if isinstance(feature, feature_type)]
        if requested is None and len(candidates) == 1:
            return candidates[0]
        raise DataError(
            f"{self.source}: it has no column {name!r} but {', '.join(map(repr, known))}; name the "
            f"one of the {kind}s by `{kind}_column` in workflow/config/settings.yaml."
        )

    def _classes(self, datasets, feature, column: str, data: dict) -> list[str]:
        """Return the label column's names, or the integers below `num_classes` as such."""
        if isinstance(feature, datasets.ClassLabel):
            return list(feature.names)
        if "int" in str(getattr(feature, "dtype", "")):
            return [str(label) for label in range(data["num_classes"])]
        raise DataError(
            f"{self.source}: the column {column!r} is of type {feature}, and labels are whole numbers or of type "
            "ClassLabel; convert it (cast_column), or name another by `label_column` in workflow/config/settings.yaml."
        )

    def _labels(self, labels: list, column: str) -> list[int]:
        for index, label in enumerate(labels):
            if not isinstance(label, int) or not 0 <= label < len(self.classes):
                raise DataError(
                    f"{self.source}: row {index} has {label} in the column {column!r}, and labels "
                    f"are 0 to {len(self.classes) - 1}; correct the data set, or `num_classes` in "
                    "workflow/config/settings.yaml."
                )
        return labels

    def open(self, index: int) -> IO[bytes]:
        image = self.dataset[index][self.image]
        if image is None or not (image["bytes"] or image["path"]):
            raise OSError("it is empty")
        if image["bytes"]:
            return io.BytesIO(image["bytes"])
        return open(image["path"], "rb")

    def location(self, index: int) -> str:
        return f"{self.source}, row {index}"

    def sizes(self) -> list[int]:
        sizes = []
        for index in range(len(self)):
            try:
                with self.open(index) as stream:
                    sizes.append(stream.seek(0, os.SEEK_END))
            except OSError:  # the check of the images says why
                sizes.append(0)
        return sizes


class StrictImageDataset(Dataset):
    """A data set of transformed images and their labels.

    An image that can't be read raises DataError with its path; timm's data set would take the next image.
    """

    def __init__(self, reader: ImageReader, transform: Callable):
        self.reader = reader
        self.transform = transform

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, index: int) -> tuple:
        try:
            with self.reader.open(index) as stream:
                pixels = decode(stream)
        except (OSError, ImageError) as error:
            raise DataError(
                f"{printable(self.reader.location(index))} can't be decoded ({error}); "
                "replace it with the original image."
            ) from None
        return self.transform(pixels), self.reader.labels[index]


def open_reader(data: dict, site: dict, split: str) -> ImageReader:
    """Return the reader of <data_root>/<split>, or of the data set that `data["reader"]` names.

    Raises DataError if its images can't be listed, or something in it is not used.
    """
    path = Path(site["data_root"]) / split
    try:
        if data.get("reader"):
            return HubReader(data, site["data_root"], split)
        if layout.tar_files(path):
            return TarReader(path, Path(site["root"]) / "data" if "root" in site else None)
        return FolderReader(path)
    except DataError:
        raise
    except Exception as error:  # `datasets` raises many kinds for a data set that it can't load
        raise DataError(
            f"{data.get('reader') or path}: {split} can't be listed "
            f"({' '.join(str(error).split()) or type(error).__name__}); see `data` in workflow/config/settings.yaml."
        ) from None


def open_split(data: dict, site: dict, split: str, transform: Callable) -> StrictImageDataset:
    """Return the images of a setting's `data` in one split.

    Raises DataError if they can't be listed, or are not the images that were checked.
    """
    reader = open_reader(data, site, split)
    checked = read_manifest(site)
    if checked is not None:
        _check_unchanged(reader, checked, site, split)
    return StrictImageDataset(reader, transform)


def read_manifest(site: dict) -> dict | None:
    """Return the manifest that the check of the setting's images left; None outside the workflow.

    Raises DataError for a data.json without classes: it was made by code that did not compare them.
    """
    path = Path(site.get("root", "")) / "data.json"
    if "root" not in site or not path.exists():
        return None
    results = records.read(path)["results"]
    if "classes" not in results:
        raise DataError(
            f"{path} was made by an older version, which did not check which images are read; make "
            f"it again: snakemake {path} --forcerun {path}, with your --profile."
        )
    return results


def _check_unchanged(reader: ImageReader, checked: dict, site: dict, split: str) -> None:
    """Raise DataError if a split's images are not those of the manifest."""
    listed = checked["splits"].get(split, {})
    if listed.get("listing") == reader.digest():
        return
    path = Path(site["root"]) / "data.json"
    if reader.classes != checked["classes"]:
        difference = class_difference(checked["classes"], reader.classes)
    elif listed.get("images") == len(reader):
        difference = "some have other names"
    else:
        difference = f"it had {listed.get('images')} images and has {len(reader)}"
    raise DataError(
        f"{Path(site['data_root']) / split} has changed since {path} was made ({difference}); restore it, or check it "
        f"again: snakemake {path} --forcerun {path}, with your --profile."
    )


def class_difference(before: list[str], now: list[str]) -> str:
    """Return the first difference of two lists of classes, for messages."""
    if len(before) != len(now):
        return f"{len(before)} classes then, {len(now)} now"
    label = next(i for i, (old, new) in enumerate(zip(before, now, strict=True)) if old != new)
    return f"class {label} was {before[label]!r} then and is {now[label]!r} now"
