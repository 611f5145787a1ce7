"""AssistedTokenTask: the schedule over the epochs, the losses of Eq. 8."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from evovit.task import AssistedDistillationTask, AssistedTokenTask
from tests.evovit import small


def task_of(model, **kwargs):
    return AssistedTokenTask(model, verbose=False, **kwargs)


@pytest.mark.parametrize("epochs", [3, 30, 300])
def test_layer_wise_for_two_thirds_then_stage_wise(epochs):
    model = small.build()
    task = task_of(model)
    found = []
    for epoch in range(epochs):
        task.start_epoch(epoch, epochs)
        found.append(model.schedule)
    assert found == ["layer"] * (2 * epochs // 3) + ["stage"] * (epochs // 3)


@pytest.mark.parametrize(
    ("epochs", "parts", "sentences"),
    [
        (3, {}, []),
        (2, {}, ["A training of 2 epochs never becomes stage-wise, so it is no layer-to-stage"]),
        (1, {"switch_at": None, "select_from": 0.5}, ["A training of 1 epochs selects no tokens"]),
        (2, {"switch_at": None, "select_from": 0.5}, []),
    ],
)
def test_what_too_few_epochs_never_come_to_is_said(epochs, parts, sentences):
    told = task_of(small.build(), **parts).unreached(epochs)
    assert len(told) == len(sentences)
    assert all(text.startswith(start) for text, start in zip(told, sentences, strict=True))


def test_start_epoch_depends_on_its_arguments_alone():
    model = small.build()
    task = task_of(model, select_from=0.5)
    for epoch in (29, 0, 15, 3):  # any order, as after a resume
        task.start_epoch(epoch, 30)
        assert model.schedule == ("stage" if epoch >= 20 else "layer")
        assert model.selecting == (epoch >= 15)


@pytest.mark.parametrize("schedule", ["layer", "stage"])
def test_without_a_switch_the_models_schedule_stays(schedule):
    model = small.build(schedule=schedule)
    task = task_of(model, switch_at=None)
    task.start_epoch(29, 30)
    assert model.schedule == schedule


def test_the_averaged_model_follows():
    model = small.build(torch.float32)
    task = task_of(model)
    averaged = task.setup_ema(decay=0.5).module
    task.start_epoch(0, 3)
    assert averaged.schedule == "layer"
    task.start_epoch(2, 3)
    task.update_ema(step=5)
    assert averaged.schedule == "stage"
    again = small.build(torch.float32)
    again.load_state_dict(task.get_checkpoint_state(ema=True)["state_dict_ema"])
    assert again.schedule == "stage"


def test_a_resumed_training_takes_any_schedule():
    saved = task_of(small.build())
    saved.start_epoch(25, 30)
    task = task_of(small.build(schedule="layer"))
    task.load_checkpoint_state(saved.get_checkpoint_state()["state_dict"])
    task.start_epoch(3, 30)
    assert task.trainable_module.schedule == "layer"


@pytest.mark.parametrize(("variant", "weight"), [("paper", 1.0), ("official", 0.5)])
def test_loss_is_equation_8(variant, weight):
    model = small.build(variant=variant).train()
    task = task_of(model, criterion_kwargs=dict(smoothing=0.1))
    images, target = small.images(), torch.tensor([0, 3, 4])
    found = task(images, target)
    average, class_token = model(images)
    parts = [F.cross_entropy(p, target, label_smoothing=0.1) for p in (average, class_token)]
    assert_close(found["loss"], weight * (parts[0] + parts[1]), rtol=1e-9, atol=0)
    assert_close(found["average_loss"], parts[0], rtol=1e-9, atol=0)
    assert torch.equal(found["output"], average)
    assert_close(average, model.eval()(images), rtol=0, atol=1e-12)  # what inference predicts


def test_soft_targets():
    task = task_of(small.build().train(), criterion_kwargs=dict(soft_targets=True))
    target = torch.full((3, 5), 0.2, dtype=torch.float64)
    task(small.images(), target)["loss"].backward()
    grads = [p.grad for p in task.trainable_module.parameters()]
    assert all(g is not None and g.abs().sum() > 0 for g in grads)


@pytest.mark.parametrize("kwargs", [dict(switch_at=200), dict(select_from=-0.1)])
def test_shares_are_checked(kwargs):
    with pytest.raises(ValueError, match="is a share of the training"):
        task_of(small.build(), **kwargs)


@pytest.mark.parametrize(("given", "first"), [(None, 20), (0.5, 15), (0.0, 0)])
def test_learned_alphas_count_from_the_switch_on(given, first):
    model = small.levit(alpha="learned")
    task = task_of(model, learn_alpha_from=given)
    for epoch in (29, 0, first, max(first - 1, 0)):
        task.start_epoch(epoch, 30)
        assert model.learning_alpha == (epoch >= first)
    fixed = small.levit(alpha=0.5)
    task_of(fixed).start_epoch(29, 30)
    assert not fixed.learning_alpha


def test_a_teacher_sees_its_own_normalisation_and_is_left_alone():
    student, teacher = small.levit(torch.float32), small.levit(torch.float32, seed=1)
    teacher.pretrained_cfg = {**teacher.pretrained_cfg, "mean": (0.5,) * 3, "std": (0.25,) * 3}
    task = AssistedDistillationTask(student, teacher=teacher, verbose=False).train()
    images, target = small.images(2, 128).float(), torch.tensor([0, 3])
    assert not teacher.training
    task(images, target)["loss"].backward()
    assert all(p.grad is None for p in teacher.parameters())
    mean, std = (torch.tensor(student.pretrained_cfg[k]).view(3, 1, 1) for k in ("mean", "std"))
    predicted = teacher((images * std + mean - 0.5) / 0.25).argmax(1)
    (average, average_dist), (token, token_dist) = student(images)
    labels = sum(F.cross_entropy(out, target) for out in (average, token))
    distilled = sum(F.cross_entropy(out, predicted) for out in (average_dist, token_dist))
    found = task(images, target)
    assert_close(found["loss"], (labels + distilled) / 2, rtol=1e-4, atol=1e-5)
    assert_close(found["distill_loss"], distilled, rtol=1e-4, atol=1e-5)
    assert not any(key.startswith("teacher") for key in task.get_checkpoint_state()["state_dict"])


def test_what_can_not_be_distilled_is_refused():
    with pytest.raises(ValueError, match="no heads to distil"):
        AssistedDistillationTask(small.build(), teacher=small.build(), verbose=False)
    with pytest.raises(ValueError, match="distill_weight=2"):
        AssistedDistillationTask(small.levit(), teacher=small.levit(), distill_weight=2, verbose=False)
