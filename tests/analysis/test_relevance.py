"""Relevance, compared with the paper's equations by torch's gradients."""

import torch

from workflow.analysis.relevance import relevance


def test_relevance_is_gradient_times_attention_carried_through_the_layers(dense, batch):
    """Chefer et al. 2021 (ICCV), Eqs. 5 and 6, with torch's gradients."""
    of_patches, predicted = relevance(dense, batch)
    with torch.no_grad():
        assert torch.equal(predicted, dense(batch).argmax(dim=1))
    matrices = []
    hooks = [
        block.attn.attn_drop.register_forward_hook(lambda m, a, out: matrices.append(out)) for block in dense.blocks
    ]
    score = dense(batch).gather(1, predicted[:, None]).sum()
    gradients = torch.autograd.grad(score, matrices)
    expected = torch.eye(17).expand(3, -1, -1)
    for matrix, gradient in zip(matrices, gradients, strict=True):
        expected = expected + (matrix * gradient).relu().mean(dim=1) @ expected
    torch.testing.assert_close(of_patches, expected[:, 0, 1:].detach())
    assert (of_patches >= 0).all()
    for hook in hooks:
        hook.remove()
