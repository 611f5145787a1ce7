"""The check of a data set: what the folders hold, and whether it can be decoded, before any training."""

import pytest
from PIL import Image

from workflow.data import check, readers
from workflow.data.digits import write_digits
from workflow.data.layout import DataError


def listings(root, **data) -> dict:
    return {split: readers.open_reader(data, {"data_root": root}, split) for split in ("train", "val")}


def manifest_of(root) -> dict:
    return check.manifest(listings(root))


def test_the_digits_are_split_the_same_way_every_time(tmp_path):
    write_digits(tmp_path / "a")
    write_digits(tmp_path / "b")
    manifest = manifest_of(tmp_path / "a")
    assert manifest == manifest_of(tmp_path / "b")
    assert manifest["splits"]["train"]["images"] + manifest["splits"]["val"]["images"] == 1797
    assert manifest["splits"]["val"]["images"] == 599
    assert manifest["splits"]["val"]["classes"] == 10
    image = Image.open(next((tmp_path / "a" / "val" / "0").iterdir()))
    assert (image.size, image.mode) == ((8, 8), "L")


def test_the_manifest_sees_a_renamed_and_a_changed_file(images):
    before = manifest_of(images)["hash"]
    (images / "train/0/0.png").rename(images / "train/0/9.png")
    renamed = manifest_of(images)["hash"]
    (images / "train/0/9.png").write_bytes(b"x")
    assert len({before, renamed, manifest_of(images)["hash"]}) == 3


@pytest.fixture
def damaged(images) -> dict:
    """One file of each kind that is no image, with what is said of it."""
    whole = (images / "train/4/1.png").read_bytes()
    content = {
        "train/4/1.png": (whole[: len(whole) // 2], ""),
        "train/7/0.png": (b"", "it is empty"),
        "val/2/1.png": (b"hello", "cannot identify image file"),
        "val/2/photo.webp": (b"not an image", "cannot identify image file"),
    }
    for name, (held, _) in content.items():
        (images / name).write_bytes(held)
    return {str(images / name): reason for name, (_, reason) in content.items()}


@pytest.mark.parametrize("workers", [0, 2])
def test_all_bad_images_are_named_at_once(workers, images, damaged, tmp_path, monkeypatch):
    monkeypatch.setattr(check, "CHUNK", 7)  # several parts, also across processes
    with pytest.raises(DataError, match="4 of 61 files are no") as raised:
        check.check_images(listings(images), workers, tmp_path / "unusable.txt")
    listed = (tmp_path / "unusable.txt").read_text().splitlines()
    assert {line.partition(": ")[0] for line in listed} == set(damaged)
    for path, reason in damaged.items():
        assert f"{path}: {reason}" in str(raised.value)


def test_a_long_list_is_cut_in_the_sentence_and_whole_in_the_file(images, tmp_path, monkeypatch):
    monkeypatch.setattr(check, "SHOWN", 2)
    for path in (images / "train/3").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match="and 2 more"):
        check.check_images(listings(images), 0, tmp_path / "unusable.txt")
    assert len((tmp_path / "unusable.txt").read_text().splitlines()) == 4


def spec(images) -> dict:
    data = {"name": "made", "train": "train", "val": "val", "num_classes": 10}
    return {"kind": "data", "setting": "demo", "data": data, "root": str(images)}


def test_a_manifest_is_decoded_once(images, site, tmp_path, monkeypatch):
    record = check.run(spec(images), site, tmp_path / "attempt")
    assert record["results"]["splits"]["train"]["images"] == 40
    monkeypatch.setattr(check, "check_images", None)  # would fail if called
    check.run(spec(images), site, tmp_path / "attempt")
    (images / "train/0/0.png").write_bytes(b"another size")
    with pytest.raises(TypeError):
        check.run(spec(images), site, tmp_path / "attempt")


def test_bad_images_leave_no_record(images, damaged, site, tmp_path):
    for _ in range(2):  # nothing is remembered as good
        with pytest.raises(DataError, match="are no whole images"):
            check.run(spec(images), site, tmp_path / "attempt")
