"""Evo-LeViT: against the literal method, its options, what a checkpoint carries."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

import evovit
from evovit import tokens
from evovit.checkpoint import load_official
from tests.evovit import literal, small
from tests.golden import reference

images = pytest.fixture(lambda: small.images(2, 128))


@settings(max_examples=8, deadline=None)
@given(
    schedule=st.sampled_from(["layer", "stage"]),
    variant=st.sampled_from(["paper", "official"]),
    subsample=st.sampled_from(["stride", "average"]),
    start_block=st.integers(1, 4),
    keep_ratio=st.floats(0.26, 0.9),
    alpha=st.one_of(st.floats(0, 1), st.just("learned")),
    size=st.sampled_from([128, 112]),  # grids of 8, 4, 2 and of 7, 4, 2
    seed=st.integers(0, 99),
)
def test_equals_the_literal_method(schedule, variant, subsample, start_block, keep_ratio, alpha, size, seed):
    model = small.levit(
        seed=seed, img_size=size, schedule=schedule, variant=variant, subsample=subsample,
        start_block=start_block, keep_ratio=keep_ratio, alpha=alpha,
    )  # fmt: skip
    batch = small.images(2, size, seed=seed)
    with torch.inference_mode():
        found, seen = model.forward_features(batch), evovit.trace(model, batch)
        where = dict(zip(seen.attentions, seen.positions, strict=True))
        for b in range(len(batch)):
            expected, events = literal.levit(model, batch[b : b + 1], schedule, merge=subsample == "average")
            for block, kept, event in zip(seen.blocks, seen.kept, events, strict=True):
                assert kept[b].tolist() == where[block][event].tolist()
            assert_close(found[b], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("schedule", ["layer", "stage"])
def test_gradients_equal_the_literal_method(schedule, images):
    model = small.levit(schedule=schedule, alpha="learned")
    parameters = [model.alpha_logits, *model.stages.parameters()]
    ours = torch.autograd.grad(model.forward_features(images[:1]).cos().sum(), parameters)
    expected, _ = literal.levit(model, images[:1], schedule)
    theirs = torch.autograd.grad(expected.cos().sum(), parameters)
    assert_close(ours, theirs, rtol=1e-8, atol=1e-9)
    # The alphas learn where the placeholders' scores depend on them.
    assert ours[0][[1, 2, 3, 6]].abs().min() > 1e-4


def test_an_image_does_not_feel_its_batch(images):
    model = small.levit(schedule="layer")
    together, alone = evovit.trace(model, images), evovit.trace(model, images[1:])
    for one, both in zip(alone.kept, together.kept, strict=True):
        assert torch.equal(one[0], both[1])
    assert_close(alone.logits[0], together.logits[1], rtol=0, atol=1e-12)


def test_keep_ratio_1_selects_nothing(images):
    model = small.levit(keep_ratio=1)
    assert evovit.trace(model, images).blocks == []
    selecting = small.levit()
    off = small.levit()
    off.set_selecting(False)
    assert_close(model(images), off(images), rtol=0, atol=1e-12)
    assert not torch.allclose(model(images), selecting(images))


def test_plain_pass_and_trace_agree(images):
    for kwargs in (dict(), dict(scores="class"), dict(start_block=4), dict(schedule="layer")):
        model = small.levit(**kwargs)
        assert_close(model(images), evovit.trace(model, images).logits, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("kwargs", "reason"),
    [
        (dict(placeholders="drop"), "leaves no grid to sub-sample"),
        (dict(scores="last_class"), "no score for the patches that sub-sampling leaves out"),
        (dict(alpha="learned", placeholders="keep"), "pass a gradient to alpha"),
        (dict(alpha="learned", scores="class"), "mixes the global class attention"),
        (dict(alpha="mine"), "neither a number nor 'learned'"),
        (dict(alpha=[0.5] * 7), "7 entries for 9 attentions"),
        (dict(keep_ratio=0.2), "4 patches keeps 0"),
        (dict(keep_ratio=[1, 1, 0.5, 0.5, 0.4, 0.5, 0.5]), "their keep ratios differ"),
        (dict(start_block=7), r"1\.\.6"),
        (dict(img_size=100), "multiples of 16"),
        (dict(subsample="mine"), "stride, average"),
        (dict(global_pool="token"), "predicts from the mean"),
    ],
)
def test_nonsense_is_refused_with_the_reason(kwargs, reason):
    with pytest.raises(ValueError, match=reason):
        small.levit(**kwargs)


def test_images_of_another_size_are_refused(images):
    with pytest.raises(ValueError, match=r"images are \(128, 128\), the model was made for"):
        small.levit(img_size=112)(images)


@pytest.mark.parametrize("scores", ["global", "class", "random", "column_mean"])
@pytest.mark.parametrize("placeholders", ["update", "keep"])
def test_every_score_and_placeholder_rule_runs_and_learns(scores, placeholders, images):
    model = small.levit(scores=scores, placeholders=placeholders, schedule="layer").train()
    model.set_training_outputs()
    average, token = model(images)
    (average.square().sum() + token.square().sum()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    seen = evovit.trace(model.eval(), images)
    assert seen.blocks == [2, 3, 4, 5, 6]
    assert [kept.shape[1] for kept in seen.kept] == [32, 8, 8, 2, 2]


def test_kept_placeholders_wait(images):
    model = small.levit(placeholders="keep", schedule="stage")
    seen, observed = evovit.trace(model, images), model.observe(images)[0]
    before, after = observed[1].tokens[:, 1:], observed[2].tokens[:, 1:]
    untouched = torch.ones(2, 64, dtype=torch.bool).scatter(1, seen.kept[0], False)
    assert torch.equal(after[untouched], before[untouched])
    assert not torch.isclose(after[~untouched], before[~untouched]).all(dim=-1).any()


def test_subsampled_scores():
    scores = torch.arange(15.0).roll(4).view(1, 15)  # 11 12 13 14 0 | 1 2 3 4 5 | 6 7 8 9 10
    survivors = tokens.subsample_scores(scores, (3, 5), keeps_tokens=True)
    assert survivors.tolist() == [[11, 13, 0, 6, 8, 10]]
    highest = tokens.subsample_scores(scores, (3, 5), keeps_tokens=False)
    assert highest.tolist() == [[12, 14, 5, 7, 9, 10]]


def test_without_gradients_alphas_need_no_copy_to_the_device():
    """Which a GPU's host would wait for in every pass, and no CUDA graph can hold."""
    model = small.levit(alpha="learned")
    model.set_alpha_learning(False)
    with torch.no_grad():
        assert all(isinstance(alpha, float) for alpha in model._alphas())


@pytest.mark.parametrize("change", ["keep_ratio", "selecting", "learning"])
def test_alphas_that_nothing_selects_by_have_gradients_of_zero(change, images):
    """DDP waits for a gradient of every parameter."""
    model = small.levit(alpha="learned", keep_ratio=1 if change == "keep_ratio" else 0.5)
    if change == "selecting":
        model.set_selecting(False)
    elif change == "learning":
        model.set_alpha_learning(False)
    model(images).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert not model.alpha_logits.grad.any()


def test_learned_alphas_count_once_they_are_to(images):
    fixed, learned = small.levit(alpha=0.5), small.levit(alpha="learned")
    assert fixed.alpha_logits is None
    with torch.no_grad():
        learned.alpha_logits.fill_(3.0)
    learned.load_state_dict({**fixed.state_dict(), "alpha_logits": learned.alpha_logits})
    assert not torch.allclose(learned(images), fixed(images))
    learned.set_alpha_learning(False)
    assert_close(learned(images), fixed(images), rtol=0, atol=1e-12)
    again = small.levit(seed=1, alpha="learned")
    again.load_state_dict(learned.state_dict())
    assert not again.learning_alpha  # the checkpoint knows
    saved = learned.state_dict()
    saved["tradeoff_logits"] = saved.pop("alpha_logits")  # as older files hold it
    saved._metadata[""]["learning_tradeoff"] = saved._metadata[""].pop("learning_alpha")
    of_old_file = small.levit(seed=2, alpha="learned")
    of_old_file.load_state_dict(saved)
    assert not of_old_file.learning_alpha
    assert torch.equal(of_old_file.alpha_logits, learned.alpha_logits)
    assert small.levit(seed=2, alpha="learned").load_pretrained_dense(saved) == []
    assert small.levit(variant="official").alpha_logits is not None
    assert small.levit().alpha_logits is None


def test_a_checkpoint_knows_its_schedule(images):
    trained = small.levit(seed=1)
    trained.set_schedule("layer")
    model = small.levit(seed=2)
    model.load_state_dict(trained.state_dict())
    assert torch.equal(model(images), trained(images))
    with pytest.raises(ValueError, match="trained to schedule='layer'"):
        small.levit(schedule="stage").load_state_dict(trained.state_dict())


def official():
    about, _ = reference.case("evo_levit_custom_stage_learned")
    ctor = about["ctor"]
    model = small.levit(torch.float32, variant="official", embed_dim=ctor["C"], num_heads=ctor["Nh"], num_classes=16)
    return model, reference.weights(about["shapes"], torch.float32)


def twins(state):
    """The authors' files hold every block twice; the second list nests stages differently."""
    place = {"0": "0.", "1": "2.", "2": "4.m.0."}
    copies = {}
    for key, value in state.items():
        if key.startswith("blocks."):
            _, block, rest = key.split(".", 2)
            copies[f"stage_blocks.{place.get(block, block + '.')}{rest}"] = value.clone()
    return {**state, **copies}


def test_the_authors_doubled_keys_are_accepted_if_equal():
    model, state = official()
    load_official(model, twins(state))
    once, _ = official()
    load_official(once, state)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), once.parameters(), strict=True))
    differing = twins(state)
    differing["stage_blocks.4.m.0.m1.m.qkv.c.weight"][0, 0] += 1
    with pytest.raises(ValueError, match=r"stage_blocks\.4\.m\.0\.m1\.m\.qkv\.c\.weight differs"):
        load_official(once, differing)
    del differing["stage_blocks.0.m1.m.learn_tradeoff"]
    with pytest.raises(ValueError, match=r"keys stage_blocks\.\*"):
        load_official(once, differing)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda s: s.pop("poss"), "missing pos_embed"),
        (lambda s: s.pop("blocks.3.kv.c.weight"), r"missing stages\.1\.downsample\.kv\.linear"),
        (lambda s: s.update({"blocks.99.x": torch.zeros(1)}), r"unexpected blocks\.99\.x"),
        (lambda s: s.pop("blocks.3.learn_tradeoff"), r"alpha_logits is \(8,\), needed \(9,\)"),
    ],
)
def test_official_weights_that_do_not_fit_are_refused(change, complaint):
    model, state = official()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    change(state)
    with pytest.raises(ValueError, match=complaint):
        load_official(model, state)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
