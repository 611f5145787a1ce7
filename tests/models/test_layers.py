"""Tools that hook, wrap or replace layers (LoRA, int8, pruning) reach every weight of every model.

So each layer that owns parameters must be called, and be called alone for what it computes.
"""

import copy

import pytest
import torch
from timm.utils import ModelEmaV3
from torch import nn
from torch.testing import assert_close

from tests.models import families

VARIANTS = {key: (key, {}) for key in families.EVERY}
VARIANTS["ia_red2_deit, fixed counts"] = ("ia_red2_deit", dict(keep_profile=[0.8, 0.5, 0.25]))
VARIANTS["svite_deit, official"] = ("svite_deit", dict(variant="official"))
VARIANTS["svite_deit, single weights"] = ("svite_deit", dict(sparsity="unstructured"))
CHOOSING = ("score_predictor.", "interpreters.")  # which no plain loss trains at inference


class Lora(nn.Module):
    """A linear layer plus an update of rank 2."""

    def __init__(self, base: nn.Linear):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.a = nn.Parameter(torch.randn(2, base.in_features, dtype=base.weight.dtype) / 4)
        self.b = nn.Parameter(torch.randn(base.out_features, 2, dtype=base.weight.dtype) / 4)

    def forward(self, x):
        return self.base(x) + x @ self.a.T @ self.b.T

    @torch.no_grad()
    def merged(self):
        self.base.weight += self.b @ self.a
        return self.base


def build(variant):
    key, kwargs = VARIANTS[variant]
    model = families.build(key, **kwargs)
    if key.startswith("evo"):  # their training alone uses the heads of the class token
        model.set_training_outputs(True)
    model.eval()
    return model.deployed() if "sparsity" in kwargs or "variant" in kwargs else model


def images(variant):
    return families.images(VARIANTS[variant][0])


def replace(model, kind, make):
    """Replace each layer of exactly this type; returns the names."""
    names = [name for name, layer in model.named_modules() if type(layer) is kind]
    for name in names:
        owner, _, child = name.rpartition(".")
        setattr(model.get_submodule(owner), child, make(model.get_submodule(name)))
    return names


def total(output):
    outputs = output if isinstance(output, tuple) else (output,)
    return sum(part.square().sum() for part in outputs)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_layer_with_parameters_is_called(variant):
    model = build(variant)
    owners = {name.rpartition(".")[0] for name, _ in model.named_parameters()} - {""}
    called = set()
    for name in owners:
        model.get_submodule(name).register_forward_hook(lambda *_, name=name: called.add(name))
    model.train()(images(variant))
    model.eval()(images(variant))
    assert called == owners


@pytest.mark.parametrize("variant", VARIANTS)
def test_lora_trains_and_merges(variant):
    model, batch = build(variant).double(), images(variant).double()
    dense = model(batch)
    names = replace(model, nn.Linear, Lora)
    model.train() if VARIANTS[variant][0].startswith("evo") else model.eval()
    total(model(batch)).backward()
    for name in names:
        if not name.startswith(CHOOSING):
            layer = model.get_submodule(name)
            assert layer.a.grad.abs().max() > 0, name
            assert layer.b.grad.abs().max() > 0, name
    model.eval()
    with torch.no_grad():
        adapted = model(batch)
        assert not torch.allclose(adapted, dense)
        assert replace(model, Lora, Lora.merged) == names
        assert_close(model(batch), adapted)


@pytest.mark.parametrize("variant", VARIANTS)
def test_dynamic_int8(variant):
    model, batch = build(variant), images(variant)
    with torch.no_grad():
        expected = model(batch)
        int8 = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
        assert not any(type(layer) is nn.Linear for layer in int8.modules())
        # 0.01, more where rounding changes which patches are kept
        assert (int8(batch) - expected).norm() < 0.3 * expected.norm()


@pytest.mark.parametrize("key", ["ps_deit", "dynamic_deit", "ia_red2_deit"])
def test_timms_averaging_of_weights_reaches_every_parameter(key):
    """It writes into the values of ``state_dict()``, so these may be no copies."""
    model = families.build(key)
    ema = ModelEmaV3(model, decay=0.5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    ema.update(model)
    for name, value in ema.module.named_parameters():
        assert_close(value, before[name] + 0.5)


def test_gated_weights_are_no_linear_layers():
    """A merged update would pass the gate; deployed() gives linear layers."""
    model = families.build("svite_deit", sparsity="unstructured")
    assert not any(isinstance(layer, nn.Linear) for layer in model.blocks.modules())


def test_peft():
    peft = pytest.importorskip("peft")
    model = families.build("ps_deit").eval()
    config = peft.LoraConfig(r=2, target_modules=["q", "kv"], init_lora_weights=False)
    adapted, batch = peft.get_peft_model(model, config).eval(), families.images("ps_deit")
    adapted(batch).square().sum().backward()
    weights = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    assert len(weights) == 4 * 12
    assert all(weight.grad.abs().max() > 0 for weight in weights)
    with torch.no_grad():
        expected = adapted(batch)
        assert_close(adapted.merge_and_unload()(batch), expected, rtol=1e-4, atol=1e-5)


AVERAGED = {
    "ps_deit": ({}, "kept"),
    "svite_deit": ({}, "blocks.0.attn.gate_heads.alive"),
    "unstructured": (dict(sparsity="unstructured"), "blocks.0.attn.qkv.gate_weights.alive"),
}


@pytest.mark.parametrize("case", AVERAGED)
def test_averaged_masks_are_refused_by_name(case):
    kwargs, mask = AVERAGED[case]
    model = families.build("svite_deit" if case == "unstructured" else case, **kwargs)
    weights = {key: value.double() for key, value in model.state_dict().items()}
    model.load_state_dict(weights)  # masks of 0 and 1 as numbers are masks
    weights[mask].view(-1)[:2] = 0.5
    before = copy.deepcopy(model.state_dict())
    weights["norm.weight"] += 1
    with pytest.raises(ValueError, match=rf"mask {mask} holds values other than 0 and 1"):
        copy.deepcopy(model).load_state_dict(weights)
    with pytest.raises(ValueError, match=rf"mask model.{mask} holds"):
        torch.nn.ModuleDict({"model": model}).load_state_dict({f"model.{key}": value for key, value in weights.items()})
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("ratio", ["head_ratio", "neuron_ratio"])
def test_gates_of_another_share_are_refused(ratio):
    weights = families.build("svite_deit", **{ratio: 0.4}).state_dict()
    with pytest.raises(ValueError, match=r"units live, the model .* build it with the head_ratio"):
        families.build("svite_deit").load_state_dict(weights)
