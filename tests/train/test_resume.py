"""A training killed or stopped at any step ends with the same bits; steps that are not finite."""

import math
import os
import signal
from pathlib import Path

import pytest
import torch

from workflow.campaign import specs
from workflow.runtime.preemption import Stopped
from workflow.storage import journal
from workflow.train import checkpoints, trainer
from workflow.train.trainer import Trainer, TrainingError

STEPS = 5  # 40 images in batches of 8


class Killed(BaseException):
    pass


def attempt(site, run, number) -> Path:
    return Path(site["root"]) / "runs" / run / "attempts" / str(number)


def spec_of(tiny_spec, run="evo_deit_tiny", **changes) -> dict:
    """With everything that draws random numbers switched on."""
    changes = {
        "epochs": 2, "ema": 0.9, "mixup": 0.8, "cutmix": 1.0, "random_erasing": 0.5,
        "repeated_augmentation": 3, "auto_augment": "rand-m9-mstd0.5-inc1", "color_jitter": 0.4,
        "crop_scale": [0.3, 1.0], "hflip": 0.5,
    } | changes  # fmt: skip
    spec = tiny_spec(run, **changes)
    spec["model"]["kwargs"]["drop_path_rate"] = 0.1
    return spec


@pytest.fixture
def run_and_kill(site, monkeypatch):
    """A function that trains and dies before this many steps more are done."""
    step_of = Trainer.train_step

    def run(spec: dict, folder: Path, steps: int, saving: bool = True, **changes) -> None:
        done = []

        def killing(self, batches):
            if len(done) == steps:
                raise Killed
            step_of(self, batches)
            done.append(self.update)

        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "train_step", killing)
            patch.setattr(checkpoints.Checkpoints, "due", lambda self: saving)
            with pytest.raises(Killed):
                trainer.run(spec, site | changes, folder)

    return run


def assert_same_end(site, run, first, second):
    one, two = (torch.load(max((attempt(site, run, n) / "checkpoints").glob("step-*.pt"))) for n in (first, second))
    for part in ("state_dict", "state_dict_ema"):
        for key, value in one[part].items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, two[part][key]), (part, key)
    for index, moments in one["optimizer"]["state"].items():
        for key, value in moments.items():
            assert torch.equal(value, two["optimizer"]["state"][index][key]), (index, key)
    for left, right in zip(
        *(journal.epochs(attempt(site, run, n) / "journal.jsonl") for n in (first, second)),
        strict=True,
    ):
        timed = {"train_s", "epoch_s"}
        assert {k: v for k, v in left.items() if k not in timed} == {k: v for k, v in right.items() if k not in timed}


@pytest.mark.parametrize(
    ("run", "epochs", "kills"),
    [
        ("evo_deit_tiny", 2, (1, 2, 4, 5, 6, 8)),
        pytest.param("levit_128s", 2, (2, 5, 8), marks=pytest.mark.integration),
        pytest.param("svite_deit_tiny", 4, (1, 4, 5, 8, 12), marks=pytest.mark.integration),
        pytest.param("ia_red2_deit_tiny", 2, (1, 4, 5, 8), marks=pytest.mark.integration),
        pytest.param("dynamic_deit_tiny", 2, (1, 4, 5, 8), marks=pytest.mark.integration),
        pytest.param("evo_levit_128s", 3, (4, 10, 13), marks=pytest.mark.integration),
    ],
)
def test_killed_at_any_step_it_ends_with_the_same_bits(run, epochs, kills, site, tiny_spec, with_needed, run_and_kill):
    spec = with_needed(spec_of(tiny_spec, run, epochs=epochs))
    if run == "evo_levit_128s":
        spec["model"]["kwargs"]["alpha"] = "learned"  # from the schedule's switch on
    whole = trainer.run(spec, site, attempt(site, run, 1))
    for number, step in enumerate(kills, 2):
        run_and_kill(spec, attempt(site, run, number), step)
        resumed = trainer.run(spec, site, attempt(site, run, number))
        assert_same_end(site, run, 1, number)
        for key in ("right", "ema_right"):
            assert resumed["results"][key] == whole["results"][key]


def test_after_the_last_epoch_it_still_knows_which_images_were_right(site, tiny_spec, monkeypatch):
    """Killed between the last checkpoint and the record, it evaluates nothing more."""
    spec, folder = spec_of(tiny_spec), attempt(site, "evo_deit_tiny", 1)
    whole = trainer.run(spec, site, folder)["results"]
    monkeypatch.setattr(Trainer, "evaluate", None)
    resumed = trainer.run(spec, site, folder)["results"]
    for key in ("right", "ema_right", "val_listing"):
        assert resumed[key] == whole[key]


def test_a_checkpoint_of_older_code_has_a_record_that_does_not_say_which_images_were_right(site, tiny_spec):
    spec, folder = spec_of(tiny_spec), attempt(site, "evo_deit_tiny", 1)
    whole = trainer.run(spec, site, folder)["results"]
    path = max((folder / "checkpoints").glob("step-*.pt"))
    state = torch.load(path)
    del state["right"]
    torch.save(state, path)
    resumed = trainer.run(spec, site, folder)["results"]
    assert "right" not in resumed
    assert resumed["top1"] == whole["top1"]


@pytest.mark.integration
def test_killed_again_and_again_between_checkpoints(site, tiny_spec, run_and_kill):
    """Checkpoints of epochs alone, five kills: work is repeated, nothing is changed."""
    spec, run = spec_of(tiny_spec, epochs=3), "evo_deit_tiny"
    trainer.run(spec, site, attempt(site, run, 1))
    for step in (3, 4, 6, 2, 7):
        run_and_kill(spec, attempt(site, run, 2), step, saving=False)
    trainer.run(spec, site, attempt(site, run, 2))
    assert_same_end(site, run, 1, 2)


@pytest.mark.integration
@pytest.mark.parametrize("workers", [2, 4])
def test_workers_change_nothing(workers, site, tiny_spec, run_and_kill):
    spec, run = spec_of(tiny_spec), "evo_deit_tiny"
    trainer.run(spec, site, attempt(site, run, 1))
    run_and_kill(spec, attempt(site, run, 2), 3, workers=workers)
    trainer.run(spec, site | {"workers": workers}, attempt(site, run, 2))
    assert_same_end(site, run, 1, 2)


def test_accumulated_batches_make_the_same_step(site, tiny_spec):
    """No mixup, drop path or norm over the batch here: the parts' mean is the whole."""
    plain = dict(mixup=0.0, cutmix=0.0, ema=None, epochs=1)
    losses = []
    for number, most in enumerate((None, 4, 2), 1):
        spec = spec_of(tiny_spec, "deit_tiny", device_batch=most, random_erasing=0.0, **plain)
        spec["model"]["kwargs"]["drop_path_rate"] = 0.0
        record = trainer.run(spec, site, attempt(site, "deit_tiny", number))
        losses.append(record["results"]["loss"])
    assert losses[1:] == pytest.approx([losses[0]] * 2, rel=1e-5)


# -- asked to stop ------------------------------------------------------------------------------


@pytest.mark.integration
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_asked_to_stop_it_saves_after_the_step_and_goes_on_later(number, site, tiny_spec, monkeypatch):
    spec, run = spec_of(tiny_spec), "evo_deit_tiny"
    trainer.run(spec, site, attempt(site, run, 1))
    seen, before = [], signal.signal(number, lambda *arguments: seen.append(arguments[0]))
    step_of = Trainer.train_step

    def asked(self, batches):
        if self.update == 6:
            os.kill(os.getpid(), number)
        step_of(self, batches)

    try:
        monkeypatch.setattr(Trainer, "train_step", asked)
        with pytest.raises(Stopped, match="checkpoint is saved"):
            trainer.run(spec, site, attempt(site, run, 2))
    finally:
        signal.signal(number, before)
        monkeypatch.setattr(Trainer, "train_step", step_of)
    assert seen == [number]  # whoever handled it before does so after the checkpoint
    newest = max((attempt(site, run, 2) / "checkpoints").glob("step-*.pt"))
    assert newest.name == "step-000000007.pt"
    trainer.run(spec, site, attempt(site, run, 2))
    assert_same_end(site, run, 1, 2)


# -- losses that are not finite -------------------------------------------------------------------


def poisoned(monkeypatch, *updates: int):
    """The losses of these steps become NaN, in whatever attempt they are made."""
    forward_backward = Trainer.forward_backward

    def poison(self, images, target, part, parts):
        if self.update in updates:
            images = images * math.nan
        return forward_backward(self, images, target, part, parts)

    monkeypatch.setattr(Trainer, "forward_backward", poison)


def test_a_step_that_is_not_finite_is_left_out_and_recorded(site, tiny_spec, monkeypatch):
    spec, run = spec_of(tiny_spec), "evo_deit_tiny"
    whole = trainer.run(spec, site, attempt(site, run, 1))
    assert whole["results"]["deviations"] == []
    poisoned(monkeypatch, 2, 7)
    record = trainer.run(spec, site, attempt(site, run, 2))
    deviations = record["results"]["deviations"]
    assert [d["update"] for d in deviations] == [2, 7]
    assert "epoch 1, step 3: the step is left out" in deviations[0]["text"]
    assert math.isfinite(record["results"]["loss"])
    for tensor in torch.load(attempt(site, run, 2) / "weights.pt").values():
        assert not isinstance(tensor, torch.Tensor) or tensor.isfinite().all()
    assert record["results"]["loss"] != whole["results"]["loss"]


@pytest.mark.integration
def test_deviations_survive_a_kill(site, tiny_spec, monkeypatch, run_and_kill):
    spec, run = spec_of(tiny_spec), "evo_deit_tiny"
    poisoned(monkeypatch, 2)
    trainer.run(spec, site, attempt(site, run, 1))
    run_and_kill(spec, attempt(site, run, 2), 7)
    record = trainer.run(spec, site, attempt(site, run, 2))
    assert [d["update"] for d in record["results"]["deviations"]] == [2]
    assert_same_end(site, run, 1, 2)


def test_too_many_such_steps_end_the_training(site, tiny_spec, monkeypatch):
    poisoned(monkeypatch, *range(1, 9))
    with pytest.raises(TrainingError, match="became nan in epoch 2, step 2 of evo_deit_tiny"):
        trainer.run(spec_of(tiny_spec), site, attempt(site, "evo_deit_tiny", 1))
    events = journal.read(attempt(site, "evo_deit_tiny", 1) / "journal.jsonl")
    left_out = [event for event, _ in events if event["event"] == "deviation"]
    assert len(left_out) == trainer.MOST_SKIPPED == 5


# -- checkpoints --------------------------------------------------------------------------------


def test_the_record_still_is_of_its_spec(site, tiny_spec):
    spec = spec_of(tiny_spec, epochs=1)
    record = trainer.run(spec, site, attempt(site, "evo_deit_tiny", 1))
    assert record["spec_hash"] == specs.spec_hash(spec)
