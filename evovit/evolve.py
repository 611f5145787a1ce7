"""Running a host's blocks with token selection and slow-fast updating (Eqs. 4-7)."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import fusible
from .dispatch import functions_for
from .plan import Switches

# (B, n) each; and k of n tokens. As tensors, or as ``fusible`` puts them off
Scores = Tensor | fusible.Pending
Selection = Tensor | fusible.Selection
# (index, tokens (B, L, C), observed) -> tokens and, where they count, scores (B, L - 1)
RunBlock = Callable[[int, Tensor, bool], tuple[Tensor, Tensor | fusible.ClassRow | None]]


class Observation(NamedTuple):
    """One attention module as seen by ``trace`` and ``forward_intermediates``."""

    block: int | None  # None: it sub-samples between two stages
    grid: Tensor  # (N,) positions on the first grid of the patches scored, in raster order
    kept: Tensor | None  # (B, k) informative tokens, numbered on this grid; None: all are
    selecting: bool  # this block made the selection (stage-wise the first of its stage)
    scores: Tensor  # (B, N) running scores after the block; 0 for dropped tokens
    tokens: Tensor  # (B, 1 + n, C)


class Evolution(NamedTuple):
    """What stays the same for a stage of the host in one forward pass."""

    run_block: RunBlock
    switches: Switches
    runs: Sequence[tuple[int, int]]  # of ``plan.segments``; empty: no selection, all blocks dense
    alphas: Sequence[float | Tensor]  # per attention
    num_patches: int  # N of the stage's grid
    ranking: Tensor | None = None  # (B, N) fixed scores to select by
    grid: Tensor | None = None  # (N,) for the observer
    observer: list[Observation] | None = None

    def alpha(self, block: int) -> float | Tensor:
        """The weight of the previous score in a block."""
        return self.alphas[self.switches.host.attention_of(block)]


class State(NamedTuple):
    """What passes from one run of blocks to the next."""

    tokens: Tensor  # (B, 1 + n, C); n = N unless placeholders were dropped
    scores: Scores | None = None  # (B, n) evolved scores, where a later selection needs them
    positions: Tensor | None = None  # (B, n) grid positions, once tokens were dropped


def evolve(this: Evolution, state: State, first: int, end: int) -> State:
    """Blocks [first, end) of one stage of the host; one run of blocks after the other."""
    # a run may reach beyond blocks that were pruned, or that are not asked for
    runs = [(start, min(stop, end)) for start, stop in this.runs if first <= start < end]
    state = _dense(this, state, (first, runs[0][0] if runs else end))
    for run in runs:
        k = this.switches.kept(this.num_patches, run[0])
        if k == state.tokens.shape[1] - 1:
            state = _dense(this, state, run)
        else:
            state = _slow_fast(this, state, run, k)
    return state


def _dense(this: Evolution, state: State, run: tuple[int, int]) -> State:
    """Blocks in which every token present is informative."""
    x, scores, positions = state
    for block in range(*run):
        x, row = this.run_block(block, x, this.observer is not None)
        if row is not None:
            scores = functions_for(x).evolve_scores(scores, row, this.alpha(block))
        if this.observer is not None:
            _note(this, block, False, positions, State(x, scores, positions))
    return State(x, scores, positions)


def _slow_fast(this: Evolution, state: State, run: tuple[int, int], k: int) -> State:
    """Blocks that share one selection of k informative tokens.

    The representative token evolves beside them through the whole run. Its weights sum to 1 and
    do not change while the selection holds, so this is what re-aggregating it before each block
    would give, and the placeholders can receive the summed residuals once, at the end of the run.
    """
    switches, observing = this.switches, this.observer is not None
    tk = functions_for(state.tokens)
    ranking = _ranking(this, state)
    chosen = tk.select(ranking, k)
    if switches.evolves:
        scores = tk.selected_scores(ranking, chosen)
        state = State(state.tokens, scores, state.positions)
    slow = tk.take_tokens(state.tokens, chosen)
    representative = None
    if switches.placeholders == "update":
        weights = tk.placeholder_weights(ranking, chosen)
        representative = tk.representative_token(state.tokens, weights)
        slow = torch.cat((slow, representative), dim=1)
    scores = None
    for block in range(*run):
        slow, row = this.run_block(block, slow, observing)
        if row is not None:
            scores = tk.evolve_kept(scores, state.scores, chosen, row, this.alpha(block))
        if observing:
            seen = _merge(this, state, chosen, slow, scores, representative)
            _note(this, block, block == run[0], _positions(state, tk.positions(chosen)), seen)
    if run[1] == switches.host.depth and not switches.pool_placeholders:
        return State(slow[..., : 1 + k, :])
    return _merge(this, state, chosen, slow, scores, representative)


def _ranking(this: Evolution, state: State) -> Scores:
    """Scores (B, n) to select by."""
    if this.switches.evolves:
        return state.scores
    batch, length, _ = state.tokens.shape
    if this.switches.scores == "random":
        return torch.rand(batch, length - 1, device=state.tokens.device)
    positions = state.positions
    return this.ranking if positions is None else this.ranking.gather(1, positions)


def _positions(state: State, kept: Tensor) -> Tensor:
    """Grid positions of the kept ones of the tokens present."""
    return kept if state.positions is None else state.positions.gather(1, kept)


def _merge(
    this: Evolution, state: State, chosen: Selection, slow: Tensor, scores: Scores | None,
    representative: Tensor | None,
) -> State:  # fmt: skip
    """State after a run: informative tokens go back to their places, placeholders are updated."""
    tk = functions_for(state.tokens)
    num_kept = tk.positions(chosen).shape[1]
    if this.switches.placeholders == "drop":
        scores = None if scores is None else tk.kept_scores(scores, chosen)
        return State(slow, scores, _positions(state, tk.positions(chosen)))
    residual = None
    if representative is not None:
        # x_rep^(1) + x_rep^(2) over the run: what the residual stream has gathered.
        residual = slow[..., 1 + num_kept :, :] - representative
    merged = tk.put_back(state.tokens, chosen, slow[..., : 1 + num_kept, :], residual)
    if scores is None:
        return State(merged, state.scores)
    return State(merged, tk.put_back_scores(state.scores, chosen, scores))


def _note(this: Evolution, block: int, selecting: bool, kept: Tensor | None, state: State) -> None:
    """Tell the observer what stands after a block."""
    scores = functions_for(state.tokens).settled(state.scores)
    if state.positions is not None:
        scores = scores.new_zeros(len(scores), this.num_patches).scatter(1, state.positions, scores)
    this.observer.append(Observation(block, this.grid, kept, selecting, scores, state.tokens))
