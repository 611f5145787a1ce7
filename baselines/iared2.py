"""IA-RED2 (Pan et al. 2021): interpreters that choose, image by image, which patches to keep.

Registered as ``ia_red2_deit_*``. The blocks stand in three groups; before each, an interpreter
scores the patches by multi-head products with the class token, and those at or below 0.5 are
dropped. ``iared2_task.IARED2Task`` trains the interpreters by REINFORCE.

No training code was released. Known: the groups, LayerNorm without affine, six heads, the mean
over heads of sigmoid(q_class . k * scale), times the previous policy, the threshold. Chosen here:
head width C / 6; fresh scores are about 0.73, so that training starts from the dense model;
inference gathers what each image keeps and pads to the longest in the batch,
masking the padding. ``keep_profile`` turns the threshold into fixed counts: throughput without
trained weights uses [0.8, 0.64, 0.512], chosen so that DeiT-B's MACs match the printed speed-up.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timm.models import checkpoint, generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from .deit import BASE, SMALL, TINY, create_deit, pretrained_cfg
from .iared2_layers import Interpreter, KeyMaskedAttention, MaskedBlock
from .weights import load_exactly

THRESHOLD = 0.5


class PolicyOutput(NamedTuple):
    """What REINFORCE needs of one group's interpreter; B images of N patches."""

    log_prob: Tensor  # (B,) of the sampled policy, sum over the patches present
    sampled: Tensor  # (B, N) who is kept by the sample
    greedy: Tensor  # (B, N) who is kept by the threshold
    sampled_logits: Tensor  # (B, num_classes), without gradient
    greedy_logits: Tensor


class InterpretedVisionTransformer(VisionTransformer):
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
        if not self.has_class_token or self.num_reg_tokens:
            raise ValueError("IA-RED2 needs the class token alone beside the patches")
        if keep_profile is not None:
            falling = all(a >= b for a, b in zip((1.0, *keep_profile), keep_profile, strict=False))
            if len(keep_profile) != len(self.groups) or not falling or min(keep_profile) <= 0:
                raise ValueError(
                    f"keep_profile={keep_profile} must hold a share per group, none above the last"
                )
        self.keep_profile = keep_profile
        self.acting: int | None = None  # in training: the first groups whose interpreters act
        self.exploring = False  # in training: sample the last of them
        dd = {"device": kwargs.get("device"), "dtype": kwargs.get("dtype")}
        self.interpreters = nn.ModuleList(
            Interpreter(self.embed_dim, interpreter_heads, **dd) for _ in self.groups
        )

    def embed(self, images: Tensor) -> Tensor:
        """Images to tokens (B, 1 + N, C) before the first group."""
        return self.norm_pre(self._pos_embed(self.patch_embed(images)))

    def run_group(self, group: int, x: Tensor, keys: Tensor | None) -> Tensor:
        """The blocks of a group on (B, L, C); keys (B, L) or None, where all count."""
        first = sum(self.groups[:group])
        recompute = self.grad_checkpointing and torch.is_grad_enabled()
        for block in self.blocks[first : first + self.groups[group]]:
            x = checkpoint(block, x, keys=keys) if recompute else block(x, keys=keys)
        return x

    def masked(self, images: Tensor) -> Tensor:
        """Normed tokens (B, 1 + N, C), dropped ones left out as keys: fixed shapes."""
        x = self.embed(images)
        kept = torch.ones(x.shape[0], x.shape[1] - 1, dtype=torch.bool, device=x.device)
        for group, interpreter in enumerate(self.interpreters):
            if not self.training or self.acting is None or group < self.acting:
                kept = self.choose(group, interpreter(x), kept)
            x = self.run_group(group, x, with_class(kept))
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
        count = max(1, int(self.keep_profile[group] * self.patch_embed.num_patches))
        best = scores.masked_fill(~kept, -1.0).topk(count, dim=1, sorted=False).indices
        return torch.zeros_like(kept).scatter(1, best, True)

    def forward_features(self, x: Tensor, attn_mask=None, is_causal=False) -> Tensor:
        """Images to normed tokens: all (B, 1 + N, C) in training, the class token and what is
        kept, padded to the longest image, (B, 1 + n, C) after it."""
        if attn_mask is not None or is_causal:
            raise ValueError("IA-RED2 drops tokens on the way: no attention masks")
        return self.masked(x) if self.training else self.gathered(x)[0]

    def forward(self, x: Tensor, attn_mask=None, is_causal=False) -> Any:
        """Logits; while exploring in training a PolicyOutput."""
        if self.training and self.exploring:
            return self.explore(x)
        return self.forward_head(self.forward_features(x, attn_mask, is_causal))

    def gathered(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Only kept tokens through the blocks: normed tokens, and per group how many (B,)."""
        x, counts = self.embed(images), []
        valid = torch.ones(x.shape[0], x.shape[1] - 1, dtype=torch.bool, device=x.device)
        for group, interpreter in enumerate(self.interpreters):
            valid = self.choose(group, interpreter(x), valid)
            counts.append(valid.sum(1))
            longest = self._longest(group, counts[-1])
            # the kept ones first, in raster order; what is left of shorter images is masked
            order = (~valid).to(torch.uint8).argsort(dim=1, stable=True)[:, :longest]
            rows = torch.arange(len(x), device=x.device).unsqueeze(1) * x.shape[1]
            rows = torch.cat((rows, rows + 1 + order), dim=1).flatten()
            x = x.flatten(0, 1).index_select(0, rows).view(len(x), 1 + longest, -1)
            valid = valid.gather(1, order)
            padded = self.keep_profile is None and bool((counts[-1] < longest).any())
            x = self.run_group(group, x, with_class(valid) if padded else None)
        return self.norm(x), counts

    def _longest(self, group: int, counts: Tensor) -> int:
        """Patches to run; with a profile known without asking the device."""
        if self.keep_profile is None:
            return int(counts.max())
        return max(1, int(self.keep_profile[group] * self.patch_embed.num_patches))

    def load_pretrained_dense(self, state_dict: Mapping[str, Tensor]) -> list[str]:
        """Load a plain DeiT; returns the keys that start fresh (the interpreters').

        Raises:
            ValueError: listing every missing, unexpected or misshapen key; nothing is loaded then.
        """
        return load_exactly(self, state_dict, fresh=("interpreters.",))

    def forward_intermediates(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError("IA-RED2 drops tokens: there are no feature maps")


def with_class(kept: Tensor) -> Tensor:
    """Keys (B, 1 + N): the class token always counts."""
    return F.pad(kept, (1, 0), value=True)


SIZES = {"tiny": TINY, "small": SMALL, "base": BASE}
NAMES = [f"ia_red2_deit_{size}_patch16_224" for size in SIZES]
NAMES.append("ia_red2_deit_base_patch16_384")
default_cfgs = generate_default_cfgs({name: pretrained_cfg(int(name[-3:])) for name in NAMES})


def _create(name: str, pretrained: bool, kwargs: dict[str, Any]) -> nn.Module:
    sizes = SIZES[name.split("_")[3]]
    return create_deit(InterpretedVisionTransformer, name, pretrained, kwargs, sizes)


@register_model
def ia_red2_deit_tiny_patch16_224(
    pretrained: bool = False, **kwargs: Any
) -> InterpretedVisionTransformer:
    """DeiT-T with interpreters."""
    return _create("ia_red2_deit_tiny_patch16_224", pretrained, kwargs)


@register_model
def ia_red2_deit_small_patch16_224(
    pretrained: bool = False, **kwargs: Any
) -> InterpretedVisionTransformer:
    """DeiT-S with interpreters."""
    return _create("ia_red2_deit_small_patch16_224", pretrained, kwargs)


@register_model
def ia_red2_deit_base_patch16_224(
    pretrained: bool = False, **kwargs: Any
) -> InterpretedVisionTransformer:
    """DeiT-B with interpreters."""
    return _create("ia_red2_deit_base_patch16_224", pretrained, kwargs)


@register_model
def ia_red2_deit_base_patch16_384(
    pretrained: bool = False, **kwargs: Any
) -> InterpretedVisionTransformer:
    """DeiT-B at 384 px with interpreters."""
    return _create("ia_red2_deit_base_patch16_384", pretrained, kwargs)
