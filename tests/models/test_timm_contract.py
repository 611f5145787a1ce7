"""What timm's own model tests assert, for every model of the project, in our words."""

import copy
import json
import logging

import pytest
import timm
import torch
from timm.models import get_model_args, get_model_input_config, group_parameters
from timm.models._features import FeatureGetterNet
from timm.models._hub import save_for_hf
from timm.models._manipulate import reinit_non_persistent_buffers
from torch import nn
from torch.testing import assert_close
from torch.utils._pytree import tree_leaves

from evovit.features import fill_grid
from tests.models.families import EVERY, FAMILIES, HOSTED, NAMES, build, images

pytestmark = pytest.mark.integration  # minutes, all in all

DEITS = [key for key in FAMILIES if key.endswith("deit")]
LEVITS = [key for key in FAMILIES if key.endswith("levit")]
PROFILE = [0.8, 0.64, 0.512]  # IA-RED2's shares, where no image may say how many patches stay
OPTIONS = {  # other options of the families; FAMILIES has the defaults
    "evo_deit, dropped": ("evo_deit", dict(placeholders="drop")),
    "evo_deit, layer-wise": ("evo_deit", dict(schedule="layer")),
    "evo_deit, official": ("evo_deit", dict(variant="official")),
    "evo_deit, not pooled": ("evo_deit", dict(pool_placeholders=False)),
    "evo_deit, last class": ("evo_deit", dict(scores="last_class")),
    "pooled_deit, average": ("pooled_deit", dict(pooling="average", pool_block=3)),
    "svite_deit, official": ("svite_deit", dict(variant="official")),
    "svite_deit, unstructured": ("svite_deit", dict(sparsity="unstructured")),
    "evo_levit, learned": ("evo_levit", dict(alpha="learned", schedule="layer")),
}
FORMS = {**{key: (key, {}) for key in FAMILIES}, **OPTIONS}
EVERY_FORM = {**FORMS, **{key: (key, {}) for key in HOSTED}}
DEIT_FORMS = [form for form, (key, _) in FORMS.items() if key in DEITS]


def make(form, **kwargs):
    key, options = EVERY_FORM[form]
    return build(key, **{**options, **kwargs})


def without_gradient(model):
    """Names of the parameters that wait for a gradient in vain, as DDP would."""
    return [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]


def classifiers(model):
    heads = model.get_classifier()
    return heads if isinstance(heads, tuple) else (heads,)


@pytest.mark.parametrize("form", sorted(EVERY_FORM))
def test_forward_is_finite_and_recomputation_changes_nothing(form):
    model, batch = make(form).eval(), images(EVERY_FORM[form][0])
    out = model(batch)
    assert out.shape == (2, 5)
    assert out.isfinite().all()
    model.set_grad_checkpointing()
    assert_close(model(batch), out)


@pytest.mark.parametrize("form", sorted(EVERY_FORM))
def test_every_parameter_gets_a_gradient_from_a_plain_loss(form):
    model = make(form, num_classes=7).train()
    out = model(images(EVERY_FORM[form][0]))
    out.square().mean().backward()
    assert out.shape == (2, 7)
    assert out.isfinite().all()
    assert not without_gradient(model)


@pytest.mark.parametrize("name", NAMES)
def test_default_configuration(name):
    """Full size, on the meta device, where IA-RED2 has to know how many patches stay."""
    options = dict(keep_profile=PROFILE) if name.startswith("ia_red2") else {}
    model = timm.create_model(name, device="meta", dtype=torch.float32, **options).eval()
    cfg, size = model.default_cfg, model.default_cfg["input_size"]
    tensors = [*model.parameters(), *model.buffers()]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert cfg["fixed_input_size"]
    assert (cfg["num_classes"], cfg["pool_size"]) == (1000, None)
    assert (model.num_classes, model.in_chans) == (1000, size[0])
    state_dict = model.state_dict()
    heads = cfg["classifier"] if isinstance(cfg["classifier"], tuple) else (cfg["classifier"],)
    for layer in (*heads, cfg["first_conv"]):
        assert f"{layer}.weight" in state_dict
    assert all(isinstance(model.get_submodule(layer), nn.Linear) for layer in heads)

    if name.startswith("ats"):
        return  # its images always say how many patches stay
    batch = torch.empty(1, *size, device="meta")
    features = model.forward_features(batch)
    pooled = model.forward_head(features, pre_logits=True)
    assert features.shape[-1] == model.num_features
    assert pooled.shape == (1, model.head_hidden_size)
    assert model.to(torch.bfloat16)(batch.bfloat16()).dtype == torch.bfloat16
    model.float().reset_classifier(0)
    assert model.num_classes == 0
    assert model(batch).shape == pooled.shape
    with pytest.raises(TypeError):
        timm.create_model(name, device="meta", no_such_argument=1)


@pytest.mark.parametrize("key", FAMILIES)
def test_parameter_groups_and_arguments(key):
    model = build(key)
    groups = group_parameters(model, model.group_matcher(coarse=False), reverse=True)
    assert len(set(groups.values())) > 1
    with pytest.raises(TypeError):
        build(key, no_such_argument=1)


@pytest.mark.parametrize("key", EVERY)
def test_without_pooling_all_tokens_come_out(key):
    model = build(key).eval()
    pooled = model(images(key))
    tokens = model.forward_features(images(key))
    model.reset_classifier(0, "")
    if key in HOSTED:  # whose norm may come after the pooling
        tokens = model.fc_norm(tokens)
    assert_close(model(images(key)), tokens)
    if key in FAMILIES:
        assert build(key, num_classes=0, global_pool="").eval()(images(key)).shape == tokens.shape
    model.reset_classifier(5, "avg" if "evo" in key or "levit" in key else "token")
    assert model(images(key)).shape == pooled.shape


def test_heads_of_evo_levit_need_one_vector():
    with pytest.raises(ValueError, match="num_classes=0"):
        build("evo_levit", global_pool="")


@pytest.mark.parametrize("key", EVERY)
@pytest.mark.parametrize("training", [False, True])
def test_a_new_classifier_has_the_mode_device_and_dtype_of_its_model(key, training):
    model = build(key).train(training)
    model.reset_classifier(7)
    assert {module.training for module in model.modules()} == {training}
    model.to(device="meta", dtype=torch.float64).reset_classifier(0)
    model.reset_classifier(2)
    heads = [p for head in classifiers(model) for p in head.parameters()]
    assert {(p.device.type, p.dtype) for p in heads} == {("meta", torch.float64)}
    assert {module.training for module in model.modules()} == {training}


@pytest.mark.parametrize("key", EVERY)
def test_frozen_parameters_stay_frozen(key):
    model = build(key).requires_grad_(False)
    model.reset_classifier(0)
    model.set_input_size(img_size=(2 * EVERY[key].size,) * 2)
    assert not [name for name, p in model.named_parameters() if p.requires_grad]
    model = build(key)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    model.set_input_size(img_size=2 * EVERY[key].size)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == trained


@pytest.mark.parametrize("key", LEVITS)
def test_resizing_follows_the_dtype_and_nothing_changes_nothing(key):
    model = build(key).to(torch.bfloat16).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.set_input_size()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model.set_input_size((192, 160))
    floating = [t for t in [*model.parameters(), *model.buffers()] if t.is_floating_point()]
    assert {t.dtype for t in floating} == {torch.bfloat16}
    out = model(torch.randn(2, 3, 192, 160, dtype=torch.bfloat16))
    assert out.dtype == torch.bfloat16


def saved(model, folder, **kwargs):
    """A model that timm made anew of what ``save_for_hf`` wrote."""
    save_for_hf(model, folder, **kwargs)
    return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()


@pytest.mark.parametrize("form", sorted(FORMS))
def test_what_is_saved_for_the_hub_comes_back(form, tmp_path, caplog):
    key = FORMS[form][0]
    model = make(form, in_chans=1).eval()
    source, side = copy.deepcopy(model.pretrained_cfg), FAMILIES[key].size
    size = (2 * side, 3 * side // 2)
    model.set_input_size(img_size=size)
    model.reset_classifier(7)
    with caplog.at_level(logging.WARNING):
        restored = saved(model, tmp_path)
    loading = [record for record in caplog.records if record.name != "timm.data.model_config"]
    assert not loading  # no key is missing, unexpected or begun anew
    for twin in (model, restored):
        assert tuple(get_model_args(twin)["img_size"]) == size
        assert get_model_input_config(twin)["input_size"] == (1, *size)
        assert twin.num_classes == 7
    written = json.loads((tmp_path / "config.json").read_text())["pretrained_cfg"]
    assert written["input_size"] == [1, *size]
    assert written["num_classes"] == 7
    assert model.pretrained_cfg == source
    assert restored.state_dict().keys() == model.state_dict().keys()
    probe = torch.randn(2, 1, *size)
    torch.testing.assert_close(restored(probe), model(probe), rtol=0, atol=0)

    model.reset_classifier(0, "")
    torch.testing.assert_close(saved(model, tmp_path)(probe), model(probe), rtol=0, atol=0)


@pytest.mark.parametrize("key", LEVITS)
def test_oblong_levits_are_resampled_from_their_own_grid(key, tmp_path):
    model = build(key, img_size=(128, 192)).eval()
    save_for_hf(model, tmp_path)
    turned = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, img_size=(192, 128))
    model.set_input_size((192, 128))  # as many patches at other places
    probe = torch.randn(2, 3, 192, 128)
    assert_close(turned.eval()(probe), model(probe))
    file = tmp_path / "pytorch_model.bin"
    with pytest.raises(ValueError, match="pretrained_cfg_overlay"):
        build(key, pretrained=True, pretrained_cfg_overlay=dict(file=str(file)), num_classes=10)


@pytest.mark.parametrize("num_classes", [10, 1000, 0])
@pytest.mark.parametrize("key", FAMILIES)
def test_fine_tuning_by_timms_own_path(key, num_classes, tmp_path):
    source = build(key, num_classes=1000).eval()
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    overlay = dict(file=str(tmp_path / "weights.pth"))
    sizes = {**FAMILIES[key].small, "num_classes": num_classes}
    tuned = timm.create_model(FAMILIES[key].example, pretrained=True, pretrained_cfg_overlay=overlay, **sizes)
    batch = images(key)
    assert_close(tuned.eval().forward_features(batch), source.forward_features(batch))
    expected = num_classes or FAMILIES[key].width
    assert tuned(batch).shape == (2, expected)
    assert (num_classes == 1000) == torch.equal(tuned(batch), source(batch)[:, :expected])


INTERMEDIATES = (
    dict(output_fmt="NLC", return_prefix_tokens=True),
    dict(indices=2, stop_early=True, norm=True, intermediates_only=True),
    dict(output_dict=True),
)


@pytest.mark.parametrize("key", sorted(EVERY))
def test_an_empty_batch_gives_empty_logits(key):
    model, nothing = build(key).eval(), images(key)[:0]
    assert model(nothing).shape == (0, 5)
    with torch.no_grad():
        assert model(nothing).shape == (0, 5)
    model.train()
    if key in LEVITS:
        with pytest.raises(ValueError, match="BatchNorm"):
            model(nothing)
    else:
        assert model(nothing).shape == (0, 5)
    assert all(buffer.isfinite().all() for buffer in model.buffers())


@pytest.mark.parametrize("key", sorted(EVERY))
def test_an_empty_batch_gives_empty_intermediates(key):
    fixed = {"keep_profile": PROFILE} if key == "ia_red2_deit" else {}  # else images say how many
    model = build(key, **fixed).eval()
    options = [{}] if key in LEVITS else [{}, *INTERMEDIATES]
    if key.startswith("ats"):  # the images decide how many tokens come out, but not the size of the maps
        options = [{**kwargs, "intermediates_only": True} for kwargs in options]
    for kwargs in options:
        some, none = (model.forward_intermediates(images(key)[:n], **kwargs) for n in (1, 0))
        some, none = tree_leaves(some), tree_leaves(none)
        assert [part[:0].shape for part in some] == [part.shape for part in none], kwargs


@pytest.mark.parametrize("form", sorted(FORMS))
def test_init_weights_after_to_empty(form):
    key, options = FORMS[form]
    arguments = {**FAMILIES[key].small, **options}
    fresh = timm.create_model(FAMILIES[key].example, **arguments)
    model = timm.create_model(FAMILIES[key].example, **arguments, device="meta", dtype=torch.double)
    model.to_empty(device="cpu").eval()
    with torch.no_grad():  # so that nothing looks right by chance
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.fill_(float("nan") if tensor.is_floating_point() else 99)
    model.init_weights()
    assert model(images(key).double()).isfinite().all()
    twins = {**dict(fresh.named_parameters()), **dict(fresh.named_buffers())}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        assert tensor.isfinite().all(), name
        twin = twins[name].double()
        if twin.unique().numel() <= 2 or not tensor.is_floating_point():
            assert_close(tensor.double().mean(), twin.mean(), msg=f"{name} starts elsewhere")
        else:
            assert 0.5 < tensor.std() / twin.std() < 2, name


@pytest.mark.parametrize("form", sorted(FORMS))
def test_weights_loaded_after_to_empty(form):
    key, options = FORMS[form]
    source = make(form).eval()
    model = timm.create_model(FAMILIES[key].example, **{**FAMILIES[key].small, **options}, device="meta")
    model.to_empty(device="cpu").eval()
    model.load_state_dict(source.state_dict())
    reinit_non_persistent_buffers(model)
    assert_close(model(images(key)), source(images(key)))


@pytest.mark.parametrize("key", sorted(FAMILIES))
def test_fx_and_torchscript_are_refused_with_a_sentence(key):
    model = build(key).eval()
    with pytest.raises(NotImplementedError, match=r"fx can't trace .*torch\.export"):
        torch.fx.symbolic_trace(model)
    with pytest.raises(NotImplementedError, match=r"fx can't trace .*forward_intermediates"):
        build(key, features_only=True, feature_cls="fx")
    if key == "plain_deit":
        assert_close(torch.jit.script(model)(images(key)), model(images(key)))
    else:
        with pytest.raises(NotImplementedError, match=r"(TorchScript|script) can't .*torch\.export"):
            torch.jit.script(nn.Sequential(model))


ANY_SIZE = [form for form in DEIT_FORMS if form != "ps_deit"]  # whose sets belong to one grid


@pytest.mark.parametrize("form", sorted(ANY_SIZE))
def test_images_of_any_size(form):
    model, batch = make(form, dynamic_img_size=True).eval(), torch.randn(2, 3, 48, 64)
    assert model(batch).shape == (2, 5)
    last = model.forward_intermediates(batch, indices=1, intermediates_only=True)[0]
    assert last.shape[-2:] == ((3, 4) if form.startswith("pooled") else (6, 8))


@pytest.mark.parametrize("form", sorted(EVERY_FORM))
def test_forward_intermediates(form):
    key = EVERY_FORM[form][0]
    model, batch = make(form).eval(), images(key)
    count = len(model.feature_info)
    final, maps = model.forward_intermediates(batch)
    assert_close(final, model.forward_features(batch))
    for info, feature in zip(model.feature_info, maps, strict=True):
        side = EVERY[key].size // info["reduction"]
        assert feature.shape == (2, info["num_chs"], side, side)
        assert feature.isfinite().all()
    assert_close(model.forward_intermediates(batch, intermediates_only=True), maps)
    last_two = model.forward_intermediates(batch, indices=2, intermediates_only=True)
    assert_close(last_two, maps[-2:])
    chosen = model.forward_intermediates(batch, indices=[0, -1], intermediates_only=True)
    assert_close(chosen, [maps[0], maps[-1]])
    for index in {0, count // 2, count - 2}:
        stopped = model.forward_intermediates(batch, indices=[index], stop_early=True, intermediates_only=True)
        assert_close(stopped[0], maps[index])
    with pytest.raises((AssertionError, ValueError)):
        model.forward_intermediates(batch, output_fmt="NHWC")
    model.set_grad_checkpointing()
    assert_close(model.forward_intermediates(batch), (final, maps))


@pytest.mark.parametrize("form", sorted([*DEIT_FORMS, *HOSTED]))
def test_intermediates_in_other_forms(form):
    key = EVERY_FORM[form][0]
    model, batch = make(form).eval(), images(key)
    final, maps = model.forward_intermediates(batch, norm=True)
    pairs = model.forward_intermediates(
        batch, norm=True, output_fmt="NLC", return_prefix_tokens=True, intermediates_only=True
    )
    for (patches, prefix), feature in zip(pairs, maps, strict=True):
        assert_close(patches, feature.flatten(2).mT)
        assert prefix.shape == (2, EVERY[key].prefix, EVERY[key].width)
    result = model.forward_intermediates(batch, norm=True, output_dict=True, return_prefix_tokens=True)
    assert_close(result["image_intermediates"], maps)
    assert_close(result["image_intermediates_prefix"], [prefix for _, prefix in pairs])
    assert_close(result["image_features"], final)


def test_dropped_patches_keep_their_last_value():
    model, batch = make("evo_deit, dropped", schedule="layer").eval(), images("evo_deit")
    observed, _ = model.observe(batch)
    maps = model.forward_intermediates(batch, output_fmt="NLC", intermediates_only=True)
    assert observed[-1].tokens.shape[1] < 17
    for before, after, seen in zip(maps, maps[1:], observed[1:], strict=False):
        if seen.kept is None:
            continue
        dropped = torch.ones(2, 16, dtype=torch.bool).scatter(1, seen.kept, False)
        assert torch.equal(after[dropped], before[dropped])
        kept = after.gather(1, seen.kept.unsqueeze(2).expand(-1, -1, 24))
        assert torch.equal(kept, seen.tokens[:, 1:])


def test_fill_grid_puts_patches_at_their_positions():
    before = torch.arange(10.0).view(1, 5, 2)
    tokens = torch.tensor([[[20.0, 21], [22, 23], [24, 25]]])
    filled = fill_grid(tokens, torch.tensor([[3, 0]]), before)
    assert filled.tolist() == [[[20, 21], [24, 25], [4, 5], [6, 7], [22, 23]]]


@pytest.mark.parametrize("form", sorted(FORMS))
def test_features_only(form):
    key = FORMS[form][0]
    model, batch = make(form).eval(), images(key)
    wrapped = make(form, features_only=True, out_indices=(0, -2)).eval()
    assert isinstance(wrapped, FeatureGetterNet)
    wrapped.model.load_state_dict(model.state_dict(), strict=False)
    expected = model.forward_intermediates(batch, indices=[0, -2], intermediates_only=True)
    features = wrapped(batch)
    assert_close(features, expected)
    assert wrapped.feature_info.channels() == [feature.shape[1] for feature in features]
    sides = [FAMILIES[key].size // reduction for reduction in wrapped.feature_info.reduction()]
    assert sides == [feature.shape[-1] for feature in features]


@pytest.mark.parametrize("form", sorted(EVERY_FORM))
def test_pruning_leaves_out_what_the_features_do_not_need(form):
    key = EVERY_FORM[form][0]
    model, batch = make(form).eval(), images(key)
    last = len(model.feature_info) - 1
    taps = model.forward_intermediates(batch, intermediates_only=True)
    same = copy.deepcopy(model)
    same.prune_intermediate_layers([last], prune_head=False)
    assert_close(same(batch), model(batch))
    for index in (0, last - 1):
        pruned = copy.deepcopy(model)
        taken = pruned.prune_intermediate_layers([index], prune_norm=True)
        assert taken == [index]
        features = pruned.forward_intermediates(batch, indices=taken, intermediates_only=True)
        assert_close(features[0], taps[index])
        pruned(batch)
        names = {name for name, _ in pruned.named_parameters()}
        assert not [name for name in names if name.startswith("head")]
        layers = [model.feature_info[i]["module"] for i in range(index + 1, last + 1)]
        left = [layer for layer in layers if any(name.startswith(f"{layer}.") for name in names)]
        assert left == (layers if form == ALL_STAY else [])


ALL_STAY = "evo_deit, last class"  # its last block ranks the patches, so nothing is pruned


@pytest.mark.parametrize(
    "form",
    sorted(EVERY_FORM.keys() - {ALL_STAY}),
)
def test_no_parameter_is_left_without_a_gradient_after_pruning(form):
    key, last = EVERY_FORM[form][0], len(make(form).feature_info) - 1
    for index in {0, last // 2, last}:
        pruned = make(form)
        taken = pruned.prune_intermediate_layers([index], prune_norm=True)
        pruned.train()
        maps = pruned.forward_intermediates(images(key), indices=taken, intermediates_only=True)
        (maps[0].sum() + pruned.forward_features(images(key)).sum()).backward()
        assert not without_gradient(pruned), index


def test_weights_loaded_after_an_evaluation_count_at_once():
    model, other = build("plain_levit").eval(), build("plain_levit").eval()
    for name, parameter in other.named_parameters():
        if name.endswith("attention_biases"):
            nn.init.normal_(parameter)
    batch = images("plain_levit")
    with torch.no_grad():
        model(batch)  # timm keeps the gathered attention biases
        model.load_state_dict(other.state_dict())
        assert_close(model(batch), other(batch))


def test_pooling_refuses_patch_dropout():
    with pytest.raises(ValueError, match="patch_drop_rate"):
        build("pooled_deit", patch_drop_rate=0.25)
