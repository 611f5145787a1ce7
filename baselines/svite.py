"""SViTE (Chen et al. 2021, NeurIPS): a ViT whose heads and MLP neurons are sparse while it trains.

Registered as ``svite_deit_*``. Each layer has a mask of the attention heads that live and one of the hidden
neurons; ``SViTETask`` kills and regrows units while training. For inference ``deployed()`` rebuilds a dense,
smaller model with the same outputs, which is what throughput measures. Every layer keeps its share of units all
the time, so the smaller model's shape, and its speed, follow from the settings and not from the weights.
``sparsity="unstructured"`` masks single weights instead, which saves no time on common hardware.

As in the authors' code and scripts (VITA-Group/SViTE): 0.7 of the heads and 0.7 (T) or 0.6 (S, B) of the neurons
of every layer, rounded down (2 of 3, 4 of 6 and 8 of 12 heads), at random at first; the scores by which units die
and are regrown; weights of dead units are zero, have a gradient all the same, and so a regrown unit starts from
zero. Since biases of the MLP start at zero, a dead neuron's gradient is zero, too: the neurons that have just been
killed are regrown, and the neurons' masks stay as they were drawn. Their heads do change.

The authors mask nothing but the rows of the q, k and v weights and the weights of the MLP: a dead head puts out its
value bias, which the projection still reads (``variant="official"``). ``variant="paper"`` cuts whole units, so that
a dead head puts out zeros. A dead neuron puts out zeros in both.
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

from evovit.checkpoint import load_exactly
from evovit.features import of_no_images
from evovit.options import VARIANTS, check_choice
from evovit.task import register_task

from .deit import BASE, SMALL, TINY, DeitVariant, create_deit, pretrained_cfg
from .weights import refuse_averaged_masks

SPARSITIES = ("structured", "unstructured")
RATE_FLOOR = 0.005  # of the share of units that die, in the authors' code


class Gate(nn.Module):
    """The mask of a layer's units, which are attention heads, hidden neurons or single weights.

    The buffer ``alive`` has the shape of the units. A closed gate replaces what dead units put out. While
    ``SViTETask`` trains, the weights of dead units are zero and the gate is open: nothing has to be replaced, and
    dead weights get a gradient.

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
        self.opens_in_training = False
        # bool, so that averaging the weights (EMA) copies the mask instead of averaging it
        self.register_buffer("alive", torch.empty(shape, dtype=torch.bool, device=dd.get("device")))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw at random which units live at first."""
        drawn = torch.randperm(self.units)[: self.kept].to(self.alive.device)
        self.alive.zero_().view(-1).index_fill_(0, drawn, True)

    @property
    def is_open(self) -> bool:
        """Return whether dead units need no masking, as their weights are zero."""
        return self.training and self.opens_in_training


class GatedAttention(Attention):
    """timm's Attention with some dead heads.

    Attributes:
        dead_head: what a dead head puts out: "zero", or the "bias" of its values.
        collecting: whether backward passes add to ``scores``.
        scores: sums over images (2, H), for each head of abs(sum of output * gradient), by which heads die, and
            of the gradient's L1 norm, by which they are regrown. Means, which the authors take, rank them alike.
    """

    gate_heads: Gate

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.dead_head = "zero"
        self.collecting = False
        self.scores = torch.zeros(2, self.num_heads)

    def forward(self, x: Tensor, attn_mask=None, is_causal=False) -> Tensor:
        """(B, L, C) -> (B, L, C)."""
        qkv = self._mask_heads(self.qkv(x).unflatten(2, (3, self.num_heads, self.head_dim)))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        q, k = self.q_norm(q), self.k_norm(k)
        if self.fused_attn:
            dropout = self.attn_drop.p if self.training else 0.0
            out = F.scaled_dot_product_attention(q, k, v, attn_mask, dropout, is_causal)
        else:
            attn = (q * self.scale) @ k.transpose(-2, -1)
            attn = attn if attn_mask is None else attn + attn_mask
            out = self.attn_drop(attn.softmax(dim=-1)) @ v
        if self.collecting and out.requires_grad:
            out.register_hook(partial(self._add_scores, out.detach()))
        return self.proj_drop(self.proj(self.norm(out.transpose(1, 2).flatten(2))))

    def _mask_heads(self, qkv: Tensor) -> Tensor:
        """Replace queries, keys and values of dead heads, in (B, L, 3, H, D), by zeros or by their biases."""
        if isinstance(self.gate_heads, nn.Identity):  # single weights are masked
            return qkv
        alive = self.gate_heads.alive.unsqueeze(-1)
        if self.dead_head == "zero" or self.qkv.bias is None:
            return qkv * alive.to(qkv.dtype)
        if self.gate_heads.is_open:
            return qkv
        return torch.where(alive, qkv, self.qkv.bias.view(3, self.num_heads, self.head_dim).to(qkv.dtype))

    @torch.no_grad()
    def _add_scores(self, output: Tensor, gradient: Tensor) -> None:
        """Add the scores of a batch; output and gradient are (B, H, L, D)."""
        gradient = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
        death = (output * gradient).sum(dim=(2, 3)).abs().sum(0)
        growth = gradient.abs().sum(dim=(0, 2, 3))
        self.scores = self.scores + torch.stack((death, growth))

    def death_scores(self) -> Tensor:
        """Return the scores (H,) by which heads die, the smallest first."""
        return self.scores[0]

    def growth_scores(self) -> Tensor:
        """Return the scores (H,) by which heads are regrown, the largest first."""
        return self.scores[1]

    @torch.no_grad()
    def clear_dead(self) -> None:
        """Set the q, k and v weights of dead heads to zero."""
        rows = self.gate_heads.alive.repeat_interleave(self.head_dim).repeat(3)
        self.qkv.weight.mul_(rows.unsqueeze(1))

    def deployed(self) -> Attention:
        """Return a plain layer with only the living heads; what dead ones put out joins the projection's bias."""
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
        if self.dead_head == "bias" and self.qkv.bias is not None:
            values = self.qkv.bias.chunk(3)[2]
            constant = self.proj.weight[:, ~channels] @ values[~channels]
            small.proj.bias = nn.Parameter(constant if self.proj.bias is None else self.proj.bias + constant)
        small.q_norm, small.k_norm, small.norm = self.q_norm, self.k_norm, self.norm
        small.fused_attn = self.fused_attn
        return small.train(self.training)


class GatedMlp(Mlp):
    """timm's Mlp with some dead hidden neurons."""

    gate_neurons: Gate

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, C) -> (B, L, C)."""
        x = self.drop1(self.act(self.fc1(x)))
        if not isinstance(self.gate_neurons, nn.Identity) and not self.gate_neurons.is_open:
            x = x * self.gate_neurons.alive.to(x.dtype)
        return self.drop2(self.fc2(self.norm(x)))

    def death_scores(self) -> Tensor:
        """Return the L1 norm (hidden,) of each neuron's weights in both linear layers; the smallest die."""
        return self.fc1.weight.detach().abs().sum(1) + self.fc2.weight.detach().abs().sum(0)

    def growth_scores(self) -> Tensor:
        """Return the L1 norm (hidden,) of the gradients of these weights; the largest are regrown."""
        return self.fc1.weight.grad.abs().sum(1) + self.fc2.weight.grad.abs().sum(0)

    @torch.no_grad()
    def clear_dead(self) -> None:
        """Set the weights of dead neurons to zero."""
        self.fc1.weight.mul_(self.gate_neurons.alive.unsqueeze(1))
        self.fc2.weight.mul_(self.gate_neurons.alive)

    def deployed(self) -> Mlp:
        """Return a plain layer with only the living neurons."""
        alive = self.gate_neurons.alive
        small = Mlp(self.fc1.in_features, int(alive.sum()), drop=self.drop1.p, device="meta")
        small.act, small.norm = self.act, self.norm
        small.fc1, small.fc2 = _cut(self.fc1, rows=alive), _cut(self.fc2, columns=alive)
        return small.train(self.training)


class GatedLinear(nn.Module):
    """A linear layer with some dead weights.

    It is no ``nn.Linear``, so that tools for linear layers (LoRA, int8) leave it as it is or refuse it:
    whatever they add to the weight would be masked, too. They take the model that ``deployed()`` returns.
    """

    gate_weights: Gate

    @classmethod
    def of(cls, linear: nn.Linear, share: float, **dd: Any) -> "GatedLinear":
        """Return the same layer with its own weights, masked."""
        gated = cls()
        gated.in_features, gated.out_features = linear.in_features, linear.out_features
        gated.weight, gated.bias = linear.weight, linear.bias
        gated.gate_weights = Gate(tuple(linear.weight.shape), share, **dd)
        return gated

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw new weights, as timm does for the linear layers of a Vision Transformer."""
        nn.init.trunc_normal_(self.weight, std=0.02)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        weight = self.weight
        if not self.gate_weights.is_open:
            weight = weight * self.gate_weights.alive.to(weight.dtype)
        return F.linear(x, weight, self.bias)

    def death_scores(self) -> Tensor:
        """Return the absolute values (out, in) of the weights; the smallest die."""
        return self.weight.detach().abs()

    def growth_scores(self) -> Tensor:
        """Return the absolute values (out, in) of the weights' gradients; the largest are regrown."""
        return self.weight.grad.abs()

    @torch.no_grad()
    def clear_dead(self) -> None:
        """Set dead weights to zero."""
        self.weight.mul_(self.gate_weights.alive)

    def deployed(self) -> nn.Linear:
        """Return a plain layer of the same size, dead weights as 0."""
        dense = _cut(self)
        dense.weight.mul_(self.gate_weights.alive)
        return dense


def kept_units(units: int, share: float) -> int:
    """Return how many of a layer's units live: the share of them, rounded down as in the authors' code.

    Raises:
        ValueError: for a share outside (0, 1], or one that leaves none.
    """
    kept = int(share * units)
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
    """Vision Transformer with some dead heads and neurons, or some dead single weights.

    Args (in addition to timm's):
        sparsity: "structured" (heads and neurons) or "unstructured" (weights of the blocks'
            linear layers).
        variant: "paper" (a dead head puts out zeros) or "official" (the authors' code: a dead head puts out
            its value bias); structured only.
        head_ratio: share of the heads that live in each layer (structured).
        neuron_ratio: share of the hidden neurons that live in each layer (structured).
        weight_ratio: share of the weights that live in each linear layer (unstructured).

    Raises:
        ValueError: for an unknown sparsity or variant, or a share that leaves a layer without units.
    """

    def __init__(
        self,
        *args: Any,
        sparsity: str = "structured",
        variant: str = "paper",
        head_ratio: float = 0.7,
        neuron_ratio: float = 0.6,
        weight_ratio: float = 0.5,
        **kwargs: Any,
    ):
        check_choice("sparsity", sparsity, SPARSITIES)
        check_choice("variant", variant, VARIANTS)
        super().__init__(*args, attn_layer=GatedAttention, mlp_layer=GatedMlp, **kwargs)
        dd = {"device": kwargs.get("device"), "dtype": kwargs.get("dtype")}
        for block in self.blocks:
            if sparsity == "structured":
                block.attn.gate_heads = Gate((block.attn.num_heads,), head_ratio, **dd)
                block.attn.dead_head = "bias" if variant == "official" else "zero"
                block.mlp.gate_neurons = Gate((block.mlp.fc1.out_features,), neuron_ratio, **dd)
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
        """Return each gate with the layer that has its units; none in a deployed model."""
        return [(gate, layer) for layer in self.modules() for gate in layer.children() if isinstance(gate, Gate)]

    def open_gates(self) -> None:
        """Let dead weights have a gradient in training; ``clear_dead`` must then precede every forward pass there."""
        for gate, _ in self.gated_layers():
            gate.opens_in_training = True

    def clear_dead(self) -> None:
        """Set the weights of all dead units to zero."""
        for _, layer in self.gated_layers():
            layer.clear_dead()

    def set_collecting(self, enable: bool) -> None:
        """Set whether backward passes score the heads, from zero."""
        for _, layer in self.gated_layers():
            if isinstance(layer, GatedAttention):
                layer.collecting = enable
                layer.scores = torch.zeros(2, layer.num_heads, device=layer.gate_heads.alive.device)

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


def load_official(
    model: SparseVisionTransformer, weights: Mapping[str, Tensor], heads: Tensor, neurons: Tensor
) -> None:
    """Load the authors' weights, which have the keys of a plain DeiT, and their masks.

    How many units of a layer live is from now on what the masks say. Weights of dead units become zero.

    Args:
        heads: which heads live (depth, H), 0 or 1.
        neurons: which hidden neurons live (depth, hidden), 0 or 1.

    Raises:
        ValueError: for a model without masks of heads and neurons, for masks of another shape or with other
            values, for one that leaves a layer without units, and for weights with missing, unexpected or
            misshapen keys, listing all of them; nothing is loaded then.
    """
    gates = {
        "heads": [getattr(block.attn, "gate_heads", None) for block in model.blocks],
        "neurons": [getattr(block.mlp, "gate_neurons", None) for block in model.blocks],
    }
    if not all(isinstance(gate, Gate) for gate in (*gates["heads"], *gates["neurons"])):
        raise ValueError(
            f"this {type(model).__name__} has no masks of heads and neurons: build a svite_* model with "
            "sparsity='structured', and load before deployed()"
        )
    masks = {"heads": torch.as_tensor(heads), "neurons": torch.as_tensor(neurons)}
    for name, mask in masks.items():
        shape = (len(gates[name]), gates[name][0].units)
        if tuple(mask.shape) != shape:
            raise ValueError(f"the mask of {name} is {tuple(mask.shape)}, needed {shape}: a row for each block")
        if not ((mask == 0) | (mask == 1)).all():
            raise ValueError(f"the mask of {name} holds values other than 0 and 1")
        without = (mask == 0).all(dim=1)
        if without.any():
            block = int(without.nonzero()[0])
            raise ValueError(f"the mask of {name} leaves none alive in block {block}: each block needs one")
    load_exactly(model, weights, fresh=model.fresh_keys)
    for name, mask in masks.items():
        for gate, alive in zip(gates[name], mask, strict=True):
            gate.alive.copy_(alive)
            gate.kept = int(alive.sum())
    model.clear_dead()


@register_task("svite")
class SViTETask(ClassificationTask):
    """Classification while a model's units are killed and regrown, until most of the training is done.

    An update follows the first step of an epoch, by the scores of that step's images and gradients: in each layer
    ceil(rate * alive) units die, then as many of all dead ones are regrown, those just killed included. A unit that
    is killed and regrown at once keeps its weights, any other regrown one starts from zero. The optimizer's
    moments stay as they are. The authors count steps between updates and not epochs; all else is theirs. A layer
    whose scores are not finite (fp16) keeps its units.

    Args (in addition to ClassificationTask's):
        rate: share of the living units that die in an update at the beginning of the training; it falls with a
            cosine over the whole training to ``RATE_FLOOR``.
        until: share of the training after which nothing changes any more.
        updates: updates in a training, evenly spread over the epochs before ``until``; at most one per epoch. The
            authors update T and S every 15,000 to 20,000 steps and B every 7,000: 80, 60 and 86 times in their
            600 epochs, so 40 times in 300.

    Raises:
        ValueError: for a model without gates, or a share outside [0, 1].
    """

    def __init__(
        self,
        model: nn.Module,
        *args: Any,
        rate: float = 0.5,
        until: float = 0.8,
        updates: int = 40,
        **kwargs: Any,
    ):
        super().__init__(model, *args, **kwargs)
        for name, share in (("rate", rate), ("until", until)):
            if not 0 <= share <= 1:
                raise ValueError(f"{name}={share} must lie in [0, 1]")
        if updates < 1:
            raise ValueError(f"updates={updates} must be at least 1")
        inner = unwrap_model(model)
        if not isinstance(inner, SparseVisionTransformer):
            raise ValueError(f"{type(inner).__name__} has no gates to move")
        self.rate = rate
        self.until = until
        self.updates = updates
        self._epoch = 0
        self._epochs = 0
        inner.open_gates()

    def forward(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Return the loss and the logits (B, num_classes) of images (B, 3, H, W)."""
        unwrap_model(self.trainable_module).clear_dead()  # the optimizer has changed them
        return super().forward(input, target)

    def start_epoch(self, epoch: int, epochs: int) -> None:
        """Note the ``epoch`` (from 0) of ``epochs``, which decide whether there is an update."""
        self._epoch = epoch
        self._epochs = epochs

    def update_epochs(self, epochs: int) -> list[int]:
        """Return the epochs with an update, evenly spread after the first and before ``until``."""
        last = max(math.ceil(self.until * epochs) - 1, 0)
        count = min(self.updates, last)
        return [(i + 1) * last // count for i in range(count)]

    def unreached(self, epochs: int) -> list[str]:
        """Return a sentence if a training of ``epochs`` has no epoch for some of the updates."""
        count = len(self.update_epochs(epochs))
        if count == self.updates:
            return []
        return [f"A training of {epochs} epochs makes {count} of SViTE's {self.updates} updates."]

    def rate_at(self, done: int, total: int) -> float:
        """Return the share of the living units that die after ``done`` of ``total`` steps."""
        return RATE_FLOOR + (self.rate - RATE_FLOOR) / 2 * (1 + math.cos(math.pi * done / total))

    def _updates_after(self, step: int) -> bool:
        return step == 0 and self._epoch in self.update_epochs(self._epochs)

    def start_step(self, step: int, steps: int) -> None:
        """Score the heads in a step that an update follows."""
        unwrap_model(self.trainable_module).set_collecting(self._updates_after(step))

    def end_step(self, step: int, steps: int) -> None:
        """Kill and regrow units by the step's scores, if it has an update."""
        if not self._updates_after(step):
            return
        model = unwrap_model(self.trainable_module)
        model.clear_dead()
        rate = self.rate_at(self._epoch * steps + 1, self._epochs * steps)
        for gate, layer in model.gated_layers():
            update(gate, layer, rate)
        model.set_collecting(False)


@torch.no_grad()
def update(gate: Gate, layer: nn.Module, rate: float) -> None:
    """Kill the units of a layer with the smallest death scores; regrow as many dead ones by their growth scores.

    The weights of units that were dead before must be zero.
    """
    scores = torch.stack((layer.death_scores().flatten(), layer.growth_scores().flatten()))
    if dist.is_initialized():  # every process scored the heads on its own images
        dist.all_reduce(scores)
    if not scores.isfinite().all():
        return
    death, growth = scores
    alive = gate.alive.flatten()
    count = math.ceil(rate * gate.kept)
    killed = death.masked_fill(~alive, torch.inf).argsort(stable=True)[:count]
    alive = alive.index_fill(0, killed, False)
    regrown = growth.masked_fill(alive, -torch.inf).argsort(descending=True, stable=True)[:count]
    alive = alive.index_fill(0, regrown, True)
    gate.alive.copy_(alive.view_as(gate.alive))


default_cfgs = generate_default_cfgs(
    {
        "svite_deit_tiny_patch16_224": pretrained_cfg(224),
        "svite_deit_small_patch16_224": pretrained_cfg(224),
        "svite_deit_base_patch16_224": pretrained_cfg(224),
    }
)


def _create(name: str, pretrained: bool, kwargs: dict[str, Any], sizes: dict[str, Any]) -> nn.Module:
    # "variant" is also the name of a parameter of timm's build_model_with_cfg
    model_cls = partial(SparseVisionTransformer, variant=kwargs.pop("variant", "paper"))
    return create_deit(model_cls, name, pretrained, kwargs, sizes)


@register_model
def svite_deit_tiny_patch16_224(pretrained: bool = False, **kwargs: Any) -> SparseVisionTransformer:
    """DeiT-T with 2 of 3 heads and 0.7 of the neurons."""
    sizes = {**TINY, "neuron_ratio": 0.7}
    return _create("svite_deit_tiny_patch16_224", pretrained, kwargs, sizes)


@register_model
def svite_deit_small_patch16_224(pretrained: bool = False, **kwargs: Any) -> SparseVisionTransformer:
    """DeiT-S with 4 of 6 heads and 0.6 of the neurons."""
    return _create("svite_deit_small_patch16_224", pretrained, kwargs, SMALL)


@register_model
def svite_deit_base_patch16_224(pretrained: bool = False, **kwargs: Any) -> SparseVisionTransformer:
    """DeiT-B with 8 of 12 heads and 0.6 of the neurons."""
    return _create("svite_deit_base_patch16_224", pretrained, kwargs, BASE)
