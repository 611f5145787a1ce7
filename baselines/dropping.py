"""What the methods that drop patches share: one timm interface, and feature maps of the whole grid.

A dropped patch keeps its last value in a feature map: the one it had after the last block that
updated it.
"""

from collections.abc import Sequence
from typing import Any

import torch
from timm.models._features import feature_take_indices
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from evovit.features import NoSymbolicGraph, TokenPooling, pack_intermediates


class FeatureMaps:
    """Collects the tokens of the whole grid after chosen blocks while a model drops patches.

    Args:
        blocks: the chosen blocks, counted from 0.
        end: the block before which the forward pass may stop.
    """

    def __init__(self, blocks: Sequence[int], end: int):
        self.blocks, self.end = frozenset(blocks), end
        self.maps: list[Tensor] = []  # (B, 1 + N, C) for each chosen block
        self._grid: Tensor | None = None  # the last value of every token
        self._positions: Tensor | None = None  # (B, 1 + n) or (1, 1 + n) in the grid; None: all

    def start(self, tokens: Tensor) -> None:
        """Note the embedded tokens (B, 1 + N, C), class token first."""
        self._grid = tokens

    def keep(self, rows: Tensor) -> None:
        """Note that only the tokens at ``rows`` (B, k) or (k,) of those present stay."""
        rows = rows.view(-1, rows.shape[-1])
        if self._positions is not None:
            rows = self._positions.expand(len(rows), -1).gather(1, rows)
        self._positions = rows

    def record(self, block: int, tokens: Tensor, valid: Tensor | None = None) -> None:
        """Note the tokens (B, L, C) after a block; those where ``valid`` (B, L) is False are gone.

        A gone token is there for the shape of the batch alone, so its value does not count.
        """
        grid = self._grid
        tokens = tokens.to(grid.dtype)
        if self._positions is None:
            self._grid = tokens if valid is None else torch.where(valid[..., None], tokens, grid)
        else:
            index = self._positions.unsqueeze(2).expand(tokens.shape)
            if valid is not None:
                tokens = torch.where(valid[..., None], tokens, grid.gather(1, index))
            self._grid = grid.scatter(1, index, tokens)
        if block in self.blocks:
            self.maps.append(self._grid)


class TokenDroppingTransformer(NoSymbolicGraph, TokenPooling, VisionTransformer):
    """A Vision Transformer that drops patches on the way and predicts from its class token.

    A subclass defines ``forward_tokens``.

    Raises:
        ValueError: for a model without the class token or with tokens beside it, another pooling,
            or timm's random dropping of patches.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if not self.has_class_token or self.num_reg_tokens:
            raise ValueError(f"{type(self).__name__} needs one class token beside the patches")
        if not isinstance(self.patch_drop, nn.Identity):
            raise ValueError(
                f"patch_drop_rate={self.patch_drop.prob}: {type(self).__name__} chooses itself "
                "which patches it drops; leave patch_drop_rate out"
            )
        self._check_pool(self.global_pool)

    def _check_pool(self, global_pool: str) -> None:
        if global_pool not in ("token", ""):
            raise ValueError(
                f"global_pool={global_pool!r}: {type(self).__name__} predicts from its class "
                "token; use global_pool='token', or '' for the tokens themselves"
            )

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Make a new classifier, as timm's method; the pooling stays the class token or none."""
        if global_pool is not None:
            self._check_pool(global_pool)
        super().reset_classifier(num_classes, global_pool)

    def forward_tokens(self, images: Tensor, maps: FeatureMaps | None = None) -> Tensor:
        """Images (B, 3, H, W) to normed tokens (B, 1 + n, C); fills ``maps`` on the way."""
        raise NotImplementedError

    def forward_features(self, x: Tensor, attn_mask=None, is_causal=False) -> Tensor:
        """Images to normed tokens (B, 1 + n, C): the class token and the patches that remain."""
        self.check_inputs(x, attn_mask, is_causal)
        return self.forward_tokens(x)

    def forward_intermediates(
        self, x: Tensor, indices=None, return_prefix_tokens=False, norm=False, stop_early=False,
        output_fmt="NCHW", intermediates_only=False, output_dict=False, attn_mask=None,
        is_causal=False,
    ) -> Any:  # fmt: skip
        """Return timm's intermediates, over the whole grid: (B, C, H, W), or (B, N, C) as "NLC".

        A dropped patch keeps its last value. Arguments and results are those of timm's method.

        Raises:
            ValueError: for another ``output_fmt``, or an attention mask.
        """
        self.check_inputs(x, attn_mask, is_causal)
        taken, last = feature_take_indices(len(self.blocks), indices)
        maps = FeatureMaps(taken, last + 1 if stop_early else len(self.blocks))
        tokens = self.forward_tokens(x, maps)
        grid = self.patch_embed.dynamic_feat_size(x.shape[-2:])
        return pack_intermediates(
            [self.norm(features) if norm else features for features in maps.maps],
            [grid] * len(maps.maps),
            tokens,
            output_fmt=output_fmt,
            return_prefix_tokens=return_prefix_tokens,
            intermediates_only=intermediates_only,
            output_dict=output_dict,
        )

    def check_inputs(self, images: Any, attn_mask: Any, is_causal: Any) -> None:
        """Refuse what the model can't do with its inputs.

        Raises:
            NotImplementedError: while torch.fx traces the model.
            ValueError: for an attention mask.
        """
        self.refuse_symbolic_tracing(images)
        if attn_mask is not None or is_causal:
            raise ValueError(f"{type(self).__name__} drops patches on the way: leave out attn_mask and is_causal")
