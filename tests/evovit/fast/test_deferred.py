"""Deferred scores against plain ones; the operation's reference runs here, its kernels in test_kernels."""

import pytest
import torch
from torch.testing import assert_close

from evovit import tokens
from evovit.fast.deferred import DeferredRow, DeferredScores
from evovit.scores import Scores
from tests.evovit.fast.test_kernels import BATCH, HEADS, KEPT, PATCHES, drawn, row


@pytest.fixture(autouse=True)
def ordered(monkeypatch):
    """The plain form selects in no order; rows of kept tokens are made for one here."""
    monkeypatch.setattr(tokens, "select", lambda s, k: s.argsort(1, descending=True)[:, :k])


def plain(sums=False):
    return Scores(sums, detached=True), tokens.class_attention


def deferred(sums=False):
    return DeferredScores(sums), DeferredRow


def evolved(scores, attend, lengths):
    """Scores after selecting, KEPT tokens of which went on through blocks; and the selection."""
    for seed, length in enumerate(lengths):
        scores = scores.update(attend(*row(length, seed)), 0.3)
    selection = scores.select(KEPT)
    scores = scores.with_values(selection.scores)
    for seed in (90, 91):
        scores = scores.update_kept(selection, attend(*row(KEPT + 2, seed)), 0.6)
    return scores, selection


@pytest.mark.parametrize("sums", [False, True])
@pytest.mark.parametrize("blocks", [1, 4, 6])  # more than go into one launch
def test_what_is_deferred_comes_to_the_same(blocks, sums):
    expected, selection = evolved(*plain(sums), [1 + PATCHES] * blocks)
    scores, chosen = evolved(*deferred(sums), [1 + PATCHES] * blocks)
    assert torch.equal(chosen.kept, selection.kept)
    assert_close(scores.settle(), expected.settle(), rtol=1e-12, atol=1e-12)
    again = expected.select(KEPT)
    weights = tokens.placeholder_weights(again.scores, again.kept)
    assert_close(scores.select(KEPT).weights, weights, rtol=1e-12, atol=1e-12)


def test_nothing_is_computed_before_it_is_needed():
    scores, _ = evolved(*deferred(), [1 + PATCHES] * 2)
    assert len(scores.rows) == 2


def test_scores_of_all_after_those_of_the_kept():
    scores, _ = evolved(*deferred(), [1 + PATCHES])
    expected = Scores(False, True, scores.settle()).update(tokens.class_attention(*row(1 + PATCHES, 7)), 0.3)
    later = scores.update(DeferredRow(*row(1 + PATCHES, 7)), 0.3)
    assert_close(later.settle(), expected.settle(), rtol=1e-12, atol=1e-12)


def test_rows_that_are_there_already_are_taken_as_they_are():
    """LeViT's attention matrices are made anyway."""
    attention = drawn(BATCH, HEADS, 1 + PATCHES, seed=1).softmax(dim=2)
    both = []
    for scores, _ in (plain(), deferred()):
        scores = scores.update(attention, 0.3)
        selection = scores.select(PATCHES - 1)
        both.append(scores.update_kept(selection, attention, torch.tensor(0.5).double()).settle())
    assert_close(*both, rtol=1e-12, atol=1e-12)
