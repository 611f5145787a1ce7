"""Test which files of a split are images, their classes, and what is refused by its path."""

import io
import json
import os
import shutil
import socket
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from timm.data.readers.reader_image_folder import ReaderImageFolder
from timm.utils.misc import natural_key

from workflow.data import check, layout, loaders, readers
from workflow.data.layout import DataError
from workflow.storage import records

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


def hidden_folder(root):
    (root / "train/.ipynb_checkpoints").mkdir()


def folder_in_a_class(root):
    (root / "train/a/.ipynb_checkpoints").mkdir()


def circle(root):
    (root / "train/a/up").symlink_to("..")


def link_to_itself(root):
    (root / "train/a/x.png").symlink_to("x.png")


def link_to_nothing(root):
    (root / "val/b/x.png").symlink_to("nowhere.png")


def class_linked_to_nothing(root):
    (root / "val/d").symlink_to("nowhere")


def loose_image(root):
    picture().save(root / "val/x.png")


def unread_suffix(root):
    picture().save(root / "val/a/x.gif")


def no_image(root):
    (root / "train/c/notes.txt").touch()


def pipe(root):
    os.mkfifo(root / "train/b/x.png")


def unix_socket(root):
    with socket.socket(socket.AF_UNIX) as opened:
        folder = os.open(root / "train/b", os.O_RDONLY)
        opened.bind(f"/proc/self/fd/{folder}/x.png")
        os.close(folder)


def not_utf8(root):
    os.rename(os.fsencode(root / "train/a/0.png"), os.fsencode(root / "train/a") + b"/\xff.png")


def class_not_utf8(root):
    os.rename(os.fsencode(root / "train/a"), os.fsencode(root / "train") + b"/\xff")


def empty_class(root):
    shutil.rmtree(root / "train/a")
    (root / "train/a").mkdir()
    (root / "train/a/.DS_Store").touch()


def one_folder_twice(root):
    shutil.rmtree(root / "train/b")
    (root / "train/b").symlink_to("a")


def tar_beside_folders(root):
    (root / "train/d.tar").touch()


UNUSED = {
    hidden_folder: "train/.ipynb_checkpoints is a hidden folder",
    folder_in_a_class: "train/a/.ipynb_checkpoints is a folder inside a class folder",
    circle: "train/a/up is a folder inside a class folder",
    link_to_itself: "train/a/x.png is a symbolic link that leads nowhere",
    link_to_nothing: "val/b/x.png is a symbolic link that leads nowhere",
    class_linked_to_nothing: "val/d is a symbolic link that leads nowhere",
    loose_image: "val/x.png is not in a class folder",
    unread_suffix: r"val/a/x.gif is not read as an image \(only .jpg, .*\); convert it",
    no_image: "train/c/notes.txt is not read as an image",
    pipe: "train/b/x.png is no regular file",
    unix_socket: "train/b/x.png is no regular file",
    not_utf8: r"train/a/\\xff.png has a name that is not UTF-8; rename it",
    class_not_utf8: r"train/\\xff has a name that is not UTF-8; rename it",
    empty_class: "train/a is empty; restore its images",
    one_folder_twice: "train/b and a are the same folder",
    tar_beside_folders: r"train holds tar files \(d.tar\) and folders \(a\)",
}


@pytest.mark.parametrize("change", UNUSED, ids=lambda change: change.__name__)
def test_what_is_not_used_is_refused_by_its_path_by_the_check_and_by_every_reader(change, root):
    change(root)
    with pytest.raises(DataError, match=UNUSED[change]):
        look_through(root)
    split = "val" if "val/" in UNUSED[change] else "train"
    with pytest.raises(DataError, match=UNUSED[change]):
        readers.open_split({}, {"data_root": str(root)}, split)


def test_links_are_followed_and_files_of_file_managers_are_left_out(root):
    expected = look_through(root)
    for name in (".DS_Store", "a/._0.png", "b/Thumbs.db", "c/desktop.ini"):
        (root / "train" / name).write_bytes(b"no image")
    for path in ("train/a", "train/b/0.png", "val"):  # a class, an image, a whole split
        target = root.parent / path.replace("/", "-")
        shutil.move(root / path, target)
        (root / path).symlink_to(target)
    assert look_through(root) == expected


def test_images_of_every_suffix_that_is_listed_are_counted_and_read(root):
    for suffix in layout.IMAGE_SUFFIXES:
        picture(7).save(root / f"val/b/x{suffix}")
        picture(7).save(root / f"val/b/y{suffix.upper()}")
    counted = look_through(root)["splits"]["val"]["images"]
    dataset = readers.open_split({}, {"data_root": str(root)}, "val", transform=np.asarray)
    read = [dataset[index] for index in range(len(dataset))]
    assert counted == len(read) == 6 + 2 * len(layout.IMAGE_SUFFIXES)
    assert [label for _, label in read].count(2) == 2


def test_names_alone_number_the_classes(tmp_path):
    """In every process, whatever PYTHONHASHSEED is and in which order the folders were made."""
    sets = [["A", "a", "B"], ["1", "01", "2"], ["10", "9", "1", "①", "m1²"]]
    code = (
        "import sys; from pathlib import Path; from workflow.data import layout;"
        "print([layout.class_folders(Path(split)) for split in sys.argv[1:]])"
    )
    shown = []
    for seed in range(4):
        splits = [tmp_path / str(seed) / str(number) for number in range(len(sets))]
        for split, names in zip(splits, sets, strict=True):
            for name in names[:: 1 if seed % 2 else -1]:
                (split / name).mkdir(parents=True)
        environment = {**os.environ, "PYTHONHASHSEED": str(seed), "PYTHONIOENCODING": "utf-8"}
        command = [sys.executable, "-c", code, *map(str, splits)]
        shown.append(subprocess.check_output(command, cwd=records.ROOT, env=environment))
    assert shown == 4 * [shown[0]]
    assert shown[0].decode().startswith("[['A', 'a', 'B'], ['01', '1', '2'], ['1', '9', '10',")


WNIDS = ["n01440764", "n01443537", "n02119022", "n04251144", "n13040303", "n15075141"]
CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@pytest.mark.parametrize("names", [WNIDS, CIFAR10, [str(n) for n in range(10)], ["10", "9", "x2"]])
def test_classes_and_images_keep_the_order_of_timms_reader(names, tmp_path):
    """Weights that were trained before, and timm's, keep their numbering."""
    for name in names:
        (tmp_path / "train" / name).mkdir(parents=True)
        for file in ("9.png", "10.png", "x.JPEG"):
            (tmp_path / "train" / name / file).touch()
    ours = readers.open_reader({}, {"data_root": str(tmp_path)}, "train")
    theirs = ReaderImageFolder(str(tmp_path / "train"))
    assert dict(zip(ours.classes, range(len(names)), strict=True)) == theirs.class_to_idx
    assert ours.names == theirs.filenames()
    assert ours.labels == [label for _, label in theirs.samples]
    if names != ["10", "9", "x2"]:
        assert ours.classes == sorted(names) == sorted(names, key=natural_key)


# -- what RGB can't hold ------------------------------------------------------------------------


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
    dataset = readers.open_split({}, {"data_root": str(root)}, "train")
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


# -- tar files ----------------------------------------------------------------------------------


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
        "train.tar/x.png does not lie in one of the class",
    ),
    "folder in a class": ({"names": (*GOOD, "a/s/x.png")}, "train.tar/a/s/x.png does not lie in"),
    "hidden folder": ({"names": (*GOOD, ".x/x.png")}, "train.tar/.x/x.png lies in a hidden folder"),
    "second place": ({"names": (*GOOD, "x/a/9.png")}, "train.tar/x/a/9.png does not lie in one"),
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
    "flat": ({"names": ("0.png", "1.png")}, "train.tar is flat: its 2 images lie in no class"),
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
    assert len(readers.open_split({}, site(root), "train.tar")) == 7


# -- the same images in every job ---------------------------------------------------------------


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
    assert len(loaders.eval_dataset(block, site(root), "val", recipe, cfg)) == 6
    picture().save(root / "val/a/9.png")
    with pytest.raises(DataError, match=r"val has changed since .*it had 6 images and has 7.*--forc"):
        loaders.eval_dataset(block, site(root), "val", recipe, cfg)
    (root / "val/a/9.png").unlink()
    for split in ("train", "val"):
        (root / split / "b").rename(root / split / "0")
    with pytest.raises(DataError, match=r"class 0 was 'a' then and is '0' now"):
        readers.open_split(block, site(root), "train")
    keep(root)
    assert len(readers.open_split(block, site(root), "train")) == 6
    assert check.of_images(site(root))["classes"] == ["0", "a", "c"]


def test_a_check_of_an_older_version_is_made_again(root):
    keep(root)
    path = root.parent / "results/data.json"
    record = json.loads(path.read_text())
    del record["results"]["classes"]
    records.write_json(path, record)
    with pytest.raises(DataError, match=r"data.json was made by an older version.*--forcerun"):
        readers.open_split({}, site(root), "train")


# -- where they lie -----------------------------------------------------------------------------


def test_home_and_variables_are_replaced(monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    monkeypatch.setenv("SCRATCH", "/scratch")
    for given, expected in {
        "~/x": "/somewhere/x",
        "$HOME/x": "/somewhere/x",
        "${SCRATCH}/x": "/scratch/x",
        "data/x": "data/x",
    }.items():
        assert str(layout.expand(given, "root")) == expected
    for given, sentence in (
        ("$NOT_SET/x", r"root is \$NOT_SET/x, but the variable \$NOT_SET is not set"),
        ("~nobody-of-this-name/x", "no such home folder"),
    ):
        with pytest.raises(DataError, match=sentence):
            layout.expand(given, "root")


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
