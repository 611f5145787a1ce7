"""What EViT, Top-K and random dropping share: patches leave between the attention and the MLP of some blocks.

These blocks rank the patches, by the class token's attention where a method has no scores of its own, and only the
best enter the MLP. EViT lets the others go on as one token.
"""

from typing import Any

import torch
from timm.models.vision_transformer import Block
from torch import Tensor

from evovit.deit import EvoAttention
from evovit.scores import patch_scores
from evovit.tokens import representative_token, select, take_tokens

from .dropping import FeatureMaps, TokenDroppingTransformer


class RankingBlock(Block):
    """timm's Block that can drop patches between its attention and its MLP."""

    def forward(
        self,
        x: Tensor,
        attn_mask=None,
        is_causal=False,
        keep: int | None = None,
        fuse: bool = False,
        scores: Tensor | None = None,
    ):
        """Return tokens (B, L, C); with ``keep`` only (B, 1 + keep, C), and the positions (B, keep) of what stays.

        Args:
            x: tokens (B, L, C), class token first.
            keep: number of patches that stay, in no order; None: all.
            fuse: add a last token, the sum of the dropped patches weighted by their scores.
            scores: what patches are ranked by (B, L - 1); None: the class token's attention, mean over the heads.
        """
        if keep is None:
            return super().forward(x, attn_mask=attn_mask, is_causal=is_causal)
        if scores is None:
            attended, row = self.attn(self.norm1(x), scores="class")
            scores = patch_scores(row, sums_heads=False, detached=not fuse)
        else:
            attended = self.attn(self.norm1(x))
        x = x + self.drop_path1(self.ls1(attended))
        kept = select(scores, keep)
        reduced = take_tokens(x, kept)
        if fuse:
            fused = representative_token(x, scores.scatter(1, kept, 0.0))
            reduced = torch.cat((reduced, fused), dim=1)
        return reduced + self.drop_path2(self.ls2(self.mlp(self.norm2(reduced)))), kept


class RankingTransformer(TokenDroppingTransformer):
    """A Vision Transformer that drops the patches of lowest rank in the middle of some blocks.

    A subclass defines ``count_kept``, and ``scores`` where class attention does not rank the patches.
    """

    fuse = False  # whether dropped patches become one token
    reduction_blocks: tuple[int, ...]

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, block_fn=RankingBlock, attn_layer=EvoAttention, **kwargs)

    def count_kept(self, block: int, present: int, patches: int) -> int:
        """Return how many of the tokens that are ``present`` block ``block`` keeps, without the class token.

        Args:
            block: counted from 0.
            present: number of tokens that enter the block.
            patches: number of patches of an image.
        """
        raise NotImplementedError

    def scores(self, x: Tensor) -> Tensor | None:
        """Return what ranks the patches (B, n) of tokens x (B, 1 + n, C); None: class attention does."""
        return None

    def forward_tokens(self, images: Tensor, maps: FeatureMaps | None = None) -> Tensor:
        """Return normed tokens (B, 1 + n, C) of images: the class token and what remains, in no order."""
        x = self.embed(images, maps)
        # int: torch.jit.trace gives a tensor, whose products with a ratio would be rounded to float32
        patches = int(x.shape[1]) - 1
        present = patches
        for index in range(len(self.blocks) if maps is None else maps.end):
            keep = self.count_kept(index, present, patches)
            if keep == present:
                x = self.run_block(index, x, maps)
            else:
                x = self.run_ranking_block(index, x, keep, maps)
                present = keep + 1 if self.fuse else keep
        return self.norm(x)

    def run_ranking_block(self, index: int, x: Tensor, keep: int, maps: FeatureMaps | None = None) -> Tensor:
        """Run a block on tokens (B, 1 + n, C), in which ``keep`` patches stay, and record the result in ``maps``."""
        # drawn here if at random, so that activations which are computed again belong to the same patches
        scores = self.scores(x)
        x, kept = self.call_block(index, x, keep=keep, fuse=self.fuse, scores=scores)
        if maps is not None:
            maps.keep(kept)
            if self.fuse:
                maps.append(x[..., -1:, :])
            maps.record(index, x)
        return x
