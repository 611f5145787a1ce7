"""ATS: the numbers of the authors' code, the sampling, and images that do not depend on their batch."""

import io

import pytest
import timm
import torch
import torch.nn.functional as F
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from baselines.ats import Sampled, sample_ranks
from evovit.checkpoint import load_official
from tests.golden import reference
from tests.models import families

KEY = "ats_deit"
EXACT = dict(rtol=0, atol=1e-9)


def record(model):
    """What the sampling blocks return, in the order of their calls."""
    sampled = []
    for block in model.blocks:
        block.register_forward_hook(lambda *args: sampled.append(args[-1]) if isinstance(args[-1], Sampled) else None)
    return sampled


def grid_positions(sampled, image):
    """Per sampling, an image's positions on the grid, by ascending score."""
    positions, found = None, []
    for event in sampled:
        kept = event.kept[image]
        positions = kept if positions is None else positions[kept]
        count = len(kept) if event.keys is None else int(event.keys[image, 1:].sum())
        assert event.keys is None or event.keys[image, : 1 + count].all()
        found.append(positions[:count].tolist())
    return found


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", reference.names("ats_official"))
def test_golden(name, fused):
    about, expected = reference.case(name)
    sizes = ("img_size", "patch_size", "embed_dim", "num_heads", "num_classes")
    model = timm.create_model(
        "ats_deit_tiny_patch16_224", **{k: about["ctor"][k] for k in sizes}, reduction_blocks=about["ats_blocks"]
    ).double()
    model.load_state_dict(reference.weights(about["shapes"], torch.float64))
    for block in model.eval().blocks:
        block.attn.fused_attn = fused
    images, sampled = reference.images(about, torch.float64), record(model)
    # their softmax is of float32, with 1e-6 added
    near = dict(rtol=0, atol=1e-6)
    logits = torch.tensor(expected["logits_single"])
    assert_close(model(images), logits, **near)
    together = sampled.copy()
    for image in range(2):
        sampled.clear()
        assert_close(model(images[image : image + 1]), logits[image : image + 1], **near)
        assert all(event.keys is None for event in sampled)
        theirs = [expected[f"single{image}_kept_order_{event}"].tolist() for event in range(len(sampled))]
        assert [len(kept) for kept in theirs] == expected["n_kept_single"][:, image].tolist()
        assert grid_positions(sampled, 0) == theirs
        assert grid_positions(together, image) == theirs


def test_the_authors_files_hold_parameters_that_stay_zero():
    about, _ = reference.case(reference.names("ats_official")[0])
    sizes = ("img_size", "patch_size", "embed_dim", "num_heads", "num_classes")
    model = timm.create_model("ats_deit_tiny_patch16_224", **{k: about["ctor"][k] for k in sizes})
    weights = reference.weights(about["shapes"], torch.float32)
    zeros = {f"blocks.{block}.attn.out_zero_mask": torch.zeros(1, 26, 48) for block in about["ats_blocks"]}
    load_official(model, weights | zeros)
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
    with pytest.raises(ValueError, match=r"unexpected head_dist\.weight"):
        load_official(model, weights | zeros | {"head_dist.weight": torch.zeros(16, 48)})


def hit_one_by_one(scores, points):
    """The sampling of one image, point by point."""
    total = [sum(scores[: i + 1]) - scores[0] for i in range(len(scores))]
    total = [value / total[-1] if total[-1] else 0.0 for value in total]
    start = min([value for value in total if value > 0], default=1.0)
    hit = set()
    for j in range(points):
        wanted = start + (1 - start) * j / max(points - 1, 1)
        distances = [abs(wanted - value) for value in total]
        hit.add(distances.index(min(distances)))
    return hit - {1} if max(hit) == 1 else hit


@pytest.mark.parametrize("points", [1, 2, 9, 40])
def test_sampling_point_by_point(points):
    draw = torch.Generator().manual_seed(points)
    images = [torch.rand(n, generator=draw, dtype=torch.float64).pow(4).sort().values for n in (12, 7, 3, 2, 1)]
    images.append(torch.zeros(4, dtype=torch.float64))
    images.append(torch.tensor([0, 0, 0, 0.5, 0.5, 1, 1], dtype=torch.float64))
    padded = torch.stack([F.pad(scores, (0, 12 - len(scores))) for scores in images])
    found = sample_ranks(padded, points)
    for scores, ranks in zip(images, found, strict=True):
        expected = hit_one_by_one(scores.tolist(), points)
        assert set(ranks.nonzero().flatten().tolist()) == expected
        assert set(sample_ranks(scores[None], points)[0].nonzero().flatten().tolist()) == expected


def build(**kwargs):
    """In double precision, with attention that differs between patches."""
    model = families.build(KEY, **kwargs).double()
    for block in model.blocks:
        torch.nn.init.normal_(block.attn.qkv.weight, std=0.5)
    return model


def images(batch=6):
    return families.images(KEY, batch).double()


@pytest.mark.parametrize("fused", [True, False])
def test_an_image_does_not_depend_on_its_batch(fused):
    model, batch = build().eval(), images()
    for block in model.blocks:
        block.attn.fused_attn = fused
    sampled = record(model)
    together = model(batch)
    counts = sampled[-1].keys.sum(1)
    assert len(set(counts.tolist())) > 2  # padding is at work
    assert_close(together, torch.cat([model(image[None]) for image in batch]), **EXACT)
    maps = model.forward_intermediates(batch, intermediates_only=True)
    for number, image in enumerate(batch):
        own = model.forward_intermediates(image[None], intermediates_only=True)
        assert_close([feature[number] for feature in maps], [feature[0] for feature in own], **EXACT)


@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_are_those_of_single_images(recompute):
    model, batch = build().train(), images(4)
    for image in batch:
        model(image[None]).square().sum().backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    model.set_grad_checkpointing(recompute)
    model(batch).square().sum().backward()
    assert_close({name: parameter.grad for name, parameter in model.named_parameters()}, expected)


def test_a_dropped_patch_keeps_its_last_value():
    model, batch = build().eval(), images(3)
    sampled = record(model)
    maps = model.forward_intermediates(batch, intermediates_only=True, output_fmt="NLC")
    for image in range(3):
        for event, kept in enumerate(grid_positions(sampled, image)):
            block = model.reduction_blocks[event]
            dropped = [patch for patch in range(16) if patch not in kept]
            for later in range(block, 12):
                assert torch.equal(maps[later][image, dropped], maps[later - 1][image, dropped])
            assert_close(maps[block][image, kept], sampled[event].tokens[image, 1 : 1 + len(kept)], **EXACT)


def test_of_two_patches_none_stays():
    model = build(img_size=(8, 16)).eval()
    batch = torch.randn(3, 3, 8, 16, dtype=torch.float64)
    assert model.forward_features(batch).shape == (3, 1, 24)
    assert model(batch).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_low_precision(dtype):
    model, batch = families.build(KEY).eval(), families.images(KEY)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is torch.float32):
        logits = model.to(dtype)(batch.to(dtype))
    assert logits.dtype == torch.bfloat16
    assert logits.isfinite().all()


def test_an_image_that_is_not_finite_harms_no_other():
    model, batch = build().eval(), images(3)
    expected = model(batch)
    batch[1] = torch.nan
    logits = model(batch)
    assert logits[1].isnan().all()
    assert_close(logits[[0, 2]], expected[[0, 2]], **EXACT)


def block_macs(before, after, width, heads):
    """A block that samples: queries, keys and values of all, the class token's row, then all of what stays.

    The row multiplies a query of as many rows as there are heads.
    """
    return 3 * before * width**2 + heads * before * width + 2 * before * after * width + 9 * after * width**2


@pytest.mark.parametrize("profile", [None, [0.7, 0.49, 0.343]])
@pytest.mark.parametrize(("size", "width"), [("tiny", 192), ("small", 384)])
def test_macs(size, width, profile):
    model = timm.create_model(f"ats_deit_{size}_patch16_224", keep_profile=profile).eval()
    for block in model.blocks:
        block.attn.fused_attn = False
    sampled = record(model)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0)))
    total, length = 196 * 768 * width + width * 1000, 197
    for block in range(12):
        if block in (3, 6, 9):
            after = sampled[block // 3 - 1].tokens.shape[1]
            assert 1 < after < length
            assert profile is None or after == 1 + int(profile[block // 3 - 1] * 196)
            total += block_macs(length, after, width, width // 64)
            length = after
        else:
            total += 12 * length * width**2 + 2 * length**2 * width
    assert counter.get_total_flops() // 2 == total


@pytest.mark.parametrize("blocks", [(3, 3), (6, 3), (3, 12), (-1, 3)])
def test_blocks_that_can_not_be_are_refused(blocks):
    with pytest.raises(ValueError, match=r"reduction_blocks=\(.*\) must ascend within 0\.\.11"):
        families.build(KEY, reduction_blocks=blocks)


def test_a_profile_keeps_the_best_of_each_image():
    model = build(depth=4, reduction_blocks=(1, 3), keep_profile=(0.5, 0.25)).eval()
    patches = model.patch_embed.num_patches
    sampled = record(model)
    logits = model(images())
    assert [event.kept.shape[1] for event in sampled] == [patches // 2, patches // 4]
    assert all(event.keys is None for event in sampled)
    assert_close(logits, torch.cat([model(image[None]) for image in images()]), **EXACT)
    free = build(depth=4, reduction_blocks=(1, 3)).eval()
    free.load_state_dict(model.state_dict())
    scores = []
    block = free.blocks[1]
    whole = block.attn.significance
    block.attn.significance = lambda *args: scores.append(whole(*args)) or scores[-1]
    free(images())
    best = scores[0].argsort(dim=1, descending=True)[:, : patches // 2]
    assert_close(sampled[0].kept.sort(dim=1).values, best.sort(dim=1).values)


@pytest.mark.parametrize("profile", [(0.5,), (0.3, 0.5, 0.1), (1.2, 0.5, 0.1), (0.5, 0.3, 0)])
def test_profiles_that_can_not_be_are_refused(profile):
    with pytest.raises(ValueError, match=r"keep_profile=\(.*\) must"):
        families.build(KEY, keep_profile=profile)


REFUSED = {
    "trace": torch.jit.trace,
    "onnx": lambda model, images: torch.onnx.export(model, images, io.BytesIO(), dynamo=False),
    "export": lambda model, images: torch.export.export(model, (images,), strict=False),
    "meta": lambda model, images: model.to("meta")(images.to("meta")),
}


@pytest.mark.parametrize("method", REFUSED)
def test_fixed_counts_are_refused_with_a_remedy(method):
    with pytest.raises(NotImplementedError, match=r"give keep_profile=\[0.7, 0.49, 0.343\]"):
        REFUSED[method](families.build(KEY).eval(), families.images(KEY))
