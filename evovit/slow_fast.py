"""Running a host's blocks with token selection and slow-fast updating (Eqs. 4-7), and looking into it."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .fast.deferred import DeferredRow, DeferredScores, DeferredSelection
from .options import Options
from .scores import Scores, Selection

# (index, tokens (B, L, C), observed) -> tokens and, where they count, attention (B, H, L) to score by
RunBlock = Callable[[int, Tensor, bool], tuple[Tensor, Tensor | DeferredRow | None]]


class Observation(NamedTuple):
    """One attention module as ``trace`` and ``forward_intermediates`` see it."""

    block: int | None  # None: it sub-samples between two stages
    grid: Tensor  # (N,) positions on the first grid of the patches scored, in raster order
    kept: Tensor | None  # (B, k) informative tokens, numbered on this grid; None: all are
    selecting: bool  # this block made the selection (stage-wise the first of its stage)
    scores: Tensor  # (B, N) running scores after the block; 0 for dropped tokens
    tokens: Tensor  # (B, prefix + n, C)


class State(NamedTuple):
    """What passes from one group of blocks to the next."""

    tokens: Tensor  # (B, prefix + n, C); n = N unless placeholders were dropped
    scores: Scores | DeferredScores  # of the n patches
    positions: Tensor | None = None  # (B, n) on the grid, once tokens were dropped


class SlowFast(NamedTuple):
    """Runs the blocks of a host's stage in one forward pass."""

    run_block: RunBlock
    options: Options
    groups: Sequence[tuple[int, int]]  # of ``options.selection_groups``; empty: all blocks run on all tokens
    alphas: Sequence[float | Tensor]  # of each attention
    num_patches: int  # N of the stage's grid
    ranking: Tensor | None = None  # (B, N) fixed scores to select by
    grid: Tensor | None = None  # (N,) for the observer
    observer: list[Observation] | None = None

    def run(self, state: State, first: int, end: int) -> State:
        """Return the state after blocks [first, end) of the host."""
        # a group may reach beyond blocks that were pruned, or that are not asked for
        groups = [(start, min(stop, end)) for start, stop in self.groups if first <= start < end]
        state = self._run_dense(state, first, groups[0][0] if groups else end)
        for start, stop in groups:
            k = self.options.kept(self.num_patches, start)
            if k == state.tokens.shape[1] - self.options.host.prefix:
                state = self._run_dense(state, start, stop)
            else:
                state = self._run_slow_fast(state, start, stop, k)
        return state

    def _run_dense(self, state: State, first: int, end: int) -> State:
        """Run blocks in which every token is informative."""
        for block in range(first, end):
            tokens, row = self.run_block(block, state.tokens, self.observer is not None)
            scores = state.scores if row is None else state.scores.update(row, self._alpha(block))
            state = State(tokens, scores, state.positions)
            if self.observer is not None:
                self._note(block, False, state.positions, state)
        return state

    def _run_slow_fast(self, state: State, first: int, end: int, k: int) -> State:
        """Run blocks that share one selection of k informative tokens.

        The representative token passes through all of them. Its weights sum to 1 and do not change while
        the selection holds, so that it is what aggregating the placeholders again before each block would
        give; and the placeholders can receive the summed residuals once, after the last block.
        """
        selection, scores = self._select(state, k)
        slow = selection.take(state.tokens)
        representative = None
        if self.options.placeholders == "update":
            representative = selection.representative(state.tokens)
            slow = torch.cat((slow, representative), dim=1)
        for block in range(first, end):
            slow, row = self.run_block(block, slow, self.observer is not None)
            if row is not None:
                scores = scores.update_kept(selection, row, self._alpha(block))
            if self.observer is not None:
                merged = self._merge(state, selection, slow, scores, representative)
                self._note(block, block == first, _grid_positions(state, selection.kept), merged)
        if end == self.options.host.depth and not self.options.pool_placeholders:
            return State(slow[..., : self.options.host.prefix + k, :], scores)
        return self._merge(state, selection, slow, scores, representative)

    def _select(self, state: State, k: int) -> tuple[Any, Any]:
        """Return the selection of k tokens, and the running scores, settled."""
        scores = state.scores
        if self.options.evolves:
            selection = scores.select(k)
            return selection, scores.with_values(selection.scores)
        batch, length, _ = state.tokens.shape
        if self.options.scores == "random":
            ranking = torch.rand(batch, length - self.options.host.prefix, device=state.tokens.device)
        elif state.positions is None:
            ranking = self.ranking
        else:
            ranking = self.ranking.gather(1, state.positions)
        return scores.with_values(ranking).select(k), scores.with_values(scores.settle())

    def _merge(
        self,
        state: State,
        selection: Selection | DeferredSelection,
        slow: Tensor,
        scores: Scores | DeferredScores,
        representative: Tensor | None,
    ) -> State:
        """Return the state after a group: informative tokens in their rows again, placeholders updated."""
        num_slow = self.options.host.prefix + selection.kept.shape[1]
        if self.options.placeholders == "drop":
            values = scores.settle()
            if values is not None:
                scores = scores.with_values(values.gather(1, selection.kept))
            return State(slow, scores, _grid_positions(state, selection.kept))
        residual = None
        if representative is not None:
            # x_rep^(1) + x_rep^(2) of all blocks: what the residual stream has gathered
            residual = slow[..., num_slow:, :] - representative
        return State(selection.put_back(state.tokens, slow[..., :num_slow, :], residual), scores)

    def _alpha(self, block: int) -> float | Tensor:
        """Return the weight of the previous scores in a block."""
        return self.alphas[self.options.host.attention_of(block)]

    def _note(self, block: int, selecting: bool, kept: Tensor | None, state: State) -> None:
        """Tell the observer what a block left."""
        scores = state.scores.settle()
        if state.positions is not None:
            scores = scores.new_zeros(len(scores), self.num_patches).scatter(1, state.positions, scores)
        self.observer.append(Observation(block, self.grid, kept, selecting, scores, state.tokens))


def _grid_positions(state: State, kept: Tensor) -> Tensor:
    """Return the grid positions of kept tokens, which are numbered among those of the state."""
    return kept if state.positions is None else state.positions.gather(1, kept)


class Trace(NamedTuple):
    """What ``trace`` returns; positions count the patches of the first grid in raster order."""

    blocks: list[int]  # the selecting blocks, counted from 0
    kept: list[Tensor]  # of each selecting block (B, k) kept positions, ascending
    attentions: list[int | None]  # of each attention in the model its block; None: it sub-samples
    class_attention: list[Tensor]  # of each attention (B, N) running scores after it
    positions: list[Tensor]  # of each attention (N,) positions of the scored patches; grids may shrink
    logits: Tensor  # (B, num_classes)


@torch.no_grad()
def trace(model: nn.Module, images: Tensor) -> Trace:
    """Run an Evo-ViT on images (B, 3, H, W) and note each selection.

    A block selects by the running scores of the attention before it (Eq. 4); with ``scores="random"``
    and ``"last_class"`` it selects by other scores.

    Raises:
        TypeError: for a model that is no Evo-ViT, such as one of ``baselines``.
        ValueError: for images without the dimension of the batch.
    """
    if not hasattr(model, "observe"):
        raise TypeError(
            f"trace is for models of evovit, such as evovit.from_timm builds, and {type(model).__name__} is none"
        )
    if images.dim() != 4:
        raise ValueError(f"trace takes images (B, 3, H, W), and these have the shape {tuple(images.shape)}")
    observed, logits = model.observe(images)
    selecting = [observation for observation in observed if observation.selecting]
    return Trace(
        blocks=[observation.block for observation in selecting],
        kept=[observation.grid[observation.kept].sort(dim=1).values for observation in selecting],
        attentions=[observation.block for observation in observed],
        class_attention=[observation.scores for observation in observed],
        positions=[observation.grid for observation in observed],
        logits=logits,
    )
