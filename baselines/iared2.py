"""IA-RED2 (Pan et al. 2021): interpreters that choose, image by image, which patches to keep.

Registered as ``ia_red2_deit_*``. The blocks stand in three groups; before each, an interpreter
scores the patches by multi-head products with the class token, and those at or below 0.5 are
dropped. ``iared2_task.IARED2Task`` trains the interpreters by REINFORCE.

No training code was released. Known: the groups, LayerNorm without affine, six heads, the mean
over heads of sigmoid(q_class . k * scale), times the previous policy, the threshold. Chosen here:
head width C / 6; fresh scores are about 0.73, so that training starts from the dense model;
inference gathers what each image keeps and pads to the longest in the batch,
masking the padding. Under a plain loss the interpreters get no gradient, since choosing has none:
their parameters require one only after ``set_training_outputs(True)``, which IARED2Task calls.
``keep_profile`` turns the threshold into fixed counts: throughput without
trained weights uses [0.8, 0.64, 0.512], chosen so that DeiT-B's MACs match the printed speed-up.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timm.models import checkpoint, generate_default_cfgs, register_model
from torch import Tensor, nn

from .deit import BASE, SMALL, TINY, create_deit, pretrained_cfg
from .dropping import FeatureMaps, TokenDroppingTransformer
from .iared2_layers import Interpreter, KeyMaskedAttention, MaskedBlock
from .weights import complete_dense, load_exactly

THRESHOLD = 0.5


VARYING = (
    "how many patches IA-RED2 keeps depends on the images: build the model with "
    "keep_profile=[0.8, 0.64, 0.512] (a share per group) to export or trace it, or to run it on "
    "the meta device"
)


class PolicyOutput(NamedTuple):
    """What REINFORCE needs of one group's interpreter; B images of N patches."""

    log_prob: Tensor  # (B,) of the sampled policy, sum over the patches present
    sampled: Tensor  # (B, N) who is kept by the sample
    greedy: Tensor  # (B, N) who is kept by the threshold
    sampled_logits: Tensor  # (B, num_classes), without gradient
    greedy_logits: Tensor


class InterpretedVisionTransformer(TokenDroppingTransformer):
    """Vision Transformer with an interpreter before each group of blocks.

    Args (beside timm's):
        groups: blocks per group.
        interpreter_heads: heads of each interpreter.
        keep_profile: share of all patches that each group keeps, the best of each image, instead
            of all above the threshold; None: the threshold.

    Raises:
        ValueError: for groups that are not the blocks, or a profile that rises or leaves nothing.
    """

    cost_varies = True  # from image to image
    fresh_keys = ("interpreters.",)  # that no plain DeiT has

    def __init__(
        self,
        *args: Any,
        groups: Sequence[int] | None = None,
        interpreter_heads: int = 6,
        keep_profile: Sequence[float] | None = None,
        **kwargs: Any,
    ):
        super().__init__(*args, block_fn=MaskedBlock, attn_layer=KeyMaskedAttention, **kwargs)
        depth = len(self.blocks)
        self.groups = tuple(groups or [depth // 3, depth // 3, depth - 2 * (depth // 3)])
        if sum(self.groups) != depth or min(self.groups) < 1:
            raise ValueError(f"groups={self.groups} must be positive and make up {depth} blocks")
        if keep_profile is not None:
            falling = all(a >= b for a, b in zip((1.0, *keep_profile), keep_profile, strict=False))
            if len(keep_profile) != len(self.groups) or not falling or min(keep_profile) <= 0:
                raise ValueError(f"keep_profile={keep_profile} must hold a share per group, none above the last")
        self.keep_profile = keep_profile
        self.acting: int | None = None  # in training: the first groups whose interpreters act
        self.exploring = False  # in training: sample the last of them
        dd = {"device": kwargs.get("device"), "dtype": kwargs.get("dtype")}
        self.interpreters = nn.ModuleList(Interpreter(self.embed_dim, interpreter_heads, **dd) for _ in self.groups)
        self.set_training_outputs(False)

    def set_training_outputs(self, enable: bool = True) -> None:
        """Set whether the interpreters' parameters require a gradient, which REINFORCE gives."""
        self.interpreters.requires_grad_(enable)

    def embed(self, images: Tensor) -> Tensor:
        """Images to tokens (B, 1 + N, C) before the first group."""
        return self.norm_pre(self._pos_embed(self.patch_embed(images)))

    def run_group(self, group: int, x: Tensor, keys: Tensor | None, maps: FeatureMaps | None = None) -> Tensor:
        """The blocks of a group on (B, L, C); keys (B, L) or None, where all count."""
        first = sum(self.groups[:group])
        end = first + self.groups[group]
        recompute = self.grad_checkpointing and torch.is_grad_enabled()
        for index in range(first, end if maps is None else min(end, maps.end)):
            block = self.blocks[index]
            x = checkpoint(block, x, keys=keys) if recompute else block(x, keys=keys)
            if maps is not None:
                maps.record(index, x, keys)
        return x

    def masked(self, images: Tensor, maps: FeatureMaps | None = None) -> Tensor:
        """Normed tokens (B, 1 + N, C), dropped ones left out as keys: fixed shapes."""
        x = self.embed(images)
        if maps is not None:
            maps.start(x)
        kept = torch.ones(x.shape[0], x.shape[1] - 1, dtype=torch.bool, device=x.device)
        for group, interpreter in enumerate(self.interpreters):
            if not self.training or self.acting is None or group < self.acting:
                kept = self.choose(group, interpreter(x), kept)
            x = self.run_group(group, x, with_class(kept), maps)
        return self.norm(x)

    def explore(self, images: Tensor) -> PolicyOutput:
        """Sample the policy of the last acting group; only its interpreter gets a gradient."""
        last = self.acting - 1
        with torch.no_grad():
            x = self.embed(images)
            kept = torch.ones(x.shape[0], x.shape[1] - 1, dtype=torch.bool, device=x.device)
            for group in range(last):
                kept = self.choose(group, self.interpreters[group](x), kept)
                x = self.run_group(group, x, with_class(kept))
        scores = self.interpreters[last](x)
        sampled = torch.bernoulli(scores.detach()).bool() & kept
        greedy = self.choose(last, scores.detach(), kept)
        log_prob = torch.where(sampled, scores, 1 - scores).clamp_min(1e-6).log()
        logits = []
        with torch.no_grad():
            for policy in (sampled, greedy):
                rest = x
                for group in range(last, len(self.groups)):
                    rest = self.run_group(group, rest, with_class(policy))
                logits.append(self.forward_head(self.norm(rest)))
        return PolicyOutput((log_prob * kept).sum(1), sampled, greedy, *logits)

    def choose(self, group: int, scores: Tensor, kept: Tensor) -> Tensor:
        """Who is kept (B, N) after the scores (B, N) of a group, of those kept before."""
        if self.keep_profile is None:
            return (scores > THRESHOLD) & kept
        best = self._best(group, scores.masked_fill(~kept, -1.0), scores.shape[1])
        return torch.zeros_like(kept).scatter(1, best, True)

    def _best(self, group: int, scores: Tensor, total: int) -> Tensor:
        """Positions (B, k), in raster order, of the best scores (B, n) by the profile's share."""
        count = max(1, int(self.keep_profile[group] * total))
        return scores.topk(count, dim=1, sorted=False).indices.sort(dim=1).values

    def forward_tokens(self, images: Tensor, maps: FeatureMaps | None = None) -> Tensor:
        """Images to normed tokens: all (B, 1 + N, C) in training, the class token and what is
        kept, padded to the longest image, (B, 1 + n, C) after it."""
        return self.masked(images, maps) if self.training else self.gathered(images, maps)[0]

    def forward(self, x: Tensor, attn_mask=None, is_causal=False) -> Any:
        """Logits; while exploring in training a PolicyOutput."""
        if self.training and self.exploring:
            self.check_inputs(x, attn_mask, is_causal)
            return self.explore(x)
        return self.forward_head(self.forward_features(x, attn_mask, is_causal))

    def gathered(self, images: Tensor, maps: FeatureMaps | None = None) -> tuple[Tensor, list[Tensor]]:
        """Only kept tokens through the blocks: normed tokens, and per group how many (B,).

        Raises:
            NotImplementedError: without ``keep_profile``, where the number of tokens has to be
                known before the images are: in an export or a trace, or on the meta device.
        """
        x, counts = self.embed(images), []
        if maps is not None:
            maps.start(x)
        batch, length, channels = x.shape
        first = torch.arange(batch, device=x.device).unsqueeze(1)
        valid = torch.ones(batch, length - 1, dtype=torch.bool, device=x.device)
        for group, interpreter in enumerate(self.interpreters):
            scores = interpreter(x)
            if self.keep_profile is None:
                valid = self.choose(group, scores, valid)
                counts.append(valid.sum(1))
                order = self._kept_first(valid, counts[-1])
                valid = valid.gather(1, order)
                keys = with_class(valid) if bool((counts[-1] < order.shape[1]).any()) else None
            else:
                order, keys = self._best(group, scores, length - 1), None
                counts.append(order.new_full((batch,), order.shape[1]))
            rows = torch.cat((torch.zeros_like(first), 1 + order), dim=1)
            if maps is not None:
                maps.keep(rows)
            rows = (rows + first * x.shape[1]).flatten()
            x = x.flatten(0, 1).index_select(0, rows).view(batch, 1 + order.shape[1], channels)
            x = self.run_group(group, x, keys, maps)
        return self.norm(x), counts

    def _kept_first(self, valid: Tensor, counts: Tensor) -> Tensor:
        """Positions (B, n) of the kept patches in raster order, then of what pads shorter images.

        n is the largest of the counts (B,), so it depends on the images.
        """
        if valid.is_meta or torch.jit.is_tracing() or torch.compiler.is_exporting():
            if torch.compiler.is_dynamo_compiling():  # it reports this message, but no exception's
                torch._dynamo.graph_break(msg=VARYING)
            raise NotImplementedError(VARYING)
        longest = int(counts.max()) if len(counts) else 0
        return (~valid).to(torch.uint8).argsort(dim=1, stable=True)[:, :longest]

    def prune_intermediate_layers(self, indices=1, prune_norm=False, prune_head=True) -> list[int]:
        """Remove what no block up to the last of ``indices`` needs, as timm's method."""
        taken = super().prune_intermediate_layers(indices, prune_norm, prune_head)
        groups, rest = [], len(self.blocks)
        for count in self.groups:
            if rest > 0:
                groups.append(min(count, rest))
            rest -= count
        self.groups = tuple(groups)
        self.interpreters = self.interpreters[: len(groups)]
        return taken

    def load_pretrained_dense(self, state_dict: Mapping[str, Tensor]) -> list[str]:
        """Load a plain DeiT; returns the keys that start fresh (the interpreters').

        Raises:
            ValueError: listing every missing, unexpected or misshapen key; nothing is loaded then.
        """
        return load_exactly(self, state_dict, fresh=self.fresh_keys)


def with_class(kept: Tensor) -> Tensor:
    """Keys (B, 1 + N): the class token always counts."""
    return F.pad(kept, (1, 0), value=True)


SIZES = {"tiny": TINY, "small": SMALL, "base": BASE}
NAMES = [f"ia_red2_deit_{size}_patch16_224" for size in SIZES]
NAMES.append("ia_red2_deit_base_patch16_384")
default_cfgs = generate_default_cfgs({name: pretrained_cfg(int(name[-3:])) for name in NAMES})


def _create(name: str, pretrained: bool, kwargs: dict[str, Any]) -> nn.Module:
    sizes = SIZES[name.split("_")[3]]
    return create_deit(InterpretedVisionTransformer, name, pretrained, kwargs, sizes, complete_dense)


@register_model
def ia_red2_deit_tiny_patch16_224(pretrained: bool = False, **kwargs: Any) -> InterpretedVisionTransformer:
    """DeiT-T with interpreters."""
    return _create("ia_red2_deit_tiny_patch16_224", pretrained, kwargs)


@register_model
def ia_red2_deit_small_patch16_224(pretrained: bool = False, **kwargs: Any) -> InterpretedVisionTransformer:
    """DeiT-S with interpreters."""
    return _create("ia_red2_deit_small_patch16_224", pretrained, kwargs)


@register_model
def ia_red2_deit_base_patch16_224(pretrained: bool = False, **kwargs: Any) -> InterpretedVisionTransformer:
    """DeiT-B with interpreters."""
    return _create("ia_red2_deit_base_patch16_224", pretrained, kwargs)


@register_model
def ia_red2_deit_base_patch16_384(pretrained: bool = False, **kwargs: Any) -> InterpretedVisionTransformer:
    """DeiT-B at 384 px with interpreters."""
    return _create("ia_red2_deit_base_patch16_384", pretrained, kwargs)
