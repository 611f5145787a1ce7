"""The functions of ``tokens`` in which selection becomes arithmetic, for a compiler on a GPU.

There a top-k, a scatter or a small product is a kernel of its own that waits for the one before,
while comparisons and sums go into kernels that are needed anyway. Uncompiled, these would fill
memory with (B, N, N) comparisons. Shapes as in ``tokens``; forward only.
"""

import torch
from torch import Tensor

from .tokens import take_tokens

__all__ = ["class_attention", "placeholder_weights", "put_back", "put_back_scores",
           "representative_token", "select_top", "take_tokens"]  # fmt: skip


def class_attention(query: Tensor, keys: Tensor, scale: float) -> Tensor:
    """``tokens.class_attention``, its product as a sum that reads the keys once, as they are."""
    dtype = torch.promote_types(keys.dtype, torch.float32)
    query = (query.to(dtype) * scale).unsqueeze(1)
    products = query * keys.unflatten(2, query.shape[2:]).to(dtype)
    return products.sum(dim=3).softmax(dim=1)


def select_top(scores: Tensor, k: int) -> Tensor:
    """``tokens.select_top``, highest first: a token's rank is the number of those before it. Of
    equal scores the first ones count as higher."""
    positions = torch.arange(scores.shape[1], device=scores.device)
    own, other = scores.unsqueeze(2), scores.unsqueeze(1)
    before = (other > own) | ((other == own) & (positions < positions.unsqueeze(1)))
    rank = before.sum(dim=2)
    has = rank.unsqueeze(1) == torch.arange(k, device=scores.device).unsqueeze(1)  # (B, k, N)
    return torch.where(has, positions, 0).sum(dim=2)


def _places(kept: Tensor, num_patches: int) -> tuple[Tensor, Tensor]:
    """Whether each patch is among ``kept``, (B, N), and as which of them (0 if it is not)."""
    positions = torch.arange(num_patches, device=kept.device)
    has = kept.unsqueeze(1) == positions.unsqueeze(1)  # (B, N, k)
    places = torch.arange(kept.shape[1], device=kept.device)
    return has.any(dim=2), torch.where(has, places, 0).sum(dim=2)


def placeholder_weights(scores: Tensor, kept: Tensor) -> Tensor:
    """``tokens.placeholder_weights``."""
    informative, _ = _places(kept, scores.shape[1])
    weights = torch.where(informative, 0.0, scores)
    return weights / weights.sum(dim=1, keepdim=True).clamp_min(torch.finfo(weights.dtype).tiny)


def representative_token(patches: Tensor, weights: Tensor) -> Tensor:
    """``tokens.representative_token``."""
    return (weights.unsqueeze(2) * patches).sum(dim=1, keepdim=True).to(patches.dtype)


def put_back(
    buffer: Tensor, kept: Tensor, slow: Tensor, residual: Tensor | None, inplace: bool
) -> Tensor:
    """``tokens.put_back`` in one pass over the buffer; ``inplace`` or not, a compiler decides."""
    informative, places = _places(kept, buffer.shape[1] - 1)
    first = torch.ones_like(informative[:, :1])  # the class token, in front of both
    informative = torch.cat((first, informative), dim=1).unsqueeze(2)
    places = torch.cat((torch.zeros_like(places[:, :1]), places + 1), dim=1)
    rows = torch.arange(len(slow), device=slow.device).unsqueeze(1) * slow.shape[1]
    updated = slow.flatten(0, 1)[rows + places]
    rest = buffer if residual is None else buffer + residual
    return torch.where(informative, updated, rest)


def put_back_scores(scores: Tensor, kept: Tensor, updated: Tensor) -> Tensor:
    """``tokens.put_back_scores``."""
    informative, places = _places(kept, scores.shape[1])
    return torch.where(informative, updated.gather(1, places), scores)
