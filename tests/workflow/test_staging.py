"""The images on the node's own disk: copied once, anew when they changed, all or nothing."""

import json
import shutil
import tarfile
from pathlib import Path

import pytest

from workflow.data import layout, staging
from workflow.train import train

DATA = {"train": "train", "val": "val", "num_classes": 10}


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*.png")}


def test_both_splits_are_copied_once(images, tmp_path):
    copy = staging.stage(DATA, str(images), str(tmp_path / "local"))
    assert files(Path(copy)) == files(images)
    made = (Path(copy) / "staged.json").stat().st_mtime_ns
    assert staging.stage(DATA, str(images), str(tmp_path / "local")) == copy
    assert (Path(copy) / "staged.json").stat().st_mtime_ns == made


def test_a_changed_source_is_copied_anew(images, tmp_path):
    staging.stage(DATA, str(images), str(tmp_path / "local"))
    next(images.glob("train/3/*.png")).unlink()
    copy = staging.stage(DATA, str(images), str(tmp_path / "local"))
    assert files(Path(copy)) == files(images)


def test_a_copy_that_was_cut_short_does_not_count(images, tmp_path):
    copy = Path(staging.stage(DATA, str(images), str(tmp_path / "local")))
    (copy / "staged.json").unlink()
    shutil.rmtree(copy / "train/3")
    staging.stage(DATA, str(images), str(tmp_path / "local"))
    assert files(copy) == files(images)


def test_tar_files_are_copied_as_they_are(images, tmp_path):
    for split in ("train", "val"):
        with tarfile.open(tmp_path / f"{split}.tar", "w") as tar:
            tar.add(images / split, split)
    data = {"train": "train.tar", "val": "val.tar"}
    copy = Path(staging.stage(data, str(tmp_path), str(tmp_path / "local")))
    assert (copy / "val.tar").read_bytes() == (tmp_path / "val.tar").read_bytes()
    assert (copy / "val.tar").stat().st_mtime_ns == (tmp_path / "val.tar").stat().st_mtime_ns


def test_a_full_disk_is_one_sentence_and_leaves_nothing(images, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(staging, "copy_split", full)
    with pytest.raises(layout.DataError, match=r"No space left on device.*leave `stage` out"):
        staging.stage(DATA, str(images), str(tmp_path / "local"))
    assert not list((tmp_path / "local").glob("*/"))


def test_a_source_that_is_away_costs_no_copy_that_others_read(images, tmp_path, monkeypatch):
    copy = Path(staging.stage(DATA, str(images), str(tmp_path / "local")))

    def away(split):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(staging, "signature", away)
    with pytest.raises(layout.DataError, match="Input/output error"):
        staging.stage(DATA, str(images), str(tmp_path / "local"))
    assert files(copy) == files(images)


def test_a_note_that_was_cut_short_does_not_count(images, tmp_path):
    copy = Path(staging.stage(DATA, str(images), str(tmp_path / "local")))
    (copy / "staged.json").write_text('{"train": [')
    staging.stage(DATA, str(images), str(tmp_path / "local"))
    assert json.loads((copy / "staged.json").read_text())["train"]
    assert files(copy) == files(images)


@pytest.mark.parametrize(
    ("data", "folder", "words"),
    [
        (DATA, "$NO_SUCH_VARIABLE/x", "does not set"),
        (DATA | {"reader": "hfds/x"}, "/tmp", "hfds/x"),
    ],
)
def test_what_can_not_be_staged_is_refused(images, data, folder, words):
    with pytest.raises(layout.DataError, match=words):
        staging.stage(data, str(images), folder)


def test_a_training_on_the_copy_is_the_same(images, site, tmp_path, tiny_spec):
    spec = tiny_spec("deit_tiny", epochs=1)
    there = train.run(spec, site, tmp_path / "runs/deit_tiny/attempts/1")
    copy = staging.stage(DATA, str(images), str(tmp_path / "local"))
    here = train.run(spec, {**site, "data_root": copy}, tmp_path / "runs/deit_tiny/attempts/2")
    assert here["results"]["loss"] == there["results"]["loss"]
