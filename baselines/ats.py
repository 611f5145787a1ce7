"""ATS (Fayyaz et al. 2022, ECCV): adaptive token sampling in chosen blocks, image by image.

Registered as ``ats_deit_*``. It has no parameters of its own. In a sampling block the class token's attention,
times the norm of the values, scores the patches. The cumulative sum of the scores is sampled at even steps, and
only the sampled patches are queries of the attention; all present ones are its keys. How many different patches
the steps hit depends on the image.

As the authors' code has it: scores ascend before they are summed, so that the least patch is never sampled; there
are as many sample points as the image had patches at first; and where the largest sampled rank is 1, it is lost,
so that of two patches none stays. Chosen here: an image's result does not depend on its batch (in the authors'
code the padding of shorter images enters the sum), and the softmax has no 1e-6 added. Training samples and gathers
as inference does; the choice itself has no gradient. ``keep_profile`` turns the sampling into fixed counts, for a
measurement before anything is trained: fresh weights attend to all patches alike, so that nearly all stay.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timm.models import checkpoint, generate_default_cfgs, register_model
from torch import Tensor

from evovit.options import check_ratios
from evovit.tokens import class_attention, take_tokens

from .deit import BASE, SMALL, TINY, create_deit, pretrained_cfg
from .dropping import (
    AnyHostTransformer,
    FeatureMaps,
    check_reduction_blocks,
    kept_first,
)
from .iared2 import KeyMaskedAttention, MaskedBlock, with_class

COUNTS_VARY = (
    "how many patches ATS keeps depends on the images: give keep_profile=[0.7, 0.49, 0.343] (a share of the patches "
    "for each sampling block) to export or trace a model, or to run it on the meta device"
)


class Sampled(NamedTuple):
    """What an attention or a block that samples makes of tokens (B, P + n, C)."""

    tokens: Tensor  # (B, P + k, C), padded to the longest image
    kept: Tensor  # (B, k) positions, among the n patches, of all these tokens but the P before the patches
    keys: Tensor | None  # (B, P + k) which of these tokens are no padding; None: all


def sample_ranks(scores: Tensor, points: int, loses_pairs: bool = True) -> Tensor:
    """Return which ranks (B, n) of the scores inverse transform sampling hits.

    Args:
        scores: at least 0 and ascending (B, n); zeros after an image's largest score are padding, never hit.
        points: how many sample points there are, evenly from the least positive value of the cumulative
            sum, scaled to begin with 0 and end with 1, to 1.
        loses_pairs: a rank of 1 is lost where it is the largest that is hit, as in the authors' code.
    """
    total = scores.cumsum(1)
    total = total - total[:, :1]
    total = total / total[:, -1:].clamp_min(torch.finfo(total.dtype).tiny)
    start = total.masked_fill(total == 0, 1.0).amin(1, keepdim=True)
    wanted = start + (1 - start) * torch.linspace(0, 1, points, dtype=total.dtype, device=total.device)

    last = total.shape[1] - 1
    upper = torch.searchsorted(total, wanted).clamp_max(last)
    lower = (upper - 1).clamp_min(0)
    above = total.gather(1, upper)
    below = total.gather(1, lower)
    nearest = torch.where(wanted - below <= (above - wanted).abs(), below, above)
    # Of equal values the first counts; so padding, which repeats the last patch's value, is never hit.
    ranks = torch.searchsorted(total, nearest).clamp_max(last)  # NaN would be past the end
    hit = torch.zeros_like(total, dtype=torch.bool).scatter(1, ranks, True)
    if not loses_pairs:
        return hit
    lost = (torch.arange(last + 1, device=ranks.device) == 1) & (ranks.amax(1, keepdim=True) == 1)
    return hit & ~lost


class Sampling(NamedTuple):
    """How a block chooses the patches that stay."""

    points: int  # how many sample points there are
    best: int | None  # how many of the best scores stay instead of those sampled; None: those sampled
    prefix: int = 1  # number P of tokens before the patches, which always stay
    loses_pairs: bool = True  # see sample_ranks


class SamplingAttention(KeyMaskedAttention):
    """timm's Attention that can leave out keys and sample its queries."""

    def forward(
        self, x: Tensor, attn_mask=None, is_causal=False, keys: Tensor | None = None, sampling: Sampling | None = None
    ):
        """(B, L, C) -> (B, L, C), or -> Sampled with ``sampling``."""
        if sampling is None:
            return super().forward(x, attn_mask, is_causal, keys)
        q, k, v = self.qkv(x).chunk(3, dim=2)
        k = self.k_norm(k.unflatten(2, (self.num_heads, self.head_dim)))
        # detached: FLOP counters refuse views that were made of these without gradients
        kept, keys_next = self.choose(q.detach(), k.detach(), v.detach(), keys, sampling)
        q = self.q_norm(take_tokens(q, kept, sampling.prefix).unflatten(2, (self.num_heads, self.head_dim)))
        v = v.unflatten(2, (self.num_heads, self.head_dim))
        out = self.attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), keys)
        out = self.norm(out.transpose(1, 2).flatten(2))
        return Sampled(self.proj_drop(self.proj(out)), kept, keys_next)

    @torch.no_grad()
    def choose(
        self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor | None, sampling: Sampling
    ) -> tuple[Tensor, Tensor | None]:
        """Return ``kept`` and ``keys`` of Sampled.

        Args:
            q: queries of all tokens (B, L, C), the patches last.
            k: keys, by head (B, L, H, D).
            v: values, as the queries.
            keys: which tokens are no padding (B, L); None: all.
        """
        prefix = sampling.prefix
        scores = self.significance(q, k, v, keys, prefix)
        if sampling.best is not None:
            return scores.topk(sampling.best, dim=1).indices, None
        if keys is None:
            ranked, order = scores.sort(dim=1)
            hit = sample_ranks(ranked, sampling.points, sampling.loses_pairs)
        else:
            present = keys.narrow(1, prefix, keys.shape[1] - prefix)
            order = scores.masked_fill(~present, torch.inf).argsort(dim=1)
            present = present.gather(1, order)
            ranked = scores.gather(1, order).masked_fill(~present, 0.0)
            hit = sample_ranks(ranked, sampling.points, sampling.loses_pairs) & present
        counts = hit.sum(1)
        first = kept_first(hit, counts, COUNTS_VARY)
        if bool((counts == first.shape[1]).all()):
            return order.gather(1, first), None
        return order.gather(1, first), with_class(hit.gather(1, first), prefix)

    def significance(self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor | None, prefix: int = 1) -> Tensor:
        """Return scores (B, L - P) of the patches, in float32 at least, from the arguments of ``choose``.

        They are the class token's attention, summed over the heads, times the norm of the value of all heads.
        """
        query = self.q_norm(q.select(1, 0).unflatten(1, (self.num_heads, self.head_dim)))
        attention = class_attention(query, k.flatten(2), self.scale)
        if keys is not None:
            attention = attention.masked_fill(~keys.unsqueeze(1), 0.0)
            attention = attention / attention.sum(2, keepdim=True)
        norms = torch.linalg.vector_norm(v, dim=2, dtype=attention.dtype)
        return (attention.sum(1) * norms).narrow(1, prefix, norms.shape[1] - prefix)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor | None) -> Tensor:
        """Return the attention (B, H, M, D) of queries (B, H, M, D) to keys and values (B, H, L, D)."""
        mask = None if keys is None else keys[:, None, None, :]
        if self.fused_attn:
            dropout = self.attn_drop.p if self.training else 0.0
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        logits = (q * self.scale) @ k.transpose(-2, -1)
        if mask is not None:
            logits = logits.masked_fill(~mask, -torch.inf)
        return self.attn_drop(logits.softmax(dim=-1)) @ v


class SamplingBlock(MaskedBlock):
    """timm's Block whose attention can leave out keys and sample its queries."""

    def forward(
        self, x: Tensor, attn_mask=None, is_causal=False, keys: Tensor | None = None, sampling: Sampling | None = None
    ):
        """(B, L, C) -> (B, L, C), or -> Sampled with ``sampling``."""
        if sampling is None:
            return super().forward(x, attn_mask, is_causal, keys)
        out = self.attn(self.norm1(x), keys=keys, sampling=sampling)
        x = take_tokens(x, out.kept, sampling.prefix) + self.drop_path1(self.ls1(out.tokens))
        x = x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))
        return Sampled(x, out.kept, out.keys)


class AdaptiveSamplingVisionTransformer(AnyHostTransformer):
    """Vision Transformer whose chosen blocks sample the patches that stay.

    Where the patches are pooled, each image keeps one at least, and its padding is the mean of what is pooled.
    """

    block_cls = SamplingBlock
    attn_cls = SamplingAttention
    cost_varies = True  # from image to image
    near_ties = True  # fresh models score patches much alike: rounding decides which are sampled

    def configure(
        self, *, reduction_blocks: Sequence[int] | None = None, keep_profile: Sequence[float] | None = None
    ) -> None:
        """Take the method's keywords.

        Args:
            reduction_blocks: blocks that sample, counted from 0; None: those at a quarter, half and three quarters of
                the depth.
            keep_profile: share of all patches that each of these blocks keeps, the best of each image, instead of
                those that are sampled.

        Raises:
            ValueError: for blocks that do not ascend or that the model does not have, for a profile of another
                length, with a share outside (0, 1] or one above the share before it, and without a profile for a
                host whose attention pools the patches.
        """
        self.reduction_blocks = check_reduction_blocks(reduction_blocks, len(self.blocks))
        self.keep_profile = None
        if keep_profile is not None:
            shares = check_ratios("keep_profile", keep_profile)
            self.keep_profile = (shares,) if isinstance(shares, float) else shares
            falls = all(later <= share for share, later in pairwise(self.keep_profile))
            if len(self.keep_profile) != len(self.reduction_blocks) or not falls:
                raise ValueError(
                    f"keep_profile={self.keep_profile} must hold a share for each of {len(self.reduction_blocks)} "
                    "reduction_blocks, none above the one before it"
                )
        elif self.attn_pool is not None:
            raise ValueError(
                f"global_pool={self.global_pool!r}: its attention would also pool the padding of images that keep "
                "fewer patches than others; give keep_profile, a share of the patches for each sampling block"
            )

    def forward_tokens(self, images: Tensor, maps: FeatureMaps | None = None) -> Tensor:
        """Return normed tokens (B, P + k, C) of images: those before the patches and the sampled patches, by
        ascending score of the last sampling, padded to the longest image.

        Raises:
            NotImplementedError: in an export or a trace, or on the meta device, where no image says how
                many patches stay.
        """
        x = self.embed(images, maps)
        prefix = self.num_prefix_tokens
        points = x.shape[1] - prefix
        keys = None
        for index in range(len(self.blocks) if maps is None else maps.end):
            if index in self.reduction_blocks and x.shape[1] > prefix:
                count = None
                if self.keep_profile is not None:
                    count = max(1, int(self.keep_profile[self.reduction_blocks.index(index)] * points))
                sampling = Sampling(points, count, prefix, loses_pairs=not self.pools_patches)
                x, keys = self.run_sampling_block(index, x, keys, sampling, maps)
            else:
                x = self.run_block(index, x, maps, keys, keys=keys)
        x = self.norm(x)
        if keys is not None and self.pools_patches:
            x = fill_padding(x, keys, 0 if self.pool_include_prefix else prefix)
        return x

    def run_sampling_block(
        self, index: int, x: Tensor, keys: Tensor | None, sampling: Sampling, maps: FeatureMaps | None
    ) -> tuple[Tensor, Tensor | None]:
        """Run a block that samples on tokens (B, L, C), and return its tokens (B, P + k, C) and their keys."""
        block = self.blocks[index]
        if self.grad_checkpointing and torch.is_grad_enabled():
            sampled = checkpoint(block, x, keys=keys, sampling=sampling)
        else:
            sampled = block(x, keys=keys, sampling=sampling)
        if maps is not None:
            maps.keep(sampled.kept)
            maps.record(index, sampled.tokens, sampled.keys)
        return sampled.tokens, sampled.keys

    def from_official(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the authors' weights under our keys: without ``out_zero_mask``, parameters that stay zero."""
        return {key: value for key, value in state_dict.items() if not key.endswith(".out_zero_mask")}

    def prune_intermediate_layers(self, indices=1, prune_norm=False, prune_head=True) -> list[int]:
        """Remove what no block up to the last of ``indices`` needs, as timm's method."""
        taken = super().prune_intermediate_layers(indices, prune_norm, prune_head)
        self.reduction_blocks = tuple(block for block in self.reduction_blocks if block < len(self.blocks))
        if self.keep_profile is not None:
            self.keep_profile = self.keep_profile[: len(self.reduction_blocks)]
        return taken


def fill_padding(x: Tensor, keys: Tensor, first: int) -> Tensor:
    """Return tokens (B, L, C) whose padding is the mean of the image's others, which changes no mean or maximum.

    Args:
        keys: which of the tokens are no padding (B, L).
        first: where those that count in the mean begin.
    """
    length = x.shape[1] - first
    counts = keys.narrow(1, first, length).unsqueeze(2).to(torch.promote_types(x.dtype, torch.float32))
    mean = (x.narrow(1, first, length) * counts).sum(1, keepdim=True) / counts.sum(1, keepdim=True)
    return torch.where(keys.unsqueeze(2), x, mean.to(x.dtype))


default_cfgs = generate_default_cfgs(
    {
        "ats_deit_tiny_patch16_224": pretrained_cfg(224),
        "ats_deit_small_patch16_224": pretrained_cfg(224),
        "ats_deit_base_patch16_224": pretrained_cfg(224),
    }
)


@register_model
def ats_deit_tiny_patch16_224(pretrained: bool = False, **kwargs: Any) -> AdaptiveSamplingVisionTransformer:
    """ATS on DeiT-T at 224 px."""
    return create_deit(AdaptiveSamplingVisionTransformer, "ats_deit_tiny_patch16_224", pretrained, kwargs, TINY)


@register_model
def ats_deit_small_patch16_224(pretrained: bool = False, **kwargs: Any) -> AdaptiveSamplingVisionTransformer:
    """ATS on DeiT-S at 224 px."""
    return create_deit(AdaptiveSamplingVisionTransformer, "ats_deit_small_patch16_224", pretrained, kwargs, SMALL)


@register_model
def ats_deit_base_patch16_224(pretrained: bool = False, **kwargs: Any) -> AdaptiveSamplingVisionTransformer:
    """ATS on DeiT-B at 224 px."""
    return create_deit(AdaptiveSamplingVisionTransformer, "ats_deit_base_patch16_224", pretrained, kwargs, BASE)
