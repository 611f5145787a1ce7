"""PS-ViT: which rows are computed, and each rule of the search."""

from itertools import pairwise, product

import pytest
import torch
from torch.testing import assert_close

from baselines.psvit import TopDownSearch, importance, reach
from tests.models import families

KEY = "ps_deit"
EVERYTHING = list(range(16))


def dense(**kwargs):
    """The small model with every patch, in double precision, its weights large enough to matter."""
    model = families.build(KEY, keep_profile=None, **kwargs).double().eval()
    torch.manual_seed(2)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def pictures(count=6):
    return families.images(KEY, count).double()


def masked(model, images, patches):
    """All rows everywhere; a layer's keys are those that the layer before computed."""
    x = model.embed(images)
    keys = torch.ones(x.shape[1], dtype=torch.bool)
    for block, kept in zip(model.blocks, patches, strict=True):
        y = block.norm1(x)
        q, k, v = block.attn.project(y, None)
        logits = (q * block.attn.scale @ k.mT).masked_fill(~keys, -torch.inf)
        out = (logits.softmax(-1) @ v).transpose(1, 2).flatten(2)
        x = x + block.attn.proj(out)
        x = x + block.mlp(block.norm2(x))
        keys = torch.zeros_like(keys).index_fill(0, torch.tensor([0, *(1 + p for p in kept)]), True)
    return model.forward_head(model.norm(x))


@pytest.mark.parametrize("fused", [True, False])
def test_only_kept_rows_are_computed_and_the_logits_are_those_of_masking(fused):
    model = dense()
    for block in model.blocks:
        block.attn.fused_attn = fused
    kept = [EVERYTHING, *([[9, 1, 4, 12, 7]] * 5), *([[4, 1, 9]] * 5), []]
    model.set_patches(kept)
    lengths = []
    for block in model.blocks:
        block.mlp.register_forward_hook(lambda module, inputs, out: lengths.append(out.shape[1]))
    with torch.no_grad():
        logits = model(pictures())
        assert_close(logits, masked(model, pictures(), kept), rtol=0, atol=1e-12)
    assert lengths[:12] == [17, *[6] * 5, *[4] * 5, 1]


def test_a_model_that_keeps_everything_is_the_dense_one():
    model, plain = dense(), families.build("plain_deit").double().eval()
    plain.load_state_dict(model.timm_state_dict())
    assert_close(model(pictures()), plain(pictures()))
    back = dense()
    assert back.load_pretrained_dense(plain.state_dict()) == ["kept"]
    assert torch.equal(back(pictures()), model(pictures()))


def test_the_sets_travel_with_the_weights():
    model = dense()
    model.set_patches([EVERYTHING] * 6 + [[3, 5, 8]] * 6)
    other = dense()
    other.load_state_dict(model.state_dict())
    assert other.patches == model.patches
    assert_close(other(pictures()), model(pictures()))


def test_a_profile_takes_the_patches_nearest_to_the_centre():
    model = families.build(KEY, keep_profile=[1.0] * 10 + [0.25, 0.0])
    assert model.patches[9:] == [EVERYTHING, [5, 6, 9, 10], []]


def test_a_finer_grid_keeps_the_same_places():
    model = dense()
    model.set_patches([EVERYTHING] * 11 + [[0, 15]])
    model.set_input_size(img_size=64)  # 8 x 8 patches
    corners = [0, 1, 8, 9, 54, 55, 62, 63]
    assert model.patches[10:] == [list(range(64)), corners]


@pytest.mark.parametrize(
    ("patches", "sentence"),
    [
        ([EVERYTHING] * 3, "3 layers, the model 12"),
        ([[1]] * 6 + [[1, 2]] * 6, "layer 6 must compute patches of the layer before"),
        ([[1, 1]] * 12, "layer 0 must compute .* each once"),
        ([[16]] * 12, "layer 0 must compute"),
    ],
)
def test_sets_that_can_not_be_are_refused(patches, sentence):
    with pytest.raises(ValueError, match=sentence):
        dense().set_patches(patches)


def test_a_rising_profile_is_refused():
    with pytest.raises(ValueError, match="none above the one before"):
        families.build(KEY, keep_profile=[0.5] * 11 + [0.6])


def masked_maps(model, x, layer, above):
    """The attention (B, H, 17, 17) of the layers above, rows that they do not compute set to 0."""
    x, keys, maps = model.blocks[layer](x), torch.ones(17, dtype=torch.bool), []
    for block, kept in zip(model.blocks[layer + 1 :], above, strict=True):
        mask = torch.zeros(17, dtype=torch.bool).index_fill(0, torch.tensor([0, *(1 + p for p in kept)]), True)
        q, k, v = block.attn.project(block.norm1(x), None)
        attention = (q * block.attn.scale @ k.mT).masked_fill(~keys, -torch.inf).softmax(-1)
        maps.append(attention * mask[:, None])
        x = x + block.attn.proj((attention @ v).transpose(1, 2).flatten(2))
        x = x + block.mlp(block.norm2(x))
        keys = mask
    return maps


def test_importance_is_the_sum_over_all_paths_of_heads_written_out():
    model, images = dense(), pictures(2)
    layer, above = 8, [[1, 5, 6], [5, 6], []]
    model.set_patches([EVERYTHING] * 9 + above)
    x = model.run_blocks(model.embed(images), 0, layer)
    heads = range(3)
    expected = torch.zeros(16, dtype=torch.double)
    with torch.no_grad():
        scores = importance(model, layer, x)
        block = model.blocks[layer]
        q, k, v = block.attn.project(block.norm1(x), None)
        own = (q * block.attn.scale @ k.mT).softmax(-1)
        maps = masked_maps(model, x, layer, above)
        for image in range(2):
            for head in heads:
                u = own[image, head] @ v[image, head].abs()
                for path in product(heads, repeat=len(maps)):
                    a = torch.eye(17, dtype=torch.double)
                    for attention, chosen in zip(maps, path, strict=True):
                        a = attention[image, chosen] @ a
                    for patch in range(16):
                        outer = a[:, 1 + patch, None] * u[None, 1 + patch]
                        expected[patch] += outer.square().sum() / 2
    assert_close(scores, expected, rtol=1e-10, atol=0)
    assert scores.max() > 1.1 * scores.min()  # they are not all alike


def test_each_path_takes_one_head_of_every_layer():
    attention = torch.rand(2, 3, 1, 17, dtype=torch.double)
    assert_close(reach([attention]), attention.square().sum((1, 2)))
    lower = torch.rand(2, 3, 17, 17, dtype=torch.double)
    paths = [attention[:, i] @ lower[:, j] for i in range(3) for j in range(3)]
    assert_close(reach([lower, attention]), sum(path.square().sum(1) for path in paths))


def search(model=None, **changes):
    options = dict(epsilon=0.002, granularity=3, steps=2, batch_size=4, lr=1e-4) | changes
    return TopDownSearch(model or dense(), pictures(), **options)


def finish(running):
    while not running.done:
        running.next_layer()
    return running.summary()


def test_sets_only_shrink_with_depth_and_the_last_layer_keeps_the_class_token():
    running = search()
    patches = finish(running)["patches"]
    assert patches[-1] == []
    for lower, upper in pairwise(patches):
        assert set(upper) <= set(lower)
    assert len({len(kept) for kept in patches}) > 2  # the case is no trivial one


def test_patches_join_by_importance_until_the_error_is_small():
    running = search()
    while not running.done:
        above = set(running.layers[-1].patches if running.layers else ())
        layer = running.model.depth - 2 - len(running.layers)
        x = running.model.run_blocks(running.model.embed(running.images), 0, layer)
        order = importance(running.model, layer, x).argsort(descending=True, stable=True).tolist()
        result = running.next_layer()
        joined = [patch for patch in order if patch not in above]
        joined = joined[: len(result.patches) - len(above)]
        assert set(result.patches) == above | set(joined)
        counts, errors = zip(*result.rounds, strict=True)
        steps = [after - before for before, after in pairwise(counts)]
        assert set(steps[:-1]) <= {3}  # the last may be what was left
        assert counts[0] == len(above)
        assert errors[-1] <= 0.002 < min((*errors[:-1], 1))


def test_a_layer_that_needs_everything_keeps_it_and_its_weights():
    model = dense()
    before = {k: v.clone() for k, v in model.blocks[10].state_dict().items()}
    result = search(model, epsilon=0.0).next_layer()
    assert (result.patches, result.error) == (EVERYTHING, 0.0)
    for key, value in model.blocks[10].state_dict().items():
        assert torch.equal(value, before[key])


def test_only_the_searched_layer_is_fine_tuned_and_that_helps():
    errors = []
    for steps in (0, 30):
        model = dense()
        before = {k: v.clone() for k, v in model.state_dict().items()}
        result = search(model, steps=steps, epsilon=1e9, lr=1e-3).next_layer()
        errors.append(result.error)
        changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
        tuned = {key for key in changed if key.startswith("blocks.10.")}
        assert changed == tuned | {"kept"}
        assert bool(tuned) == (steps > 0)
    assert errors[1] < errors[0] / 2


def test_a_search_resumed_after_any_layer_ends_the_same():
    whole = search()
    saved = []
    while not whole.done:
        state = whole.state_dict()
        saved.append({"layers": state["layers"], "model": {
            key: value.clone() for key, value in state["model"].items()}})  # fmt: skip
        whole.next_layer()
    for state in saved[::3]:
        resumed = search()
        resumed.load_state_dict(state)
        assert finish(resumed) == whole.summary()
        for key, value in whole.model.state_dict().items():
            assert torch.equal(resumed.model.state_dict()[key], value), key


@pytest.mark.parametrize("option", [{"granularity": 0}, {"epsilon": -1}, {"batch_size": 0}])
def test_options_that_can_not_be_are_refused(option):
    with pytest.raises(ValueError, match="must be at least"):
        search(**option)


def test_only_a_model_with_sets_is_searched():
    with pytest.raises(ValueError, match="has no patch sets to search"):
        search(families.build("plain_deit"))
