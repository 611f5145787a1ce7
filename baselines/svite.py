"""SViTE (Chen et al. 2021): a ViT whose heads and MLP neurons are sparse while it trains.

Registered as ``svite_deit_*``. A gate of 0 or 1 stands behind each attention head and each hidden
neuron; ``svite_task.SViTETask`` kills and regrows units while training. For inference
``deployed()`` rebuilds a dense, smaller model with the same outputs: that is what throughput
measures. Every layer keeps its share of units all the time, so the smaller model's shape, and its
speed, follow from the settings and not from the weights. ``sparsity="unstructured"`` gates single
weights instead, which saves no time on common hardware.

Settings: the authors' scripts keep 0.7 of the heads and 0.7 (T) or 0.6 (S, B) of the neurons. Not
said there, chosen here: the shares hold in every layer, rounded to whole units (2 of 3, 4 of 6 and
8 of 12 heads), at random at first; a dead unit keeps its weights, which get no gradient.
"""

import copy
from collections.abc import Mapping
from itertools import product
from typing import Any

import torch
from timm.models import generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from evovit.features import NoSymbolicGraph, TokenPooling, of_no_images

from .deit import BASE, SMALL, TINY, create_deit, pretrained_cfg
from .svite_layers import Gate, GatedAttention, GatedLinear, GatedMlp, UnitGate
from .weights import load_exactly, refuse_averaged_masks

SPARSITIES = ("structured", "unstructured")


class SparseVisionTransformer(NoSymbolicGraph, TokenPooling, VisionTransformer):
    """Vision Transformer whose heads and neurons, or single weights, are gated.

    Args (beside timm's):
        sparsity: "structured" (heads and neurons) or "unstructured" (weights of the blocks'
            linear layers).
        head_ratio: share of the heads that live in each layer (structured).
        neuron_ratio: share of the hidden neurons that live in each layer (structured).
        weight_ratio: share of the weights that live in each linear layer (unstructured).

    Raises:
        ValueError: for an unknown sparsity, or a share that leaves a layer without units.
    """

    def __init__(
        self,
        *args: Any,
        sparsity: str = "structured",
        head_ratio: float = 0.7,
        neuron_ratio: float = 0.6,
        weight_ratio: float = 0.5,
        **kwargs: Any,
    ):
        if sparsity not in SPARSITIES:
            raise ValueError(f"sparsity={sparsity!r} is not one of {', '.join(SPARSITIES)}")
        super().__init__(*args, attn_layer=GatedAttention, mlp_layer=GatedMlp, **kwargs)
        dd = {"device": kwargs.get("device"), "dtype": kwargs.get("dtype")}
        weights = sparsity == "unstructured"
        for block in self.blocks:
            block.attn.gate_heads, block.mlp.gate_neurons = nn.Identity(), nn.Identity()
            if weights:
                _gate_weights(block, weight_ratio, dd)
            else:
                block.attn.gate_heads = UnitGate(block.attn.num_heads, head_ratio, **dd)
                block.mlp.gate_neurons = UnitGate(block.mlp.fc1.out_features, neuron_ratio, **dd)
        self.register_load_state_dict_pre_hook(refuse_averaged_masks)
        self.register_load_state_dict_pre_hook(_refuse_other_shares)

    def forward_features(self, x: Tensor, attn_mask=None, is_causal=False) -> Tensor:
        """Images to normed tokens (B, 1 + N, C)."""
        self.refuse_symbolic_tracing(x)
        return super().forward_features(x, attn_mask=attn_mask, is_causal=is_causal)

    def forward_intermediates(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """timm's method."""
        self.refuse_symbolic_tracing(x)
        if x.shape[0] == 0:
            return of_no_images(super().forward_intermediates, x, *args, **kwargs)
        return super().forward_intermediates(x, *args, **kwargs)

    def gated_layers(self) -> list[tuple[Gate, nn.Module]]:
        """Each gate with the layer whose units it counts; none in a deployed model."""
        return [(gate, layer) for layer in self.modules() for gate in layer.children() if isinstance(gate, Gate)]

    def set_collecting(self, enable: bool) -> None:
        """Whether backward passes score the units."""
        for gate, _ in self.gated_layers():
            gate.collecting = enable

    @torch.no_grad()
    def deployed(self) -> "SparseVisionTransformer":
        """A copy without gates and with the same outputs.

        Without dead heads and neurons it is smaller; dead weights are zeros, which cost as much.
        """
        dense = copy.deepcopy(self)
        gated = [layer for _, layer in dense.gated_layers()]
        for owner in list(dense.modules()):
            for name, layer in owner.named_children():
                if any(layer is one for one in gated):
                    setattr(owner, name, layer.deployed())
        return dense

    def load_pretrained_dense(self, state_dict: Mapping[str, Tensor]) -> list[str]:
        """Load a plain DeiT; returns the keys that start fresh (the gates').

        Raises:
            ValueError: listing every missing, unexpected or misshapen key; nothing is loaded then.
        """
        fresh = tuple(key for key in self.state_dict() if ".gate_" in key)
        return load_exactly(self, state_dict, fresh=fresh)


def _refuse_other_shares(
    model: SparseVisionTransformer, state_dict: Mapping[str, Tensor], prefix: str, *_: Any
) -> None:
    """Before loading weights: refuse a gate that lets through another number of units.

    Raises:
        ValueError: naming the gate; nothing is loaded then.
    """
    for name, gate in model.named_modules():
        alive = state_dict.get(f"{prefix}{name}.alive") if isinstance(gate, Gate) else None
        if alive is None or alive.is_meta or alive.shape != gate.alive.shape:
            continue
        count = int(alive.sum())
        if count != gate.kept:
            raise ValueError(
                f"the state dict's {prefix}{name}.alive lets {count} of {gate.units} units live, "
                f"the model {gate.kept}: build it with the head_ratio, neuron_ratio or "
                "weight_ratio that the weights were trained with"
            )


def _gate_weights(block: nn.Module, share: float, dd: dict[str, Any]) -> None:
    for owner, name in product((block.attn, block.mlp), ("qkv", "proj", "fc1", "fc2")):
        if hasattr(owner, name):
            setattr(owner, name, GatedLinear.of(getattr(owner, name), share, **dd))


RATIOS = {"tiny": dict(neuron_ratio=0.7), "small": {}, "base": {}}
SIZES = {"tiny": TINY, "small": SMALL, "base": BASE}
default_cfgs = generate_default_cfgs({f"svite_deit_{size}_patch16_224": pretrained_cfg(224) for size in SIZES})


def _create(size: str, pretrained: bool, kwargs: dict[str, Any]) -> nn.Module:
    sizes = {**SIZES[size], **RATIOS[size]}
    name = f"svite_deit_{size}_patch16_224"
    return create_deit(SparseVisionTransformer, name, pretrained, kwargs, sizes)


@register_model
def svite_deit_tiny_patch16_224(pretrained: bool = False, **kwargs: Any) -> SparseVisionTransformer:
    """DeiT-T with 2 of 3 heads and 0.7 of the neurons."""
    return _create("tiny", pretrained, kwargs)


@register_model
def svite_deit_small_patch16_224(pretrained: bool = False, **kwargs: Any) -> SparseVisionTransformer:
    """DeiT-S with 4 of 6 heads and 0.6 of the neurons."""
    return _create("small", pretrained, kwargs)


@register_model
def svite_deit_base_patch16_224(pretrained: bool = False, **kwargs: Any) -> SparseVisionTransformer:
    """DeiT-B with 8 of 12 heads and 0.6 of the neurons."""
    return _create("base", pretrained, kwargs)
