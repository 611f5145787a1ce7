"""What timm's users expect of a model, for every model of the project in the registry."""

import copy

import pytest
import timm
import torch
from timm.models import group_parameters
from torch.testing import assert_close

from tests.models.families import EVERY, FAMILIES, NAMES, build, images

MAPPED = [key for key, family in FAMILIES.items() if family.maps]
DEITS = [key for key in FAMILIES if key.endswith("deit")]
LEVITS = [key for key in FAMILIES if key.endswith("levit")]


def test_all_names_are_registered():
    sizes = [f"{size}_patch16_224" for size in ("base", "small", "tiny")]
    large = ["base_patch16_384", "small_patch16_384"]
    expected = [f"{kind}_deit_{s}" for kind in ("evo", "plain") for s in sizes + large]
    expected += ["ia_red2_deit_base_patch16_384"]
    expected += [f"{kind}_deit_{size}" for kind in ("dynamic", "pooled", "ps", "svite", "ia_red2")
                 for size in sizes]  # fmt: skip
    added = ("evit", "topk", "random", "tome", "ats", "dpcknn")
    expected += [f"{kind}_deit_{size}" for kind in added for size in sizes]
    levits = ("128s", "128", "192", "256", "384")
    expected += [f"{kind}_levit_{size}" for kind in ("evo", "plain") for size in levits]
    assert sorted(NAMES) == sorted(expected)


@pytest.mark.parametrize("name", NAMES)
def test_full_size_and_pretrained_cfg(name):
    """test_timm_contract.py's test_default_configuration passes images through every size, but for ATS."""
    size = 384 if name.endswith("_384") and "deit" in name else 224
    # shapes depend on the images: ATS's but with a profile, and IA-RED2's but in training, where it masks
    counts = {"keep_profile": [0.7, 0.5, 0.3]} if name.startswith("ats") else {}
    with torch.device("meta"):
        model = timm.create_model(name, **counts).train(name.startswith("ia_red2"))
        if name == FAMILIES[NAMES[name]].example or name.startswith("ats"):
            assert model(torch.zeros(2, 3, size, size)).shape == (2, 1000)
    cfg = model.pretrained_cfg
    assert cfg["input_size"] == (3, size, size)
    assert (cfg["mean"], cfg["std"]) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert cfg["crop_pct"] == 0.875
    assert model.get_submodule(cfg["first_conv"]).weight.shape[1] == 3
    classifiers = [cfg["classifier"]] if isinstance(cfg["classifier"], str) else cfg["classifier"]
    heads = tuple(classifier.removesuffix(".linear") for classifier in classifiers)
    assert heads == FAMILIES[NAMES[name]].heads
    for classifier in classifiers:
        layer = model.get_submodule(classifier)
        assert isinstance(layer, torch.nn.Linear)  # timm leaves its weights out for other classes
        assert layer.out_features == 1000
    if "deit" in name:
        width = {"tiny": 192, "small": 384, "base": 768}[name.split("_")[-3]]
        assert (model.embed_dim, model.blocks[0].attn.head_dim) == (width, 64)


@pytest.mark.parametrize("name", [name for name in NAMES if "levit" in name])
def test_384_pixels_on_levit(name):
    with torch.device("meta"):
        model = timm.create_model(name, img_size=384).eval()
        assert model(torch.empty(2, 3, 384, 384)).shape == (2, 1000)
    assert (model.embed_dim[0], model.num_features) == {
        "128s": (128, 384), "128": (128, 384), "192": (192, 384), "256": (256, 512),
        "384": (384, 768),
    }[name.split("_")[2]]  # fmt: skip


@pytest.mark.parametrize("key", EVERY)
@pytest.mark.parametrize("training", [False, True])
def test_forward_in_two_steps(key, training):
    family, model = EVERY[key], build(key, in_chans=1).train(training)
    batch = images(key, channels=1)
    torch.manual_seed(1)
    whole = model(batch)
    torch.manual_seed(1)
    features = model.forward_features(batch)
    if not (training and key == "dynamic_deit"):  # which masks in training and drops after it
        assert features.shape == (2, family.tokens, family.width)
    assert_close(model.forward_head(features), whole)
    assert model.forward_head(features, pre_logits=True).shape == (2, family.width)
    assert whole.shape == (2, 5)


@pytest.mark.parametrize("key", EVERY)
def test_reset_classifier(key):
    family, model = EVERY[key], build(key).eval()
    model.reset_classifier(7)
    assert model(images(key)).shape == (2, 7)
    for name in family.heads:
        head = model.get_submodule(name)
        assert getattr(head, "linear", head).out_features == 7
        assert not (head.training and key in LEVITS)  # where it holds a BatchNorm
    found = model.get_classifier()
    assert (found[0] if isinstance(found, tuple) else found) is model.head
    model.reset_classifier(0)
    assert model(images(key)).shape == (2, family.width)
    assert build(key, num_classes=0).eval()(images(key)).shape == (2, family.width)


@pytest.mark.parametrize("key", EVERY)
def test_set_input_size_resamples_positions(key):
    family, model = EVERY[key], build(key).eval()
    name = next(name for name in family.no_decay if name != "cls_token")
    before = model.get_parameter(name).detach().clone()
    larger = 3 * family.size // 2
    model.set_input_size(img_size=larger)
    after = model.get_parameter(name).detach()
    assert after.shape[1] > 2 * before.shape[1]
    assert model(torch.randn(2, 3, larger, larger)).shape == (2, 5)
    if key not in LEVITS:  # the new positions say what the old ones said
        assert_close(after.mean(1), before.mean(1), rtol=0, atol=0.02)
    model.set_input_size(img_size=larger)
    assert torch.equal(model.get_parameter(name), after)
    other = build(key, img_size=larger).eval()
    other.load_state_dict(model.state_dict())
    probe = torch.randn(2, 3, larger, larger)
    assert torch.equal(other(probe), model(probe))


@pytest.mark.parametrize("key", EVERY)
def test_optimizer_groups(key):
    family, model = EVERY[key], build(key)
    names = {name for name, _ in model.named_parameters()}
    assert model.no_weight_decay() & names == set(family.no_decay)
    layers = group_parameters(model, model.group_matcher(), reverse=True)
    assert set(layers) == names
    first, last = family.blocks
    head = next(name for name in names if name.startswith("head."))
    assert layers[family.first_layer] == 0
    assert layers[first] < layers[last] < layers[head]


@pytest.mark.parametrize("key", DEITS)
def test_drop_path_rises_with_depth(key):
    model = build(key, drop_path_rate=0.22)
    rates = [getattr(block.drop_path2, "drop_prob", 0.0) for block in model.blocks]
    assert rates == pytest.approx([0.02 * i for i in range(12)])
    batch = images(key)
    assert not torch.equal(model.train()(batch), model.eval()(batch))


@pytest.mark.parametrize("key", LEVITS)
def test_drop_path_is_one_rate_for_all_of_levit(key):
    model = build(key, drop_path_rate=0.1)
    rates = {m.drop_prob for m in model.modules() if type(m).__name__ == "DropPath"}
    assert rates == {0.1}
    assert sum(type(m).__name__ == "DropPath" for m in model.modules()) == 2 * 7 + 2


@pytest.mark.parametrize("key", EVERY)
def test_recomputed_activations_give_the_same_gradients(key):
    grads = []
    for recompute in (False, True):
        model = build(key).train()
        model.set_grad_checkpointing(recompute)
        torch.manual_seed(2)  # DynamicViT samples its decisions
        model(images(key)).square().sum().backward()
        grads.append({k: p.grad for k, p in model.named_parameters() if p.grad is not None})
    assert grads[0][EVERY[key].first_layer].abs().max() > 0
    assert_close(grads[1], grads[0])


@pytest.mark.parametrize("key", MAPPED)
@pytest.mark.parametrize("norm", [False, True])
def test_feature_maps(key, norm):
    family, model, batch = FAMILIES[key], build(key).eval(), images(key)
    last, maps = model.forward_intermediates(batch, norm=norm)
    assert [feature.shape[-1] for feature in maps] == list(family.maps)
    assert all(feature.shape[-2] == feature.shape[-1] for feature in maps)
    chosen = [0, len(maps) - 1]
    wrapped = build(key, features_only=True, out_indices=chosen)
    wrapped.load_state_dict({f"model.{k}": v for k, v in model.state_dict().items()}, strict=False)
    plain = model.forward_intermediates(batch, chosen, intermediates_only=True)
    assert_close(wrapped.eval()(batch), plain)
    if key in DEITS:
        tokens = model.forward_intermediates(batch, [11], norm=True, output_fmt="NLC")[1][0]
        if last.shape[1] > tokens.shape[1]:  # else patches were dropped on the way
            assert_close(tokens, last[:, 1:])
        assert norm != torch.allclose(maps[3], model.forward_intermediates(batch)[1][3])


@pytest.mark.parametrize("key", LEVITS)
@pytest.mark.parametrize("size", [100, 8])
def test_sizes_that_the_stem_can_not_divide_are_refused(key, size):
    with pytest.raises(ValueError, match="multiples of 16"):
        build(key, img_size=size)
    with pytest.raises(ValueError, match="multiples of 16"):
        build(key).set_input_size(size)


@pytest.mark.parametrize("key", LEVITS)
def test_oblong_images(key):
    model = build(key, img_size=(128, 192)).eval()
    assert model(torch.randn(2, 3, 128, 192)).shape == (2, 5)
    model.set_input_size((192, 128))  # as many tokens, at other places
    turned = build(key, img_size=(192, 128)).eval()
    turned.load_state_dict(model.state_dict())
    probe = torch.randn(2, 3, 192, 128)
    assert torch.equal(model(probe), turned(probe))
    assert_close(copy.deepcopy(model)(probe), model(probe))


@pytest.mark.parametrize("key", LEVITS)
def test_images_of_another_size_are_refused(key):
    with pytest.raises(ValueError, match="the model was made for"):
        build(key)(torch.randn(2, 3, 112, 112))


@pytest.mark.parametrize("key", LEVITS)
def test_distillation_heads_stay_apart_in_training(key):
    model, batch = build(key), images(key)
    model.set_distilled_training(True)
    label, teacher = model.train()(batch)
    assert not torch.allclose(label, teacher)
    assert model.eval()(batch).shape == (2, 5)
