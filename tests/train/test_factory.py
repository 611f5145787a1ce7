"""Models and tasks that a spec names, and the optimizer's groups."""

from pathlib import Path

import pytest
import timm
import torch

from baselines.levit import HardDistillationTask
from evovit.task import AssistedDistillationTask
from tests.models import families
from workflow.campaign import specs
from workflow.storage import records
from workflow.train import checkpoints, factory, optimizer, trainer
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


# -- a host of the user's own ---------------------------------------------------------------------

HOST = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 4, "num_heads": 3}


def host_spec(path: Path, **kwargs) -> dict:
    """The part of a training's spec that its model and weights are made of."""
    model = {"name": HOST, "kwargs": {**SIZES, "num_classes": 3, **kwargs}}
    pretrained = {"file": str(path), "sha256": records.sha256(path)}
    return {"run": "host", "setting": "mydata", "kind": "train", "model": model, "pretrained": pretrained}


@pytest.fixture
def pretrained(tmp_path) -> Path:
    path = tmp_path / "vit.pth"
    torch.save(timm.create_model(HOST, **SIZES).state_dict(), path)  # of 1,000 classes
    return path


def test_a_host_keeps_its_own_normalisation_and_gets_a_fresh_classifier(pretrained):
    spec = host_spec(pretrained)
    model = factory.build_started(spec, {})
    weights = torch.load(pretrained, weights_only=True)
    assert torch.equal(model.blocks[1].attn.qkv.weight, weights["blocks.1.attn.qkv.weight"])
    assert model.head.weight.shape == (3, 24)
    config = factory.data_config(model)
    assert (config["mean"], config["std"]) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert config["input_size"] == (3, 32, 32)


def test_weights_of_the_same_classes_keep_their_classifier_and_of_another_size_their_positions(pretrained):
    weights = torch.load(pretrained, weights_only=True)
    model = factory.build_started(host_spec(pretrained, num_classes=1000, img_size=64), {})
    assert torch.equal(model.head.weight, weights["head.weight"])
    assert model.pos_embed.shape == (1, 65, 24)
    assert torch.equal(model.pos_embed[:, 0], weights["pos_embed"][:, 0])


def test_weights_of_another_model_are_refused_with_the_key_that_names_them(pretrained):
    with pytest.raises(checkpoints.WeightsError, match=r"mydata\.host\.checkpoint\) does not fit vit_tiny.*blocks\.3"):
        factory.build_started(host_spec(pretrained, depth=3), {})


METHODS = ("evo", "evit", "tome", "topk", "random", "ats", "dpcknn")


@pytest.mark.parametrize("method", METHODS)
def test_a_method_starts_from_the_host_that_was_fine_tuned(method, pretrained, site, monkeypatch):
    spec = host_spec(pretrained)
    host = factory.build_started(spec, {}).eval()
    monkeypatch.setattr(checkpoints, "final_weights", lambda site, needed: host.state_dict())
    keeps_all = {"tome": {"r": 0}, "ats": {"keep_profile": [1.0, 1.0, 1.0]}}
    options = keeps_all.get(method, {"keep_ratio": 1.0})
    reduced = {"model": spec["model"] | {"method": method, "options": options}, "start": {"model": spec["model"]}}
    model = factory.build_started(reduced, site).eval()
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model(images), host(images), atol=1e-5, rtol=1e-5)
    # another model of the same method starts from this one, its own parts included
    monkeypatch.setattr(checkpoints, "final_weights", lambda site, needed: model.state_dict())
    again = factory.build_started(reduced | {"start": {"model": reduced["model"]}}, site)
    assert again.state_dict().keys() == model.state_dict().keys()
    meta = factory.build_model(reduced["model"], device="meta")  # as the preflight does
    assert all(parameter.is_meta for parameter in meta.parameters())


def test_tomes_r_is_scaled_to_the_hosts_patches():
    model = factory.build_model({"name": HOST, "kwargs": SIZES, "method": "tome", "options": {"r": 49}})
    assert model.merges == (4, 4, 4, 4)  # of 16 patches, as 49 of 196


def test_a_host_that_no_method_takes_is_refused_with_the_reason():
    model = {"name": "resnet18", "kwargs": {}, "method": "tome", "options": {}}
    with pytest.raises(SpecError, match="can't be made of ResNet"):
        factory.build_model(model, device="meta")
    model = {"name": HOST, "kwargs": SIZES, "method": "evit", "options": {"keep_ration": 0.5}}
    with pytest.raises(SpecError, match="keep_ration"):
        factory.build_model(model, device="meta")
    with pytest.raises(
        SpecError, match=r"no weights called .*; did you mean 'vit_tiny_patch16_224.augreg_in21k_ft_in1k'"
    ):
        factory.build_model({"name": "vit_tiny_patch16_224.augreg_in21k_ft_in", "kwargs": {}}, device="meta")
