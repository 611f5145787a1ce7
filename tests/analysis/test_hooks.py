"""What hooks observe of a model's layers, compared with Evo-ViT's own trace, literal formulas and gradients."""

import pytest
import timm
import torch

import evovit
from tests.analysis.small import SMALL
from workflow.analysis.hooks import check_dense, observe, relevance
from workflow.train.factory import SpecError


def test_attention_is_that_of_evovit_with_the_same_weights(dense, batch):
    for scores, name in (("class", "class_attention"), ("global", "global_attention")):
        evo = timm.create_model("evo_deit_tiny_patch16_224", scores=scores, **SMALL).eval()
        evo.load_pretrained_dense(dense.state_dict())
        evo.set_selecting(False)
        expected = evovit.trace(evo, batch).class_attention
        observed = [getattr(layer, name) for layer in observe(dense, batch)]
        torch.testing.assert_close(observed, expected)


def test_tokens_and_queries_are_those_of_the_blocks(dense, batch):
    layers = observe(dense, batch)
    torch.testing.assert_close(layers[-1].tokens, dense.blocks(_embedded(dense, batch)))
    block = dense.blocks[1]
    qkv = block.attn.qkv(block.norm1(layers[0].tokens))
    torch.testing.assert_close(layers[1].queries, qkv[:, 1:, :24])
    assert not block._forward_hooks


def _embedded(model, batch):
    return model.norm_pre(model._pos_embed(model.patch_embed(batch)))


def test_another_model_is_refused(dense):
    check_dense(dense, "deit_tiny")
    evo = timm.create_model("evo_deit_tiny_patch16_224", **SMALL)
    with pytest.raises(SpecError, match=r"evo is a EvoVisionTransformer, but this analysis .*items"):
        check_dense(evo, "evo")


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
