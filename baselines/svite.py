"""SViTE (Chen et al. 2021, NeurIPS): a ViT whose heads and MLP neurons are sparse while it trains.

Registered as ``svite_deit_*``. A gate of 0 or 1 follows each attention head and each hidden
neuron; ``SViTETask`` kills and regrows units while training. For inference ``deployed()`` rebuilds a
dense, smaller model with the same outputs, which is what throughput measures. Every layer keeps its
share of units all the time, so the smaller model's shape, and its speed, follow from the settings and
not from the weights. ``sparsity="unstructured"`` gates single weights instead, which saves no time on
common hardware.

Settings: the authors' scripts keep 0.7 of the heads and 0.7 (T) or 0.6 (S, B) of the neurons. Not
said there, chosen here: the shares hold in every layer, rounded to whole units (2 of 3, 4 of 6 and
8 of 12 heads), at random at first; a dead unit keeps its weights, which get no gradient.
"""

import copy
import math
from collections.abc import Mapping
from functools import partial
from itertools import product
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from timm.layers import Attention, Mlp
from timm.models import generate_default_cfgs, register_model
from timm.task import ClassificationTask
from timm.utils import unwrap_model
from torch import Tensor, nn

from evovit.features import of_no_images
from evovit.task import register_task

from .deit import BASE, SMALL, TINY, DeitVariant, create_deit, pretrained_cfg
from .weights import refuse_averaged_masks

SPARSITIES = ("structured", "unstructured")


class Gate(nn.Module):
    """The units of a layer that live, and the gradient that dead ones would have.

    A unit is an attention head, a hidden neuron or a single weight. Buffers, of the shape of the
    units: ``alive``; ``growth``, the L1 norm of the gradient behind the gate, which a dead unit has
    too. Backward passes score the units while ``collecting``.

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
        # bool, so that averaging the weights (EMA) copies the mask instead of averaging it
        self.register_buffer("alive", torch.empty(shape, dtype=torch.bool, device=dd.get("device")))
        self.register_buffer("growth", torch.empty(shape, **dd))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw at random which units live at first."""
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
        """Draw at random which units live at first; none has a score."""
        super().reset_parameters()
        if hasattr(self, "taylor"):  # not yet while the base class is being made
            self.taylor.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Return the units' outputs (..., units, C), those of dead ones as 0."""
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
        """Return the weight (out, in), dead ones as 0."""
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
        """Return the importance of the heads (H,): |sum of output * gradient|."""
        return self.gate_heads.taylor

    def forward(self, x: Tensor, attn_mask=None, is_causal=False) -> Tensor:
        """(B, L, C) -> (B, L, C)."""
        qkv = self.qkv(x).unflatten(2, (3, self.num_heads, self.head_dim))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        q, k = self.q_norm(q), self.k_norm(k)
        if self.fused_attn:
            dropout = self.attn_drop.p if self.training else 0.0
            out = F.scaled_dot_product_attention(q, k, v, attn_mask, dropout, is_causal)
        else:
            attn = (q * self.scale) @ k.transpose(-2, -1)
            attn = attn if attn_mask is None else attn + attn_mask
            out = self.attn_drop(attn.softmax(dim=-1)) @ v
        out = self.gate_heads(out.transpose(1, 2)).flatten(2)
        return self.proj_drop(self.proj(self.norm(out)))

    def deployed(self) -> Attention:
        """Return a plain layer with only the living heads."""
        alive = self.gate_heads.alive
        channels = alive.repeat_interleave(self.head_dim)
        small = Attention(
            self.proj.out_features,
            int(alive.sum()),
            attn_head_dim=self.head_dim,
            attn_drop=self.attn_drop.p,
            proj_drop=self.proj_drop.p,
            device="meta",
        )
        small.qkv = _cut(self.qkv, rows=channels.repeat(3))
        small.proj = _cut(self.proj, columns=channels)
        small.q_norm, small.k_norm, small.norm = self.q_norm, self.k_norm, self.norm
        small.fused_attn = self.fused_attn
        return small.train(self.training)


class GatedMlp(Mlp):
    """timm's Mlp with a gate behind its hidden neurons."""

    gate_neurons: UnitGate

    def importance(self) -> Tensor:
        """Return the importance of the neurons (hidden,): L1 norm of their weights in both linear layers."""
        return self.fc1.weight.detach().abs().sum(1) + self.fc2.weight.detach().abs().sum(0)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, C) -> (B, L, C)."""
        x = self.drop1(self.act(self.fc1(x)))
        x = self.gate_neurons(x.unsqueeze(-1)).squeeze(-1)
        return self.drop2(self.fc2(self.norm(x)))

    def deployed(self) -> Mlp:
        """Return a plain layer with only the living neurons."""
        alive = self.gate_neurons.alive
        small = Mlp(self.fc1.in_features, int(alive.sum()), drop=self.drop1.p, device="meta")
        small.act, small.norm = self.act, self.norm
        small.fc1, small.fc2 = _cut(self.fc1, rows=alive), _cut(self.fc2, columns=alive)
        return small.train(self.training)


class GatedLinear(nn.Module):
    """A linear layer with a gate before each of its weights.

    It is no ``nn.Linear``, so that tools for linear layers (LoRA, int8) leave it as it is or refuse it:
    whatever they add to the weight would pass the gate, too. They take the model that ``deployed()`` returns.
    """

    gate_weights: WeightGate

    @classmethod
    def of(cls, linear: nn.Linear, share: float, **dd: Any) -> "GatedLinear":
        """Return the same layer with its own weights, gated."""
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
        """Return the importance of the weights (out, in): their absolute values."""
        return self.weight.detach().abs()

    @torch.no_grad()
    def begin_anew(self, regrown: Tensor) -> None:
        """Let the ``regrown`` weights, indices of the flattened matrix, start at zero."""
        self.weight.view(-1)[regrown] = 0.0

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return F.linear(x, self.gate_weights(self.weight), self.bias)

    def deployed(self) -> nn.Linear:
        """Return a plain layer of the same size, dead weights as 0."""
        dense = _cut(self)
        dense.weight.mul_(self.gate_weights.alive)
        return dense


def kept_units(units: int, share: float) -> int:
    """Return how many of a layer's units live.

    Raises:
        ValueError: for a share outside (0, 1], or one that leaves none.
    """
    kept = round(share * units)
    if not 0 < share <= 1 or kept < 1:
        raise ValueError(f"a share of {share} leaves {kept} of {units} units; it must leave one")
    return kept


def _cut(linear: nn.Linear | GatedLinear, rows: Tensor | None = None, columns: Tensor | None = None) -> nn.Linear:
    """Return the linear layer with only these outputs (rows) and inputs (columns); None: all."""
    weight, bias = linear.weight, linear.bias
    if rows is not None:
        weight = weight[rows]
        bias = None if bias is None else bias[rows]
    if columns is not None:
        weight = weight[:, columns]
    dd = {"device": weight.device, "dtype": weight.dtype}
    small = nn.utils.skip_init(nn.Linear, weight.shape[1], weight.shape[0], bias=bias is not None, **dd)
    small.weight.copy_(weight)
    if bias is not None:
        small.bias.copy_(bias)
    return small


class SparseVisionTransformer(DeitVariant):
    """Vision Transformer whose heads and neurons, or single weights, are gated.

    Args (in addition to timm's):
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
        for block in self.blocks:
            if sparsity == "structured":
                block.attn.gate_heads = UnitGate(block.attn.num_heads, head_ratio, **dd)
                block.mlp.gate_neurons = UnitGate(block.mlp.fc1.out_features, neuron_ratio, **dd)
            else:
                block.attn.gate_heads = nn.Identity()
                block.mlp.gate_neurons = nn.Identity()
                _gate_weights(block, weight_ratio, dd)
        self.fresh_keys = tuple(key for key, _ in self.named_buffers() if ".gate_" in key)
        self.register_load_state_dict_pre_hook(refuse_averaged_masks)
        self.register_load_state_dict_pre_hook(_refuse_other_shares)

    def forward_features(self, x: Tensor, attn_mask=None, is_causal=False) -> Tensor:
        """Return normed tokens (B, 1 + N, C) of images (B, 3, H, W)."""
        self.refuse_symbolic_tracing(x)
        return super().forward_features(x, attn_mask=attn_mask, is_causal=is_causal)

    def forward_intermediates(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Return timm's intermediates, also of a batch without images."""
        self.refuse_symbolic_tracing(x)
        if x.shape[0] == 0:
            return of_no_images(super().forward_intermediates, x, *args, **kwargs)
        return super().forward_intermediates(x, *args, **kwargs)

    def gated_layers(self) -> list[tuple[Gate, nn.Module]]:
        """Return each gate with the layer whose units it counts; none in a deployed model."""
        return [(gate, layer) for layer in self.modules() for gate in layer.children() if isinstance(gate, Gate)]

    def set_collecting(self, enable: bool) -> None:
        """Set whether backward passes score the units."""
        for gate, _ in self.gated_layers():
            gate.collecting = enable

    @torch.no_grad()
    def deployed(self) -> "SparseVisionTransformer":
        """Return a copy without gates and with the same outputs.

        Without dead heads and neurons it is smaller; dead weights are zeros, which cost as much.
        """
        dense = copy.deepcopy(self)
        gated = [layer for _, layer in dense.gated_layers()]
        for owner in list(dense.modules()):
            for name, layer in owner.named_children():
                if any(layer is other for other in gated):
                    setattr(owner, name, layer.deployed())
        return dense


def _refuse_other_shares(
    model: SparseVisionTransformer, state_dict: Mapping[str, Tensor], prefix: str, *_: Any
) -> None:
    """Refuse a gate that lets through another number of units; a hook before loading weights.

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
    """Replace the linear layers of a block by gated ones."""
    for owner, name in product((block.attn, block.mlp), ("qkv", "proj", "fc1", "fc2")):
        if hasattr(owner, name):
            setattr(owner, name, GatedLinear.of(getattr(owner, name), share, **dd))


@register_task("svite")
class SViTETask(ClassificationTask):
    """Classification while a model's units are killed and regrown, until most of the training is done.

    An update follows the first step of an epoch, scored by that step's gradients (those of its last
    batch, where a step has several). ceil(rate * alive) units of each layer die, but no more than
    there are dead ones to replace them, and as many of those that were dead before are regrown.

    Args (in addition to ClassificationTask's):
        rate: share of the living units that the first update kills; it falls to 0 with a cosine.
        until: share of the training after which nothing changes any more.
        updates: updates in a training, evenly spread before ``until``; at most one per epoch. The
            authors update every 7,000 to 20,000 steps, 15 to 43 times in 300 epochs of 1,250 steps.

    Raises:
        ValueError: for a model without gates, or a share outside [0, 1].
    """

    def __init__(
        self,
        model: nn.Module,
        *args: Any,
        rate: float = 0.5,
        until: float = 0.8,
        updates: int = 30,
        **kwargs: Any,
    ):
        super().__init__(model, *args, **kwargs)
        for name, share in (("rate", rate), ("until", until)):
            if not 0 <= share <= 1:
                raise ValueError(f"{name}={share} must lie in [0, 1]")
        if updates < 1:
            raise ValueError(f"updates={updates} must be at least 1")
        if not isinstance(unwrap_model(model), SparseVisionTransformer):
            raise ValueError(f"{type(unwrap_model(model)).__name__} has no gates to move")
        self.rate = rate
        self.until = until
        self.updates = updates
        self._due: float | None = None  # rate of this epoch's update, None without one

    def start_epoch(self, epoch: int, epochs: int) -> None:
        """Prepare the update of ``epoch`` (from 0) of ``epochs``, if it has one."""
        self._due = self.rate_at(epoch, epochs) if epoch in self.update_epochs(epochs) else None

    def update_epochs(self, epochs: int) -> list[int]:
        """Return the epochs with an update, evenly spread after the first and before ``until``."""
        end = math.ceil(self.until * epochs)
        count = min(self.updates, max(end - 1, 0))
        return sorted({1 + i * (end - 1) // count for i in range(count)})

    def unreached(self, epochs: int) -> list[str]:
        """Return a sentence if a training of ``epochs`` has no epoch for some of the updates."""
        count = len(self.update_epochs(epochs))
        if count == self.updates:
            return []
        return [f"A training of {epochs} epochs makes {count} of SViTE's {self.updates} updates."]

    def rate_at(self, epoch: int, epochs: int) -> float:
        """Return the share of the living units that die in this epoch."""
        return self.rate / 2 * (1 + math.cos(math.pi * epoch / (self.until * epochs)))

    def start_step(self, step: int, steps: int) -> None:
        """Score units in step 0 of the epoch; kill and regrow before step 1.

        The result follows only from the step and the gates' buffers, also after a resume.
        """
        model = unwrap_model(self.trainable_module)
        model.set_collecting(self._due is not None and step == 0)
        if self._due is not None and step == 1:
            for gate, layer in model.gated_layers():
                update(gate, layer, self._due)


@torch.no_grad()
def update(gate: Gate, layer: nn.Module, rate: float) -> None:
    """Kill a layer's least important units and regrow as many others.

    Heads die by the smallest |sum of output * gradient|, neurons by the smallest L1 norm of their
    weights in both linear layers, weights by the smallest absolute value; the units with the largest
    gradient behind their gate are regrown. A regrown head or neuron has the weights it died with, a
    regrown weight starts at zero.
    """
    importance = layer.importance().flatten()
    growth = gate.growth.flatten()
    if dist.is_initialized():  # every process scored its own images
        importance = importance.clone()
        growth = growth.clone()
        dist.all_reduce(importance)
        dist.all_reduce(growth)
    alive = gate.alive.flatten()
    count = min(math.ceil(rate * gate.kept), gate.units - gate.kept)
    killed = importance.masked_fill(~alive, torch.inf).argsort(stable=True)[:count]
    regrown = growth.masked_fill(alive, -torch.inf).argsort(descending=True, stable=True)[:count]
    after = alive.clone()
    after[killed] = False
    after[regrown] = True
    gate.alive.copy_(after.view_as(gate.alive))
    if isinstance(layer, GatedLinear):
        layer.begin_anew(regrown)


default_cfgs = generate_default_cfgs(
    {
        "svite_deit_tiny_patch16_224": pretrained_cfg(224),
        "svite_deit_small_patch16_224": pretrained_cfg(224),
        "svite_deit_base_patch16_224": pretrained_cfg(224),
    }
)


@register_model
def svite_deit_tiny_patch16_224(pretrained: bool = False, **kwargs: Any) -> SparseVisionTransformer:
    """DeiT-T with 2 of 3 heads and 0.7 of the neurons."""
    sizes = {**TINY, "neuron_ratio": 0.7}
    return create_deit(SparseVisionTransformer, "svite_deit_tiny_patch16_224", pretrained, kwargs, sizes)


@register_model
def svite_deit_small_patch16_224(pretrained: bool = False, **kwargs: Any) -> SparseVisionTransformer:
    """DeiT-S with 4 of 6 heads and 0.6 of the neurons."""
    return create_deit(SparseVisionTransformer, "svite_deit_small_patch16_224", pretrained, kwargs, SMALL)


@register_model
def svite_deit_base_patch16_224(pretrained: bool = False, **kwargs: Any) -> SparseVisionTransformer:
    """DeiT-B with 8 of 12 heads and 0.6 of the neurons."""
    return create_deit(SparseVisionTransformer, "svite_deit_base_patch16_224", pretrained, kwargs, BASE)
