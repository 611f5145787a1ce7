"""SViTE (Chen et al. 2021): a ViT whose heads and MLP neurons are sparse while it trains.

Registered as ``svite_deit_*``. A gate of 0 or 1 stands behind each attention head and each hidden
neuron; ``svite_task.SViTETask`` kills and regrows units while training. For inference
``deployed()`` rebuilds a dense, smaller model with the same outputs: that is what throughput
measures. Every layer keeps its share of units all the time, so the smaller model's shape, and its
speed, follow from the settings and not from the weights.

Settings: the authors' scripts keep 0.7 of the heads and 0.7 (T) or 0.6 (S, B) of the neurons. Not
said there, chosen here: the shares hold in every layer, rounded to whole units (2 of 3, 4 of 6 and
8 of 12 heads), at random at first; a dead unit keeps its weights, which get no gradient.
"""

import copy
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Attention, Mlp
from timm.models import generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from .deit import BASE, SMALL, TINY, create_deit, pretrained_cfg
from .weights import load_exactly


class UnitGate(nn.Module):
    """Lets the living units' outputs through, and scores all units on request.

    Buffers, all (units,): ``alive``; ``taylor``, |sum of output * gradient|; ``growth``, L1 norm of
    the gradient behind the gate, which a dead unit has too.
    """

    def __init__(self, units: int, share: float, **dd: Any):
        super().__init__()
        self.units, self.kept = units, kept_units(units, share)
        self.collecting = False
        # bool, so that averaging the weights (EMA) copies who lives instead of averaging it
        self.register_buffer("alive", torch.empty(units, dtype=torch.bool, device=dd.get("device")))
        for name in ("taylor", "growth"):
            self.register_buffer(name, torch.empty(units, **dd))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """The units that live at first are drawn at random."""
        drawn = torch.randperm(self.units)[: self.kept].to(self.alive.device)
        self.alive.zero_().index_fill_(0, drawn, True)
        self.taylor.zero_()
        self.growth.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (..., units, C) of the units to the same shape, those of dead ones 0."""
        x = x * self.alive.unsqueeze(-1).to(x.dtype)
        if self.collecting and x.requires_grad:
            x.register_hook(partial(self._score, x.detach()))
        return x

    @torch.no_grad()
    def _score(self, output: Tensor, gradient: Tensor) -> None:
        others = [*range(gradient.ndim - 2), gradient.ndim - 1]
        self.taylor.copy_((output * gradient).float().sum(dim=others).abs())
        self.growth.copy_(gradient.float().abs().sum(dim=others))


class GatedAttention(Attention):
    """timm's Attention with a gate behind its heads."""

    gate_heads: UnitGate

    def forward(self, x: Tensor, attn_mask=None, is_causal=False) -> Tensor:
        """(B, L, C) -> (B, L, C)."""
        qkv = self.qkv(x).unflatten(2, (3, self.num_heads, self.head_dim))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        q, k = self.q_norm(q), self.k_norm(k)
        if self.fused_attn:
            out = F.scaled_dot_product_attention(
                q, k, v, attn_mask=attn_mask, is_causal=is_causal,
                dropout_p=self.attn_drop.p if self.training else 0.0,
            )  # fmt: skip
        else:
            attn = (q * self.scale) @ k.transpose(-2, -1)
            attn = attn if attn_mask is None else attn + attn_mask
            out = self.attn_drop(attn.softmax(dim=-1)) @ v
        out = self.gate_heads(out.transpose(1, 2)).flatten(2)
        return self.proj_drop(self.proj(self.norm(out)))


class GatedMlp(Mlp):
    """timm's Mlp with a gate behind its hidden neurons."""

    gate_neurons: UnitGate

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, C) -> (B, L, C)."""
        x = self.drop1(self.act(self.fc1(x)))
        x = self.gate_neurons(x.unsqueeze(-1)).squeeze(-1)
        return self.drop2(self.fc2(self.norm(x)))


def kept_units(units: int, share: float) -> int:
    """Units of a layer that live.

    Raises:
        ValueError: for a share outside (0, 1], or one that leaves none.
    """
    kept = round(share * units)
    if not 0 < share <= 1 or kept < 1:
        raise ValueError(f"a share of {share} leaves {kept} of {units} units; it must leave one")
    return kept


class SparseVisionTransformer(VisionTransformer):
    """Vision Transformer with gated heads and neurons.

    Args (beside timm's):
        head_ratio: share of the heads that live in each layer.
        neuron_ratio: share of the hidden neurons that live in each layer.

    Raises:
        ValueError: for a share that leaves a layer without units.
    """

    def __init__(
        self, *args: Any, head_ratio: float = 0.7, neuron_ratio: float = 0.6, **kwargs: Any
    ):
        super().__init__(*args, attn_layer=GatedAttention, mlp_layer=GatedMlp, **kwargs)
        dd = {"device": kwargs.get("device"), "dtype": kwargs.get("dtype")}
        for block in self.blocks:
            block.attn.gate_heads = UnitGate(block.attn.num_heads, head_ratio, **dd)
            block.mlp.gate_neurons = UnitGate(block.mlp.fc1.out_features, neuron_ratio, **dd)

    def gated_layers(self) -> list[tuple[UnitGate, nn.Module]]:
        """Each gate with the layer whose units it counts; none in a deployed model."""
        return [
            (gate, layer)
            for layer in self.modules()
            for gate in layer.children()
            if isinstance(gate, UnitGate)
        ]

    def set_collecting(self, enable: bool) -> None:
        """Whether backward passes score the units."""
        for gate, _ in self.gated_layers():
            gate.collecting = enable

    @torch.no_grad()
    def deployed(self) -> "SparseVisionTransformer":
        """A copy without gates and dead units, smaller and with the same outputs."""
        dense = copy.deepcopy(self)
        for block in dense.blocks:
            block.attn = _without_dead_heads(block.attn)
            block.mlp = _without_dead_neurons(block.mlp)
        return dense

    def load_pretrained_dense(self, state_dict: Mapping[str, Tensor]) -> list[str]:
        """Load a plain DeiT; returns the keys that start fresh (the gates').

        Raises:
            ValueError: listing every missing, unexpected or misshapen key; nothing is loaded then.
        """
        fresh = tuple(key for key in self.state_dict() if ".gate_" in key)
        return load_exactly(self, state_dict, fresh=fresh)


def _cut(linear: nn.Linear, rows: Tensor | None = None, columns: Tensor | None = None) -> nn.Linear:
    """The linear layer with these outputs (rows) and inputs (columns) alone."""
    weight, bias = linear.weight, linear.bias
    if rows is not None:
        weight, bias = weight[rows], None if bias is None else bias[rows]
    if columns is not None:
        weight = weight[:, columns]
    small = nn.utils.skip_init(
        nn.Linear, weight.shape[1], weight.shape[0], bias=bias is not None,
        device=weight.device, dtype=weight.dtype,
    )  # fmt: skip
    small.weight.copy_(weight)
    if bias is not None:
        small.bias.copy_(bias)
    return small


def _without_dead_heads(attn: GatedAttention) -> Attention:
    alive = attn.gate_heads.alive
    channels = alive.repeat_interleave(attn.head_dim)
    heads = int(alive.sum())
    small = Attention(
        attn.proj.out_features, heads, attn_head_dim=attn.head_dim,
        attn_drop=attn.attn_drop.p, proj_drop=attn.proj_drop.p, device="meta",
    )  # fmt: skip
    small.qkv = _cut(attn.qkv, rows=channels.repeat(3))
    small.proj = _cut(attn.proj, columns=channels)
    small.q_norm, small.k_norm, small.norm = attn.q_norm, attn.k_norm, attn.norm
    small.fused_attn = attn.fused_attn
    return small.train(attn.training)


def _without_dead_neurons(mlp: GatedMlp) -> Mlp:
    alive = mlp.gate_neurons.alive
    small = Mlp(mlp.fc1.in_features, int(alive.sum()), drop=mlp.drop1.p, device="meta")
    small.act, small.norm = mlp.act, mlp.norm
    small.fc1, small.fc2 = _cut(mlp.fc1, rows=alive), _cut(mlp.fc2, columns=alive)
    return small.train(mlp.training)


RATIOS = {"tiny": dict(neuron_ratio=0.7), "small": {}, "base": {}}
SIZES = {"tiny": TINY, "small": SMALL, "base": BASE}
default_cfgs = generate_default_cfgs(
    {f"svite_deit_{size}_patch16_224": pretrained_cfg(224) for size in SIZES}
)


def _create(size: str, pretrained: bool, kwargs: dict[str, Any]) -> nn.Module:
    sizes = {**SIZES[size], **RATIOS[size]}
    name = f"svite_deit_{size}_patch16_224"
    return create_deit(SparseVisionTransformer, name, pretrained, kwargs, sizes)


@register_model
def svite_deit_tiny_patch16_224(pretrained: bool = False, **kwargs: Any) -> SparseVisionTransformer:
    """DeiT-T with 2 of 3 heads and 0.7 of the neurons."""
    return _create("tiny", pretrained, kwargs)


@register_model
def svite_deit_small_patch16_224(
    pretrained: bool = False, **kwargs: Any
) -> SparseVisionTransformer:
    """DeiT-S with 4 of 6 heads and 0.6 of the neurons."""
    return _create("small", pretrained, kwargs)


@register_model
def svite_deit_base_patch16_224(pretrained: bool = False, **kwargs: Any) -> SparseVisionTransformer:
    """DeiT-B with 8 of 12 heads and 0.6 of the neurons."""
    return _create("base", pretrained, kwargs)
