"""The options: what each does, and which combinations are refused."""

import pytest
import timm
import torch
from torch.testing import assert_close

import evovit
from evovit import options
from tests.evovit import small


@pytest.mark.parametrize(
    ("kwargs", "reason"),
    [
        (dict(start_block=0), "score of the block before"),
        (dict(start_block=6), r"1\.\.5"),
        (dict(keep_ratio=0.0), r"must lie in \(0, 1\]"),
        (dict(keep_ratio=1.2), r"must lie in \(0, 1\]"),
        (dict(keep_ratio=0.05), "at least one token must be informative"),
        (dict(keep_ratio=[1, 1, 1, 1, 0.5]), "5 entries for 6 blocks"),
        (dict(keep_ratio=[1, 0.5, 1, 1, 0.5, 0.5]), "before start_block"),
        (dict(keep_ratio=[1, 1, 1, 1, 0.5, 0.4]), "their keep ratios differ"),
        (dict(keep_ratio=[1, 1, 1, 1, 0.4, 0.5], placeholders="drop"), "can't bring tokens back"),
        (dict(tradeoff=0.5), "tradeoff is called alpha now: write alpha=0.5"),
        (dict(alpha=1.5), r"must lie in \[0, 1\]"),
        (dict(alpha=[0.5]), "1 entries for 6 attentions"),
        (dict(alpha="learned"), "only Evo-LeViT learns it"),
        (dict(alpha=0.5, scores="class"), "mixes the global class attention"),
        (dict(variant="official", placeholders="update"), "no representative token"),
        (dict(placeholders="drop", pool_placeholders=False), "none are left to pool"),
        (dict(variant="mine"), "paper, official"),
        (dict(scores="mine"), "global, class, random"),
        (dict(placeholders="mine"), "update, keep, drop"),
        (dict(schedule="mine"), "layer, stage"),
        (dict(blocks_per_stage=0), "at least 1"),
        (dict(tile=0), "tile=0 must be at least 1"),
        (dict(tile=64), "in tiles of 64, keeps -2"),
        (dict(global_pool="token"), "predicts from the mean"),
        (dict(fc_norm=True), "leave fc_norm out"),
        (dict(class_token=False), "needs the class token"),
        (dict(patch_drop_rate=0.1), "keeps the grid whole"),
    ],
)
def test_nonsense_is_refused_with_the_reason(kwargs, reason):
    with pytest.raises(ValueError, match=reason):
        small.build(**kwargs)


def test_a_grid_too_small_for_the_ratio_is_refused():
    model = small.build(img_size=16, keep_ratio=0.25)  # 1 of 4 patches
    assert evovit.trace(model, small.images(2, 16)).kept[0].shape == (2, 1)
    with pytest.raises(ValueError, match="at least one token must be informative"):
        model.set_input_size(8)


@pytest.mark.parametrize("scores", options.SCORES)
@pytest.mark.parametrize("placeholders", options.PLACEHOLDERS)
def test_every_score_and_placeholder_rule_runs_and_learns(scores, placeholders):
    model = small.build(scores=scores, placeholders=placeholders, schedule="layer").train()
    model.set_training_outputs()
    average, class_token = model(small.images())
    (average.square().sum() + class_token.square().sum()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    seen = evovit.trace(model.eval(), small.images())
    assert seen.blocks == [4, 5] if placeholders != "drop" else [4]
    assert all(kept.shape == (3, 8) for kept in seen.kept)


def test_what_each_score_selects_by():
    images = small.images()
    first = {name: small.build(scores=name) for name in options.SCORES}
    dense = small.build(keep_ratio=1, scores="class")
    rows = evovit.trace(dense, images).class_attention
    assert_selected(first["class"], images, rows[3])
    assert_selected(first["last_class"], images, rows[5])
    blended = rows[0]
    for row in rows[1:4]:
        blended = (blended + row) / 2
    assert_selected(first["global"], images, blended)
    attention = []
    x = dense._pos_embed(dense.patch_embed(images))
    for block in dense.blocks[:4]:
        x, row = block(x, scores="column_mean")
        attention.append(row[:, :, 1:].mean(dim=1))
    assert_selected(first["column_mean"], images, attention[3])
    torch.manual_seed(5)
    expected = torch.rand(3, 16)
    torch.manual_seed(5)
    assert_selected(first["random"], images, expected)


def assert_selected(model, images, scores):
    expected = scores.topk(8, dim=1).indices.sort(dim=1).values
    assert torch.equal(evovit.trace(model, images).kept[0], expected)


def test_column_mean_is_the_mean_over_queries():
    block = small.build().blocks[0]
    x = small.images(3)[:, 0].reshape(3, -1)[:, : 9 * 24].reshape(3, 9, 24)
    q, k, _ = block.attn.qkv(block.norm1(x)).reshape(3, 9, 3, 3, 8).permute(2, 0, 3, 1, 4)
    attention = torch.softmax(q @ k.mT / 8**0.5, dim=-1)
    _, row = block(x, scores="column_mean")
    assert_close(row, attention.mean(dim=2), rtol=0, atol=1e-12)


def test_dropped_and_kept_placeholders():
    images = small.images()
    dropped = small.build(placeholders="drop")
    assert dropped.forward_features(images).shape == (3, 9, 24)
    kept = small.build(placeholders="keep")
    before = kept.forward_intermediates(images, [3], intermediates_only=True, output_fmt="NLC")[0]
    after = kept._run_blocks(images)[:, 1:]
    chosen = evovit.trace(kept, images).kept[0]
    untouched = torch.ones(3, 16, dtype=torch.bool).scatter(1, chosen, False)
    assert torch.equal(after[untouched], before[untouched])
    assert not torch.isclose(after[~untouched], before[~untouched]).all(dim=-1).any()


def test_unpooled_placeholders_leave_the_mean():
    images = small.images()
    model = small.build(pool_placeholders=False)
    found = model.forward_features(images)
    chosen = evovit.trace(model, images).kept[0]
    whole = small.build().forward_features(images)[:, 1:]
    expected = whole.gather(1, chosen.unsqueeze(-1).expand(-1, -1, 24))
    assert_close(model.forward_head(found), model.head(expected.mean(dim=1)), rtol=0, atol=1e-11)


def test_dropping_in_steps_reports_grid_positions():
    ratios = [1, 1, 1, 1, 0.5, 0.25]
    model = small.build(placeholders="drop", keep_ratio=ratios, schedule="layer")
    first, second = evovit.trace(model, small.images()).kept
    assert first.shape == (3, 8)
    assert second.shape == (3, 4)
    for b in range(3):
        assert set(second[b].tolist()) < set(first[b].tolist())


def test_class_rows_are_computed_only_where_a_selection_follows():
    def needed(schedule="stage", **kwargs):
        defaults = dict(variant="paper", keep_ratio=0.5, start_block=4, alpha=None,
                        placeholders=None, scores="global", blocks_per_stage=4,
                        pool_placeholders=True)  # fmt: skip
        checked = options.check_options(options.Host(12), **{**defaults, **kwargs})
        return sorted(options.scoring_blocks(checked, options.selection_groups(checked, schedule)))

    assert needed() == list(range(8))
    assert needed("layer") == list(range(11))
    assert needed(variant="official") == list(range(3, 8))  # no memory before block 4
    assert needed(scores="class") == [3, 7]
    assert needed(scores="random") == []
    assert needed(keep_ratio=1) == []


@pytest.mark.parametrize("scores", ["global", "class"])
def test_skipped_class_rows_change_nothing(scores):
    """``trace`` computes the scores of all blocks; a plain pass only those that matter."""
    for variant in options.VARIANTS:
        model = small.build(variant=variant, scores=scores, start_block=2, blocks_per_stage=2)
        logits = evovit.trace(model, small.images()).logits
        assert_close(model(small.images()), logits, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "kwargs", "kept"),
    [
        ("evo_deit_tiny_patch16_224", {}, 94),  # and class and representative token: 96
        ("evo_deit_tiny_patch16_224", {"placeholders": "keep"}, 95),
        ("evo_levit_128s", {"tile": 8}, 22),  # of 49 in its second stage
    ],
)
def test_tokens_come_in_tiles(name, kwargs, kept):
    model = timm.create_model(name, **{"tile": 16, **kwargs}).eval()
    sizes = []
    for block in model.blocks if hasattr(model, "blocks") else model.stages[1].blocks:
        block.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].shape[1]))
    with torch.no_grad():
        found = evovit.trace(model, torch.randn(1, 3, 224, 224))
    assert found.kept[0].shape[1] == kept
    assert sizes[-1] % model.options.tile == 0


def test_no_choice_of_fc_norm_leaves_the_models_norm():
    assert torch.equal(small.build(fc_norm=None)(small.images()), small.build()(small.images()))
