"""Looking into a forward pass: which patches were kept, and the class attention behind it."""

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Trace(NamedTuple):
    """What ``trace`` returns; positions count the patches of the grid in raster order."""

    blocks: list[int]  # the selecting blocks, counted from 0
    kept: list[Tensor]  # per selecting block (B, k) kept positions, ascending
    class_attention: list[Tensor]  # per block of the model (B, N) running scores after it
    logits: Tensor  # (B, num_classes)


@torch.no_grad()
def trace(model: nn.Module, images: Tensor) -> Trace:
    """Run an Evo-DeiT on images (B, 3, H, W) and note each selection.

    The class attention that block i selects by is ``class_attention[i - 1]`` (Eq. 4), except for
    ``scores="random"`` and ``"last_class"``, which do not select by the running scores.
    """
    observed, logits = model.observe(images)
    selecting = [i for i, seen in enumerate(observed) if seen.selecting]
    kept = [observed[i].kept.sort(dim=1).values for i in selecting]
    return Trace(selecting, kept, [seen.scores for seen in observed], logits)
