"""The functions of ``tokens`` for a compiler on a GPU, where every kernel waits for the one before.

What would be a dozen small kernels around each selection (products of one query, softmax, top-k,
scatters) is put off until tokens are selected, and done then in two, for all blocks at once
(``kernels``). What moves whole tokens is written so that the compiler joins it to its neighbours.
Shapes as in ``tokens``; forward only.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from . import kernels, tokens


class ClassRow(NamedTuple):
    """Class attention that is still to be computed, Eq. 3."""

    query: Tensor  # (B, H, D)
    keys: Tensor  # (B, L, C)
    scale: float
    factor: float = 1.0  # on the sum over the heads


class Pending(NamedTuple):
    """Scores that are still to be evolved by rows, Eq. 4; as ``kernels.choose`` takes them."""

    previous: Tensor | None
    places: Tensor | None
    rows: tuple[tuple[ClassRow, float], ...]


class Selection(NamedTuple):
    """What ``kernels.choose`` returns."""

    scores: Tensor
    kept: Tensor
    places: Tensor
    weights: Tensor


def class_attention(query: Tensor, keys: Tensor, scale: float) -> ClassRow:
    """``tokens.class_attention``, later."""
    return ClassRow(query, keys, scale)


def patch_scores(row: Tensor | ClassRow, sums: bool, lets_gradients: bool) -> Tensor | ClassRow:
    """``tokens.patch_scores``."""
    if isinstance(row, Tensor):
        return tokens.patch_scores(row, sums, lets_gradients)
    factor = 1.0 if sums else 1.0 / row.query.shape[1]
    return ClassRow(row.query, row.keys, row.scale, factor)  # torch 2.7 can't trace _replace


def evolve_scores(
    previous: Tensor | Pending | None, current: Tensor | ClassRow, alpha: float | Tensor
) -> Tensor | Pending:
    """``tokens.evolve_scores``."""
    if isinstance(current, Tensor):
        return tokens.evolve_scores(previous, current, alpha)
    if not isinstance(previous, Pending) or previous.places is not None:
        previous = Pending(None if previous is None else settled(previous), None, ())
    return _with(previous, current, alpha)


def _with(pending: Pending, row: ClassRow, alpha: float) -> Pending:
    if len(pending.rows) == kernels.MOST_BLOCKS:
        pending = Pending(settled(pending), pending.places, ())
    return Pending(pending.previous, pending.places, (*pending.rows, (row, alpha)))


def settled(scores: Tensor | Pending | ClassRow) -> Tensor:
    """The scores (B, N) themselves."""
    return scores if isinstance(scores, Tensor) else select(scores, 0).scores


def select(scores: Tensor | Pending | ClassRow, k: int) -> Selection:
    """``tokens.select``."""
    if isinstance(scores, ClassRow):
        scores = Pending(None, None, ((scores, 0.0),))
    elif isinstance(scores, Tensor):
        scores = Pending(scores, None, ())
    rows = [row for row, _ in scores.rows]
    return Selection(
        *kernels.choose(
            scores.previous,
            scores.places,
            [row.query for row in rows],
            [row.keys for row in rows],
            [float(alpha) for _, alpha in scores.rows],
            rows[0].scale if rows else 1.0,
            rows[0].factor if rows else 1.0,
            k,
        )
    )


def selected_scores(scores: Tensor | Pending, chosen: Selection) -> Tensor:
    """``tokens.selected_scores``: selecting has settled them."""
    return chosen.scores


def positions(chosen: Selection) -> Tensor:
    """``tokens.positions``."""
    return chosen.kept


def evolve_kept(
    scores: Tensor | Pending | None,
    before: Tensor | Pending,
    chosen: Selection,
    row: Tensor | ClassRow,
    alpha: float | Tensor,
) -> Tensor | Pending:
    """``tokens.evolve_kept``; pending scores are those of all patches."""
    if isinstance(row, Tensor):
        return tokens.evolve_kept(scores, before, chosen.kept, row, alpha)
    if scores is None:  # those before, which need not be the ranking
        scores = Pending(settled(before), chosen.places, ())
    return _with(scores, row, alpha)


def kept_scores(scores: Tensor | Pending, chosen: Selection) -> Tensor:
    """``tokens.kept_scores``."""
    return scores if isinstance(scores, Tensor) else settled(scores).gather(1, chosen.kept)


def put_back_scores(scores: Tensor | Pending, chosen: Selection, updated: Tensor | Pending) -> Tensor | Pending:
    """``tokens.put_back_scores``."""
    if isinstance(updated, Pending):
        return updated
    places = chosen.places
    return torch.where(places >= 0, updated.gather(1, places.clamp_min(0)), settled(scores))


def take_tokens(buffer: Tensor, chosen: Selection) -> Tensor:
    """``tokens.take_tokens``."""
    return tokens.take_tokens(buffer, chosen.kept)


def placeholder_weights(scores: Tensor | Pending, chosen: Selection) -> Tensor:
    """``tokens.placeholder_weights``."""
    return chosen.weights


def representative_token(buffer: Tensor, weights: Tensor) -> Tensor:
    """``tokens.representative_token``, as a sum."""
    return (weights.unsqueeze(2) * buffer[:, 1:]).sum(dim=1, keepdim=True).to(buffer.dtype)


def put_back(buffer: Tensor, chosen: Selection, slow: Tensor, residual: Tensor | None) -> Tensor:
    """``tokens.put_back`` in one pass over the buffer."""
    first = torch.zeros_like(chosen.places[:, :1])  # the class token, in front of both
    places = torch.cat((first, chosen.places + 1), dim=1)
    slow_row = torch.arange(len(slow), device=slow.device).unsqueeze(1) * slow.shape[1]
    informative = torch.cat((first == 0, chosen.places >= 0), dim=1)
    updated = slow.flatten(0, 1)[slow_row + places]
    rest = buffer if residual is None else buffer + residual
    return torch.where(informative.unsqueeze(2), updated, rest)
