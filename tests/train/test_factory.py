"""Models and tasks that a spec names, and the optimizer's groups."""

from pathlib import Path

import pytest
import torch

from baselines.levit import HardDistillationTask
from evovit.task import AssistedDistillationTask
from tests.models import families
from workflow.campaign import specs
from workflow.storage import records
from workflow.train import factory, optimizer, trainer
from workflow.train.factory import SpecError


def fit(spec, site, folder):
    record = trainer.run(spec, site, folder)
    records.write_json(folder.parent.parent / "train.json", record)
    return record


def attempt(site, run, number=1):
    return Path(site["root"]) / "runs" / run / "attempts" / str(number)


def weights(folder):
    return torch.load(folder / "weights.pt", weights_only=True)


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
    assert trainer.run(student, site, attempt(site, "dynamic_deit_tiny"))["results"]["top1"] >= 0


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
    groups = optimizer.make_optimizer(task, spec["recipe"]).param_groups
    scales = {group.get("lr_scale", 1.0) for group in groups}
    assert scales == {1.0, 0.01}


@pytest.mark.parametrize(
    ("key", "task_class", "heads"),
    [
        ("plain_levit", HardDistillationTask, {"head", "head_dist"}),
        ("evo_levit", AssistedDistillationTask, {"head", "head_dist", "head_cls", "head_cls_dist"}),
    ],
)
def test_adaptive_clipping_clips_every_parameter_the_heads_included(key, task_class, heads):
    model = families.build(key)
    task = task_class(model, teacher=families.build("plain_levit"), verbose=False)
    named = dict(model.named_parameters())
    for parameter in named.values():
        parameter.grad = torch.full_like(parameter, 1e3)
    optimizer.clip_gradients(task, {"clip_grad": 0.01, "clip_mode": "agc"})
    clipped = {name for name, parameter in named.items() if parameter.grad.abs().max() < 1e3}
    assert clipped == set(named)
    assert {name.split(".")[0] for name in clipped if name.startswith("head")} == heads
