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


def counted(model, size=224, device="meta"):
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, size, size, device=device))
    return counter.get_total_flops() // 2


def build(name, fused=False, device="meta", **kwargs):
    with torch.device(device):
        model = timm.create_model(name, **kwargs).eval()
    for each in model.blocks:
        each.attn.fused_attn = fused
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
    # Eq. 5 beside it: one weighted sum over all patches at each of the two selections
    assert counted(build(name)) == forms[2] + 2 * 196 * width
    assert counted(build(name, schedule="layer")) == forms[2] + 8 * 196 * width


@pytest.mark.parametrize(("size", "ceiling"), [("small", 1.565), ("base", 1.534)])
def test_ceilings_at_384_pixels(size, ceiling):
    width = WIDTH[size]
    assert round(dense(576, width) / evo(576, width, 1), 3) == ceiling
    counts = counted(build(f"evo_deit_{size}_patch16_384"), 384)
    assert counts == evo(576, width, 1) + 2 * 576 * width


@pytest.mark.parametrize("size", WIDTH)
def test_dynamicvit(size):
    width = WIDTH[size]
    if size == "small":
        assert round(dynamic(196, width, once=False) / 1e9, 3) == 2.981
    assert counted(build(f"dynamic_deit_{size}_patch16_224")) == dynamic(196, width, once=True)


def test_fused_attention():
    """Beside it stand the class rows: H times one row of products, where a selection follows."""
    probe = torch.zeros(1, 3, 10, 4)
    with FlopCounterMode(display=False) as counter:
        F.scaled_dot_product_attention(probe, probe, probe)
    sees_fused = counter.get_total_flops() > 0
    width, heads, device = 192, 3, "cpu"
    attention = 2 * width * (4 * 197**2 + 8 * 100**2)
    rows = heads * width * 4 * (197 + 100)  # blocks 0-3, then 4-7; nothing selects after those
    expected = evo(196, width, 1) + 2 * 196 * width + rows - (0 if sees_fused else attention)
    assert counted(build("evo_deit_tiny_patch16_224", True, device), device=device) == expected
