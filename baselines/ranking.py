"""What EViT, Top-K and random dropping share: patches leave between the attention and the MLP of some blocks.

These blocks rank the patches, by the class token's attention where a method has no scores of its own, and only the
best enter the MLP. EViT lets the others go on as one token.
"""

import torch
from timm.models.vision_transformer import Block
from torch import Tensor

from evovit.deit import EvoAttention
from evovit.scores import patch_scores
from evovit.tokens import representative_token, select, take_tokens

from .dropping import AnyHostTransformer, FeatureMaps


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
        prefix: int = 1,
    ):
        """Return tokens (B, L, C); with ``keep`` only (B, P + keep, C), and the positions (B, keep) of what stays.

        Args:
            x: tokens (B, L, C), class token first.
            keep: number of patches that stay, in no order; None: all.
            fuse: add a last token, the sum of the dropped patches weighted by their scores.
            scores: what patches are ranked by (B, L - P); None: the class token's attention, mean over the heads.
            prefix: number P of tokens before the patches.
        """
        if keep is None:
            return super().forward(x, attn_mask=attn_mask, is_causal=is_causal)
        if scores is None:
            attended, row = self.attn(self.norm1(x), scores="class")
            scores = patch_scores(row, sums_heads=False, detached=not fuse, prefix=prefix)
        else:
            attended = self.attn(self.norm1(x))
        x = x + self.drop_path1(self.ls1(attended))
        kept = select(scores, keep)
        reduced = take_tokens(x, kept, prefix)
        if fuse:
            fused = representative_token(x, scores.scatter(1, kept, 0.0), prefix)
            reduced = torch.cat((reduced, fused), dim=1)
        return reduced + self.drop_path2(self.ls2(self.mlp(self.norm2(reduced)))), kept


class RankingTransformer(AnyHostTransformer):
    """A Vision Transformer that drops the patches of lowest rank in the middle of some blocks.

    A subclass defines ``count_kept``, and ``scores`` where class attention does not rank the patches.
    """

    block_cls = RankingBlock
    attn_cls = EvoAttention
    fuse = False  # whether dropped patches become one token
    reduction_blocks: tuple[int, ...]

    def count_kept(self, block: int, present: int, patches: int) -> int:
        """Return how many of the tokens that are ``present`` a block keeps, not counting those before the patches.

        Args:
            block: counted from 0.
            present: number of tokens that enter the block, not counting those before the patches.
            patches: number of patches of an image.
        """
        raise NotImplementedError

    def scores(self, x: Tensor) -> Tensor | None:
        """Return what ranks the patches (B, n) of tokens x (B, P + n, C); None: class attention does."""
        return None

    def forward_tokens(self, images: Tensor, maps: FeatureMaps | None = None) -> Tensor:
        """Return normed tokens (B, P + n, C) of images: those before the patches and what remains, in no order."""
        x = self.embed(images, maps)
        # int: torch.jit.trace gives a tensor, whose products with a ratio would be rounded to float32
        patches = int(x.shape[1]) - self.num_prefix_tokens
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
        """Run a block on tokens (B, P + n, C), in which ``keep`` patches stay, and record the result in ``maps``."""
        # drawn here if at random, so that activations which are computed again belong to the same patches
        scores = self.scores(x)
        prefix = self.num_prefix_tokens
        x, kept = self.call_block(index, x, keep=keep, fuse=self.fuse, scores=scores, prefix=prefix)
        if maps is not None:
            maps.keep(kept)
            if self.fuse:
                maps.append(x[..., -1:, :])
            maps.record(index, x)
        return x
