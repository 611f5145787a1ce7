"""Training: it learns, resumes to the same bits, and refuses what it can't do."""

import shutil

import pytest
import torch

from workflow.campaign import specs
from workflow.runtime.precision import PrecisionError
from workflow.storage import journal, records
from workflow.train import checkpoints, factory, recipes, train
from workflow.train.factory import SpecError
from workflow.train.trainer import TrainingError


def fit(spec, site, folder):
    record = train.run(spec, site, folder)
    records.write_json(folder.parent.parent / "train.json", record)
    return record


def attempt(site, run, number=1):
    from pathlib import Path

    return Path(site["root"]) / "runs" / run / "attempts" / str(number)


def weights(folder):
    return torch.load(folder / "weights.pt", weights_only=True)


def assert_same(first, second):
    assert first.keys() == second.keys()
    for key in first:
        assert torch.equal(first[key], second[key]), key


def test_a_checkpoint_cut_short_anywhere_gives_way_to_the_one_before(tmp_path):
    said = []
    saved = checkpoints.Checkpoints(tmp_path, "hash", said.append)
    for epoch in (1, 2, 3):
        saved.save(epoch, {"w": torch.full((4,), float(epoch))})
    paths = sorted(tmp_path.iterdir())
    assert [path.name for path in paths] == ["step-000000002.pt", "step-000000003.pt"]
    whole = paths[1].read_bytes()
    for cut in range(0, len(whole), 37):
        paths[1].write_bytes(whole[:cut])
        assert saved.load()["w"][0] == 2
    assert "taking the one before" in said[0]


def test_what_a_process_killed_while_it_saved_left_is_removed(tmp_path):
    (tmp_path / ".step-000000001.pt.12345").write_text("half")
    checkpoints.Checkpoints(tmp_path, "hash", print).save(2, {})
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000002.pt"]


def test_a_checkpoint_of_another_spec_is_not_loaded(tmp_path):
    said = []
    checkpoints.Checkpoints(tmp_path, "one", said.append).save(1, {})
    assert checkpoints.Checkpoints(tmp_path, "two", said.append).load() is None
    assert "another spec" in said[0]


def test_a_failed_save_is_reported_and_the_run_goes_on(tmp_path, monkeypatch):
    said = []

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    checkpoints.Checkpoints(tmp_path, "hash", said.append).save(1, {})
    assert "No space left" in said[0]
    assert list(tmp_path.iterdir()) == []


def test_a_student_starts_from_its_trained_teacher(site, tiny_spec):
    teacher = tiny_spec("deit_tiny", epochs=1)
    record = fit(teacher, site, attempt(site, "deit_tiny"))
    student = tiny_spec("dynamic_deit_tiny", epochs=1)
    for role in ("start", "teacher"):
        student[role] = {
            "run": "deit_tiny", "job": "train", "spec_hash": record["spec_hash"],
            "model": teacher["model"],
        }  # fmt: skip
    task = factory.build_task(student, site, torch.device("cpu"))
    dense = weights(attempt(site, "deit_tiny"))
    started = task.get_trainable_module().state_dict()
    assert torch.equal(started["blocks.3.mlp.fc1.weight"], dense["blocks.3.mlp.fc1.weight"])
    assert train.run(student, site, attempt(site, "dynamic_deit_tiny"))["results"]["top1"] >= 0


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


def test_the_record_is_of_the_last_epochs_raw_weights(site, tiny_spec):
    spec = tiny_spec("deit_tiny", epochs=2, ema=0.5)
    folder = attempt(site, "deit_tiny")
    record = train.run(spec, site, folder)
    last = journal.epochs(folder / "journal.jsonl")[-1]
    assert record["results"]["top1"] == last["top1"]
    assert record["results"]["ema_top1"] == last["ema_top1"]
    assert record["results"]["best_top1"] >= record["results"]["top1"]
    assert record["spec_hash"] == specs.spec_hash(spec)


def test_a_loss_that_is_not_finite_ends_the_run_with_a_sentence(site, tiny_spec):
    spec = tiny_spec("deit_tiny", lr=1e30, clip_grad=None)
    with pytest.raises(TrainingError, match=r"The loss became (nan|inf) in epoch"):
        train.run(spec, site, attempt(site, "deit_tiny"))


def test_fp16_on_a_cpu_is_refused(site, tiny_spec):
    with pytest.raises(PrecisionError, match="needs a GPU"):
        train.run(tiny_spec("deit_tiny", amp="fp16"), site, attempt(site, "deit_tiny"))


def test_bf16_trains(site, tiny_spec):
    record = train.run(tiny_spec("evo_deit_tiny", amp="bf16"), site, attempt(site, "evo_deit_tiny"))
    assert record["results"]["loss"] > 0


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(SpecError, match="did you mean 'evo_deit_tiny_patch16_224'"):
        factory.build_model({"name": "evo_deit_tny_patch16_224", "kwargs": {}})
    model = {"name": "evo_deit_tiny_patch16_224", "kwargs": {"keep_ration": 0.5}}
    with pytest.raises(SpecError, match="did you mean 'keep_ratio'"):
        factory.build_model(model, device="meta")
    with pytest.raises(SpecError, match="start_block=0"):
        factory.build_model({"name": "evo_deit_tiny_patch16_224", "kwargs": {"start_block": 0}})
    with pytest.raises(SpecError, match="did you mean 'assisted_tokens'"):
        factory.task_class("asisted_tokens")
    with pytest.raises(SpecError, match="write task: assisted_tokens"):
        factory.task_class("evovit.schedule.AssistedTokenTask")
    with pytest.raises(SpecError, match="known are assisted_distillation, assisted_tokens"):
        factory.task_class("os.path.join")


def test_backbone_and_predictors_learn_at_their_own_rates(tiny_spec, site):
    fit(tiny_spec("deit_tiny", epochs=1), site, attempt(site, "deit_tiny"))
    spec = tiny_spec("dynamic_deit_tiny")
    del spec["start"]
    spec["teacher"] = {
        "run": "deit_tiny",
        "job": "train",
        "spec_hash": specs.spec_hash(tiny_spec("deit_tiny", epochs=1)),
        "model": spec["model"] | {"name": "plain_deit_tiny_patch16_224"},
    }
    task = factory.build_task(spec, site, torch.device("cpu"))
    optimizer = recipes.make_optimizer(task, spec["recipe"])
    scales = {group.get("lr_scale", 1.0) for group in optimizer.param_groups}
    assert scales == {1.0, 0.01}


@pytest.mark.integration
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("c++")), reason="no C++ compiler")
@pytest.mark.parametrize(("amp", "apart"), [(None, 1e-4), ("bf16", 2e-2)])
def test_compiled_it_learns_the_same(site, tiny_spec, amp, apart):
    """Across the schedule's switch; the checkpoint's keys are the plain model's."""
    torch._dynamo.reset()
    run, found = "evo_deit_tiny", []
    for number, compiled in enumerate((False, True), 1):
        spec = tiny_spec(run, epochs=3, compile=compiled, ema=0.9, amp=amp)
        spec["model"]["kwargs"] |= {"depth": 3, "start_block": 1, "blocks_per_stage": 2}
        found.append(train.run(spec, site, attempt(site, run, number))["results"])
    for one, two in zip(found[0]["history"], found[1]["history"], strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=apart)
        assert two["ema_val_loss"] == pytest.approx(one["ema_val_loss"], rel=apart)
    assert weights(attempt(site, run, 1)).keys() == weights(attempt(site, run, 2)).keys()


def test_running_out_of_memory_names_what_to_set(site, tiny_spec, monkeypatch):
    def full(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(train.Training, "train_step", full)
    spec = tiny_spec("deit_tiny", epochs=1)
    with pytest.raises(TrainingError, match=r"deit_tiny runs out of memory .* set `device_batch`"):
        train.run(spec, site, attempt(site, "deit_tiny"))
