"""Evo-ViT made of timm's Vision Transformers by ``evovit.from_timm``, and the way back."""

import copy

import pytest
import timm
import torch
from torch import nn
from torch.testing import assert_close

import evovit
from baselines.deit import PlainVisionTransformer
from evovit.task import AssistedTokenTask
from tests.evovit import literal, small
from tests.models import hosts
from tests.models.hosts import HOSTS

FEW = ("dinov2 with registers", "clip", "attention pooling", "average pooling")


def predicted(model, tokens):
    """What the host's own head makes of normed tokens (prefix + N, C)."""
    prefix, patches = tokens[: model.num_prefix_tokens], tokens[model.num_prefix_tokens :]
    if model.global_pool == "map":
        pooled = model.attn_pool(patches[None])[0]
    elif model.global_pool == "avg":
        pooled = model.fc_norm(patches.mean(dim=0))
    else:
        pooled = prefix[0]
    return model.head(pooled)


@pytest.mark.parametrize("family", HOSTS)
def test_keeping_everything_is_the_host(family):
    host = hosts.build(family)
    model, images = evovit.from_timm(host, keep_ratio=1.0), hosts.images(host)
    with torch.no_grad():
        assert_close(model(images), host(images), rtol=0, atol=1e-10)
        assert_close(model.forward_features(images), host.forward_features(images), rtol=0, atol=1e-10)


@pytest.mark.parametrize("schedule", ["layer", "stage"])
@pytest.mark.parametrize("family", HOSTS)
def test_reduction_is_the_method_step_by_step(family, schedule):
    host = hosts.build(family)
    model, images = evovit.from_timm(host, schedule=schedule, alpha=0.3), hosts.images(host)
    assert (model.options.start_block, model.options.stage_starts[:2]) == (2, (2, 4))
    with torch.no_grad():
        tokens, seen = model.forward_features(images), evovit.trace(model, images)
        assert not torch.allclose(seen.logits, host(images))
        for b in range(len(images)):
            expected, events = literal.deit(model, images[b : b + 1], schedule)
            assert [sorted(kept[b].tolist()) for kept in seen.kept] == events
            assert_close(tokens[b], expected, rtol=1e-9, atol=1e-9)
            assert_close(seen.logits[b], predicted(host, expected), rtol=1e-9, atol=1e-9)


def test_gradients_with_registers_are_those_of_the_method():
    model = evovit.from_timm(hosts.build("dinov2 with registers"))
    images = hosts.images(model, 1)
    ours = torch.autograd.grad(model.forward_features(images).cos().sum(), model.blocks.parameters())
    expected, _ = literal.deit(model, images, "stage")
    theirs = torch.autograd.grad(expected.cos().sum(), model.blocks.parameters())
    assert_close(ours, theirs, rtol=1e-8, atol=1e-9)


def test_the_weights_are_shared_and_the_host_stays_as_it_is():
    host = hosts.build("dinov2 with registers").train()
    calls = []
    host.blocks[0].register_forward_hook(lambda *_: calls.append("block"))
    before = {path: (type(module), dict(vars(module))) for path, module in host.named_modules()}
    model = evovit.from_timm(host)
    assert {path: (type(module), dict(vars(module))) for path, module in host.named_modules()} == before
    own, its = dict(host.named_parameters()), dict(model.named_parameters())
    assert own.keys() == its.keys()
    assert all(own[name] is its[name] for name in own)
    assert {module.training for module in model.modules()} == {True}
    model(hosts.images(host))
    assert calls == ["block"]
    model.eval()
    assert host.training


def test_defaults_are_thirds_of_the_depth():
    starts = {}
    for depth in (2, 3, 7, 12, 24):
        model = evovit.from_timm(hosts.build("augreg", depth=depth))
        starts[depth] = model.options.start_block, model.options.stage_starts
    assert starts == {
        2: (1, (1,)),
        3: (1, (1, 2)),
        7: (2, (2, 4, 6)),
        12: (4, (4, 8)),
        24: (8, (8, 16)),
    }
    chosen = evovit.from_timm(hosts.build("augreg"), start_block=4, blocks_per_stage=1)
    assert chosen.options.stage_starts == (4, 5)


@pytest.mark.parametrize("family", HOSTS)
def test_to_dense_gives_the_host_back(family):
    host = hosts.build(family)
    model, images = evovit.from_timm(host), hosts.images(host)
    dense = evovit.to_dense(model)
    kinds = {path: (type(module), vars(module).keys()) for path, module in host.named_modules()}
    assert {path: (type(module), vars(module).keys()) for path, module in dense.named_modules()} == kinds
    assert all(one is other for one, other in zip(host.parameters(), dense.parameters(), strict=True))
    assert_close(dense(images), host(images), rtol=0, atol=0)
    assert type(model) is evovit.deit.EvoVisionTransformer


def test_to_dense_leaves_out_what_training_added():
    host = hosts.build("augreg")
    model = evovit.from_timm(host, head="average")
    AssistedTokenTask(model, verbose=False)
    assert "head_cls.weight" in model.state_dict()
    dense = evovit.to_dense(model)
    assert dense.state_dict().keys() == host.state_dict().keys()
    assert_close(dense(hosts.images(host)), host(hosts.images(host)), rtol=0, atol=0)
    with pytest.raises(ValueError, match="from_timm"):
        evovit.to_dense(host)


def test_a_registered_model_is_the_same_code_on_a_deit():
    registered, images = small.build(), small.images()
    dense = evovit.to_dense(registered)
    assert type(dense) is timm.models.VisionTransformer
    again = evovit.from_timm(dense, head="average", start_block=4, blocks_per_stage=4)
    assert_close(again(images), registered(images), rtol=0, atol=0)
    keeping = small.build(keep_ratio=1.0)
    assert_close(dense(images), keeping(images), rtol=0, atol=1e-12)


def test_a_dense_class_of_ours_is_a_host():
    host = small.fill("plain_deit_tiny_patch16_224", torch.float64, 0, 1.5, small.SIZES)
    assert isinstance(host, PlainVisionTransformer)
    model = evovit.from_timm(host, keep_ratio=1.0)
    assert_close(model(small.images()), host(small.images()), rtol=0, atol=1e-10)
    assert type(evovit.to_dense(model)) is PlainVisionTransformer


def test_the_averaged_prediction():
    host = hosts.build("dinov2 with registers")
    model, images = evovit.from_timm(host, head="average"), hosts.images(host)
    tokens = model.forward_features(images)
    assert_close(model(images), model.head(tokens[:, 5:]).mean(dim=1), rtol=0, atol=1e-12)
    official = evovit.from_timm(host, head="average", variant="official")
    patches = official.forward_features(images)[:, 5:]
    assert_close(official(images), host.head(host.norm(patches.mean(dim=1))), rtol=0, atol=1e-12)
    model.reset_classifier(7)
    assert model(images).shape == (2, 7)
    assert host(images).shape == (2, 5)


def test_heads_that_do_not_fit_are_refused():
    for family, reason in (("attention pooling", "global_pool='map'"), ("average pooling", "norms the mean")):
        with pytest.raises(ValueError, match=f"{reason}.*head='host'"):
            evovit.from_timm(hosts.build(family), head="average")
    with pytest.raises(ValueError, match="not one of average, host"):
        evovit.from_timm(hosts.build("augreg"), head="class")
    with pytest.raises(ValueError, match="head='average'"):
        AssistedTokenTask(evovit.from_timm(hosts.build("augreg")), verbose=False)
    with pytest.raises(ValueError, match=r"alpha=0\.5"):
        evovit.from_timm(hosts.build("augreg"), tradeoff=0.5)
    with pytest.raises(TypeError, match="no_such_option"):
        evovit.from_timm(hosts.build("augreg"), no_such_option=1)
    with pytest.raises(TypeError, match=r"no keyword 'keep_ration'; it has alpha, .*did you mean 'keep_ratio'"):
        evovit.from_timm(hosts.build("augreg"), keep_ration=0.5)
    for ratio, said in ((70, "=70 must lie in"), ("0.7", "='0.7' must be a number"), (None, "=None must be a number")):
        with pytest.raises(ValueError, match=f"keep_ratio{said}"):
            evovit.from_timm(hosts.build("augreg"), keep_ratio=ratio)
    with pytest.raises(ValueError, match="schedule='stages' is not one of layer, stage; did you mean 'stage'"):
        evovit.from_timm(hosts.build("augreg"), schedule="stages")


TINY = dict(img_size=32, embed_dim=32, num_heads=2, depth=3, num_classes=5)
REFUSED = {  # what the sentence must say of it
    "no class token": lambda: timm.create_model("vit_small_patch16_224", **TINY, class_token=False, global_pool="avg"),
    "Block": lambda: timm.create_model("vit_small_patch16_18x2_224", **TINY),
    "norms after the residual": lambda: timm.create_model("vit_base_patch16_rpn_224", **TINY, class_token=True),
    "plain Attention": lambda: timm.create_model("vit_small_patch16_224", **TINY, attn_layer="diff"),
    "distillation token": lambda: timm.create_model("deit_tiny_distilled_patch16_224", **TINY),
    "patch_drop_rate": lambda: timm.create_model("vit_small_patch16_224", **TINY, patch_drop_rate=0.5),
    "windows": lambda: timm.create_model("swin_tiny_patch4_window7_224", embed_dim=8, depths=(1, 1), num_heads=(1, 1)),
    "rotary": lambda: timm.create_model("eva02_tiny_patch14_224", **{**TINY, "img_size": 28}),
    "evo_levit": lambda: timm.create_model("levit_128s", img_size=64),
    "not a model of timm": lambda: nn.Linear(2, 2),
    "features_only": lambda: timm.create_model("vit_small_patch16_224", **TINY, features_only=True),
    "unwrap it": lambda: torch.compile(timm.create_model("vit_small_patch16_224", **TINY)),
    "model.module": lambda: nn.DataParallel(timm.create_model("vit_small_patch16_224", **TINY)),
    "to_dense": lambda: evovit.from_timm(timm.create_model("vit_small_patch16_224", **TINY)),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_is_no_host_is_refused_with_the_reason(reason):
    model = REFUSED[reason]()
    before = type(model)
    with pytest.raises(ValueError, match=reason) as raised:
        evovit.from_timm(model)
    assert type(model) is before
    assert type(model).__name__ in str(raised.value)


def test_checkpoints_go_both_ways(caplog):
    host, other = hosts.build("deit3"), hosts.build("deit3", seed=7)
    model, images = evovit.from_timm(host), hosts.images(host)
    assert list(model.state_dict()) == list(host.state_dict())
    other.load_state_dict(model.state_dict())
    assert_close(other(images), host(images), rtol=0, atol=0)
    model.load_state_dict(hosts.build("deit3", seed=7).state_dict())
    assert not caplog.records
    assert_close(host(images), hosts.build("deit3", seed=7)(images), rtol=0, atol=0)
    assert not vars(host).get("_model_args", {}).keys() & {"schedule", "keep_ratio"}
    model.set_schedule("layer")
    assert not vars(model).get("_model_args", {}).keys() & {"schedule", "keep_ratio"}  # timm would build the host


FORMATS = (
    {},
    dict(output_fmt="NLC", return_prefix_tokens=True, norm=True),
    dict(indices=[0, 3], stop_early=True, intermediates_only=True),
    dict(output_dict=True, return_prefix_tokens=True),
)


@pytest.mark.parametrize("family", FEW)
def test_feature_maps_are_the_hosts_where_everything_is_kept(family):
    host = hosts.build(family)
    images = hosts.images(host)
    for kwargs in FORMATS:
        expected = host.forward_intermediates(images, **kwargs)
        assert_close(evovit.from_timm(host, keep_ratio=1.0).forward_intermediates(images, **kwargs), expected)
        reduced = evovit.from_timm(host).forward_intermediates(images, **kwargs)
        shapes = torch.utils._pytree.tree_map(lambda tensor: tensor.shape, expected)
        assert torch.utils._pytree.tree_map(lambda tensor: tensor.shape, reduced) == shapes


@pytest.mark.parametrize("placeholders", ["update", "drop"])
@pytest.mark.parametrize("family", FEW)
def test_what_timm_asks_of_a_model(family, placeholders):
    host = hosts.build(family)
    model, images = evovit.from_timm(host, placeholders=placeholders), hosts.images(host)
    out = model(images)
    assert_close(model(images[:1])[0], out[0])
    assert model(images[:0]).shape == (0, 5)
    final, maps = model.forward_intermediates(images)
    assert_close(final, model.forward_features(images))
    pruned = copy.deepcopy(model)
    pruned.prune_intermediate_layers([3], prune_norm=True)
    assert_close(pruned.forward_intermediates(images, indices=[3], intermediates_only=True)[0], maps[3])
    model.set_grad_checkpointing()
    assert_close(model(images), out)
    model.set_grad_checkpointing(False)
    trained = copy.deepcopy(model).train()
    trained(images).square().mean().backward()
    assert not [name for name, parameter in trained.named_parameters() if parameter.grad is None]
    model.set_input_size((48, 32))
    model.reset_classifier(7)
    larger = torch.randn(2, 3, 48, 32, dtype=torch.float64)
    assert model(larger).shape == (2, 7)
    assert host(images).shape == (2, 5)  # its classifier and its position embeddings are still its own
    model.reset_classifier(0, "")
    assert_close(model(larger), model.fc_norm(model.forward_features(larger)))
    assert evovit.from_timm(host).to(torch.bfloat16)(images.bfloat16()).dtype == torch.bfloat16


def test_images_of_any_size():
    model = evovit.from_timm(hosts.build("dinov2"))
    images = torch.randn(2, 3, 84, 70, dtype=torch.float64)
    assert model(images).shape == (2, 5)
    assert evovit.trace(model, images).kept[0].shape == (2, 15)


def test_only_models_of_evovit_are_traced():
    host = hosts.build("augreg")
    with pytest.raises(TypeError, match=r"trace is for models of evovit, .* and VisionTransformer is none"):
        evovit.trace(host, hosts.images(host))


def test_tiles_count_the_registers():
    options = evovit.from_timm(hosts.build("dinov2 with registers"), tile=8).options
    assert options.kept(196, 3) + 5 + 1 == 104  # 98 informative tokens fill 104 rows as they are
    assert options.kept(64, 3) + 5 + 1 == 32


@pytest.mark.parametrize(
    "form", [{}, {"schedule": "layer"}, {"placeholders": "drop"}, {"scores": "column_mean"}], ids=str
)
def test_the_form_for_gpus_counts_the_registers(form, monkeypatch):
    model = evovit.from_timm(hosts.build("dinov2 with registers"), **form)
    images = hosts.images(model)
    with torch.no_grad():
        expected = model(images)
        monkeypatch.setattr(evovit.fast.deferred, "saves_time", lambda x: True)
        assert_close(model(images), expected, rtol=0, atol=1e-12)


@pytest.mark.integration
def test_compiled_without_graph_breaks(monkeypatch):
    torch._dynamo.reset()
    model = evovit.from_timm(hosts.build("dinov2 with registers", depth=3))
    images = hosts.images(model)
    with torch.no_grad():
        expected = model(images)
        assert_close(torch.compile(model, fullgraph=True, backend="aot_eager")(images), expected, rtol=0, atol=1e-12)
        monkeypatch.setattr(evovit.fast.deferred, "saves_time", lambda x: True)
        torch._dynamo.reset()
        assert_close(torch.compile(model, fullgraph=True, backend="aot_eager")(images), expected, rtol=0, atol=1e-12)
    torch._dynamo.reset()


@pytest.mark.integration
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", ["dinov2 with registers", "average pooling"])
def test_exported_with_batches_of_any_size(family, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    model = evovit.from_timm(hosts.build(family, torch.float32, depth=3))
    example = hosts.images(model)
    shapes = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(model, (example,), dynamic_shapes=shapes).module()
    path, axes = tmp_path / "model.onnx", {"images": {0: "batch"}}
    torch.onnx.export(model, (example,), path, input_names=["images"], dynamic_axes=axes, dynamo=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for batch in (1, 3):
        images = hosts.images(model, batch, seed=batch)
        with torch.no_grad():
            expected = model(images)
        assert_close(program(images), expected, rtol=1e-4, atol=1e-4)
        in_runtime = torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
        assert_close(in_runtime, expected, rtol=1e-4, atol=1e-4)
