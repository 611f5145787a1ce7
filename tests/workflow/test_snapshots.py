"""Weights kept during a training, also across a kill."""

from pathlib import Path

import pytest
import torch

from workflow.campaign import specs
from workflow.storage import records
from workflow.train import checkpoints, trainer
from workflow.train.checkpoints import WeightsError
from workflow.train.trainer import Trainer

RUN = "deit_tiny-fast_updating"


class Killed(BaseException):
    pass


def attempt(site, number) -> Path:
    return Path(site["root"]) / "runs" / RUN / "attempts" / str(number)


def test_epochs_are_shares_of_the_training_without_its_end():
    spec = {"recipe": {"epochs": 300}, "snapshots": [0.0, 0.02, 0.34, 1.0]}
    assert checkpoints.snapshot_epochs(spec) == [1, 6, 102]
    assert checkpoints.snapshot_epochs(spec | {"recipe": {"epochs": 1}}) == []
    assert checkpoints.snapshot_epochs({"recipe": {"epochs": 300}}) == []


def test_only_the_row_that_asks_for_them_has_them_in_its_spec(config):
    for row in config.runs:
        assert ("snapshots" in specs.train_spec(config, "demo", row)) == (row == RUN)
    given = {"file": "a.pth", "sha256": "0" * 64}
    assert "snapshots" not in specs.evaluate_spec(config, "demo", RUN, given)


def test_they_are_kept_where_the_training_was_killed_and_resumed(site, tiny_spec, monkeypatch):
    spec = tiny_spec(RUN, epochs=3) | {"snapshots": [0.3, 0.6]}
    whole = trainer.run(spec, site, attempt(site, 1))["results"]
    end_epoch = Trainer.end_epoch

    def dying(self, saved):
        if self.epoch == 1:  # after the second epoch's snapshot, before its checkpoint
            monkeypatch.setattr(saved, "save", lambda *a, **k: (_ for _ in ()).throw(Killed()))
        end_epoch(self, saved)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "end_epoch", dying)
        with pytest.raises(Killed):
            trainer.run(spec, site, attempt(site, 2))
    torch.save({}, checkpoints.snapshot_path(attempt(site, 2) / "checkpoints", 2))  # is redone
    resumed = trainer.run(spec, site, attempt(site, 2))
    assert [one["epoch"] for one in resumed["results"]["snapshots"]] == [1, 2]
    records.write_json(attempt(site, 2).parent.parent / "train.json", resumed)
    found = checkpoints.snapshots(site, specs.reference(spec))
    folder = attempt(site, 1).parent.parent
    for (epoch, weights), one in zip(found, whole["snapshots"], strict=True):
        assert epoch == one["epoch"]
        expected = torch.load(folder / one["path"], weights_only=True)
        assert all(torch.equal(weights[key], expected[key]) for key in expected)
    end = checkpoints.final_weights(site, specs.reference(spec))
    assert not torch.equal(found[-1][1]["cls_token"], end["cls_token"])

    (folder / resumed["results"]["snapshots"][0]["path"]).write_bytes(b"another")
    with pytest.raises(WeightsError, match=r"epoch-0001.pt is missing or not the file that"):
        checkpoints.snapshots(site, specs.reference(spec))
