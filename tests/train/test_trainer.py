"""Training: it learns, and refuses what it can't do."""

import shutil
from pathlib import Path

import pytest
import torch

from baselines.iared2 import IARED2Task
from workflow.campaign import specs
from workflow.runtime.device import DeviceError
from workflow.storage import journal, records
from workflow.train import trainer
from workflow.train.trainer import TrainingError

COMPILER = shutil.which("g++") or shutil.which("c++")


def fit(spec, site, folder):
    record = trainer.run(spec, site, folder)
    records.write_json(folder.parent.parent / "train.json", record)
    return record


def attempt(site, run, number=1):
    return Path(site["root"]) / "runs" / run / "attempts" / str(number)


def weights(folder):
    return torch.load(folder / "weights.pt", weights_only=True)


def assert_same(first, second):
    assert first.keys() == second.keys()
    for key in first:
        assert torch.equal(first[key], second[key]), key


def test_the_record_is_of_the_last_epochs_raw_weights(site, tiny_spec):
    spec = tiny_spec("deit_tiny", epochs=2, ema=0.5)
    folder = attempt(site, "deit_tiny")
    record = trainer.run(spec, site, folder)
    last = journal.epochs(folder / "journal.jsonl")[-1]
    assert record["results"]["top1"] == last["top1"]
    assert record["results"]["ema_top1"] == last["ema_top1"]
    assert record["results"]["best_top1"] >= record["results"]["top1"]
    assert record["spec_hash"] == specs.spec_hash(spec)


def test_images_are_mixed_only_where_the_task_takes_mixed_ones(site, tiny_spec, with_needed, monkeypatch):
    """IA-RED2's REINFORCE halves get one label per image, its fine-tuning halves mixed ones."""
    spec = with_needed(tiny_spec("ia_red2_deit_tiny", epochs=6, mixup=0.8, cutmix=1.0))
    mixed, forward = [], IARED2Task.forward

    def watch(self, images, target):
        mixed.append((target.ndim == 2, self.get_trainable_module().exploring))
        return forward(self, images, target)

    monkeypatch.setattr(IARED2Task, "forward", watch)
    record = trainer.run(spec, site, attempt(site, "ia_red2_deit_tiny"))
    assert record["results"]["loss"] > 0
    assert len(mixed) == 6 * 5
    assert all(mixes is not explores for mixes, explores in mixed)


def test_a_loss_that_is_not_finite_ends_the_run_with_a_sentence(site, tiny_spec):
    spec = tiny_spec("deit_tiny", lr=1e30, clip_grad=None)
    with pytest.raises(TrainingError, match=r"The loss became (nan|inf) in epoch"):
        trainer.run(spec, site, attempt(site, "deit_tiny"))


def test_fp16_on_a_cpu_is_refused(site, tiny_spec):
    with pytest.raises(DeviceError, match="needs a GPU"):
        trainer.run(tiny_spec("deit_tiny", amp="fp16"), site, attempt(site, "deit_tiny"))


def test_bf16_trains(site, tiny_spec):
    record = trainer.run(tiny_spec("evo_deit_tiny", amp="bf16"), site, attempt(site, "evo_deit_tiny"))
    assert record["results"]["loss"] > 0


@pytest.mark.integration
@pytest.mark.parametrize(
    ("amp", "epochs", "depth", "backend", "apart"),
    [
        (None, 3, 3, "aot_eager", 1e-4),  # across the schedule's switch
        pytest.param("bf16", 1, 2, "inductor", 2e-2, marks=pytest.mark.skipif(not COMPILER, reason="no C++ compiler")),
    ],
)
def test_compiled_it_learns_the_same(site, tiny_spec, monkeypatch, amp, epochs, depth, backend, apart):
    """Inductor, the default, takes a minute for each graph, so it compiles one of two blocks. The checkpoint's keys are
    the plain model's.
    """
    compile_by = torch.compile
    monkeypatch.setattr(torch, "compile", lambda module, **asked: compile_by(module, **asked | {"backend": backend}))
    torch._dynamo.reset()
    run, results = "evo_deit_tiny", []
    for number, compiled in enumerate((False, True), 1):
        spec = tiny_spec(run, epochs=epochs, compile=compiled, ema=0.9, amp=amp)
        spec["model"]["kwargs"] |= {"depth": depth, "start_block": 1, "blocks_per_stage": depth - 1}
        results.append(trainer.run(spec, site, attempt(site, run, number))["results"])
    for plain, compiled in zip(results[0]["history"], results[1]["history"], strict=True):
        assert compiled["loss"] == pytest.approx(plain["loss"], rel=apart)
        assert compiled["ema_val_loss"] == pytest.approx(plain["ema_val_loss"], rel=apart)
    assert weights(attempt(site, run, 1)).keys() == weights(attempt(site, run, 2)).keys()


def test_running_out_of_memory_names_what_to_set(site, tiny_spec, monkeypatch):
    def full(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(trainer.Trainer, "train_step", full)
    spec = tiny_spec("deit_tiny", epochs=1)
    with pytest.raises(TrainingError, match=r"deit_tiny runs out of memory .* set `device_batch`"):
        trainer.run(spec, site, attempt(site, "deit_tiny"))
