"""Evo-DeiT, variant="official", against the numbers of the authors' code."""

import pytest
import timm
import torch
from torch.testing import assert_close

import evovit
from evovit.checkpoint import load_official
from evovit.task import AssistedTokenTask
from tests.golden import reference

CASES = reference.names("evo_deit")
TRAINED = [name for name in CASES if not name.endswith("stage_ratios_prunecls")]


def build(about, dtype):
    ctor = about["ctor"]
    model = timm.create_model(
        "evo_deit_tiny_patch16_224",
        variant="official",
        schedule=about["mode"].removesuffix("-wise"),
        keep_ratio=ctor["prune_ratio"],
        alpha=[1 - new for new in ctor["tradeoff"]],  # theirs weighs the new score
        pool_placeholders=not ctor.get("prunecls", False),
        drop_path_rate=0.0,
        **{k: ctor[k] for k in ("img_size", "patch_size", "embed_dim", "num_heads", "num_classes")},
    ).to(dtype)
    model.set_training_outputs()
    load_official(model, reference.weights(about["shapes"], dtype))
    return model


@pytest.mark.parametrize("name", CASES)
def test_inference_in_float64(name):
    about, expected = reference.case(name)
    seen = evovit.trace(build(about, torch.float64).eval(), reference.images(about, torch.float64))
    assert_close(seen.logits, torch.tensor(expected["logits"]), rtol=0, atol=1e-9)
    assert seen.blocks == expected["selected_layers"].tolist()
    for kept, padded in zip(seen.kept, torch.tensor(expected["selected"]).long(), strict=True):
        assert torch.equal(kept, padded[:, : kept.shape[1]])
        assert (padded[:, kept.shape[1] :] == -1).all()
    scores = torch.stack(seen.class_attention)
    assert_close(scores, torch.tensor(expected["global_cls_attn"]), rtol=0, atol=1e-9)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_inference_in_float32(name, fused):
    about, expected = reference.case(name)
    model = build(about, torch.float32).eval()
    for block in model.blocks:
        block.attn.fused_attn = fused
    logits = model(reference.images(about, torch.float32))
    limit = 4 * about["max_abs_diff_f32_f64"]
    assert_close(logits.double(), torch.tensor(expected["logits"]), rtol=0, atol=limit)


@pytest.mark.parametrize("name", TRAINED)
def test_training_in_float64(name):
    about, expected = reference.case(name)
    model = build(about, torch.float64).train()
    task = AssistedTokenTask(model, verbose=False)
    images = reference.images(about, torch.float64)
    average, class_token = model(images)
    assert_close(average, torch.tensor(expected["train_logits_avg"]), rtol=0, atol=1e-9)
    assert_close(class_token, torch.tensor(expected["train_logits_cls"]), rtol=0, atol=1e-9)
    loss = task(images, torch.tensor(about["train_labels"]))["loss"]
    assert_close(loss, torch.tensor(float(expected["train_loss"]), dtype=loss.dtype), rtol=1e-9, atol=0)
    loss.backward()
    norms = gradient_norms(model)
    theirs = dict(zip(about["shapes"], expected["grad_norms"], strict=True))
    for key, norm in theirs.items():
        assert norms[key] == pytest.approx(norm, rel=1e-8, abs=1e-12), key


def gradient_norms(model):
    """L2 norm of each gradient under the authors' names."""
    norms = {}
    for key, parameter in model.named_parameters():
        grad = parameter.grad
        if ".attn.qkv." in key:
            block, part = key.split(".")[1], key.split(".")[-1]
            cut = 2 * grad.shape[0] // 3
            norms[f"qks.{block}.qk.{part}"] = grad[:cut].norm().item()
            norms[f"vs.{block}.v.{part}"] = grad[cut:].norm().item()
        elif ".attn.proj." in key:
            norms[f"projs.{key.split('.')[1]}.{key.split('.')[-1]}"] = grad.norm().item()
        elif ".norm1." in key:
            norms[f"norms.{key.split('.')[1]}.{key.split('.')[-1]}"] = grad.norm().item()
        else:
            norms[key] = grad.norm().item()
    return norms
