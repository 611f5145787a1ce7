"""variant="paper" against a literal transcription of the method, and its invariances."""

import functools

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

import evovit
from evovit.slow_fast import SlowFast, State
from tests.evovit import literal, small


@settings(max_examples=12, deadline=None)
@given(
    schedule=st.sampled_from(["layer", "stage"]),
    start_block=st.integers(1, 4),
    keep_ratio=st.floats(0.1, 0.9),
    alpha=st.floats(0, 1),
    size=st.sampled_from([32, 40]),
    seed=st.integers(0, 99),
)
def test_equals_the_literal_method(schedule, start_block, keep_ratio, alpha, size, seed):
    model = small.build(
        seed=seed, img_size=size, schedule=schedule, start_block=start_block,
        keep_ratio=keep_ratio, alpha=alpha, blocks_per_stage=2,
    )  # fmt: skip
    images = small.images(2, size, seed=seed)
    with torch.inference_mode():
        found, seen = model.forward_features(images), evovit.trace(model, images)
        for b in range(len(images)):
            expected, events = literal.deit(model, images[b : b + 1], schedule)
            assert [kept[b].tolist() for kept in seen.kept] == events
            assert_close(found[b], expected, rtol=1e-9, atol=1e-9)
            logits = model.head(expected[1:]).mean(dim=0)  # the average of the predictions
            assert_close(seen.logits[b], logits, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("schedule", ["layer", "stage"])
def test_gradients_equal_the_literal_method(schedule):
    model = small.build(schedule=schedule, blocks_per_stage=2)
    image = small.images(1)
    ours = torch.autograd.grad(model.forward_features(image).cos().sum(), model.blocks.parameters())
    expected, _ = literal.deit(model, image, schedule)
    theirs = torch.autograd.grad(expected.cos().sum(), model.blocks.parameters())
    assert_close(ours, theirs, rtol=1e-8, atol=1e-9)
    assert ours[2].abs().max() > 1e-3  # qkv weights of block 0: nothing is trivially zero


def test_keep_ratio_1_is_the_dense_model():
    model = small.build(keep_ratio=1)
    dense = timm.create_model("deit_tiny_patch16_224", **small.SIZES, global_pool="avg", fc_norm=False).double()
    own = model.state_dict()
    dense.load_state_dict({key: own[key] for key in dense.state_dict()})
    images = small.images()
    assert_close(model(images), dense.eval()(images), rtol=0, atol=1e-12)
    assert evovit.trace(model, images).blocks == []
    assert not torch.allclose(model(images), small.build(keep_ratio=0.5)(images))


@pytest.mark.parametrize("schedule", ["layer", "stage"])
def test_an_image_does_not_feel_its_batch(schedule):
    model, images = small.build(schedule=schedule), small.images(5)
    together = evovit.trace(model, images)
    for b in range(len(images)):
        alone = evovit.trace(model, images[b : b + 1])
        for one, all_kept in zip(alone.kept, together.kept, strict=True):
            assert torch.equal(one[0], all_kept[b])
        assert_close(alone.logits[0], together.logits[b], rtol=0, atol=1e-12)


@pytest.mark.parametrize("schedule", ["layer", "stage"])
def test_order_of_patches_does_not_matter(schedule):
    """Permuting all patches after the embedding, placeholders included, permutes the result."""
    model = small.build(schedule=schedule)
    embedded = model._pos_embed(model.patch_embed(small.images(2)))
    shuffled = torch.randperm(16, generator=torch.Generator().manual_seed(3)) + 1
    order = torch.cat((torch.zeros(1, dtype=torch.long), shuffled))
    run_block = functools.partial(model._block, kind="class")
    slow_fast = SlowFast(run_block, model.options, model.groups, model.options.alphas, 16)
    scores = model.new_scores(embedded)
    shuffled_tokens = slow_fast.run(State(embedded[:, order], scores), 0, 6).tokens
    expected = slow_fast.run(State(embedded, scores), 0, 6).tokens[:, order]
    assert_close(shuffled_tokens, expected, rtol=0, atol=1e-11)


def test_fused_and_unfused_attention_agree():
    model, images = small.build(), small.images()
    fused = evovit.trace(model, images)
    for block in model.blocks:
        block.attn.fused_attn = False
    plain = evovit.trace(model, images)
    assert_close(fused.logits, plain.logits, rtol=0, atol=1e-11)
    assert_close(fused.class_attention, plain.class_attention, rtol=0, atol=1e-12)


def test_hooks_see_what_a_block_returned():
    """Buffers are overwritten in place without a backward pass, but never a block's output."""
    model, images, seen = small.build(schedule="layer"), small.images(), []
    for block in model.blocks:
        block.register_forward_hook(
            lambda module, inputs, out: seen.append((out, out[0].clone()) if type(out) is tuple
                                                    else ((out,), out.clone()))
        )  # fmt: skip
    with torch.inference_mode():
        model(images)
    assert all(torch.equal(kept[0], copy) for kept, copy in seen)
