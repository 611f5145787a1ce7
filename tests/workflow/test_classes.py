"""Weights know the classes that they were trained with, and serve no others."""

import time
from pathlib import Path

import pytest
import torch
from torch import nn

from workflow.storage import records
from workflow.train import checkpoints
from workflow.train.checkpoints import WeightsError

BEFORE, NOW = ["cat", "dog"], ["dog", "cat"]


@pytest.fixture
def site(tmp_path) -> dict:
    return {"root": str(tmp_path / "results")}


def publish_data(site: dict, classes: list[str]) -> None:
    """data.json, as the data job leaves it."""
    results = {"splits": {}, "hash": "".join(classes), "classes": classes}
    records.write_json(Path(site["root"]) / "data.json", records.make({"kind": "data"}, results, time.time()))


def save(site: dict, classes: list[str] | None) -> tuple[Path, dict]:
    folder = Path(site["root"]) / "runs/small/attempts/1"
    described = checkpoints.save_weights(folder, nn.Linear(2, 2), {"run": "small"}, classes)
    return folder / "weights.pt", described


def test_a_file_of_weights_is_a_plain_state_dict_that_knows_its_classes(site):
    path, _ = save(site, BEFORE)
    assert nn.Linear(2, 2).load_state_dict(torch.load(path, weights_only=True))
    assert checkpoints.classes_of(path) == BEFORE


@pytest.mark.parametrize("kind", ["weights", "checkpoint"])
def test_given_weights_of_other_classes_are_refused(site, tmp_path, kind):
    path, _ = save(site, BEFORE)
    if kind == "checkpoint":
        images = {"manifest": "catdog", "classes": BEFORE}
        saved = checkpoints.Checkpoints(tmp_path / "checkpoints", "hash", print, images=images)
        saved.save(0, {"state_dict": nn.Linear(2, 2).state_dict()})
        (path,) = (tmp_path / "checkpoints").glob("step-*.pt")
    checkpoint = {"file": str(path), "sha256": records.sha256(path)}
    spec = {"setting": "demo", "run": "small", "model": {"name": "linear"}}
    spec["checkpoint"] = checkpoint
    publish_data(site, BEFORE)
    checkpoints.load_external(nn.Linear(2, 2), spec, site)
    publish_data(site, NOW)
    with pytest.raises(WeightsError, match=r"demo.checkpoints.small\) were trained with other .*"
                       r"class 0 was 'cat' then and is 'dog' now"):  # fmt: skip
        checkpoints.load_external(nn.Linear(2, 2), spec, site)


def test_weights_without_a_list_are_taken_as_they_are(site, tmp_path):
    path = tmp_path / "published.pth"
    torch.save({"model": nn.Linear(2, 2).state_dict()}, path)
    spec = {"setting": "demo", "run": "small", "model": {"name": "linear"}}
    spec["checkpoint"] = {"file": str(path), "sha256": records.sha256(path)}
    publish_data(site, NOW)
    checkpoints.load_external(nn.Linear(2, 2), spec, site)


def test_no_run_starts_or_learns_from_weights_of_other_classes(site):
    spec = {"kind": "train", "run": "small"}
    _, described = save(site, BEFORE)
    record = records.make(spec, {"weights": described}, time.time(), classes=BEFORE)
    records.write_json(Path(site["root"]) / "runs/small/train.json", record)
    needed = {"run": "small", "job": "train", "spec_hash": record["spec_hash"]}
    publish_data(site, BEFORE)
    assert checkpoints.final_weights(site, needed)
    publish_data(site, [*BEFORE, "bird"])
    with pytest.raises(WeightsError, match=r"small/train.json .*2 classes then, 3 now.*--forcerun"):
        checkpoints.final_weights(site, needed)


def test_a_training_does_not_go_on_with_other_images(tmp_path):
    said, folder = [], tmp_path / "attempts/1/checkpoints"

    def saved(manifest: str | None, classes: list[str] | None):
        images = {"manifest": manifest, "classes": classes}
        return checkpoints.Checkpoints(folder, "hash", said.append, images=images)

    saved("one", BEFORE).save(1, {})
    assert saved("one", BEFORE).load()
    for manifest, classes, sentence in (
        ("two", BEFORE, "manifest one then, two now"),
        ("two", NOW, "class 0 was 'cat' then and is 'dog' now"),
    ):
        with pytest.raises(WeightsError, match=rf"other images .*{sentence}.*delete .*attempts/1"):
            saved(manifest, classes).load()
    assert said == []
    checkpoints.Checkpoints(folder, "hash", said.append).save(2, {})  # of an older version
    assert saved("two", NOW).load()["best"] is None
