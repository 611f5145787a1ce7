"""EViT against the numbers of the authors' code, by hand, and its training."""

from math import ceil

import pytest
import timm
import torch
from torch.testing import assert_close

from baselines.evit import EViTTask, shrunk_ratio
from tests.baselines.selections import check_selections, check_training, watch, whole_maps
from tests.golden import reference
from tests.models import families
from tests.models import test_macs as macs

KEY = "evit_deit"
CASES = reference.names("evit_custom_")
NEAR = dict(rtol=0, atol=1e-10)


def load(about, dtype=torch.float64):
    sizes = ("img_size", "patch_size", "embed_dim", "depth", "num_heads", "num_classes")
    rates = about["ctor"]["keep_rate"]
    reducing = sorted(set(rates) - {1.0})
    if reducing == [0.7]:
        keep = dict(keep_ratio=0.7)
    else:
        keep = dict(keep_ratio=rates)
    kwargs = {name: about["ctor"][name] for name in sizes} | keep
    model = timm.create_model("evit_deit_tiny_patch16_224", fuse=about["ctor"]["fuse_token"], **kwargs).to(dtype)
    model.load_state_dict(reference.weights(about["shapes"], dtype))
    return model


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_inference_in_float64(name, fused):
    about, expected = reference.case(name)
    model = load(about).eval()
    for block in model.blocks:
        block.attn.fused_attn = fused
    with torch.no_grad():
        seen = watch(model, reference.images(about, torch.float64))
    assert_close(seen.logits, torch.tensor(expected["logits"]), **NEAR)
    assert [x.shape[1] for x in seen.after] == expected["tokens_after_block"].tolist()
    class_tokens = torch.stack([x[:, 0] for x in seen.after])
    assert_close(class_tokens, torch.tensor(expected["cls_token_after_block"]), **NEAR)
    assert model.reduction_blocks == tuple(about["selection_blocks"])
    check_selections(seen, expected, about["num_patches"], model.fuse)


@pytest.mark.parametrize("name", CASES)
def test_inference_in_float32(name):
    about, expected = reference.case(name)
    logits = load(about, torch.float32).eval()(reference.images(about, torch.float32))
    limit = 4 * about["max_abs_diff_f32_f64"]
    assert_close(logits.double(), torch.tensor(expected["logits"]), rtol=0, atol=limit)


@pytest.mark.parametrize("name", CASES)
def test_training_at_its_own_rate(name):
    about, expected = reference.case(name)
    model = load(about).train()
    seen = watch(model, reference.images(about, torch.float64))
    check_training(model, seen, about, expected)
    for parameter, stored in ((model.pos_embed, "grad_pos_embed"), (model.cls_token, "grad_cls_token")):
        assert_close(parameter.grad.float(), torch.tensor(expected[stored]), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", CASES)
def test_training_at_the_scheduled_rate(name):
    about, expected = reference.case(name)
    model = load(about).train()
    rate = about["train_sched_keep_rate"]
    model.set_training_ratios([rate if own < 1 else 1.0 for own in model.keep_ratios])
    seen = watch(model, reference.images(about, torch.float64))
    check_selections(seen, expected, about["num_patches"], model.fuse, "train_sched_")
    check_training(model, seen, about, expected, "train_sched_", "train_sched_grad_norms")
    with torch.no_grad():  # the schedule holds in training only
        logits = model.eval()(reference.images(about, torch.float64))
    assert_close(logits, torch.tensor(expected["logits"]), **NEAR)


def test_the_schedule_is_the_authors():
    _, expected = reference.case("evit_keep_rate_schedule")
    for row, rate in zip(expected["inputs"].tolist(), expected["keep_rate"].tolist(), strict=True):
        iteration, epoch, start, end, steps, ratio = row
        ours = shrunk_ratio(ratio, epoch, iteration - epoch * steps, steps, start, end - start)
        assert ours == pytest.approx(rate, rel=0, abs=1e-15)


def reorganized(width, ratio, fuse=True, patches=196):
    """Blocks 3, 6 and 9 attend to all tokens that enter them, and their MLPs see what stays and the fused token.

    The weighted sum is over all tokens that enter.
    """
    total, present = macs.frame(patches, width), patches
    for index in range(12):
        length = 1 + present
        total += 4 * length * width**2 + 2 * length**2 * width
        if index in (3, 6, 9):
            present = ceil(ratio * present)
            if fuse:
                present += 1
                total += length * width
        total += 8 * (1 + present) * width**2
    return total


@pytest.mark.parametrize(("size", "ceiling"), [("tiny", 1.527), ("small", 1.518), ("base", 1.513)])
def test_macs(size, ceiling):
    width, name = macs.WIDTH[size], f"evit_deit_{size}_patch16_224"
    form = reorganized(width, 0.7)
    assert macs.counted(macs.build(name)) == form
    assert round(macs.dense(196, width) / form, 3) == ceiling
    assert macs.counted(macs.build(name, keep_ratio=0.5)) == reorganized(width, 0.5)
    assert macs.counted(macs.build(name, fuse=False)) == reorganized(width, 0.7, fuse=False)
    assert macs.counted(macs.build(name, keep_ratio=1.0)) == macs.dense(196, width)


@pytest.mark.parametrize("fuse", [True, False])
def test_maps_keep_the_last_value_of_what_is_gone(fuse):
    model, batch = families.build(KEY, fuse=fuse).double().eval(), families.images(KEY, 3).double()
    with torch.no_grad():
        final, maps = model.forward_intermediates(batch, output_fmt="NLC")
        seen = watch(model, batch)
        expected = whole_maps(model, seen, model.embed(batch), fuse)
    assert any((kept >= 12).any() for kept in seen.kept[1:]) == fuse  # a fused token was kept
    for block in range(12):
        assert_close(maps[block], expected[block][:, 1:], **NEAR)
    assert_close(final, model.norm(seen.after[-1]), **NEAR)


def test_an_image_does_not_feel_its_batch():
    model, batch = families.build(KEY).double().eval(), families.images(KEY, 3).double()
    single = torch.cat([model(image.unsqueeze(0)) for image in batch])
    assert_close(single, model(batch), rtol=0, atol=1e-12)


def test_a_plain_deit_loads_as_it_is():
    plain = timm.create_model("deit_tiny_patch16_224", **families.DEIT).eval()
    model = families.build(KEY, keep_ratio=1.0).eval()
    assert list(model.state_dict()) == list(plain.state_dict())
    assert model.load_pretrained_dense(plain.state_dict()) == []
    assert_close(model(families.images(KEY)), plain(families.images(KEY)))


@pytest.mark.parametrize(
    ("kwargs", "sentence"),
    [
        (dict(keep_ratio=0), r"must lie in \(0, 1\]"),
        (dict(keep_ratio=1.2), r"must lie in \(0, 1\]"),
        (dict(keep_ratio=[0.5] * 3), "3 entries for 12 blocks: give one for each block"),
        (dict(keep_ratio=[1.0] * 11 + [0.5], reduction_blocks=(4, 5)), r"blocks \(11,\) drop tokens; leave"),
        (dict(reduction_blocks=(6, 3)), "must ascend within 0..11"),
        (dict(reduction_blocks=(3, 12)), "must ascend within 0..11"),
        (dict(patch_drop_rate=0.1), "leave patch_drop_rate out"),
        (dict(class_token=False, global_pool="avg"), "needs one class token"),
    ],
)
def test_what_is_refused(kwargs, sentence):
    with pytest.raises(ValueError, match=sentence):
        families.build(KEY, **kwargs)


def task_of(**kwargs):
    return EViTTask(families.build(KEY), verbose=False, **kwargs)


def tokens_in_training(task):
    seen = watch(task.trainable_module.train(), families.images(KEY))
    return seen.after[-1].shape[1]


def test_the_task_lowers_the_rate_step_by_step():
    task = task_of(shrink_start=1, shrink_epochs=2)
    model = task.trainable_module
    rates, counts = [], []
    for epoch in range(4):
        task.start_epoch(epoch, 4)
        for step in range(2):
            task.start_step(step, 2)
            rates.append(model.training_ratios[3])
            counts.append(tokens_in_training(task))
            assert model.training_ratios[:3] == (1.0, 1.0, 1.0)
    assert rates == pytest.approx([1, 1, 1, 0.7 + 0.15 * (1 + 0.5**0.5), 0.85, 0.7 + 0.15 * (1 - 0.5**0.5), 0.7, 0.7])
    assert counts == [17, 17, 17, 17, 14, 11, 10, 10]
    assert model.eval()(families.images(KEY)).shape == (2, 5)


def test_each_rate_of_a_list_falls_to_its_own():
    model = families.build(KEY, keep_ratio=[1.0] * 6 + [0.5, 1.0, 0.8, 1.0, 1.0, 1.0])
    task = EViTTask(model, shrink_start=0, shrink_epochs=2, verbose=False)
    task.start_epoch(1, 2)
    assert model.training_ratios == pytest.approx([1.0] * 6 + [0.75, 1.0, 0.9, 1.0, 1.0, 1.0])


def test_evaluation_and_averaged_weights_are_at_the_models_own_rate():
    task = task_of(shrink_start=5)
    averaged = task.setup_ema(decay=0.9).module.eval()
    task.start_epoch(0, 300)
    assert tokens_in_training(task) == 17
    model = task.trainable_module.eval()
    for evaluated in (model, averaged):
        assert watch(evaluated, families.images(KEY)).after[-1].shape[1] == 10
    assert_close(averaged(families.images(KEY)), model(families.images(KEY)))


def test_a_resumed_training_is_the_same():
    images, target = families.images(KEY), torch.tensor([0, 3])

    def train(task, steps):
        optimizer = torch.optim.SGD(task.trainable_module.parameters(), 0.1)
        for epoch, step in steps:
            task.train().start_epoch(epoch, 4)
            task.start_step(step, 3)
            task(images, target)["loss"].backward()
            optimizer.step()
            optimizer.zero_grad()
        return task.trainable_module

    steps = [(epoch, step) for epoch in range(4) for step in range(3)]
    whole = train(task_of(shrink_start=1, shrink_epochs=2), steps)
    half = train(task_of(shrink_start=1, shrink_epochs=2), steps[:5]).state_dict()
    fresh = task_of(shrink_start=1, shrink_epochs=2)
    fresh.trainable_module.load_state_dict(half)
    rest = train(fresh, steps[5:])
    for key, value in whole.state_dict().items():
        assert torch.equal(value, rest.state_dict()[key]), key


def test_a_training_that_ends_before_the_rate_is_down_is_told():
    task = task_of()
    assert (task.shrink_start, task.shrink_epochs) == (10, 100)
    assert task.unreached(300) == task.unreached(110) == []
    (sentence,) = task.unreached(109)
    assert "A training of 109 epochs" in sentence
    assert "is 110" in sentence


@pytest.mark.parametrize("kwargs", [dict(shrink_start=-1), dict(shrink_epochs=-1)])
def test_task_arguments_are_checked(kwargs):
    with pytest.raises(ValueError, match="must be at least 0"):
        task_of(**kwargs)


def test_other_models_are_refused():
    with pytest.raises(ValueError, match="the task evit trains evit_deit models"):
        EViTTask(families.build("plain_deit"), verbose=False)
