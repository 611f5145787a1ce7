"""Checkpoints that survive a kill, and weights that other runs start from."""

import json
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from workflow.campaign import specs
from workflow.storage import records
from workflow.train import checkpoints, trainer
from workflow.train.checkpoints import WeightsError
from workflow.train.trainer import Trainer


def fit(spec, site, folder):
    record = trainer.run(spec, site, folder)
    records.write_json(folder.parent.parent / "train.json", record)
    return record


def attempt(site, run, number=1):
    return Path(site["root"]) / "runs" / run / "attempts" / str(number)


def weights(folder):
    return torch.load(folder / "weights.pt", weights_only=True)


def test_a_checkpoint_cut_short_anywhere_gives_way_to_the_one_before(tmp_path):
    messages = []
    saved = checkpoints.Checkpoints(tmp_path, "hash", messages.append)
    for epoch in (1, 2, 3):
        saved.save(epoch, {"w": torch.full((4,), float(epoch))})
    paths = sorted(tmp_path.iterdir())
    assert [path.name for path in paths] == ["step-000000002.pt", "step-000000003.pt"]
    whole = paths[1].read_bytes()
    for cut in range(0, len(whole), 37):
        paths[1].write_bytes(whole[:cut])
        assert saved.load()["w"][0] == 2
    assert "taking the one before" in messages[0]


def test_what_a_process_killed_while_it_saved_left_is_removed(tmp_path):
    (tmp_path / ".step-000000001.pt.12345").write_text("half")
    checkpoints.Checkpoints(tmp_path, "hash", print).save(2, {})
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000002.pt"]


def test_a_checkpoint_of_another_spec_is_not_loaded(tmp_path):
    messages = []
    checkpoints.Checkpoints(tmp_path, "one", messages.append).save(1, {})
    assert checkpoints.Checkpoints(tmp_path, "two", messages.append).load() is None
    assert "another spec" in messages[0]


def test_a_failed_save_is_reported_and_the_run_goes_on(tmp_path, monkeypatch):
    messages = []

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    checkpoints.Checkpoints(tmp_path, "hash", messages.append).save(1, {})
    assert "No space left" in messages[0]
    assert list(tmp_path.iterdir()) == []


def test_the_last_two_and_the_best_are_kept(tmp_path):
    saved = checkpoints.Checkpoints(tmp_path, "hash", print)
    for step, top1 in ((1, 50.0), (2, 70.0), (3, None), (4, 60.0)):
        saved.save(step, {"w": torch.tensor(step)}, top1)
    assert sorted(path.name for path in tmp_path.glob("*.pt")) == [
        "best.pt", "step-000000003.pt", "step-000000004.pt",
    ]  # fmt: skip
    assert torch.load(tmp_path / "best.pt")["w"] == 2
    assert json.loads((tmp_path / "best.json").read_text())["value"] == 70.0


def test_another_is_due_after_some_minutes(tmp_path):
    assert not checkpoints.Checkpoints(tmp_path, "hash", print, minutes=10).due()
    assert checkpoints.Checkpoints(tmp_path, "hash", print, minutes=0).due()
    assert not checkpoints.Checkpoints(tmp_path, "hash", print).due()


def test_a_damaged_note_of_the_best_does_not_end_a_training(tmp_path):
    saved = checkpoints.Checkpoints(tmp_path, "hash", print)
    saved.save(1, {}, best=50.0)
    (tmp_path / "best.json").write_bytes(b"\0" * 20)
    saved.save(2, {}, best=40.0)
    assert (tmp_path / "best.pt").exists()


def test_weights_that_the_record_does_not_name_are_refused(site, tiny_spec):
    spec = tiny_spec("deit_tiny", epochs=1)
    record = fit(spec, site, attempt(site, "deit_tiny"))
    needed = {"run": "deit_tiny", "job": "train", "spec_hash": record["spec_hash"]}
    assert checkpoints.final_weights(site, needed)
    with pytest.raises(checkpoints.WeightsError, match="now says"):
        checkpoints.final_weights(site, needed | {"spec_hash": "0" * 16})
    path = attempt(site, "deit_tiny") / "weights.pt"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(checkpoints.WeightsError, match=r"weights.pt is missing or not the file"):
        checkpoints.final_weights(site, needed)


# -- snapshots --------------------------------------------------------------------------------------


RUN = "deit_tiny-fast_updating"


class Killed(BaseException):
    pass


def test_epochs_are_shares_of_the_training_without_its_end():
    spec = {"recipe": {"epochs": 300}, "snapshots": [0.0, 0.02, 0.34, 1.0]}
    assert checkpoints.snapshot_epochs(spec) == [1, 6, 102]
    assert checkpoints.snapshot_epochs(spec | {"recipe": {"epochs": 1}}) == []
    assert checkpoints.snapshot_epochs({"recipe": {"epochs": 300}}) == []


def test_only_the_row_that_asks_for_them_has_them_in_its_spec(config):
    for row in filter(lambda row: config.has_row(row, "demo"), config.runs):
        assert ("snapshots" in specs.train_spec(config, "demo", row)) == (row == RUN)
    given = {"file": "a.pth", "sha256": "0" * 64}
    assert "snapshots" not in specs.evaluate_spec(config, "demo", RUN, given)


def test_they_are_kept_where_the_training_was_killed_and_resumed(site, tiny_spec, monkeypatch):
    spec = tiny_spec(RUN, epochs=3) | {"snapshots": [0.3, 0.6]}
    whole = trainer.run(spec, site, attempt(site, RUN, 1))["results"]
    end_epoch = Trainer.end_epoch

    def dying(self, saved):
        if self.epoch == 1:  # after the second epoch's snapshot, before its checkpoint
            monkeypatch.setattr(saved, "save", lambda *a, **k: (_ for _ in ()).throw(Killed()))
        end_epoch(self, saved)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "end_epoch", dying)
        with pytest.raises(Killed):
            trainer.run(spec, site, attempt(site, RUN, 2))
    torch.save({}, checkpoints.snapshot_path(attempt(site, RUN, 2) / "checkpoints", 2))  # is redone
    resumed = trainer.run(spec, site, attempt(site, RUN, 2))
    assert [snapshot["epoch"] for snapshot in resumed["results"]["snapshots"]] == [1, 2]
    records.write_json(attempt(site, RUN, 2).parent.parent / "train.json", resumed)
    kept = checkpoints.snapshots(site, specs.reference(spec))
    folder = attempt(site, RUN, 1).parent.parent
    for (epoch, weights), snapshot in zip(kept, whole["snapshots"], strict=True):
        assert epoch == snapshot["epoch"]
        expected = torch.load(folder / snapshot["path"], weights_only=True)
        assert all(torch.equal(weights[key], expected[key]) for key in expected)
    end = checkpoints.final_weights(site, specs.reference(spec))
    assert not torch.equal(kept[-1][1]["cls_token"], end["cls_token"])

    (folder / resumed["results"]["snapshots"][0]["path"]).write_bytes(b"another")
    with pytest.raises(WeightsError, match=r"epoch-0001.pt is missing or not the file that"):
        checkpoints.snapshots(site, specs.reference(spec))


# -- classes ----------------------------------------------------------------------------------------


BEFORE, NOW = ["cat", "dog"], ["dog", "cat"]


@pytest.fixture
def results_site(tmp_path) -> dict:
    return {"root": str(tmp_path / "results")}


def publish_data(results_site: dict, classes: list[str]) -> None:
    """data.json, as the data job leaves it."""
    results = {"splits": {}, "hash": "".join(classes), "classes": classes}
    records.write_json(Path(results_site["root"]) / "data.json", records.make({"kind": "data"}, results, time.time()))


def save_linear(results_site: dict, classes: list[str] | None) -> tuple[Path, dict]:
    folder = Path(results_site["root"]) / "runs/small/attempts/1"
    described = checkpoints.save_weights(folder, nn.Linear(2, 2), {"run": "small"}, classes)
    return folder / "weights.pt", described


def test_a_file_of_weights_is_a_plain_state_dict_that_knows_its_classes(results_site):
    path, _ = save_linear(results_site, BEFORE)
    assert nn.Linear(2, 2).load_state_dict(torch.load(path, weights_only=True))
    assert checkpoints.classes_of(path) == BEFORE


@pytest.mark.parametrize("kind", ["weights", "checkpoint"])
def test_given_weights_of_other_classes_are_refused(results_site, tmp_path, kind):
    path, _ = save_linear(results_site, BEFORE)
    if kind == "checkpoint":
        images = {"manifest": "catdog", "classes": BEFORE}
        saved = checkpoints.Checkpoints(tmp_path / "checkpoints", "hash", print, images=images)
        saved.save(0, {"state_dict": nn.Linear(2, 2).state_dict()})
        (path,) = (tmp_path / "checkpoints").glob("step-*.pt")
    checkpoint = {"file": str(path), "sha256": records.sha256(path)}
    spec = {"setting": "demo", "run": "small", "model": {"name": "linear"}}
    spec["checkpoint"] = checkpoint
    publish_data(results_site, BEFORE)
    checkpoints.load_external(nn.Linear(2, 2), spec, results_site)
    publish_data(results_site, NOW)
    with pytest.raises(WeightsError, match=r"demo.checkpoints.small\) were trained with other .*"
                       r"class 0 was 'cat' then and is 'dog' now"):  # fmt: skip
        checkpoints.load_external(nn.Linear(2, 2), spec, results_site)


def test_weights_without_a_list_are_taken_as_they_are(results_site, tmp_path):
    path = tmp_path / "published.pth"
    torch.save({"model": nn.Linear(2, 2).state_dict()}, path)
    spec = {"setting": "demo", "run": "small", "model": {"name": "linear"}}
    spec["checkpoint"] = {"file": str(path), "sha256": records.sha256(path)}
    publish_data(results_site, NOW)
    checkpoints.load_external(nn.Linear(2, 2), spec, results_site)


def test_no_run_starts_or_learns_from_weights_of_other_classes(results_site):
    spec = {"kind": "train", "run": "small"}
    _, described = save_linear(results_site, BEFORE)
    record = records.make(spec, {"weights": described}, time.time(), classes=BEFORE)
    records.write_json(Path(results_site["root"]) / "runs/small/train.json", record)
    needed = {"run": "small", "job": "train", "spec_hash": record["spec_hash"]}
    publish_data(results_site, BEFORE)
    assert checkpoints.final_weights(results_site, needed)
    publish_data(results_site, [*BEFORE, "bird"])
    with pytest.raises(WeightsError, match=r"small/train.json .*2 classes then, 3 now.*--forcerun"):
        checkpoints.final_weights(results_site, needed)


def test_a_training_does_not_go_on_with_other_images(tmp_path):
    messages, folder = [], tmp_path / "attempts/1/checkpoints"

    def saved(manifest: str | None, classes: list[str] | None):
        images = {"manifest": manifest, "classes": classes}
        return checkpoints.Checkpoints(folder, "hash", messages.append, images=images)

    saved("one", BEFORE).save(1, {})
    assert saved("one", BEFORE).load()
    for manifest, classes, sentence in (
        ("two", BEFORE, "manifest one then, two now"),
        ("two", NOW, "class 0 was 'cat' then and is 'dog' now"),
    ):
        with pytest.raises(WeightsError, match=rf"other images .*{sentence}.*delete .*attempts/1"):
            saved(manifest, classes).load()
    assert messages == []
    checkpoints.Checkpoints(folder, "hash", messages.append).save(2, {})  # of an older version
    assert saved("two", NOW).load()["best"] is None
