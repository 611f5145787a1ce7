"""Evo-LeViT, variant="official", against the numbers of the authors' code."""

import pytest
import timm
import torch
from torch import nn
from torch.testing import assert_close

import evovit
from evovit.checkpoint import levit_from_official, load_official
from evovit.task import AssistedDistillationTask, AssistedTokenTask
from tests.golden import reference

CASES = reference.names("evo_levit")
TRAINED = [name for name in CASES if "custom" in name]


def build(about, dtype):
    ctor, sizes = about["ctor"], {}
    if "img" in ctor:
        sizes = dict(
            img_size=ctor["img"], embed_dim=ctor["C"], key_dim=ctor["D"], num_heads=ctor["Nh"],
            depth=ctor["X"], keep_ratio=ctor["pr"][0], num_classes=ctor["ncls"],
        )  # fmt: skip
    schedule = about["mode"].removesuffix("-wise")
    model = timm.create_model("evo_levit_128s", variant="official", schedule=schedule, **sizes)
    model.set_training_outputs()
    load_official(model.to(dtype), reference.weights(about["shapes"], dtype))
    model.set_alpha_learning(about["learn_tradeoff_mode"])
    return model


def training(model):
    """In training mode, but with every BatchNorm on its running statistics."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.eval()
    return model


@pytest.mark.parametrize("name", CASES)
def test_inference_in_float64(name):
    about, expected = reference.case(name)
    seen = evovit.trace(build(about, torch.float64).eval(), reference.images(about, torch.float64))
    assert_close(seen.logits, torch.tensor(expected["logits"]), rtol=0, atol=1e-9)
    events = sorted(key for key in expected if key.startswith("selected_"))
    for kept, event in zip(seen.kept, events, strict=True):
        assert torch.equal(kept, torch.tensor(expected[event]).long())
    kinds = ["AttentionSubsample" if block is None else "Attention" for block in seen.attentions]
    assert kinds == about["attention_order"]
    for i, scores in enumerate(seen.class_attention):
        if f"global_attn_{i:02d}" in expected:
            wanted = torch.tensor(expected[f"global_attn_{i:02d}"])
            assert_close(scores, wanted, rtol=0, atol=1e-12)
        if f"grid_positions_after_{i:02d}" in expected:
            assert seen.positions[i].tolist() == expected[f"grid_positions_after_{i:02d}"].tolist()


@pytest.mark.parametrize("name", CASES)
def test_inference_in_float32(name):
    about, expected = reference.case(name)
    logits = build(about, torch.float32).eval()(reference.images(about, torch.float32))
    limit = 4 * about["max_abs_diff_f32_f64"]
    assert_close(logits.double(), torch.tensor(expected["logits"]), rtol=0, atol=limit)


@pytest.mark.parametrize("name", CASES)
def test_all_heads_in_training(name):
    about, expected = reference.case(name)
    model = training(build(about, torch.float64))
    model.set_training_outputs()
    model.set_distilled_training()
    (average, average_dist), (token, token_dist) = model(reference.images(about, torch.float64))
    heads = dict(head=average, head_dist=average_dist, head_cls=token, head_cls_dist=token_dist)
    for head, logits in heads.items():
        assert_close(logits, torch.tensor(expected[f"train_{head}"]), rtol=0, atol=1e-9)


class Labeller(nn.Module):
    """A teacher that predicts the labels, as in the reference run."""

    def __init__(self, labels):
        super().__init__()
        self.labels = labels

    def forward(self, images):
        return nn.functional.one_hot(self.labels, 16).to(images.dtype)


@pytest.mark.parametrize("name", TRAINED)
def test_loss_and_gradients_in_float64(name):
    about, expected = reference.case(name)
    model = build(about, torch.float64)
    labels = torch.tensor(about["train_labels"])
    task = AssistedDistillationTask(model, teacher=Labeller(labels), verbose=False, dtype=torch.float64)
    training(model)
    loss = task(reference.images(about, torch.float64), labels)["loss"]
    wanted = torch.tensor(float(expected["train_loss"]), dtype=torch.float64)
    assert_close(loss, wanted, rtol=1e-9, atol=0)
    loss.backward()
    norms = gradient_norms(model, about["shapes"])
    silent = about["no_gradient"]
    keys = [key for key in about["shapes"] if "running" not in key and key not in silent]
    for key, norm in zip(keys, expected["grad_norms"], strict=True):
        assert norms[key] == pytest.approx(norm, rel=1e-8, abs=1e-12), key
    assert all(norms[key] == 0 for key in silent)


def gradient_norms(model, shapes):
    """L2 norm of each gradient under the authors' names."""
    keys = [key for key in shapes if "running" not in key]
    numbered = {key: torch.tensor([float(i)]) for i, key in enumerate(keys)}
    ours = levit_from_official(numbered, [len(stage.blocks) for stage in model.stages])
    norms = {}
    for name, numbers in ours.items():
        grad = model.get_parameter(name).grad
        if name == "alpha_logits":
            for number, entry in zip(numbers, grad, strict=True):
                norms[keys[int(-number)]] = entry.abs().item()
        else:
            norms[keys[int(numbers)]] = grad.norm().item()
    return norms


def test_without_a_teacher_both_heads_learn_the_labels_together():
    about, _ = reference.case(TRAINED[0])
    model = training(build(about, torch.float64))
    images, labels = reference.images(about, torch.float64), torch.tensor(about["train_labels"])
    task = AssistedTokenTask(model, verbose=False)
    model.set_distilled_training()
    apart = model(images)
    model.set_distilled_training(False)
    average, token = (sum(pair) / 2 for pair in apart)
    found = task(images, labels)
    criterion = nn.functional.cross_entropy
    wanted = 0.5 * criterion(average, labels) + 0.5 * criterion(token, labels)
    assert_close(found["loss"], wanted, rtol=1e-12, atol=0)
    assert_close(found["output"], average, rtol=0, atol=1e-12)
