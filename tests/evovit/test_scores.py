"""Scores and selections, plain and deferred."""

import torch

from evovit.scores import attention_scores
from tests.evovit.test_tokens import NEW_SCORES, both, problem, select


@both
def test_of_equal_scores_as_many_are_kept(form):
    scores = torch.tensor([[1.0, 2.0, 2.0, 2.0, 0.5], [0.0, 0.0, 0.0, 0.0, 0.0]])
    kept = select(form, scores, 2).kept
    assert all(len(set(row)) == 2 for row in kept.tolist())
    assert set(kept[0].tolist()) < {1, 2, 3}


@both
def test_updated_scores_go_to_their_tokens(form):
    scores, selection, _ = problem((3, 7, 1, 1), 0, 0.5, form)
    attention = torch.cat((torch.ones(3, 1), -scores.gather(1, selection.kept)), dim=1).unsqueeze(1)  # one head
    updated = NEW_SCORES[form].with_values(scores).update_kept(selection, attention, 0.0)
    signs = torch.ones_like(scores).scatter(1, selection.kept, -1.0)
    assert torch.equal(updated.settle(), scores * signs)


def test_a_row_of_the_matrix_does_not_keep_the_matrix():
    """Through the MLP that follows it would be the largest tensor there is."""
    attn = torch.randn(2, 3, 8, 8).softmax(dim=-1)
    row = attention_scores(attn, attn, attn, 1.0, "class")
    assert torch.equal(row, attn[:, :, 0])
    assert row.untyped_storage().nbytes() == row.nbytes
