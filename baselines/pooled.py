"""The sub-sampling of Table 4 on DeiT, registered as ``pooled_deit_*``.

The paper says only that DeiT-T is sub-sampled at the seventh layer, by average pooling, max pooling
or convolution. Its images/s say where: 1.460, 1.458 and 1.454 times the dense model's. After the seventh
layer (before block 7, counted from 0) the dense model's MACs over these are 1.460 (convolution: 1.448),
before it they would be 1.608. So at 224 px DeiT-T needs 0.859 G MACs (convolution: 0.866), dense 1.254.

Chosen here: 2 x 2 windows with stride 2, so that a 14 x 14 grid becomes 7 x 7; the class token passes
unchanged and DeiT's own head on it predicts. At an odd edge windows are smaller: averages and maxima
are those of the patches present, the convolution takes the missing ones as zeros. The convolution keeps
the width and starts as the average.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import get_device_dtype
from timm.models import checkpoint, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from evovit.features import pack_intermediates
from evovit.options import check_choice

from .deit import BASE, SMALL, TINY, DeitVariant, create_deit, pretrained_cfg
from .weights import complete_dense

POOLINGS = ("average", "max", "conv")


class PatchPool(nn.Module):
    """One token for each 2 x 2 window of the patch grid."""

    def __init__(self, pooling: str, dim: int, **dd: Any):
        super().__init__()
        self.pooling = pooling
        self.conv = None
        if pooling == "conv":
            self.conv = nn.Conv2d(dim, dim, 2, stride=2, **dd)
            self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Let the convolution start as the average of each window."""
        if self.conv is not None:
            eye = torch.eye(self.conv.in_channels).view(*self.conv.weight.shape[:2], 1, 1)
            self.conv.weight.copy_(eye.expand_as(self.conv.weight) / 4)
            nn.init.zeros_(self.conv.bias)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """Pool class token and patches (B, 1 + H * W, C) to (B, 1 + ceil(H / 2) * ceil(W / 2), C)."""
        patches = x[..., 1:, :].transpose(-2, -1)
        # not unflatten: torch's ONNX exporter would keep the example's batch size
        patches = patches.reshape(x.shape[0], x.shape[2], *grid)
        if self.conv is not None:
            patches = self.conv(F.pad(patches, (0, grid[1] % 2, 0, grid[0] % 2)))
        elif self.pooling == "max":
            patches = F.max_pool2d(patches, 2, ceil_mode=True)
        else:
            patches = F.avg_pool2d(patches, 2, ceil_mode=True, count_include_pad=False)
        return torch.cat((x[..., :1, :], patches.flatten(2).transpose(-2, -1)), dim=1)


class PooledVisionTransformer(DeitVariant):
    """Vision Transformer whose patch grid is sub-sampled once, before ``pool_block``.

    Args (in addition to timm's):
        pooling: "average", "max" or "conv".
        pool_block: block before which the grid shrinks, counted from 0; 7 is after the seventh layer.

    Raises:
        ValueError: for an unknown pooling, a block that does not exist, other prefix tokens than one
            class token, or a ``patch_drop_rate``.
    """

    fresh_keys = ("patch_pool.",)

    def __init__(self, *args: Any, pooling: str = "average", pool_block: int = 7, **kwargs: Any):
        super().__init__(*args, **kwargs)
        check_choice("pooling", pooling, POOLINGS)
        if not 0 <= pool_block < len(self.blocks):
            raise ValueError(f"pool_block={pool_block} must lie in 0..{len(self.blocks) - 1}")
        if not self.has_class_token or self.num_reg_tokens:
            raise ValueError(f"{type(self).__name__} needs one class token and no other prefix token")
        if kwargs.get("patch_drop_rate"):
            raise ValueError("patch_drop_rate drops tokens at random; pooling needs the whole grid")
        self.pool_block = pool_block
        self.patch_pool = PatchPool(pooling, self.embed_dim, **get_device_dtype(self))
        for info in self.feature_info[pool_block:]:
            info["reduction"] *= 2

    def _run(self, images: Tensor, end: int) -> tuple[Tensor, list[Tensor], list[tuple[int, int]]]:
        """Run the blocks before ``end``; return the last tokens, and each block's tokens and grid."""
        x = self.norm_pre(self._pos_embed(self.patch_embed(images)))
        grid = self.patch_embed.dynamic_feat_size(images.shape[-2:])
        recompute = self.grad_checkpointing and torch.is_grad_enabled()
        tokens, grids = [], []
        for index, block in zip(range(end), self.blocks, strict=False):
            if index == self.pool_block:
                x = self.patch_pool(x, grid)
                grid = tuple(-(-side // 2) for side in grid)
            x = checkpoint(block, x) if recompute else block(x)
            tokens.append(x)
            grids.append(grid)
        return x, tokens, grids

    def _refuse_masks(self, x: Tensor, attn_mask: Tensor | None, is_causal: bool) -> None:
        self.refuse_symbolic_tracing(x)
        if attn_mask is not None or is_causal:
            raise ValueError("pooled DeiT changes its tokens on the way: no attention masks")

    def forward_features(self, x: Tensor, attn_mask=None, is_causal=False) -> Tensor:
        """Return normed tokens (B, 1 + n, C) of images; n patches of the smaller grid."""
        self._refuse_masks(x, attn_mask, is_causal)
        return self.norm(self._run(x, len(self.blocks))[0])

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        output_dict: bool = False,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Any:
        """Return timm's intermediates; maps from ``pool_block`` on have half the resolution."""
        self._refuse_masks(x, attn_mask, is_causal)
        taken, last = feature_take_indices(len(self.blocks), indices)
        final, tokens, grids = self._run(x, last + 1 if stop_early else len(self.blocks))
        return pack_intermediates(
            [self.norm(tokens[i]) if norm else tokens[i] for i in taken],
            [grids[i] for i in taken],
            self.norm(final),
            output_fmt=output_fmt,
            return_prefix_tokens=return_prefix_tokens,
            intermediates_only=intermediates_only,
            output_dict=output_dict,
        )

    def prune_intermediate_layers(self, indices=1, prune_norm=False, prune_head=True) -> list[int]:
        """Remove what no block up to the last of ``indices`` needs; the pooling belongs to ``pool_block``."""
        taken = super().prune_intermediate_layers(indices, prune_norm, prune_head)
        if self.pool_block >= len(self.blocks):
            self.patch_pool = nn.Identity()
        return taken

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return timm's groups of parameters; the pooling counts with the block after it."""
        matcher = super().group_matcher(coarse)
        return {**matcher, "blocks": [*matcher["blocks"], (r"^patch_pool", (self.pool_block,))]}


default_cfgs = generate_default_cfgs(
    {
        "pooled_deit_tiny_patch16_224": pretrained_cfg(224),
        "pooled_deit_small_patch16_224": pretrained_cfg(224),
        "pooled_deit_base_patch16_224": pretrained_cfg(224),
    }
)


def _create(name: str, pretrained: bool, kwargs: dict[str, Any], sizes: dict[str, Any]) -> nn.Module:
    return create_deit(PooledVisionTransformer, name, pretrained, kwargs, sizes, complete_dense)


@register_model
def pooled_deit_tiny_patch16_224(pretrained: bool = False, **kwargs: Any) -> PooledVisionTransformer:
    """DeiT-T, sub-sampled after the seventh layer."""
    return _create("pooled_deit_tiny_patch16_224", pretrained, kwargs, TINY)


@register_model
def pooled_deit_small_patch16_224(pretrained: bool = False, **kwargs: Any) -> PooledVisionTransformer:
    """DeiT-S, sub-sampled after the seventh layer."""
    return _create("pooled_deit_small_patch16_224", pretrained, kwargs, SMALL)


@register_model
def pooled_deit_base_patch16_224(pretrained: bool = False, **kwargs: Any) -> PooledVisionTransformer:
    """DeiT-B, sub-sampled after the seventh layer."""
    return _create("pooled_deit_base_patch16_224", pretrained, kwargs, BASE)
