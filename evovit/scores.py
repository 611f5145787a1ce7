"""Running scores and a selection made by them, as values: the state that Eq. 4 carries from block to block.

``fast.deferred`` has both once more, for torch.compile on a GPU, with the same methods.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from . import tokens as equations
from .fast import autograd


def attention_scores(attention: Tensor, query: Tensor, key: Tensor, scale: float, kind: str) -> Tensor:
    """Return token scores (B, H, L) of an attention matrix that was computed anyway, in float32 at least.

    Args:
        attention: (B, H, Lq, L), class query first.
        query: what it was computed from (B, H, Lq, D).
        key: what it was computed from (B, H, L, D).
        scale: factor on the products of both.
        kind: "class", the class token's row, or "column_mean", the mean over all queries.
    """
    if kind == "column_mean":
        return attention.to(torch.promote_types(attention.dtype, torch.float32)).mean(dim=2)
    if torch.finfo(query.dtype).bits < 32:  # the row of this matrix would tie at the cut
        return autograd.class_attention(query.select(2, 0), key.transpose(1, 2).flatten(2), scale)
    return attention.select(2, 0).clone()  # a view would keep the matrix alive


def patch_scores(row: Tensor, sums_heads: bool, detached: bool, prefix: int = 1) -> Tensor:
    """Return the scores (B, L - prefix) of the patches from attention (B, H, L) to all tokens.

    Args:
        sums_heads: sum over the heads, as the authors' code does, instead of the mean.
        detached: let no gradient through the scores to what they were computed from.
        prefix: number of tokens before the patches.
    """
    patches = row[..., prefix:]
    scores = patches.sum(dim=1) if sums_heads else patches.mean(dim=1)
    return scores.detach() if detached else scores


class Selection(NamedTuple):
    """The informative tokens of a buffer (B, prefix + N, C), and what they were selected by."""

    scores: Tensor  # (B, N)
    kept: Tensor  # (B, k) their positions
    prefix: int = 1  # number of tokens before the patches

    def take(self, tokens: Tensor) -> Tensor:
        """Return the tokens before the patches and the informative ones (B, prefix + k, C)."""
        return equations.take_tokens(tokens, self.kept, self.prefix)

    def representative(self, tokens: Tensor) -> Tensor:
        """Return x_rep (B, 1, C) of the placeholders, Eq. 5."""
        weights = equations.placeholder_weights(self.scores, self.kept)
        return equations.representative_token(tokens, weights, self.prefix)

    def put_back(self, tokens: Tensor, slow: Tensor, residual: Tensor | None) -> Tensor:
        """Return the buffer after slow-fast updating, Eqs. 6-7; see ``tokens.put_back``."""
        return autograd.put_back(tokens, self.kept, slow, residual, self.prefix)


class Scores(NamedTuple):
    """Running scores (B, N) of the patches, Eq. 4."""

    sums_heads: bool  # see patch_scores
    detached: bool
    values: Tensor | None = None  # (B, N); None before the first attention
    kept: Tensor | None = None  # (B, k) positions of the patches that have newer scores
    kept_values: Tensor | None = None  # (B, k) these scores
    prefix: int = 1  # number of tokens before the patches

    def update(self, row: Tensor, alpha: float | Tensor) -> "Scores":
        """Return the scores after a block that attended to all patches with ``row`` (B, H, prefix + N), Eq. 4."""
        current = patch_scores(row, self.sums_heads, self.detached, self.prefix)
        return self.with_values(equations.evolve_scores(self.settle(), current, alpha))

    def select(self, k: int) -> Selection:
        """Select the k patches with the highest scores."""
        values = self.settle()
        return Selection(values, equations.select(values, k), self.prefix)

    def update_kept(self, selection: Selection, row: Tensor, alpha: float | Tensor) -> "Scores":
        """Return the scores after a block on the informative tokens, in which the others keep theirs.

        Args:
            selection: the informative tokens; between two selections the scores are settled.
            row: attention (B, H, prefix + k) to the tokens before the patches and the informative ones, or to
                more tokens after them.
            alpha: weight of the previous scores in Eq. 4.
        """
        previous = self.values.gather(1, selection.kept) if self.kept is None else self.kept_values
        current = patch_scores(row, self.sums_heads, self.detached, self.prefix)[..., : selection.kept.shape[1]]
        updated = equations.evolve_scores(previous, current, alpha)
        return Scores(self.sums_heads, self.detached, self.values, selection.kept, updated, self.prefix)

    def settle(self) -> Tensor | None:
        """Return the scores (B, N) themselves; None before the first attention."""
        if self.kept is None:
            return self.values
        return self.values.scatter(1, self.kept, self.kept_values)

    def with_values(self, values: Tensor | None) -> "Scores":
        """Return scores of this kind that are ``values`` (B, N)."""
        return Scores(self.sums_heads, self.detached, values, prefix=self.prefix)
