"""Multiply-accumulates: closed forms against torch's counter and the published figures.

The counter sees matrix products and convolutions. With fused attention torch 2.7 counts nothing
for it on a CPU, so most counts here are of unfused attention.
"""

import pytest
import timm
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

import baselines  # noqa: F401 (registers its models)
import evovit  # noqa: F401
from workflow.campaign.config import Config

WIDTH = {"tiny": 192, "small": 384, "base": 768}


def block(length, width):
    """One block on ``length`` tokens: four projections, an MLP of ratio 4, two products."""
    return 12 * length * width**2 + 2 * length**2 * width


def frame(patches, width, classes=1000):
    """Patch embedding (16 x 16 x 3) and classifier."""
    return patches * 768 * width + width * classes


def dense(patches, width):
    return frame(patches, width) + 12 * block(1 + patches, width)


def evo(patches, width, extra):
    """Four dense blocks, eight on the class token, half of the patches and ``extra`` tokens."""
    slow = 1 + patches // 2 + extra
    return frame(patches, width) + 4 * block(1 + patches, width) + 8 * block(slow, width)


def dynamic(patches, width, once):
    """DynamicViT at 0.7; ``once``: the predictor's global half once per image, not per token."""
    total, present = frame(patches, width), patches
    for stage in range(4):
        if stage:
            per_token = width**2 + width**2 // 2 + width**2 // 8 + width // 2
            shared = width**2 // 4  # half of the second layer's inputs are global
            saved = (present - 1) * shared if once else 0
            total += present * per_token - saved
            present = int(patches * 0.7**stage)
        total += 3 * block(1 + present, width)
    return total


def pooled(width, conv):
    """Seven blocks on all patches, five on a quarter; the convolution reads every patch once."""
    blocks = 7 * block(1 + 196, width) + 5 * block(1 + 49, width)
    return frame(196, width) + blocks + (49 * 4 * width**2 if conv else 0)


def sparse(width, heads, neurons):
    """Blocks with ``heads`` of 64 channels and ``neurons`` hidden ones, the width as it was."""
    length, inner = 197, 64 * heads
    attention = 4 * length * width * inner + 2 * length**2 * inner
    return frame(196, width) + 12 * (attention + 2 * length * width * neurons)


def interpreted(width, profile, patches=196):
    """Three groups of four blocks; each interpreter reads the class token and the patches left."""
    total, present = frame(patches, width), patches
    for share in profile:
        total += (1 + present) * width**2
        present = int(share * patches)
        total += 4 * block(1 + present, width)
    return total


def slim(width, profile, patches=196):
    """Keys and values of what the layer before computed, all else of what this one computes."""
    total, before = frame(patches, width), 1 + patches
    for share in profile:
        present = 1 + int(share * patches)
        total += 2 * before * width**2 + 10 * present * width**2 + 2 * present * before * width
        before = present
    return total


LEVIT = {  # widths, key width, heads and blocks per stage
    "128s": ((128, 256, 384), 16, (4, 6, 8), (2, 3, 4)),
    "128": ((128, 256, 384), 16, (4, 8, 12), (4, 4, 4)),
    "192": ((192, 288, 384), 32, (3, 5, 6), (4, 4, 4)),
    "256": ((256, 384, 512), 32, (4, 6, 8), (4, 4, 4)),
    "384": ((384, 512, 768), 32, (6, 9, 12), (4, 4, 4)),
}


def levit_stem(side, width):
    """Four 3 x 3 convolutions of stride 2, each doubling the channels."""
    total, channels = 0, 3
    for part in (8, 4, 2, 1):
        side //= 2
        total += side**2 * 9 * channels * (width // part)
        channels = width // part
    return total


def levit_block(length, width, key, heads):
    """Queries and keys of ``key``, values of twice that per head; an MLP of ratio 2."""
    inner = heads * key
    attention = length * width * 6 * inner + 3 * length**2 * inner
    return attention + 4 * length * width**2


def levit_subsampling(before, after, width, next_width, key):
    """Attention of ``after`` queries to ``before`` tokens with values four keys wide, an MLP."""
    inner = width // key * key
    attention = before * width * 5 * inner + after * width * inner + 5 * before * after * inner
    return attention + after * 4 * inner * next_width + 4 * after * next_width**2


def levit(size, side=224):
    widths, key, heads, depths = LEVIT[size]
    grid, total = side // 16, levit_stem(side, widths[0]) + 2 * 1000 * widths[-1]
    for stage, (width, head, depth) in enumerate(zip(widths, heads, depths, strict=True)):
        if stage:
            before, grid = grid, (grid + 1) // 2
            total += levit_subsampling(before**2, grid**2, widths[stage - 1], width, key)
        total += depth * levit_block(grid**2, width, key, head)
    return total


def evo_levit(size, side=224):
    """A class token everywhere; from the third block on half of the patches and x_rep."""
    widths, key, heads, depths = LEVIT[size]
    grid, total, index = side // 16, levit_stem(side, widths[0]) + 2 * 1000 * widths[-1], 0
    for stage, (width, head, depth) in enumerate(zip(widths, heads, depths, strict=True)):
        if stage:
            before, grid = grid, (grid + 1) // 2
            total += levit_subsampling(1 + before**2, 1 + grid**2, widths[stage - 1], width, key)
        for block_index in range(index, index + depth):
            length = 1 + (grid**2 if block_index < 2 else grid**2 // 2 + 1)
            total += levit_block(length, width, key, head)
        index += depth
    return total


def representatives(size, side=224):
    """Eq. 5's weighted sums over the buffer: one per stage that selects."""
    widths, _, _, depths = LEVIT[size]
    grids = [side // 16, -(-(side // 16) // 2), -(-(side // 16) // 4)]
    selecting = [depths[0] > 2, True, True]
    return sum((1 + g**2) * w for g, w, s in zip(grids, widths, selecting, strict=True) if s)


def counted(model, size=224, device="meta"):
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, size, size, device=device))
    return counter.get_total_flops() // 2


def build(name, fused=False, device="meta", **kwargs):
    with torch.device(device):
        model = timm.create_model(name, **kwargs).eval()
    for part in model.modules():
        if hasattr(part, "fused_attn"):
            part.fused_attn = fused
    return model


@pytest.mark.parametrize(
    ("size", "macs"),
    [("tiny", (1.254, 0.818, 0.822)), ("small", (4.599, 3.033, 3.049)),
     ("base", (17.56, 11.66, 11.72))],
)  # fmt: skip
def test_deit_and_evo_deit(size, macs):
    width, digits = WIDTH[size], 2 if size == "base" else 3
    forms = dense(196, width), evo(196, width, 0), evo(196, width, 1)
    assert tuple(round(form / 1e9, digits) for form in forms) == macs
    assert counted(build(f"plain_deit_{size}_patch16_224")) == forms[0]
    name = f"evo_deit_{size}_patch16_224"
    assert counted(build(name, variant="official")) == forms[1]
    # Eq. 5 beside it: one weighted sum over the buffer at each of the two selections
    assert counted(build(name)) == forms[2] + 2 * 197 * width
    assert counted(build(name, schedule="layer")) == forms[2] + 8 * 197 * width


@pytest.mark.parametrize(("size", "ceiling"), [("small", 1.565), ("base", 1.534)])
def test_ceilings_at_384_pixels(size, ceiling):
    width = WIDTH[size]
    assert round(dense(576, width) / evo(576, width, 1), 3) == ceiling
    counts = counted(build(f"evo_deit_{size}_patch16_384"), 384)
    assert counts == evo(576, width, 1) + 2 * 577 * width


@pytest.mark.parametrize("size", WIDTH)
def test_dynamicvit(size):
    width = WIDTH[size]
    if size == "small":
        assert round(dynamic(196, width, once=False) / 1e9, 3) == 2.981
    assert counted(build(f"dynamic_deit_{size}_patch16_224")) == dynamic(196, width, once=True)


@pytest.mark.parametrize(("size", "heads", "neurons"), [("tiny", 2, 537), ("small", 4, 921), ("base", 8, 1843)])
def test_svite_as_deployed(size, heads, neurons):
    model = timm.create_model(f"svite_deit_{size}_patch16_224").eval().deployed()
    for layer in model.blocks:
        layer.attn.fused_attn = False
    form, width = sparse(WIDTH[size], heads, neurons), WIDTH[size]
    assert counted(model, device="cpu") == form
    shares = (0.7, 0.7 if size == "tiny" else 0.6)  # the authors'; whole units come close
    implied = sparse(width, shares[0] * width / 64, shares[1] * 4 * width)
    assert abs(form - implied) < 0.03 * dense(196, width)


@pytest.mark.parametrize("size", WIDTH)
def test_ia_red2_at_its_assumed_profile(size):
    profile, width = Config.load().items["profiles"][f"ia_red2_deit_{size}"], WIDTH[size]
    model = build(f"ia_red2_deit_{size}_patch16_224", device="cpu", **profile)
    profile = profile["keep_profile"]
    assert counted(model, device="cpu") == interpreted(width, profile)
    printed = {"small": 1360 / 940, "base": 453 / 299}  # images/s, what the profiles were chosen by
    if size in printed:
        ratio = dense(196, width) / interpreted(width, profile)
        assert abs(ratio / printed[size] - 1) < 0.03


@pytest.mark.parametrize(("size", "rates"), [("tiny", (3563, 2536)), ("small", (1308, 940)),
                                             ("base", (445, 299))])  # fmt: skip
def test_ps_vit_at_the_profile_of_the_printed_speed(size, rates):
    """The profile of items.yaml was chosen by the printed images/s of PS-ViT and the baseline."""
    profile, width = Config.load().items["profiles"][f"ps_deit_{size}"], WIDTH[size]
    model = build(f"ps_deit_{size}_patch16_224", **profile)
    form = slim(width, profile["keep_profile"])
    assert counted(model) == form
    assert abs(dense(196, width) / form / (rates[0] / rates[1]) - 1) < 0.03


@pytest.mark.parametrize(("size", "macs"), [("tiny", 0.7), ("small", 2.6), ("base", 9.8)])
def test_ps_vit_at_the_profile_of_its_published_flops(size, macs):
    profile, width = Config.load().items["profiles"][f"ps_deit_{size}-published"], WIDTH[size]
    form = slim(width, profile["keep_profile"])
    assert counted(build(f"ps_deit_{size}_patch16_224", **profile)) == form
    assert round(form / 1e9, 1) == macs


@pytest.mark.parametrize(
    ("pooling", "macs", "ceiling", "rate"),
    [("average", 0.859, 1.460, 3703), ("max", 0.859, 1.460, 3698), ("conv", 0.866, 1.448, 3688)],
)
def test_pooled_deit(pooling, macs, ceiling, rate):
    """The printed images/s of pooling and of the baseline decide after which layer the grid shrinks."""
    form = pooled(192, pooling == "conv")
    assert counted(build("pooled_deit_tiny_patch16_224", pooling=pooling)) == form
    assert (round(form / 1e9, 3), round(dense(196, 192) / form, 3)) == (macs, ceiling)
    assert abs(dense(196, 192) / form / (rate / 2536) - 1) < 0.005


@pytest.mark.parametrize(
    ("size", "macs"),
    [("128s", (0.305, 0.256)), ("128", (0.405, 0.305)), ("192", (0.657, 0.510)),
     ("256", (1.127, 0.880)), ("384", (2.352, 1.849))],
)  # fmt: skip
def test_levit_and_evo_levit(size, macs):
    assert tuple(round(form / 1e9, 3) for form in (levit(size), evo_levit(size))) == macs
    assert counted(build(f"plain_levit_{size}")) == levit(size)
    counts = counted(build(f"evo_levit_{size}", variant="official"))
    assert counts == evo_levit(size) + representatives(size)
    large = counted(build(f"evo_levit_{size}", img_size=384), 384)
    assert large == evo_levit(size, 384) + representatives(size, 384)
    assert large < counted(build(f"plain_levit_{size}", img_size=384), 384)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("evo_levit_128s", 7.84), ("evo_levit_128", 9.27), ("evo_levit_192", 11.03), ("evo_levit_256", 19.01),
        ("evo_levit_384", 39.30), ("evo_deit_tiny_patch16_224", 5.72), ("evo_deit_small_patch16_224", 22.05),
    ],
)  # fmt: skip
def test_parameters_are_counted_without_what_only_training_uses(name, parameters):
    """Table 2 prints 7.8, 9.2, 11.0, 19.0 and 39.3 M for LeViT; the authors count them after ``remove_cls()``."""
    model = build(name)
    fresh = sum(parameter.numel() for parameter in model.parameters())
    assert round(fresh / 1e6, 2) == parameters
    model.set_training_outputs(True)
    assert sum(parameter.numel() for parameter in model.parameters()) > fresh
    model.set_training_outputs(False)
    assert sum(parameter.numel() for parameter in model.parameters()) == fresh


def test_fused_attention():
    """Beside it stand the class rows: H times one row of products, where a selection follows."""
    probe = torch.zeros(1, 3, 10, 4)
    with FlopCounterMode(display=False) as counter:
        F.scaled_dot_product_attention(probe, probe, probe)
    sees_fused = counter.get_total_flops() > 0
    width, heads, device = 192, 3, "cpu"
    attention = 2 * width * (4 * 197**2 + 8 * 100**2)
    rows = heads * width * 4 * (197 + 100)  # blocks 0-3, then 4-7; nothing selects after those
    expected = evo(196, width, 1) + 2 * 197 * width + rows - (0 if sees_fused else attention)
    assert counted(build("evo_deit_tiny_patch16_224", True, device), device=device) == expected
