"""Gradients of the equations whose backward passes are written out."""

import torch
from torch.testing import assert_close

from evovit import tokens
from evovit.fast import autograd
from tests.evovit.test_tokens import normal, problem


def test_put_back_lets_gradients_through():
    _, selection, buffer = problem((2, 5, 1, 3), 0, 0.5)
    residual = normal(7, 2, 1, 3)

    def update(buffer, residual):
        return selection.put_back(buffer, selection.take(buffer).square(), residual)

    inputs = (buffer.requires_grad_(), residual.requires_grad_())
    assert torch.autograd.gradcheck(update, inputs)


def test_class_attention_lets_gradients_through():
    qkv, query = normal(0, 2, 5, 3, 6), normal(1, 2, 3, 2)

    def row(query, qkv):
        return autograd.class_attention(query, qkv[:, :, 1], 0.3)

    assert torch.autograd.gradcheck(row, (query.requires_grad_(), qkv.requires_grad_()))


def test_the_backward_pass_keeps_low_precision_keys_as_they_are():
    """In float32 they would be another tensor for each block."""
    query, keys = normal(0, 1, 2, 4).bfloat16(), normal(1, 1, 9, 8).bfloat16()
    kept, gradients = [], []

    def pack(tensor):
        kept.append(tensor)
        return tensor

    for row in (autograd.class_attention, tokens.class_attention):
        ends = [end.clone().requires_grad_() for end in (query, keys)]
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            scores = row(*ends, 0.5)
        whole = [one for one in kept if one.numel() == keys.numel()]
        assert {one.dtype for one in whole} == {torch.bfloat16 if row is autograd.class_attention else torch.float32}
        gradients.append(torch.autograd.grad(scores.square().sum(), ends))
    for one, other in zip(*gradients, strict=True):
        assert_close(one, other, rtol=0.02, atol=1e-4)  # each rounds to bf16
