"""Scores and a selection for a compiler on a GPU, where every kernel waits for the one before.

What would be a dozen small kernels around each selection (products of one query, softmax, top-k, scatters)
is deferred until tokens are selected, and done then in two, for all blocks at once (``kernels``). What moves
whole tokens is written so that the compiler joins it to its neighbours. Shapes as in ``tokens``; forward only.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .. import tokens as equations
from ..scores import patch_scores
from . import kernels


def saves_time(x: Tensor) -> bool:
    """Return whether deferring pays for a model's input: where a compiler traces inference on a GPU.

    An exported program must do without our operation.
    """
    compiling = torch.compiler.is_compiling() and not torch.compiler.is_exporting()
    return compiling and x.is_cuda and not torch.is_grad_enabled()


class DeferredRow(NamedTuple):
    """Class attention (B, H, L) that is still to be computed, Eq. 3."""

    query: Tensor  # (B, H, D)
    keys: Tensor  # (B, L, C)
    scale: float


class DeferredSelection(NamedTuple):
    """``scores.Selection``, as ``kernels.choose`` returns it."""

    scores: Tensor  # (B, N)
    kept: Tensor  # (B, k), highest first
    ranks: Tensor  # (B, N) a patch's index in ``kept``, -1 for placeholders
    weights: Tensor  # (B, N) of Eq. 5
    prefix: int = 1  # number of tokens before the patches

    def take(self, tokens: Tensor) -> Tensor:
        """See ``scores.Selection``."""
        return equations.take_tokens(tokens, self.kept, self.prefix)

    def representative(self, tokens: Tensor) -> Tensor:
        """See ``scores.Selection``; as a sum."""
        patches = tokens[:, self.prefix :]
        return (self.weights.unsqueeze(2) * patches).sum(dim=1, keepdim=True).to(tokens.dtype)

    def put_back(self, tokens: Tensor, slow: Tensor, residual: Tensor | None) -> Tensor:
        """See ``scores.Selection``; in one pass over the tokens."""
        prefix_rows = torch.arange(self.prefix, device=slow.device).expand(len(slow), -1)  # the first of ``slow``
        row_in_slow = torch.cat((prefix_rows, self.ranks + self.prefix), dim=1)
        first_row = torch.arange(len(slow), device=slow.device).unsqueeze(1) * slow.shape[1]
        updated = slow.flatten(0, 1)[first_row + row_in_slow]
        informative = torch.cat((prefix_rows >= 0, self.ranks >= 0), dim=1)
        rest = tokens if residual is None else tokens + residual
        return torch.where(informative.unsqueeze(2), updated, rest)


class DeferredScores(NamedTuple):
    """``scores.Scores`` after blocks whose class attention is still to be computed."""

    sums_heads: bool
    previous: Tensor | None = None  # (B, N) scores before these blocks; None before the first attention
    ranks: Tensor | None = None  # of the selection whose tokens the blocks ran on; None: all tokens
    rows: tuple[tuple[DeferredRow, float], ...] = ()  # of each block, and alpha
    prefix: int = 1  # number of tokens before the patches

    def update(self, row: Tensor | DeferredRow, alpha: float | Tensor) -> "DeferredScores":
        """See ``scores.Scores``. LeViT's attention matrices are there anyway, so its rows are tensors."""
        if isinstance(row, Tensor):
            current = patch_scores(row, self.sums_heads, True, self.prefix)
            return self.with_values(equations.evolve_scores(self.settle(), current, alpha))
        scores = self if self.ranks is None else self.with_values(self.settle())
        return scores._with_row(row, alpha)

    def select(self, k: int) -> DeferredSelection:
        """See ``scores.Scores``."""
        scale, factor = 1.0, 1.0
        if self.rows:
            row = self.rows[0][0]
            scale = row.scale
            factor = 1.0 if self.sums_heads else 1.0 / row.query.shape[1]
        queries = [row.query for row, _ in self.rows]
        keys = [row.keys for row, _ in self.rows]
        alphas = [float(alpha) for _, alpha in self.rows]
        scores, kept, ranks, weights = kernels.choose(
            self.previous, self.ranks, queries, keys, alphas, scale, factor, k, self.prefix
        )
        return DeferredSelection(scores, kept, ranks, weights, self.prefix)

    def update_kept(
        self, selection: DeferredSelection, row: Tensor | DeferredRow, alpha: float | Tensor
    ) -> "DeferredScores":
        """See ``scores.Scores``."""
        if isinstance(row, Tensor):
            previous = self.settle()
            of_kept = patch_scores(row, self.sums_heads, True, self.prefix)
            current = torch.where(selection.ranks >= 0, of_kept.gather(1, selection.ranks.clamp_min(0)), previous)
            return self.with_values(equations.evolve_scores(previous, current, alpha))
        scores = DeferredScores(self.sums_heads, self.previous, selection.ranks, self.rows, self.prefix)
        return scores._with_row(row, alpha)

    def settle(self) -> Tensor | None:
        """See ``scores.Scores``."""
        return self.select(0).scores if self.rows else self.previous

    def with_values(self, values: Tensor | None) -> "DeferredScores":
        """See ``scores.Scores``."""
        return DeferredScores(self.sums_heads, values, prefix=self.prefix)

    def _with_row(self, row: DeferredRow, alpha: float) -> "DeferredScores":
        """Return the scores after one more block; if it is one too many for a launch, the others are computed."""
        scores = self
        if len(self.rows) == kernels.MOST_BLOCKS:
            scores = DeferredScores(self.sums_heads, self.settle(), self.ranks, prefix=self.prefix)
        rows = (*scores.rows, (row, alpha))
        return DeferredScores(self.sums_heads, scores.previous, scores.ranks, rows, self.prefix)
