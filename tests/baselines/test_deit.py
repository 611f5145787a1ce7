"""plain_deit_* is timm's DeiT."""

import pytest
import timm
import torch

import baselines  # noqa: F401 (registers its models)

SMALL = dict(img_size=32, patch_size=8, embed_dim=24, num_heads=3, num_classes=5)


@pytest.mark.parametrize(
    ("ours", "theirs", "kwargs"),
    [
        ("plain_deit_tiny_patch16_224", "deit_tiny_patch16_224", {}),
        ("plain_deit_small_patch16_224", "deit_small_patch16_224", {}),
        ("plain_deit_base_patch16_224", "deit_base_patch16_224", {}),
        ("plain_deit_small_patch16_384", "deit_small_patch16_224", dict(img_size=384)),
        ("plain_deit_base_patch16_384", "deit_base_patch16_384", {}),
    ],
)
def test_has_timms_weights(ours, theirs, kwargs):
    with torch.device("meta"):
        own = timm.create_model(ours).state_dict()
        timms = timm.create_model(theirs, **kwargs).state_dict()
    assert {k: v.shape for k, v in own.items()} == {k: v.shape for k, v in timms.items()}


def test_equals_timm():
    own = timm.create_model("plain_deit_tiny_patch16_224", **SMALL).double().eval()
    timms = timm.create_model("deit_tiny_patch16_224", **SMALL).double().eval()
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    assert not torch.allclose(own(images), timms(images))
    own.load_state_dict(timms.state_dict())
    assert torch.equal(own(images), timms(images))
