"""ToMe against the numbers of its authors' code, and what holds for every merging."""

import pytest
import timm
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from baselines import tome
from tests.golden import reference
from tests.models import families
from tests.models.test_macs import WIDTH, counted, frame
from tests.models.test_macs import build as full_size

CASES = [name for name in reference.names("tome_") if "shapes" in reference.case(name)[0]]
TRAINED = [name for name in CASES if "train_labels" in reference.case(name)[0]]
EXACT = dict(rtol=0, atol=1e-10)


def load(about, dtype):
    sizes = ("img_size", "patch_size", "embed_dim", "num_heads", "num_classes")
    model = timm.create_model(
        "tome_deit_tiny_patch16_224", r=about["r"], prop_attn=about["prop_attn"], **{k: about["ctor"][k] for k in sizes}
    ).to(dtype)
    model.load_state_dict(reference.weights(about["shapes"], dtype))
    return model


def observe(model, images):
    """The logits, and what each block returned: tokens, and their sizes and matching where it merged."""
    outputs = []
    hooks = [block.register_forward_hook(lambda *args: outputs.append(args[-1])) for block in model.blocks]
    logits = model(images)
    for hook in hooks:
        hook.remove()
    return logits, [output if isinstance(output, tuple) else (output, None, None) for output in outputs]


def test_there_are_golden_cases():
    assert len(CASES) == 6
    assert len(TRAINED) == 2


@pytest.mark.parametrize("name", CASES)
def test_inference_in_float64(name):
    about, expected = reference.case(name)
    model = load(about, torch.float64).eval()
    logits, outputs = observe(model, reference.images(about, torch.float64))
    assert_close(logits, torch.tensor(expected["logits"]), **EXACT)
    assert [tokens.shape[1] for tokens, _, _ in outputs] == expected["tokens_after_block"].tolist()
    assert list(model.merges) == list(tome.merges_per_block(about["r"], 12))
    groups = sizes = None
    for block, (_, new_sizes, matching) in enumerate(outputs):
        if matching is None:
            assert f"merge_src_{block:02}" not in expected
        else:
            sources, order = matching.merged.sort(dim=1)
            destinations = matching.kept.gather(1, matching.into).gather(1, order)
            assert torch.equal(sources, torch.tensor(expected[f"merge_src_{block:02}"]).long())
            assert torch.equal(destinations, torch.tensor(expected[f"merge_dst_{block:02}"]).long())
            groups, sizes = tome.regroup(groups, matching), new_sizes
        if sizes is not None:
            assert torch.equal(groups, torch.tensor(expected[f"group_{block:02}"]).long())
            assert_close(sizes, torch.tensor(expected[f"size_{block:02}"]), rtol=0, atol=0)
    ends = F.one_hot(groups, sizes.shape[1]).mT
    assert torch.equal(ends, torch.tensor(expected["source_end"]).long())


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_inference_in_float32(name, fused):
    about, expected = reference.case(name)
    model = load(about, torch.float32).eval()
    for block in model.blocks:
        block.attn.fused_attn = fused
    logits = model(reference.images(about, torch.float32))
    limit = 4 * about["max_abs_diff_f32_f64"]
    assert_close(logits.double(), torch.tensor(expected["logits"]), rtol=0, atol=limit)


@pytest.mark.parametrize("name", TRAINED)
def test_training_in_float64(name):
    about, expected = reference.case(name)
    model = load(about, torch.float64).train()
    logits = model(reference.images(about, torch.float64))
    assert_close(logits, torch.tensor(expected["train_logits"]), **EXACT)
    loss = F.cross_entropy(logits, torch.tensor(about["train_labels"]))
    assert loss.item() == pytest.approx(float(expected["train_loss"]), rel=0, abs=1e-10)
    loss.backward()
    gradients = {key: parameter.grad for key, parameter in model.named_parameters()}
    for key, norm in zip(about["grad_norm_keys"], expected["grad_norms"], strict=True):
        assert gradients[key].norm().item() == pytest.approx(norm, rel=0, abs=1e-10), key
    assert_close(gradients["pos_embed"].float(), torch.tensor(expected["grad_pos_embed"]))
    assert_close(gradients["cls_token"].float(), torch.tensor(expected["grad_cls_token"]))


def test_schedules():
    _, expected = reference.case("tome_r_schedules")
    for (depth, r, inflection), merges in zip(expected["inputs"], expected["r_per_block"], strict=True):
        ours = tome.merges_per_block((int(r), float(inflection)), int(depth))
        assert list(ours) == merges[: int(depth)].tolist()
        if inflection == 0:
            assert tome.merges_per_block(int(r), int(depth)) == ours


def test_the_three_forms_of_r():
    assert tome.merges_per_block(2, 4) == (2, 2, 2, 2)
    assert tome.merges_per_block([3, -1.0], 4) == tome.merges_per_block((3, -1.0), 4) == (6, 4, 2, 0)
    assert tome.merges_per_block([0, 5, 1], 4) == (0, 5, 1, 0)
    assert tome.merges_per_block([4, 1], 2) == (4, 1)
    assert tome.merges_per_block((5, 0.5), 1) == (2,)


@pytest.mark.parametrize(
    ("r", "message"),
    [(-1, "whole number"), (2.5, "whole number"), ([1, 2, 2.0], "whole number"), ([1, -2, 0], "whole number"),
     ((2.5, 1.0), "whole number"), ((3, -1), r"write the inflection .* \(3, -1.0\)"),
     ((3, 1.5), r"must lie in \[-1, 1\]"), ([1] * 13, "13 entries for 12 blocks")],
)  # fmt: skip
def test_what_no_one_can_merge_is_refused(r, message):
    with pytest.raises(ValueError, match=message):
        families.build("tome_deit", r=r)


def merging(width, merges, patches=196):
    """Attention before a merging, MLP after it; each of the first set's 64-wide keys times each of the second's."""
    total, length = frame(patches, width), 1 + patches
    for r in merges:
        r = min(r, (length - 1) // 2)
        total += 4 * length * width**2 + 2 * length**2 * width
        if r:
            total += ((length - 1) // 2) * (length // 2) * 64
        length -= r
        total += 8 * length * width**2
    return total


@pytest.mark.parametrize("size", WIDTH)
def test_macs(size):
    name, width = f"tome_deit_{size}_patch16_224", WIDTH[size]
    assert counted(full_size(name)) == merging(width, [13] * 12)
    falling = [26, 23, 21, 18, 16, 14, 11, 9, 7, 4, 2, 0]
    assert counted(full_size(name, r=(13, -1.0))) == merging(width, falling)
    assert counted(full_size(name, r=[98, 0, 50])) == merging(width, [98, 0, 49] + [0] * 9)


def test_a_block_merges_half_of_its_patches_at_most():
    model = families.build("tome_deit", r=13).eval()
    _, outputs = observe(model, families.images("tome_deit"))
    assert [tokens.shape[1] for tokens, _, _ in outputs] == [9, 5, 3] + [2] * 9


def test_without_merging_it_is_the_dense_model():
    model, plain = families.build("tome_deit", r=0).eval(), families.build("plain_deit").eval()
    plain.load_state_dict(model.state_dict())
    assert torch.equal(model(families.images("tome_deit")), plain(families.images("tome_deit")))


def test_merging_by_hand():
    """Tokens 2 and 6 become one with 3, token 4 stays; the class token's place is 0."""
    keys = torch.tensor([[[9.0, 0], [0, 1], [5, 0], [1, 0], [1, 1], [-1, -1], [2, 0.1]]])
    matching = tome.match(keys, 2)
    assert matching.kept.tolist() == [[0, 4, 1, 3, 5]]
    assert matching.merged.tolist() == [[2, 6]]
    assert matching.into.tolist() == [[3, 3]]
    tokens = torch.tensor([[0.0, 10, 20, 30, 40, 50, 60]]).unsqueeze(2)
    sizes = torch.tensor([[1.0, 1, 2, 1, 1, 3, 5]])
    merged, sizes = tome.merge_tokens(tokens, sizes, matching)
    assert sizes.tolist() == [[1, 1, 1, 8, 3]]
    assert_close(merged[0, :, 0], torch.tensor([0, 40, 10, (2 * 20 + 30 + 5 * 60) / 8, 50]))
    assert tome.regroup(None, matching).tolist() == [[0, 2, 3, 3, 1, 4, 3]]
    groups = torch.tensor([[0, 6, 5, 2, 2, 1, 3, 4]])
    assert tome.regroup(groups, matching).tolist() == [[0, 3, 4, 3, 3, 2, 3, 1]]


@pytest.mark.parametrize("prop_attn", [True, False])
def test_proportional_attention_counts_every_patch(prop_attn):
    """A token of size 3 is attended to as three equal tokens are."""
    attention = families.build("tome_deit").eval().double().blocks[0].attn
    model = families.build("tome_deit", prop_attn=prop_attn)
    tokens, sizes = torch.randn(2, 4, 24, dtype=torch.float64), torch.tensor([[1.0, 1, 3, 1]]).expand(2, -1)
    repeated = tokens[:, [0, 1, 2, 2, 2, 3]]
    bias = model.size_bias(sizes, torch.float64)
    assert (bias is None) is not prop_attn
    if prop_attn:
        expected = attention(repeated)[:, [0, 1, 2, 5]]
        assert_close(attention(tokens, bias), expected)
        assert_close(attention(tokens, bias, return_keys=True)[0], expected)


def test_every_patch_is_in_one_token_even_where_all_are_alike():
    model = families.build("tome_deit", r=2).eval()
    with torch.no_grad():
        model.pos_embed.zero_()
        logits, outputs = observe(model, torch.zeros(2, 3, 32, 32))
    assert logits.isfinite().all()
    groups, sizes = None, None
    for tokens, new_sizes, matching in outputs:
        if matching is not None:
            assert torch.cat((matching.kept, matching.merged), 1).sort(1).values.diff(dim=1).eq(1).all()
            groups, sizes = tome.regroup(groups, matching), new_sizes
        assert sizes.sum(1).tolist() == [17, 17]
        assert sizes[:, 0].tolist() == [1, 1]
        assert torch.equal(F.one_hot(groups, tokens.shape[1]).sum(1).float(), sizes)


def test_an_image_does_not_depend_on_its_batch():
    model, images = families.build("tome_deit", r=2).double().eval(), families.images("tome_deit", 3).double()
    together = model(images)
    for index in range(3):
        assert_close(model(images[index : index + 1]), together[index : index + 1], **EXACT)


def test_maps_show_the_token_that_a_patch_is_in():
    model, images = families.build("tome_deit", r=2).eval(), families.images("tome_deit", 3)
    with torch.no_grad():
        _, outputs = observe(model, images)
        maps = model.forward_intermediates(images, output_fmt="NLC", return_prefix_tokens=True)[1]
    held = [[[place] for place in range(17)] for _ in range(3)]  # the initial tokens in each token
    for (patches, prefix), (tokens, _, matching) in zip(maps, outputs, strict=True):
        for image in range(3):
            if matching is not None:
                places = held[image]
                held[image] = [list(places[place]) for place in matching.kept[image].tolist()]
                for source, place in zip(matching.merged[image].tolist(), matching.into[image].tolist(), strict=True):
                    held[image][place] += places[source]
            assert torch.equal(prefix[image, 0], tokens[image, 0])
            for place, initial in enumerate(held[image][1:], start=1):
                for token in initial:
                    assert torch.equal(patches[image, token - 1], tokens[image, place])


@pytest.mark.parametrize("precision", ["bf16", "autocast"])
def test_low_precision(precision):
    model, images = families.build("tome_deit", r=2).eval(), families.images("tome_deit")
    expected = model(images)
    if precision == "bf16":
        logits = model.bfloat16()(images.bfloat16())
        assert logits.dtype == torch.bfloat16
    else:
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(images)
    assert (logits.float() - expected).norm() < 0.2 * expected.norm()
