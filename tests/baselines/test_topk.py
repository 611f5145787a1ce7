"""Top-K against the numbers of Haurum et al.'s code and by hand, and what random dropping draws."""

import pytest
import timm
import torch
from torch.testing import assert_close

from tests.baselines.selections import check_selections, check_training, watch, whole_maps
from tests.golden import reference
from tests.models import families
from tests.models import test_macs as macs

KEYS = ("topk_deit", "random_deit")
CASES = reference.names("topk_custom_")
NEAR = dict(rtol=0, atol=1e-10)


def load(about, dtype=torch.float64):
    sizes = ("img_size", "patch_size", "embed_dim", "depth", "num_heads", "num_classes")
    ratios = about["args"]["keep_rate"]
    kwargs = {name: about["ctor"][name] for name in sizes}
    kwargs["keep_ratio"] = ratios[0] if len(ratios) == 1 else ratios
    kwargs["reduction_blocks"] = about["args"]["reduction_loc"]
    model = timm.create_model("topk_deit_tiny_patch16_224", **kwargs).to(dtype)
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
    assert model.keep_ratios == tuple(about["token_ratio"])
    check_selections(seen, expected, about["num_patches"], False)


@pytest.mark.parametrize("name", CASES)
def test_inference_in_float32(name):
    about, expected = reference.case(name)
    logits = load(about, torch.float32).eval()(reference.images(about, torch.float32))
    limit = 4 * about["max_abs_diff_f32_f64"]
    assert_close(logits.double(), torch.tensor(expected["logits"]), rtol=0, atol=limit)


def test_training_in_float64():
    about, expected = reference.case("topk_custom_img112_p8")
    model = load(about).train()
    seen = watch(model, reference.images(about, torch.float64))
    check_training(model, seen, about, expected, gradients="grad_norms")
    for parameter, stored in ((model.pos_embed, "grad_pos_embed"), (model.cls_token, "grad_cls_token")):
        assert_close(parameter.grad.float(), torch.tensor(expected[stored]), rtol=1e-6, atol=1e-8)


def dropping(width, kept, blocks=(3, 6, 9), patches=196):
    """The attention of the reduction blocks sees all tokens that enter them, their MLPs only those that stay."""
    total, present = macs.frame(patches, width), patches
    for index in range(12):
        length = 1 + present
        total += 4 * length * width**2 + 2 * length**2 * width
        if index in blocks:
            present = kept[blocks.index(index)]
        total += 8 * (1 + present) * width**2
    return total


@pytest.mark.parametrize("kind", ["topk", "random"])
@pytest.mark.parametrize(("size", "ceiling"), [("tiny", 1.552), ("small", 1.543), ("base", 1.538)])
def test_macs(kind, size, ceiling):
    width, name = macs.WIDTH[size], f"{kind}_deit_{size}_patch16_224"
    form = dropping(width, (137, 96, 67))
    assert macs.counted(macs.build(name)) == form
    assert round(macs.dense(196, width) / form, 3) == ceiling
    chosen = macs.build(name, keep_ratio=[1.0, 0.25], reduction_blocks=(0, 5))
    assert macs.counted(chosen) == dropping(width, (196, 49), (0, 5))


@pytest.mark.parametrize("key", KEYS)
def test_maps_keep_the_last_value_of_what_is_gone(key):
    model, batch = families.build(key).double().eval(), families.images(key, 3).double()
    with torch.no_grad():
        torch.manual_seed(4)
        final, maps = model.forward_intermediates(batch, output_fmt="NLC")
        torch.manual_seed(4)
        seen = watch(model, batch)
        expected = whole_maps(model, seen, model.embed(batch), False)
    for block in range(12):
        assert_close(maps[block], expected[block][:, 1:], **NEAR)
    assert_close(final, model.norm(seen.after[-1]), **NEAR)


def test_an_image_does_not_feel_its_batch():
    model, batch = families.build("topk_deit").double().eval(), families.images("topk_deit", 3).double()
    single = torch.cat([model(image.unsqueeze(0)) for image in batch])
    assert_close(single, model(batch), rtol=0, atol=1e-12)


@pytest.mark.parametrize("key", KEYS)
def test_a_plain_deit_loads_as_it_is(key):
    plain = timm.create_model("deit_tiny_patch16_224", **families.DEIT).eval()
    model = families.build(key, keep_ratio=1.0).eval()
    assert list(model.state_dict()) == list(plain.state_dict())
    assert model.load_pretrained_dense(plain.state_dict()) == []
    assert_close(model(families.images(key)), plain(families.images(key)))


def drawn(seed, batch=2):
    model = families.build("random_deit").eval()
    torch.manual_seed(seed)
    with torch.no_grad():
        seen = watch(model, families.images("random_deit")[:1].expand(batch, -1, -1, -1))
    return seen.logits, [kept.sort(dim=1).values for kept in seen.kept]


def test_a_seed_draws_the_same_patches():
    logits, kept = drawn(5)
    again, kept_again = drawn(5)
    assert torch.equal(logits, again)
    assert all(map(torch.equal, kept, kept_again))
    assert not torch.equal(kept[0], drawn(6)[1][0])
    assert [positions.shape[1] for positions in kept] == [11, 7, 5]


def test_each_image_and_each_pass_draws_its_own_patches():
    logits, kept = drawn(5)
    assert not torch.equal(kept[0][0], kept[0][1])  # of one image, twice in the batch
    assert not torch.allclose(logits[0], logits[1])
    model, images = families.build("random_deit").eval(), families.images("random_deit")
    assert not torch.allclose(model(images), model(images))


def test_every_patch_is_drawn_as_often():
    kept = drawn(7, batch=2000)[1][0]
    shares = torch.bincount(kept.flatten(), minlength=16) / len(kept)
    assert (shares - 11 / 16).abs().max() < 0.05


def test_recomputed_activations_belong_to_the_patches_that_were_drawn():
    grads = []
    for recompute in (False, True):
        model = families.build("random_deit").train()
        model.set_grad_checkpointing(recompute)
        torch.manual_seed(2)
        model(families.images("random_deit")).square().sum().backward()
        grads.append({name: p.grad for name, p in model.named_parameters()})
    assert_close(grads[1], grads[0])


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize(
    ("kwargs", "sentence"),
    [
        (dict(keep_ratio=0.0), r"must lie in \(0, 1\]"),
        (dict(keep_ratio=[0.7, 0.5]), "2 entries for 3 reduction_blocks: give one for each"),
        (dict(keep_ratio=[0.5, 0.6, 0.1]), "must not increase"),
        (dict(keep_ratio=0.3), "0.027 of 16 patches keeps none in the last stage"),
        (dict(reduction_blocks=(6, 3)), "must ascend within 0..11"),
        (dict(reduction_blocks=(3, 12)), "must ascend within 0..11"),
        (dict(patch_drop_rate=0.1), "leave patch_drop_rate out"),
        (dict(class_token=False, global_pool="avg"), "needs one class token"),
    ],
)
def test_what_is_refused(key, kwargs, sentence):
    with pytest.raises(ValueError, match=sentence):
        families.build(key, **kwargs)


def test_grids_of_which_nothing_is_left_are_refused():
    with pytest.raises(ValueError, match="of 1 patches keeps none"):
        families.build("topk_deit").set_input_size(8)
    with pytest.raises(ValueError, match="of 1 patches keeps none"):
        families.build("topk_deit", dynamic_img_size=True).eval()(torch.randn(1, 3, 8, 8))
