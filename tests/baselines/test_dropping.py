"""What the methods that drop patches share: feature maps, timm's contract, plain training."""

import copy

import pytest
import timm
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from timm.optim import create_optimizer_v2
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close

from baselines.iared2 import IARED2Task
from baselines.weights import split_weights
from tests.models import families

DROPPING = ("dynamic_deit", "ps_deit", "ia_red2_deit")
EXACT = dict(rtol=0, atol=1e-9)


def build(key, **kwargs):
    """In double precision, with interpreters and predictors that choose differently by image."""
    model = families.build(key, **kwargs).double()
    for name, parameter in model.named_parameters():
        if name.startswith(("interpreters.", "score_predictor.")) and ".in_conv.0." not in name:
            init = torch.nn.init.normal_ if parameter.ndim > 1 else torch.nn.init.zeros_
            init(parameter)
    return model


def images(key, batch=3):
    return families.images(key, batch).double()


def present_patches(key, model, batch):
    """Which patches (B, 16) each block updates, without the code that makes feature maps."""
    if key == "ps_deit":
        return [model.kept[layer].expand(len(batch), -1) for layer in range(12)]
    masks = []
    if key == "ia_red2_deit":
        x, kept = model.embed(batch), torch.ones(len(batch), 16, dtype=torch.bool)
        for group in range(3):
            kept = model.choose(group, model.interpreters[group](x), kept)
            masks += [kept] * 4
            x = model.run_group(group, x, torch.nn.functional.pad(kept, (1, 0), value=True))
        return masks
    chosen = []
    original = model.keep_best
    model.keep_best = lambda *args: chosen.append(original(*args)) or chosen[-1]
    model(batch)
    del model.keep_best
    positions = torch.arange(16).expand(len(batch), -1)
    masks += [torch.ones(len(batch), 16, dtype=torch.bool)] * 3
    for kept in chosen:
        positions = positions.gather(1, kept)
        masks += [torch.zeros(len(batch), 16, dtype=torch.bool).scatter(1, positions, True)] * 3
    return masks


def reference_maps(key, model, batch):
    """All tokens after each block, from what the blocks return, written patch by patch."""
    outputs = []
    hooks = [block.register_forward_hook(lambda *args: outputs.append(args[-1]))
             for block in model.blocks]  # fmt: skip
    tokens = model.embed(batch)
    # IA-RED2's masked form updates all tokens, each in its place
    model.masked(batch) if key == "ia_red2_deit" else model(batch)
    for hook in hooks:
        hook.remove()
    outputs, order, maps = outputs[:12], None, []
    if key == "dynamic_deit":
        order = [torch.arange(16).expand(len(batch), -1)]
        original = model.keep_best
        model.keep_best = lambda *args: order.append(original(*args)) or order[-1]
        model(batch)
        del model.keep_best
    tokens = tokens.clone()
    positions = torch.arange(16).expand(len(batch), -1)
    for block, mask in enumerate(present_patches(key, model, batch)):
        if order and block in model.reduction_blocks:
            positions = positions.gather(1, order[1 + model.reduction_blocks.index(block)])
        for image in range(len(batch)):
            if key == "dynamic_deit":
                rows = {patch: row for row, patch in enumerate(positions[image].tolist())}
            elif key == "ps_deit":
                rows = {patch: row for row, patch in enumerate(model.patches[block])}
            else:
                rows = {patch: patch for patch in range(16)}
            tokens[image, 0] = outputs[block][image, 0]
            for patch in mask[image].nonzero().flatten().tolist():
                tokens[image, 1 + patch] = outputs[block][image, 1 + rows[patch]]
        maps.append(tokens.clone())
    return maps


@pytest.mark.parametrize("key", DROPPING)
def test_a_dropped_patch_keeps_its_last_value(key):
    model, batch = build(key).eval(), images(key)
    with torch.no_grad():
        final, maps = model.forward_intermediates(batch)
        expected = reference_maps(key, model, batch)
        present = present_patches(key, model, batch)
        assert 0 < present[-1].sum() < 3 * 10 or key == "ps_deit"
        for block in range(12):
            assert maps[block].shape == (3, 24, 4, 4)
            assert_close(maps[block], expected[block][:, 1:].mT.unflatten(2, (4, 4)), **EXACT)
        dropped = ~present[11]
        assert_close(maps[11].flatten(2).mT[dropped], maps[10].flatten(2).mT[dropped], **EXACT)
        assert_close(final, model.forward_features(batch), **EXACT)


@pytest.mark.parametrize("key", DROPPING)
def test_options_of_forward_intermediates(key):
    model, batch = build(key).eval(), images(key)
    with torch.no_grad():
        final, maps = model.forward_intermediates(batch)
        both = model.forward_intermediates(batch, [2, 7], return_prefix_tokens=True, norm=True, output_fmt="NLC")[1]
        for block, (patches, prefix) in zip((2, 7), both, strict=True):
            assert patches.shape == (3, 16, 24)
            assert prefix.shape == (3, 1, 24)
            assert_close(patches, model.norm(maps[block].flatten(2).mT), **EXACT)
        last = model.forward_intermediates(batch, 2, intermediates_only=True, stop_early=True)
        assert_close(last, maps[-2:])
        named = model.forward_intermediates(batch, output_dict=True, return_prefix_tokens=True)
        assert_close(named["image_features"], final)
        assert_close(named["image_intermediates"], maps)
        assert len(named["image_intermediates_prefix"]) == 12
        early = model.forward_intermediates(batch, [4], stop_early=True)[1]
        pruned = copy.deepcopy(model)
        assert pruned.prune_intermediate_layers([4], prune_norm=True) == [4]
        assert len(pruned.blocks) == 5
        assert isinstance(pruned.norm, torch.nn.Identity)
        assert_close(pruned.forward_intermediates(batch, [4], intermediates_only=True), early)
        assert_close(early[0], maps[4])
    with pytest.raises(ValueError, match="output_fmt='NHWC'"):
        model.forward_intermediates(batch, output_fmt="NHWC")


def test_maps_in_training_are_those_at_inference():
    """IA-RED2 masks in training and drops at inference; its decisions are the same."""
    model, batch = build("ia_red2_deit"), images("ia_red2_deit")
    training = model.train().forward_intermediates(batch, intermediates_only=True)
    inference = model.eval().forward_intermediates(batch, intermediates_only=True)
    assert_close(training, inference, **EXACT)


@pytest.mark.parametrize("key", DROPPING)
def test_a_batch_without_images(key):
    model, batch = families.build(key).eval(), families.images(key)[:0]
    assert model(batch).shape == (0, 5)
    assert model.forward_intermediates(batch)[1][0].shape == (0, 24, 4, 4)
    assert model.train()(batch).shape == (0, 5)


@pytest.mark.parametrize("key", ["dynamic_deit", "ia_red2_deit"])
@pytest.mark.parametrize("fixed", [False, True])
def test_images_of_any_size(key, fixed):
    profile = dict(keep_profile=[0.8, 0.5, 0.25]) if fixed and key.startswith("ia_red2") else {}
    model = build(key, dynamic_img_size=True, **profile).eval()
    other = build(key, **profile).eval()
    other.set_input_size((64, 32))
    batch = torch.randn(2, 3, 64, 32, dtype=torch.float64)
    assert_close(model(images(key)), build(key, **profile).eval()(images(key)), **EXACT)
    weights = {k: v for k, v in model.state_dict().items() if k != "pos_embed"}
    other.load_state_dict(weights, strict=False)
    assert_close(model(batch), other(batch), **EXACT)
    assert model.forward_intermediates(batch)[1][0].shape == (2, 24, 8, 4)


def test_sizes_that_can_not_be_are_refused():
    with pytest.raises(ValueError, match="belong to one grid; give img_size"):
        families.build("ps_deit", dynamic_img_size=True)
    with pytest.raises(ValueError, match="of 1 patches keeps none"):
        families.build("dynamic_deit", dynamic_img_size=True).eval()(torch.randn(1, 3, 8, 8))


@pytest.mark.parametrize("key", DROPPING)
def test_what_would_be_ignored_or_wrong_is_refused(key):
    with pytest.raises(ValueError, match="leave patch_drop_rate out"):
        families.build(key, patch_drop_rate=0.1)
    with pytest.raises(ValueError, match="predicts from its class token"):
        families.build(key, global_pool="avg")
    with pytest.raises(ValueError, match="predicts from its class token"):
        families.build(key).reset_classifier(3, "avg")
    with pytest.raises(ValueError, match="leave out attn_mask"):
        families.build(key)(families.images(key), attn_mask=torch.ones(17, 17))


@pytest.mark.parametrize("key", DROPPING)
def test_a_model_made_without_memory(key):
    with torch.device("meta"):
        empty = families.build(key)
    model = empty.to_empty(device="cpu")
    for value in model.state_dict().values():  # what uninitialised memory may hold
        value.fill_(True if value.dtype == torch.bool else torch.nan)
    for name, buffer in model.named_buffers():
        if name.startswith("rows_"):
            buffer.fill_(0)
    model.init_weights()
    expected = families.build(key)
    if key == "ps_deit":
        assert model.patches == expected.patches
        assert torch.equal(model.kept, expected.kept)
    assert model.eval()(families.images(key)).isfinite().all()
    model.load_state_dict(expected.state_dict())
    assert_close(model(families.images(key)), expected.eval()(families.images(key)))
    with torch.device("meta"):
        assigned = families.build(key)
    assigned.load_state_dict(expected.state_dict(), assign=True)
    if key == "ps_deit":
        assert assigned.patches == expected.patches


def test_ps_vit_on_the_meta_device_changes_its_grid():
    with torch.device("meta"):
        model = families.build("ps_deit").eval()
        model.set_input_size(img_size=64)
    expected = families.build("ps_deit")
    expected.set_input_size(img_size=64)
    assert model.patches == expected.patches
    assert model(torch.empty(2, 3, 64, 64, device="meta")).shape == (2, 5)


@pytest.mark.parametrize("key", DROPPING)
def test_plain_training_in_ddp_with_torchs_defaults(key, tmp_path):
    model = families.build(key).train()
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/r", rank=0, world_size=1)
    try:
        wrapped = DistributedDataParallel(model)
        for _ in range(3):  # the second step fails after one that left out a parameter
            wrapped(families.images(key)).square().sum().backward()
    finally:
        dist.destroy_process_group()
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    everything = {name for name, _ in model.named_parameters()}
    assert {name.split(".")[0] for name in everything - learning} <= {"interpreters"}


def test_the_interpreters_training_switches_them_on():
    model = families.build("ia_red2_deit")
    task = IARED2Task(model, verbose=False)
    optimizer = create_optimizer_v2(task.get_trainable_module(), opt="adamw", lr=1e-3)
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert held == {id(parameter) for parameter in model.parameters()}
    model.set_training_outputs(False)
    assert not any(p.requires_grad for p in model.interpreters.parameters())


@pytest.mark.parametrize("key", DROPPING)
def test_timms_pretrained_files(key, tmp_path, caplog):
    """Of a plain DeiT, and of the model itself; with another number of classes, too."""
    family, plain = families.FAMILIES[key], families.build("plain_deit").eval()
    own = families.build(key).eval()
    for name, model in (("plain", plain), ("own", own)):
        file = tmp_path / f"{name}.safetensors"
        save_file(model.state_dict(), file)
        for classes in (5, 3):
            loaded = timm.create_model(
                family.example, pretrained=True, **{**family.small, "num_classes": classes},
                pretrained_cfg_overlay=dict(file=str(file), num_classes=5),
            ).eval()  # fmt: skip
            weights = loaded.state_dict()
            expected = split_weights(loaded, model.state_dict())
            other = {k for k, v in expected.items() if not torch.equal(weights[k], v)}
            assert other == (set() if classes == 5 else {"head.weight", "head.bias"})
        assert ("start fresh" in caplog.text) is (name == "plain")
        caplog.clear()
