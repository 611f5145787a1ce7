"""Top-K and random dropping (Haurum et al. 2023, ICCV Workshops) on DeiT: ``topk_deit_*`` and ``random_deit_*``.

These are the plain baselines of token reduction. Between the attention and the MLP of blocks 3, 6 and 9 patches leave
for good: all but those to which the class token attends most (mean over the heads), or all but some drawn at random,
anew for each image and each block. No score passes a gradient. Training is plain classification.

Random numbers come from torch's global generator, also in evaluation: seed it to get the same patches again.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from timm.models import generate_default_cfgs, register_model
from torch import Tensor

from evovit.options import check_ratios

from .deit import BASE, SMALL, TINY, create_deit, pretrained_cfg
from .dropping import FeatureMaps, check_reduction_blocks
from .ranking import RankingTransformer


class TopKVisionTransformer(RankingTransformer):
    """Vision Transformer that keeps the patches to which the class token attends most."""

    def configure(
        self, *, keep_ratio: float | Sequence[float] = 0.7, reduction_blocks: Sequence[int] | None = None
    ) -> None:
        """Take the method's keywords.

        Args:
            keep_ratio: share of an image's patches that is left after each of the reduction blocks, rounded down to
                whole patches; a number r stands for r, r^2, r^3 and so on.
            reduction_blocks: blocks in which patches are dropped, counted from 0; None: those at a quarter, half and
                three quarters of the depth.

        Raises:
            ValueError: for a ratio outside (0, 1], ratios that increase, that keep no patch or are not as many as the
                blocks, and for blocks that do not ascend.
        """
        self.reduction_blocks = check_reduction_blocks(reduction_blocks, len(self.blocks))
        ratios = check_ratios("keep_ratio", keep_ratio)
        if isinstance(ratios, float):
            ratios = tuple(ratios ** (i + 1) for i in range(len(self.reduction_blocks)))
        self.keep_ratios = ratios
        if len(self.keep_ratios) != len(self.reduction_blocks):
            raise ValueError(
                f"keep_ratio={self.keep_ratios} has {len(self.keep_ratios)} entries for "
                f"{len(self.reduction_blocks)} reduction_blocks: give one for each, or a number"
            )
        if any(later > ratio for ratio, later in pairwise(self.keep_ratios)):
            raise ValueError(f"keep_ratio={self.keep_ratios} must not increase: a dropped patch does not come back")
        self._check_grid(self.patch_embed.num_patches)

    def _check_grid(self, patches: int) -> None:
        if int(patches * self.keep_ratios[-1]) < 1:
            raise ValueError(
                f"keep_ratio {self.keep_ratios[-1]:.3f} of {patches} patches "
                "keeps none in the last stage: use more patches or a higher keep_ratio"
            )

    def count_kept(self, block: int, present: int, patches: int) -> int:
        """Return how many of the patches that are ``present`` a block keeps: a share of all ``patches``."""
        if block not in self.reduction_blocks:
            return present
        return int(self.keep_ratios[self.reduction_blocks.index(block)] * patches)

    def embed(self, images: Tensor, maps: FeatureMaps | None = None) -> Tensor:
        """Return the tokens (B, P + N, C) of images (B, 3, H, W) before the first block."""
        x = super().embed(images, maps)
        if self.dynamic_img_size:
            self._check_grid(x.shape[1] - self.num_prefix_tokens)
        return x

    def set_input_size(self, *args: Any, **kwargs: Any) -> None:
        """Change the image size, as timm's method.

        Raises:
            ValueError: for a grid so small that the last reduction would keep no patch.
        """
        super().set_input_size(*args, **kwargs)
        self._check_grid(self.patch_embed.num_patches)


class RandomVisionTransformer(TopKVisionTransformer):
    """Vision Transformer that keeps as many patches as ``TopKVisionTransformer``, drawn at random."""

    def scores(self, x: Tensor) -> Tensor:
        """Return random numbers (B, n), whose highest say which patches of tokens x (B, P + n, C) stay."""
        return draw_scores(x, self.num_prefix_tokens)


def draw_scores(x: Tensor, prefix: int) -> Tensor:
    """Return numbers (B, n) from torch's global generator for tokens x (B, P + n, C), P the ``prefix``."""
    return torch.rand(x.shape[0], x.shape[1] - prefix, device=x.device)


default_cfgs = generate_default_cfgs(
    {
        f"{prefix}_deit_{size}_patch16_224": pretrained_cfg(224)
        for prefix in ("topk", "random")
        for size in ("tiny", "small", "base")
    }
)


@register_model
def topk_deit_tiny_patch16_224(pretrained: bool = False, **kwargs: Any) -> TopKVisionTransformer:
    """DeiT-T that keeps the most attended patches."""
    return create_deit(TopKVisionTransformer, "topk_deit_tiny_patch16_224", pretrained, kwargs, TINY)


@register_model
def topk_deit_small_patch16_224(pretrained: bool = False, **kwargs: Any) -> TopKVisionTransformer:
    """DeiT-S that keeps the most attended patches."""
    return create_deit(TopKVisionTransformer, "topk_deit_small_patch16_224", pretrained, kwargs, SMALL)


@register_model
def topk_deit_base_patch16_224(pretrained: bool = False, **kwargs: Any) -> TopKVisionTransformer:
    """DeiT-B that keeps the most attended patches."""
    return create_deit(TopKVisionTransformer, "topk_deit_base_patch16_224", pretrained, kwargs, BASE)


@register_model
def random_deit_tiny_patch16_224(pretrained: bool = False, **kwargs: Any) -> RandomVisionTransformer:
    """DeiT-T that keeps patches at random."""
    return create_deit(RandomVisionTransformer, "random_deit_tiny_patch16_224", pretrained, kwargs, TINY)


@register_model
def random_deit_small_patch16_224(pretrained: bool = False, **kwargs: Any) -> RandomVisionTransformer:
    """DeiT-S that keeps patches at random."""
    return create_deit(RandomVisionTransformer, "random_deit_small_patch16_224", pretrained, kwargs, SMALL)


@register_model
def random_deit_base_patch16_224(pretrained: bool = False, **kwargs: Any) -> RandomVisionTransformer:
    """DeiT-B that keeps patches at random."""
    return create_deit(RandomVisionTransformer, "random_deit_base_patch16_224", pretrained, kwargs, BASE)
