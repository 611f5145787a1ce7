"""The layout of a data set: which files of a split are images, their classes, and what is refused by its path."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from timm.data.readers.reader_image_folder import ReaderImageFolder
from timm.utils.misc import natural_key

from workflow.data import check, layout, readers
from workflow.data.layout import DataError
from workflow.storage import records


def block(root, **changes) -> dict:
    return {"root": str(root), "train": "train", "val": "val", "num_classes": 10} | changes


def test_a_good_folder_passes(images):
    layout.check("demo", block(images))


def test_a_missing_folder_names_the_key_and_the_expected_layout(tmp_path):
    with pytest.raises(DataError, match=r"settings.yaml, imagenet.data.root: .*expected .*<class>"):
        layout.check("imagenet", block(tmp_path / "none"))


def test_a_missing_class_is_counted(images):
    (images / "train" / "3").rename(images / "three")
    with pytest.raises(DataError, match="holds 9 class folders, not 10"):
        layout.check("demo", block(images))


def test_the_flat_imagenet_validation_set_is_recognised(images):
    flat = images / "flat"
    flat.mkdir()
    for index in range(50_000):
        (flat / f"ILSVRC2012_val_{index:08d}.JPEG").touch()
    with pytest.raises(DataError, match=r"flat ImageNet validation set of 50,000 files.*move"):
        layout.check("imagenet", block(images, val="flat"))


def test_other_flat_folders_are_told_apart(images):
    (images / "flat").mkdir()
    (images / "flat" / "a.png").touch()
    with pytest.raises(DataError, match="no class folders but 1 files"):
        layout.check("demo", block(images, val="flat"))


def test_streams_are_refused(images):
    data = {"root": str(images), "reader": "wds/shards", "train": "train", "val": "val"}
    with pytest.raises(DataError, match="wds/shards is no `hfds/<name>`; other readers give stre"):
        layout.check("imagenet", data)


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


# -- files and folders ------------------------------------------------------------------------------


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
        readers.open_split({}, {"data_root": str(root)}, split, None)


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
