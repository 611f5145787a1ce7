"""The readers of images: the same from folders, tar files and Hugging Face, and as strict."""

import importlib.util
import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from workflow.data import check, layout, loaders, readers
from workflow.data.layout import DataError
from workflow.runtime.distributed import DistributedContext
from workflow.storage import records
from workflow.train import trainer


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("damage", ["truncated", "empty", "text"])
def test_a_bad_image_is_an_error_with_its_path_never_the_next_image(images, split, damage):
    """timm's own dataset would take the next image, in validation too."""
    path = images / split / "4" / "1.png"
    whole = path.read_bytes()
    path.write_bytes({"truncated": whole[: len(whole) // 2], "empty": b"", "text": b"hello"}[damage])
    dataset = readers.open_split({}, {"data_root": images}, split, transform=lambda image: image)
    index = dataset.reader.names.index("4/1.png")
    with pytest.raises(DataError, match=f"{split}/4/1.png can't be decoded"):
        dataset[index]


# -- images that RGB can't hold ---------------------------------------------------------------------


CLASSES = ("a", "b", "c")


def picture(value: int = 0) -> Image.Image:
    return Image.new("L", (8, 8), value)


@pytest.fixture
def root(tmp_path) -> Path:
    """Three classes of two images in each split."""
    for split in ("train", "val"):
        for label in CLASSES:
            folder = tmp_path / "images" / split / label
            folder.mkdir(parents=True)
            for index in range(2):
                picture(index).save(folder / f"{index}.png")
    return tmp_path / "images"


def look_through(root: Path, num_classes: int = 3, **changes) -> dict:
    """The data job's results."""
    block = {"name": "made", "train": "train", "val": "val", "num_classes": num_classes} | changes
    spec = {"kind": "data", "setting": "made", "data": block, "root": str(root)}
    return check.run(spec, site(root), root.parent / "attempt")["results"]


def site(root: Path) -> dict:
    return {"root": str(root.parent / "results"), "data_root": str(root), "workers": 0}


def save_16_bit(path):
    Image.fromarray(np.full((8, 8), 5000, np.uint16)).save(path.with_suffix(".png"))


def save_32_bit(path):
    Image.fromarray(np.full((8, 8), 70000, np.int32)).save(path.with_suffix(".tif"))


def save_float(path):
    Image.fromarray(np.full((8, 8), 0.5, np.float32)).save(path.with_suffix(".tif"))


def save_two_pages(path):
    Image.new("L", (8, 8)).save(path.with_suffix(".tif"), save_all=True, append_images=[Image.new("L", (8, 8), 9)])


def save_large(path):
    Image.new("1", (10_000, 9_000)).save(path.with_suffix(".png"))


def save_huge(path):
    Image.new("1", (20_000, 9_000)).save(path.with_suffix(".png"))


REFUSED = {
    save_16_bit: "its mode I;16 has values",
    save_32_bit: "its mode I has values",
    save_float: "its mode F has values",
    save_two_pages: "it holds 2 pictures",
    save_large: "it has 10000 x 9000 pixels, and Pillow allows",
    save_huge: r"Image size \(180000000 pixels\) exceeds limit",
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("save", REFUSED, ids=lambda save: save.__name__)
def test_an_image_that_rgb_cannot_hold_is_refused_by_its_path(save, root):
    save(root / "train/b/x")
    with pytest.raises(DataError, match=rf"train/b/x\.\w+: {REFUSED[save]}"):
        look_through(root)
    dataset = readers.open_split({}, {"data_root": str(root)}, "train", None)
    with pytest.raises(DataError, match=rf"train/b/x\.\w+ can't be decoded \({REFUSED[save]}"):
        dataset[4]


def test_images_that_rgb_can_hold_are_read(root):
    for mode, suffix in (("CMYK", "jpg"), ("P", "png"), ("LA", "png"), ("1", "png")):
        Image.new(mode, (8, 8)).save(root / f"train/a/{mode}.{suffix}")
    palette = Image.new("P", (8, 8))
    palette.save(root / "train/a/transparent.png", transparency=0)
    assert look_through(root)["splits"]["train"]["images"] == 10


def test_pixels_are_taken_as_they_are_stored(root):
    """ImageNet's protocol; only photographs are turned upright."""
    image = Image.new("L", (8, 4))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(root / "train/a/0.jpg", exif=exif)
    with open(root / "train/a/0.jpg", "rb") as stream:
        assert readers.decode(stream).size == (8, 4)
        stream.seek(0)
        assert readers.decode(stream, upright=True).size == (4, 8)


# -- images that changed after the check ------------------------------------------------------------


def keep(root: Path, **changes) -> None:
    """Look through and publish data.json."""
    block = {"name": "made", "train": "train", "val": "val", "num_classes": 3} | changes
    spec = {"kind": "data", "setting": "made", "data": block, "root": str(root)}
    record = check.run(spec, site(root), root.parent / "attempt")
    records.write_json(root.parent / "results/data.json", record)


def test_images_that_changed_after_the_check_are_refused(root):
    keep(root)
    block = {"train": "train", "val": "val"}
    cfg = {"input_size": (3, 8, 8), "mean": (0.5,) * 3, "std": (0.5,) * 3}
    recipe = {"interpolation": "bilinear", "crop_pct": 1.0}
    source = loaders.ImageSource(block, site(root), recipe, cfg, DistributedContext(torch.device("cpu")))
    assert len(source.evaluation_set("val")) == 6
    picture().save(root / "val/a/9.png")
    with pytest.raises(DataError, match=r"val has changed since .*it had 6 images and has 7.*--forc"):
        source.evaluation_set("val")
    (root / "val/a/9.png").unlink()
    for split in ("train", "val"):
        (root / split / "b").rename(root / split / "0")
    with pytest.raises(DataError, match=r"class 0 was 'a' then and is '0' now"):
        readers.open_split(block, site(root), "train", None)
    keep(root)
    assert len(readers.open_split(block, site(root), "train", None)) == 6
    assert check.describe_images(site(root))["classes"] == ["0", "a", "c"]


def test_a_check_of_an_older_version_is_made_again(root):
    keep(root)
    path = root.parent / "results/data.json"
    record = json.loads(path.read_text())
    del record["results"]["classes"]
    records.write_json(path, record)
    with pytest.raises(DataError, match=r"data.json was made by an older version.*--forcerun"):
        readers.open_split({}, site(root), "train", None)


# -- tar files --------------------------------------------------------------------------------------


def contents() -> bytes:
    stream = io.BytesIO()
    picture().save(stream, "PNG")
    return stream.getvalue()


def pack(path: Path, names, links=(), folders=()) -> Path:
    with tarfile.open(path, "w") as tar:
        for name in folders:
            info = tarfile.TarInfo(name)
            info.type = tarfile.DIRTYPE
            tar.addfile(info)
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = len(contents())
            tar.addfile(info, io.BytesIO(contents()))
        for name, kind in links:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, names[0]
            tar.addfile(info)
    return path


GOOD = tuple(f"{label}/{index}.png" for label in CLASSES for index in range(2))


IN_TARS = {
    "loose image": (
        {"names": (*GOOD, "x.png")},
        "train.tar/x.png is not in one of the class",
    ),
    "folder in a class": ({"names": (*GOOD, "a/s/x.png")}, "train.tar/a/s/x.png is not in"),
    "hidden folder": ({"names": (*GOOD, ".x/x.png")}, "train.tar/.x/x.png is in a hidden folder"),
    "second place": ({"names": (*GOOD, "x/a/9.png")}, "train.tar/x/a/9.png is not in one"),
    "unread suffix": ({"names": (*GOOD, "a/x.gif")}, "train.tar/a/x.gif is not read as an image"),
    "not UTF-8": (
        {"names": (*GOOD, "a/\udcff.png")},
        r"train.tar/a/\\xff.png has a name that is no",
    ),
    "twice": ({"names": (*GOOD, "a/0.png")}, "train.tar/a/0.png is there 2 times"),
    "symbolic link": (
        {"names": GOOD, "links": [("a/9.png", tarfile.SYMTYPE)]},
        "train.tar/a/9.png is a link",
    ),
    "hard link": (
        {"names": GOOD, "links": [("a/9.png", tarfile.LNKTYPE)]},
        "train.tar/a/9.png is a link",
    ),
    "empty class": ({"names": GOOD, "folders": ["d"]}, "train.tar/d is an empty folder"),
    "flat": ({"names": ("0.png", "1.png")}, "train.tar is flat: its 2 images are in no class"),
    "one folder": (
        {"names": ("x/0.png",)},
        "made have 1 and 3 classes, 'a' only one of them",
    ),
}


TARS = {"train": "train.tar", "val": "val.tar"}


@pytest.mark.parametrize("content", IN_TARS.values(), ids=IN_TARS)
def test_what_is_not_used_in_a_tar_is_refused_by_its_path(content, root):
    arguments, sentence = content
    pack(root / "train.tar", **arguments)
    pack(root / "val.tar", GOOD)
    with pytest.raises(DataError, match=sentence):
        look_through(root, **TARS)


def cut_short(path):
    path.write_bytes(path.read_bytes()[: 3 * 1024])  # after a whole member


def damage(path):
    content = bytearray(path.read_bytes())
    content[3 * 1024 + 5] ^= 0xFF  # a member's header
    path.write_bytes(content)


def append(path):
    path.write_bytes(2 * path.read_bytes())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [(cut_short, "ends without its end mark"), (damage, "can't be read beyond byte 3072"),
     (append, "several tar files in one")],
)  # fmt: skip
def test_a_tar_that_tarfile_would_read_in_part_is_refused(change, sentence, root):
    for name in TARS.values():
        pack(root / name, GOOD)
    change(root / "train.tar")
    with pytest.raises(DataError, match=rf"train.tar .*{sentence}"):
        look_through(root, **TARS)


def test_a_wrapping_folder_and_files_of_file_managers_change_nothing(root):
    pack(root / "train.tar", [f"./train/{name}" for name in (*GOOD, "a/._0.png")], folders=["train"])
    pack(root / "val.tar", GOOD)
    results = look_through(root, **TARS)
    assert (results["classes"], results["splits"]["train.tar"]["images"]) == (list(CLASSES), 6)


def test_a_tars_contents_are_noted_in_the_results_not_beside_it(root, monkeypatch):
    for name in TARS.values():
        pack(root / name, GOOD)
    look_through(root, **TARS)
    assert sorted(path.name for path in root.glob("*.*")) == ["train.tar", "val.tar"]
    assert list(root.parent.glob("results/data/tar-index-*.json"))
    monkeypatch.setattr(readers, "scan_tar", None)  # would fail if called
    dataset = readers.open_split({}, site(root), "train.tar", transform=np.asarray)
    assert dataset[5][1] == 2
    monkeypatch.undo()
    pack(root / "train.tar", (*GOOD, "c/9.png"))  # another file: it is read anew
    assert len(readers.open_split({}, site(root), "train.tar", None)) == 7


def test_an_index_of_one_tar_file_is_not_taken_for_another(tmp_path):
    """Packed reproducibly, two tar files have equal names, sizes and times."""
    for split in ("train", "val"):
        folder = tmp_path / split
        folder.mkdir()
        with tarfile.open(folder / "data.tar", "w") as tar:
            content = io.BytesIO()
            picture().save(content, "PNG")
            for name in (f"cat/{split}.png", f"dog/{split}.png"):
                info = tarfile.TarInfo(name)
                info.size = len(content.getvalue())
                tar.addfile(info, io.BytesIO(content.getvalue()))
        os.utime(folder / "data.tar", (1, 1))
    site = {"data_root": str(tmp_path), "root": str(tmp_path / "results")}
    for split in ("train", "val"):
        reader = readers.open_reader({}, site, f"{split}/data.tar")
        assert [name.split("/")[-1] for name in reader.names] == [f"{split}.png"] * 2
    for index in (tmp_path / "results/data").glob("tar-index-*.json"):
        index.write_text(index.read_text()[:20])  # damaged: the tar file is read again
    assert len(readers.open_reader({}, site, "val/data.tar")) == 2


# -- the same images from every source --------------------------------------------------------------


def pack_folder(folder: Path, path: Path) -> None:
    with tarfile.open(path, "w") as tar:
        for entry in sorted(folder.iterdir()):
            tar.add(entry, entry.name)


def one_tar(split: Path, root: Path) -> None:
    pack_folder(split, root / f"{split.name}.tar")


def tar_per_class(split: Path, root: Path) -> None:
    (root / split.name).mkdir()
    for label in split.iterdir():
        pack_folder(label, root / split.name / f"{label.name}.tar")


def tar_of_tars(split: Path, root: Path) -> None:
    """As ILSVRC2012_img_train.tar is."""
    tar_per_class(split, root)
    pack_folder(root / split.name, root / f"{split.name}.tar")


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
    splits = check.manifest(listings)["splits"]
    assert splits["train"]["images"] == 40
    assert splits["train"]["bytes"] == sum(p.stat().st_size for p in images.glob("train/*/*"))
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
    index = dataset.reader.names.index("4/1.png")
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
        packed_site = site | {"data_root": str(root), "workers": 2}
        results.append(trainer.run(spec, packed_site, folder)["results"])
    assert results[0]["loss"] == results[1]["loss"]
    assert results[0]["val_loss"] == pytest.approx(results[1]["val_loss"])


@pytest.mark.parametrize("content", [b"", b"no tar at all"])
def test_a_damaged_tar_is_an_error_with_its_path(content, tmp_path):
    (tmp_path / "train.tar").write_bytes(content)
    with pytest.raises(DataError, match=r"train.tar can't be listed"):
        readers.open_reader({}, {"data_root": tmp_path}, "train.tar")


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
