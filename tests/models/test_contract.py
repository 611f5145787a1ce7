"""What timm's users expect of a model, for every model of the DeiT family in the registry."""

import pytest
import timm
import torch
from timm.models import group_parameters
from torch.testing import assert_close

import baselines  # noqa: F401 (registers its models)
import evovit  # noqa: F401

NAMES = [
    name
    for prefix in ("evo_deit", "plain_deit", "dynamic_deit")
    for name in timm.list_models(f"{prefix}_*")
]
# One of each class: sizes differ in numbers only, which SMALL overrides.
CLASSES = [f"{kind}_deit_tiny_patch16_224" for kind in ("evo", "plain", "dynamic")]
SMALL = dict(img_size=32, patch_size=8, embed_dim=24, num_heads=3, depth=12, num_classes=5)


def build(name, **kwargs):
    torch.manual_seed(0)
    return timm.create_model(name, **{**SMALL, **kwargs})


def test_all_names_are_registered():
    sizes = [f"{size}_patch16_224" for size in ("base", "small", "tiny")]
    large = ["base_patch16_384", "small_patch16_384"]
    expected = [f"{kind}_deit_{s}" for kind in ("evo", "plain") for s in sizes + large]
    expected += [f"dynamic_deit_{size}" for size in sizes]
    assert sorted(NAMES) == sorted(expected)


@pytest.mark.parametrize("name", NAMES)
def test_full_size_and_pretrained_cfg(name):
    with torch.device("meta"):
        model = timm.create_model(name)
        size = int(name[-3:])
        assert model(torch.empty(2, 3, size, size)).shape == (2, 1000)
    width = {"tiny": 192, "small": 384, "base": 768}[name.split("_")[2]]
    assert (model.embed_dim, model.blocks[0].attn.head_dim) == (width, 64)
    cfg = model.pretrained_cfg
    assert cfg["input_size"] == (3, size, size)
    assert (cfg["mean"], cfg["std"]) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert cfg["crop_pct"] == 0.875
    assert model.get_submodule(cfg["first_conv"]) is model.patch_embed.proj
    classifiers = [cfg["classifier"]] if isinstance(cfg["classifier"], str) else cfg["classifier"]
    assert all(model.get_submodule(head).out_features == 1000 for head in classifiers)


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("training", [False, True])
def test_forward_in_two_steps(name, training):
    model = build(name, in_chans=1).train(training)
    images = torch.randn(2, 1, 32, 32)
    torch.manual_seed(1)
    whole = model(images)
    torch.manual_seed(1)
    features = model.forward_features(images)
    assert features.shape[::2] == (2, 24)
    assert_close(model.forward_head(features), whole)
    assert model.forward_head(features, pre_logits=True).shape == (2, 24)
    assert whole.shape == (2, 5)


@pytest.mark.parametrize("name", CLASSES)
def test_reset_classifier(name):
    model = build(name).eval()
    model.reset_classifier(7)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 7)
    assert model.get_classifier().out_features == 7
    if hasattr(model, "head_cls"):
        assert model.head_cls.out_features == 7
    model.reset_classifier(0)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 24)
    assert build(name, num_classes=0).eval()(torch.randn(2, 3, 32, 32)).shape == (2, 24)


@pytest.mark.parametrize("name", CLASSES)
def test_set_input_size_resamples_positions(name):
    model = build(name).eval()
    model.set_input_size(img_size=48)
    assert model.pos_embed.shape == (1, 37, 24)
    assert model(torch.randn(2, 3, 48, 48)).shape == (2, 5)


@pytest.mark.parametrize("name", CLASSES)
def test_optimizer_groups(name):
    model = build(name)
    names = {key for key, _ in model.named_parameters()}
    assert model.no_weight_decay() & names == {"pos_embed", "cls_token"}
    layers = group_parameters(model, model.group_matcher(), reverse=True)
    assert set(layers) == names
    assert layers["patch_embed.proj.weight"] == 0
    assert (
        layers["blocks.0.norm1.weight"] < layers["blocks.11.norm1.weight"] < layers["head.weight"]
    )


@pytest.mark.parametrize("name", CLASSES)
def test_drop_path_rises_with_depth(name):
    model = build(name, drop_path_rate=0.22)
    rates = [getattr(block.drop_path2, "drop_prob", 0.0) for block in model.blocks]
    assert rates == pytest.approx([0.02 * i for i in range(12)])
    torch.manual_seed(0)
    images = torch.randn(2, 3, 32, 32)
    assert not torch.equal(model.train()(images), model.eval()(images))


@pytest.mark.parametrize("name", CLASSES)
def test_recomputed_activations_give_the_same_gradients(name):
    grads = []
    for recompute in (False, True):
        model = build(name).train()
        model.set_grad_checkpointing(recompute)
        torch.manual_seed(2)  # DynamicViT samples its decisions
        model(torch.ones(1, 3, 32, 32).cumsum(3) / 32).square().sum().backward()
        grads.append({k: p.grad for k, p in model.named_parameters() if p.grad is not None})
    assert grads[0]["blocks.0.attn.qkv.weight"].abs().max() > 0
    assert_close(grads[1], grads[0])


@pytest.mark.parametrize("name", CLASSES[:2])
@pytest.mark.parametrize("norm", [False, True])
def test_feature_maps(name, norm):
    model, images = build(name).eval(), torch.randn(2, 3, 32, 32)
    last, maps = model.forward_intermediates(images, norm=norm)
    assert len(maps) == 12
    assert all(feature.shape == (2, 24, 4, 4) for feature in maps)
    tokens = model.forward_intermediates(images, [11], norm=True, output_fmt="NLC")[1][0]
    assert_close(tokens, last[:, 1:])
    wrapped = build(name, features_only=True, out_indices=[2, 7])
    wrapped.load_state_dict({f"model.{k}": v for k, v in model.state_dict().items()}, strict=False)
    plain = model.forward_intermediates(images, [2, 7], intermediates_only=True)
    assert_close(wrapped.eval()(images), plain)
    if norm:
        assert not torch.allclose(maps[3], model.forward_intermediates(images)[1][3])


def test_dynamicvit_has_no_feature_maps():
    with pytest.raises(NotImplementedError, match="no feature maps"):
        build("dynamic_deit_tiny_patch16_224").forward_intermediates(torch.randn(1, 3, 32, 32))
