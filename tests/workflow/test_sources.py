"""Images in tar files and from Hugging Face: the same as in folders, and as strict."""

import importlib.util
import tarfile
from pathlib import Path

import numpy as np
import pytest

from workflow.data import check, layout, readers
from workflow.data.layout import DataError
from workflow.train import trainer


def pack(folder: Path, path: Path) -> None:
    with tarfile.open(path, "w") as tar:
        for entry in sorted(folder.iterdir()):
            tar.add(entry, entry.name)


def one_tar(split: Path, root: Path) -> None:
    pack(split, root / f"{split.name}.tar")


def tar_per_class(split: Path, root: Path) -> None:
    (root / split.name).mkdir()
    for label in split.iterdir():
        pack(label, root / split.name / f"{label.name}.tar")


def tar_of_tars(split: Path, root: Path) -> None:
    """As ILSVRC2012_img_train.tar is."""
    tar_per_class(split, root)
    pack(root / split.name, root / f"{split.name}.tar")


PACKED = {
    "one tar": (one_tar, ".tar"),
    "tar per class": (tar_per_class, ""),
    "tar of tars": (tar_of_tars, ".tar"),
}


@pytest.fixture(params=PACKED)
def packed(request, images, tmp_path) -> dict:
    """A setting's data block for the images in tar files."""
    root = tmp_path / "packed"
    root.mkdir()
    how, suffix = PACKED[request.param]
    for split in ("train", "val"):
        how(images / split, root)
    names = {"train": f"train{suffix}", "val": f"val{suffix}"}
    return {"name": "packed", "root": str(root), "num_classes": 10, **names}


def pixels(dataset) -> list[tuple[bytes, int]]:
    items = (dataset[index] for index in range(len(dataset)))
    return sorted((np.asarray(image).tobytes(), label) for image, label in items)


def test_tar_files_hold_the_same_images_and_labels(packed, images):
    layout.check("demo", packed)
    for split in ("train", "val"):
        folder = readers.open_split({}, {"data_root": images}, split, lambda image: image)
        tar = readers.open_split(packed, {"data_root": packed["root"]}, packed[split], lambda image: image)
        assert pixels(tar) == pixels(folder)


def test_tar_files_are_looked_through_like_folders(packed, images, tmp_path):
    listings = {
        split: readers.open_reader(packed, {"data_root": packed["root"]}, packed[split]) for split in ("train", "val")
    }
    found = check.manifest(listings)["splits"]
    assert found["train"]["images"] == 40
    assert found["train"]["bytes"] == sum(p.stat().st_size for p in images.glob("train/*/*"))
    check.check_classes("demo", 10, listings)
    check.check_images(listings, 2, tmp_path / "listed.txt")
    with pytest.raises(DataError, match="have 10 and 10 classes; needed are the same 11"):
        check.check_classes("demo", 11, listings)


def test_a_bad_image_in_a_tar_is_named(images, tmp_path):
    path = images / "train/4/1.png"
    path.write_bytes(path.read_bytes()[:40])
    one_tar(images / "train", tmp_path)
    listing = readers.open_reader({}, {"data_root": tmp_path}, "train.tar")
    with pytest.raises(DataError, match=r"train.tar/4/1.png: "):
        check.check_images({"train": listing}, 0, tmp_path / "listed.txt")
    dataset = readers.open_split({}, {"data_root": tmp_path}, "train.tar", lambda image: image)
    index = dataset.filenames().index("4/1.png")
    with pytest.raises(DataError, match=r"train.tar/4/1.png can't be decoded"):
        dataset[index]


def test_a_training_on_tar_files_is_the_one_on_folders(images, site, tmp_path, tiny_spec):
    spec = tiny_spec("deit_tiny", epochs=1)
    results = []
    for number, (root, suffix) in enumerate(((images, ""), (tmp_path, ".tar")), 1):
        if suffix:
            for split in ("train", "val"):
                one_tar(images / split, root)
        spec["data"] |= {"train": f"train{suffix}", "val": f"val{suffix}"}
        folder = tmp_path / f"demo/runs/deit_tiny/attempts/{number}"
        place = site | {"data_root": str(root), "workers": 2}
        results.append(trainer.run(spec, place, folder)["results"])
    assert results[0]["loss"] == results[1]["loss"]
    assert results[0]["val_loss"] == pytest.approx(results[1]["val_loss"])


@pytest.mark.parametrize("content", [b"", b"no tar at all"])
def test_a_damaged_tar_is_an_error_with_its_path(content, tmp_path):
    (tmp_path / "train.tar").write_bytes(content)
    with pytest.raises(DataError, match=r"train.tar can't be listed"):
        readers.open_reader({}, {"data_root": tmp_path}, "train.tar")


def test_streams_are_refused(images):
    data = {"root": str(images), "reader": "wds/shards", "train": "train", "val": "val"}
    with pytest.raises(DataError, match="wds/shards is no `hfds/<name>`; other readers give stre"):
        layout.check("imagenet", data)


@pytest.mark.skipif(not importlib.util.find_spec("datasets"), reason="datasets is not installed")
def test_the_hubs_data_sets_hold_the_same_images(images, tmp_path):
    (images / "val").rename(images / "test")  # what datasets calls it
    data = {"reader": f"hfds/{images}", "train": "train", "val": "test"}
    for split in ("train", "test"):
        folder = readers.open_split({}, {"data_root": images}, split, lambda image: image)
        site = {"data_root": tmp_path / "cache"}
        hub = readers.open_split(data, site, split, lambda image: image)
        assert pixels(hub) == pixels(folder)
        listing = readers.open_reader(data, site, split)
        assert sum(listing.sizes()) == sum(p.stat().st_size for p in images.glob(f"{split}/*/*"))
        check.check_images({split: listing}, 2, tmp_path / "listed.txt")


@pytest.mark.skipif(bool(importlib.util.find_spec("datasets")), reason="datasets is installed")
def test_without_its_package_it_is_said(tmp_path):
    with pytest.raises(DataError, match=r"hfds/x: train can't be listed .*datasets"):
        readers.open_reader({"reader": "hfds/x"}, {"data_root": tmp_path}, "train")
