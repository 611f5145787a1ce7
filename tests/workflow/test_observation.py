"""What is seen of a model's layers, against Evo-ViT's own trace and literal formulas."""

import pytest
import timm
import torch

import evovit
from workflow.analysis import analyze, gradient_relevance
from workflow.analysis.hooks import check_dense, observe
from workflow.train.factory import SpecError

SMALL = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "num_heads": 3, "num_classes": 10}
SMALL |= {"weight_init": "jax"}


@pytest.fixture
def dense():
    return timm.create_model("plain_deit_tiny_patch16_224", **SMALL).eval()


@pytest.fixture
def images():
    return torch.randn(3, 3, 16, 16)


def test_attention_is_that_of_evovit_with_the_same_weights(dense, images):
    for scores, name in (("class", "class_attention"), ("global", "global_attention")):
        evo = timm.create_model("evo_deit_tiny_patch16_224", scores=scores, **SMALL).eval()
        evo.load_pretrained_dense(dense.state_dict())
        evo.set_selecting(False)
        expected = evovit.trace(evo, images).class_attention
        found = [getattr(layer, name) for layer in observe(dense, images)]
        torch.testing.assert_close(found, expected)


def test_tokens_and_queries_are_those_of_the_blocks(dense, images):
    layers = observe(dense, images)
    torch.testing.assert_close(layers[-1].tokens, dense.blocks(_embedded(dense, images)))
    block = dense.blocks[1]
    qkv = block.attn.qkv(block.norm1(layers[0].tokens))
    torch.testing.assert_close(layers[1].queries, qkv[:, 1:, :24])
    assert not block._forward_hooks


def _embedded(model, images):
    return model.norm_pre(model._pos_embed(model.patch_embed(images)))


def test_groups_of_tokens_are_the_higher_and_the_lower_half():
    patches, scores = torch.randn(2, 5, 3), torch.rand(2, 5)
    found = analyze.average_tokens(patches, scores)
    for image in range(2):
        order = scores[image].argsort(descending=True)
        for name, chosen in (
            ("informative", order[:2]),
            ("placeholder", order[2:]),
            ("all", order),
        ):
            expected = patches[image, chosen].mean(dim=0)
            torch.testing.assert_close(found[name][image], expected)


def test_relevance_is_gradient_times_attention_carried_through_the_layers(dense, images):
    """Chefer et al. 2021 (ICCV), Eqs. 5 and 6, with torch's gradients."""
    found, predicted = gradient_relevance.relevance(dense, images)
    with torch.no_grad():
        assert torch.equal(predicted, dense(images).argmax(dim=1))
    matrices = []
    hooks = [
        block.attn.attn_drop.register_forward_hook(lambda m, a, out: matrices.append(out)) for block in dense.blocks
    ]
    score = dense(images).gather(1, predicted[:, None]).sum()
    gradients = torch.autograd.grad(score, matrices)
    expected = torch.eye(17).expand(3, -1, -1)
    for matrix, gradient in zip(matrices, gradients, strict=True):
        expected = expected + (matrix * gradient).relu().mean(dim=1) @ expected
    torch.testing.assert_close(found, expected[:, 0, 1:].detach())
    assert (found >= 0).all()
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("schedule", ["layer", "stage"])
def test_kept_patches_are_those_of_the_trace(schedule, images):
    model = timm.create_model("evo_deit_tiny_patch16_224", schedule=schedule, **SMALL).eval()
    layers, masks = analyze.kept(model, [images[:2], images[2:]])
    seen = evovit.trace(model, images)
    assert layers == ([5, 6, 7, 8, 9, 10, 11, 12] if schedule == "layer" else [5, 9])
    for mask, kept in zip(masks, seen.kept, strict=True):
        for image in range(3):
            assert mask[image].nonzero().flatten().tolist() == kept[image].tolist()


def test_another_model_is_refused(dense):
    check_dense(dense, "deit_tiny")
    evo = timm.create_model("evo_deit_tiny_patch16_224", **SMALL)
    with pytest.raises(SpecError, match=r"evo is a EvoVisionTransformer, but this analysis .*items"):
        check_dense(evo, "evo")
