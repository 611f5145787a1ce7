"""Looking into a forward pass: which patches were kept, and the class attention behind it."""

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Trace(NamedTuple):
    """What ``trace`` returns; positions count the patches of the first grid in raster order."""

    blocks: list[int]  # the selecting blocks, counted from 0
    kept: list[Tensor]  # per selecting block (B, k) kept positions, ascending
    attentions: list[int | None]  # per attention of the model its block; None: it sub-samples
    class_attention: list[Tensor]  # per attention (B, N) running scores after it
    positions: list[Tensor]  # per attention (N,) where the scored patches lie; grids may shrink
    logits: Tensor  # (B, num_classes)


@torch.no_grad()
def trace(model: nn.Module, images: Tensor) -> Trace:
    """Run an Evo-ViT on images (B, 3, H, W) and note each selection.

    A block selects by the running scores of the attention before it (Eq. 4), except for
    ``scores="random"`` and ``"last_class"``, which do not select by the running scores.
    """
    observed, logits = model.observe(images)
    selecting = [seen for seen in observed if seen.selecting]
    return Trace(
        blocks=[seen.block for seen in selecting],
        kept=[seen.grid[seen.kept].sort(dim=1).values for seen in selecting],
        attentions=[seen.block for seen in observed],
        class_attention=[seen.scores for seen in observed],
        positions=[seen.grid for seen in observed],
        logits=logits,
    )
