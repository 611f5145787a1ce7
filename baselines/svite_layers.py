"""Parts of SViTE: gates that let living units through, the layers they stand in, dense layers."""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Attention, Mlp
from torch import Tensor, nn


class Gate(nn.Module):
    """Which units of a layer live, and what the dead ones' gradient would be.

    A unit is an attention head, a hidden neuron or a single weight. Buffers, of the shape of the
    units: ``alive``; ``growth``, L1 norm of the gradient behind the gate, which a dead unit has
    too. Scores are taken in backward passes while ``collecting``.

    Args:
        shape: of the units.
        share: of the units that live.

    Raises:
        ValueError: for a share outside (0, 1], or one that leaves none.
    """

    def __init__(self, shape: tuple[int, ...], share: float, **dd: Any):
        super().__init__()
        self.units = torch.Size(shape).numel()
        self.kept = kept_units(self.units, share)
        self.collecting = False
        # bool, so that averaging the weights (EMA) copies who lives instead of averaging it
        self.register_buffer("alive", torch.empty(shape, dtype=torch.bool, device=dd.get("device")))
        self.register_buffer("growth", torch.empty(shape, **dd))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """The units that live at first are drawn at random."""
        drawn = torch.randperm(self.units)[: self.kept].to(self.alive.device)
        self.alive.zero_().view(-1).index_fill_(0, drawn, True)
        self.growth.zero_()


class UnitGate(Gate):
    """A gate behind the outputs of heads or neurons.

    A further buffer (units,): ``taylor``, |sum of output * gradient|.
    """

    def __init__(self, units: int, share: float, **dd: Any):
        super().__init__((units,), share, **dd)
        self.register_buffer("taylor", torch.zeros(units, **dd))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """The units that live at first are drawn at random, and none has a score."""
        super().reset_parameters()
        if hasattr(self, "taylor"):  # not yet while the base class is being made
            self.taylor.zero_()

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


class WeightGate(Gate):
    """A gate before the single weights of a matrix."""

    def forward(self, weight: Tensor) -> Tensor:
        """(out, in) to the same shape, dead weights 0."""
        weight = weight * self.alive.to(weight.dtype)
        if self.collecting and weight.requires_grad:
            weight.register_hook(self._score)
        return weight

    @torch.no_grad()
    def _score(self, gradient: Tensor) -> None:
        self.growth.copy_(gradient.abs())


class GatedAttention(Attention):
    """timm's Attention with a gate behind its heads."""

    gate_heads: UnitGate

    def importance(self) -> Tensor:
        """Of the heads (H,): |sum of output * gradient|."""
        return self.gate_heads.taylor

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

    def deployed(self) -> Attention:
        """The living heads alone."""
        alive = self.gate_heads.alive
        channels = alive.repeat_interleave(self.head_dim)
        small = Attention(
            self.proj.out_features, int(alive.sum()), attn_head_dim=self.head_dim,
            attn_drop=self.attn_drop.p, proj_drop=self.proj_drop.p, device="meta",
        )  # fmt: skip
        small.qkv = _cut(self.qkv, rows=channels.repeat(3))
        small.proj = _cut(self.proj, columns=channels)
        small.q_norm, small.k_norm, small.norm = self.q_norm, self.k_norm, self.norm
        small.fused_attn = self.fused_attn
        return small.train(self.training)


class GatedMlp(Mlp):
    """timm's Mlp with a gate behind its hidden neurons."""

    gate_neurons: UnitGate

    def importance(self) -> Tensor:
        """Of the neurons (hidden,): L1 norm of their weights in both linear layers."""
        return self.fc1.weight.detach().abs().sum(1) + self.fc2.weight.detach().abs().sum(0)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, C) -> (B, L, C)."""
        x = self.drop1(self.act(self.fc1(x)))
        x = self.gate_neurons(x.unsqueeze(-1)).squeeze(-1)
        return self.drop2(self.fc2(self.norm(x)))

    def deployed(self) -> Mlp:
        """The living neurons alone."""
        alive = self.gate_neurons.alive
        small = Mlp(self.fc1.in_features, int(alive.sum()), drop=self.drop1.p, device="meta")
        small.act, small.norm = self.act, self.norm
        small.fc1, small.fc2 = _cut(self.fc1, rows=alive), _cut(self.fc2, columns=alive)
        return small.train(self.training)


class GatedLinear(nn.Module):
    """A linear layer with a gate before each of its weights.

    It is no ``nn.Linear``, so that tools for those (LoRA, int8) leave it alone or refuse it: what
    they add to the weight would pass the gate, too. They take the model that ``deployed()`` gives.
    """

    gate_weights: WeightGate

    @classmethod
    def of(cls, linear: nn.Linear, share: float, **dd: Any) -> "GatedLinear":
        """The same layer with its own weights, gated."""
        gated = cls()
        gated.in_features, gated.out_features = linear.in_features, linear.out_features
        gated.weight, gated.bias = linear.weight, linear.bias
        gated.gate_weights = WeightGate(tuple(linear.weight.shape), share, **dd)
        return gated

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw new weights, as timm does for the linear layers of a Vision Transformer."""
        nn.init.trunc_normal_(self.weight, std=0.02)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def importance(self) -> Tensor:
        """Of the weights (out, in): their absolute values."""
        return self.weight.detach().abs()

    @torch.no_grad()
    def begin_anew(self, regrown: Tensor) -> None:
        """Regrown weights, numbered in a row, start at zero."""
        self.weight.view(-1)[regrown] = 0.0

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return F.linear(x, self.gate_weights(self.weight), self.bias)

    def deployed(self) -> nn.Linear:
        """Of the same size, dead weights 0."""
        dense = _cut(self)
        dense.weight.mul_(self.gate_weights.alive)
        return dense


def kept_units(units: int, share: float) -> int:
    """Units of a layer that live.

    Raises:
        ValueError: for a share outside (0, 1], or one that leaves none.
    """
    kept = round(share * units)
    if not 0 < share <= 1 or kept < 1:
        raise ValueError(f"a share of {share} leaves {kept} of {units} units; it must leave one")
    return kept


def _cut(linear: nn.Linear | GatedLinear, rows: Tensor | None = None, columns: Tensor | None = None) -> nn.Linear:
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
