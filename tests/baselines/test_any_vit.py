"""The baselines on hosts of many kinds: step by step, against the host, and what a host must be."""

import copy
import math

import numpy as np
import pytest
import timm
import torch
from torch import nn
from torch.testing import assert_close

import baselines
from baselines import any_vit, topk
from evovit.conversion import FromHost
from tests.baselines.test_ats import hit_one_by_one
from tests.models import hosts

EXACT = dict(rtol=0, atol=1e-9)
KEEPS_ALL = {
    "evit": dict(keep_ratio=1.0),
    "tome": dict(r=0),
    "topk": dict(keep_ratio=1.0),
    "random": dict(keep_ratio=1.0),
    "ats": dict(keep_profile=[1.0, 1.0, 1.0]),
    "dpcknn": dict(keep_ratio=1.0),
}
REDUCES = {
    "evit": dict(keep_ratio=0.6),
    "tome": dict(r=2),
    "topk": dict(keep_ratio=0.7),
    "random": dict(keep_ratio=0.7),
    "ats": dict(),
    "dpcknn": dict(keep_ratio=0.7, k_neighbors=3),
}


POOLED = ("dinov2 with registers", "average pooling", "attention pooling")
FAMILIES = {**{name: {} for name in hosts.HOSTS}, "averaged registers": dict(reg_tokens=2)}  # and what differs


def build(family, **kwargs):
    name = "average pooling" if family == "averaged registers" else family
    return hosts.build(name, **{**FAMILIES[family], **kwargs})


def first_channel(x, prefix):
    """Scores (B, n) of tokens (B, P + n, C) in place of random ones, which do not depend on the order of patches."""
    return x[..., prefix:, 0]


@pytest.fixture(autouse=True)
def _same_random_numbers(monkeypatch):
    monkeypatch.setattr(topk, "draw_scores", first_channel)


def reduced(host, method):
    keywords = REDUCES[method]
    if method == "ats" and host.attn_pool is not None:
        keywords = dict(keep_profile=[0.7, 0.5, 0.2])
    return baselines.from_timm(host, method, **keywords)


# A method step by step: one image, timm's layers, plain loops. ``x`` (L, C) are its tokens, ``p`` of them before the
# patches, and ``held`` says for each patch token how many initial patches it stands for in the pooling.


def attend(block, x, sizes=None, queries=None):
    """Residual after the attention of the ``queries``; the weights (H, L, L), the keys and values (H, L, D) of all."""
    attn = block.attn
    q, k, v = attn.qkv(block.norm1(x)).reshape(len(x), 3, attn.num_heads, -1).permute(1, 2, 0, 3)
    q, k = attn.q_norm(q), attn.k_norm(k)
    logits = q @ k.mT * attn.scale
    if sizes is not None:
        logits = logits + torch.tensor(sizes, dtype=x.dtype).log()
    weights = logits.softmax(-1)
    out = block.ls1(attn.proj(attn.norm((weights @ v).transpose(0, 1).flatten(1))))
    rows = range(len(x)) if queries is None else queries
    return (x + out)[list(rows)], weights, k, v


def finish(block, x):
    return x + block.ls2(block.mlp(block.norm2(x)))


def best(scores, count):
    return sorted(range(len(scores)), key=lambda i: -scores[i])[:count]


def ranked(model, method, x, p):
    """EViT, Top-K and random."""
    patches = len(x) - p
    for index, block in enumerate(model.blocks):
        present = len(x) - p
        if index not in model.reduction_blocks:
            x = finish(block, attend(block, x)[0])
            continue
        if method == "random":
            scores = first_channel(x[None], p)[0]
        after, weights, _, _ = attend(block, x)
        if method != "random":
            scores = weights[:, 0, p:].mean(0)
        if method == "evit":
            keep = math.ceil(model.keep_ratios[index] * present)
        else:
            keep = int(model.keep_ratios[model.reduction_blocks.index(index)] * patches)
        kept = best(scores.tolist(), keep)
        rest = [i for i in range(present) if i not in kept]
        x = torch.cat((after[:p], after[p:][kept]))
        if method == "evit" and rest:
            x = torch.cat((x, (scores[rest, None] * after[p:][rest]).sum(0, keepdim=True)))
        x = finish(block, x)
    return x, [1] * (len(x) - p)


def merged(model, method, x, p):
    """ToMe, pair by pair."""
    sizes = [1] * len(x)
    for block, r in zip(model.blocks, model.merges, strict=True):
        x, _, keys, _ = attend(block, x, sizes)
        keys = nn.functional.normalize(keys.mean(0), dim=1)
        first, second = list(range(p + 1, len(x), 2)), list(range(p, len(x), 2))
        partner = {i: max(second, key=lambda j: float(keys[i] @ keys[j])) for i in first}
        chosen = sorted(first, key=lambda i: -float(keys[i] @ keys[partner[i]]))[: min(r, len(first))]
        parts = {j: [j] + [i for i in chosen if partner[i] == j] for j in second}
        order = [*range(p), *(i for i in first if i not in chosen), *second]
        groups = [parts.get(i, [i]) for i in order]
        x = torch.stack([sum(sizes[i] * x[i] for i in group) / sum(sizes[i] for i in group) for group in groups])
        sizes = [sum(sizes[i] for i in group) for group in groups]
        x = finish(block, x)
    return x, sizes[p:]


def sampled(model, method, x, p):
    """ATS, from scores to ranks by the reference of tests/baselines/test_ats.py."""
    points = len(x) - p
    for index, block in enumerate(model.blocks):
        if index not in model.reduction_blocks:
            x = finish(block, attend(block, x)[0])
            continue
        _, weights, _, values = attend(block, x)
        scores = (weights[:, 0].sum(0) * values.transpose(0, 1).flatten(1).norm(dim=1))[p:]
        order = scores.argsort()
        if model.keep_profile is not None:
            share = model.keep_profile[model.reduction_blocks.index(index)]
            kept = order[-max(1, int(share * points)) :]
        else:
            kept = order[sorted(hit_one_by_one(scores[order].tolist(), points))]
        x = finish(block, attend(block, x, queries=[*range(p), *(p + kept).tolist()])[0])
    return x, [1] * (len(x) - p)


def clustered(model, method, x, p):
    """DPC-KNN, patch by patch; fresh layers weight all patches alike."""
    patches, held = len(x) - p, [1] * (len(x) - p)
    for index, block in enumerate(model.blocks):
        if index in model.reduction_blocks:
            own = x[p:]
            count = int(patches * model.keep_ratios[model.reduction_blocks.index(index)])
            distance = torch.cdist(own, own).square() / own.shape[1]
            density = (-distance.sort(dim=1).values[:, : model.k_neighbors].mean(1)).exp()
            score = []
            for i in range(len(own)):
                denser = [distance[i, j] for j in range(len(own)) if density[j] > density[i]]
                score.append(float(density[i] * (min(denser) if denser else distance.max()).sqrt()))
            centres = best(score, count)
            groups = [[] for _ in centres]
            for i in range(len(own)):
                nearest = min(range(count), key=lambda c: float(distance[centres[c], i]))
                groups[centres.index(i) if i in centres else nearest].append(i)
            x = torch.cat((x[:p], torch.stack([own[group].sum(0) / (len(group) + 1e-6) for group in groups])))
            held = [sum(held[i] for i in group) for group in groups]
        x = finish(block, attend(block, x)[0])
    return x, held


STEPS = {"evit": ranked, "topk": ranked, "random": ranked, "tome": merged, "ats": sampled, "dpcknn": clustered}


@torch.no_grad()
def step_by_step(host, model, method, batch):
    """Logits (B, classes): the host's own pooling and head over the tokens, each as often as it counts."""
    logits = []
    for image in host.norm_pre(host._pos_embed(host.patch_embed(batch))):
        p = host.num_prefix_tokens
        x, held = STEPS[method](model, method, image, p)
        x = host.norm(x)
        pooled = torch.cat((x[:p], x[p:].repeat_interleave(torch.tensor(held), dim=0)))
        logits.append(host.forward_head(pooled[None])[0])
    return torch.stack(logits)


@pytest.mark.parametrize("method", any_vit.METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_reduced_model_computes_what_its_paper_says(family, method):
    host = build(family)
    model, batch = reduced(host, method), hosts.images(host)
    with torch.no_grad():
        logits = model(batch)
    assert_close(logits, step_by_step(host, model, method, batch), **EXACT)
    assert (logits - host(batch)).abs().max() > 1e-4


@pytest.mark.parametrize("method", any_vit.METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_keeping_everything_is_the_host(family, method):
    host = build(family)
    batch = hosts.images(host)
    model = baselines.from_timm(host, method, **KEEPS_ALL[method])
    assert_close(model(batch), host(batch), **EXACT)


@pytest.mark.parametrize("method", any_vit.METHODS)
@pytest.mark.parametrize("family", POOLED)
def test_the_host_and_back(family, method):
    host = build(family)
    batch = hosts.images(host)
    before, keys, expected = copy.deepcopy(host), list(host.state_dict()), host(batch)
    model = reduced(host, method)
    own = {key: parameter for key, parameter in model.named_parameters() if not key.startswith("cluster_layers.")}
    assert own.keys() == dict(host.named_parameters()).keys()
    assert all(parameter is host.get_parameter(key) for key, parameter in own.items())
    assert [key for key in model.state_dict() if not key.startswith("cluster_layers.")] == keys
    assert {(p.dtype, p.device.type) for p in model.parameters()} == {(torch.float64, "cpu")}
    assert not any(module.training for module in model.modules())
    assert any(key.startswith("cluster_layers.") for key in model.state_dict()) is (method == "dpcknn")

    assert type(host) is type(before)
    assert vars(host).keys() == vars(before).keys()
    assert {type(module) for module in host.modules()} == {type(module) for module in before.modules()}
    assert torch.equal(host(batch), expected)

    dense = baselines.to_dense(model)
    assert type(dense) is type(host)
    assert vars(dense).keys() == vars(host).keys()
    assert [type(module) for module in dense.modules()] == [type(module) for module in host.modules()]
    assert list(dense.state_dict()) == keys
    assert dense.head.weight is host.head.weight
    assert torch.equal(dense(batch), expected)
    assert isinstance(baselines.from_timm(dense, "topk"), FromHost)


def test_a_training_moves_the_weights_of_the_host():
    host = build("dinov2 with registers").float().train()
    model = baselines.from_timm(host, "dpcknn", reduction_blocks=(1, 2))
    assert all(module.training for module in model.modules())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = host.blocks[0].mlp.fc1.weight.clone()
    model(hosts.images(host)).square().sum().backward()
    assert all(layer.score.weight.grad.abs().max() > 0 for layer in model.cluster_layers)
    optimizer.step()
    assert not torch.equal(host.blocks[0].mlp.fc1.weight, before)


def test_the_blocks_that_reduce_are_quarters_of_the_depth():
    for depth, blocks in ((12, (3, 6, 9)), (7, (1, 3, 5)), (4, (1, 2, 3)), (1, (0,))):
        host = build("augreg", depth=depth)
        assert baselines.from_timm(host, "topk", keep_ratio=0.9).reduction_blocks == blocks
    assert timm.create_model("ats_deit_tiny_patch16_224").reduction_blocks == (3, 6, 9)


@pytest.mark.parametrize("method", any_vit.METHODS)
def test_the_registered_model_is_the_same(method):
    options = {**REDUCES[method], "depth": 6, "embed_dim": 32, "num_heads": 2, "img_size": 32, "patch_size": 8}
    registered = timm.create_model(f"{method}_deit_tiny_patch16_224", num_classes=5, **options).double().eval()
    host = build("deit")
    registered.load_pretrained_dense(host.state_dict())
    for layer in getattr(registered, "cluster_layers", ()):
        nn.init.zeros_(layer.score.weight)
    batch = hosts.images(host)
    model = reduced(host, method)
    assert type(model) is type(registered)
    assert torch.equal(registered(batch), model(batch))
    assert_close(baselines.to_dense(registered)(batch), host(batch), **EXACT)


@pytest.mark.parametrize("method", any_vit.METHODS)
@pytest.mark.parametrize("family", POOLED)
def test_an_image_does_not_depend_on_its_batch(family, method):
    host = build(family)
    model, batch = reduced(host, method), hosts.images(host, 5)
    together = model(batch)
    assert_close(together, torch.cat([model(image[None]) for image in batch]), **EXACT)
    assert_close(model.forward_head(model.forward_features(batch)), together, **EXACT)
    if (family, method) == ("average pooling", "ats"):  # images of different lengths, so padding is at work
        lengths = {len(image.unique(dim=0)) for image in model.forward_features(batch)}
        assert len(lengths) > 1


@pytest.mark.parametrize("pool", ["avg", "avgmax", "max"])
@pytest.mark.parametrize("include_prefix", [False, True])
def test_padding_of_ats_changes_no_pooling(pool, include_prefix):
    host = build("average pooling", global_pool=pool, pool_include_prefix=include_prefix, fc_norm=False)
    model, batch = baselines.from_timm(host, "ats"), hosts.images(host, 5)
    assert_close(model(batch), torch.cat([model(image[None]) for image in batch]), **EXACT)


def test_of_two_patches_one_stays_for_the_mean():
    host = build("average pooling", img_size=(8, 16))
    model = baselines.from_timm(host, "ats")
    assert model(hosts.images(host)).isfinite().all()
    assert model.forward_features(hosts.images(host)).shape[1] == 2


@pytest.mark.parametrize("method", any_vit.METHODS)
@pytest.mark.parametrize("family", POOLED[:2])
def test_low_precision(family, method):
    host = build(family).float()
    batch = hosts.images(host)
    logits = reduced(host.bfloat16(), method)(batch.bfloat16())
    assert logits.dtype == torch.bfloat16
    assert logits.isfinite().all()
    with torch.autocast("cpu", torch.bfloat16):
        assert reduced(host.float(), method)(batch).isfinite().all()


@pytest.mark.integration
@pytest.mark.parametrize("method", sorted(set(any_vit.METHODS) - {"ats"}))  # whose counts depend on the images
def test_compiled_without_a_break(method):
    host = build("dinov2 with registers")
    model, batch = reduced(host, method), hosts.images(host)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        assert_close(compiled(batch), model(batch), **EXACT)


@pytest.mark.parametrize("method", ["evit", "topk", "dpcknn"])
def test_a_ratio_may_be_numpys(method):
    host = build("augreg")
    ratios = [baselines.from_timm(host, method, keep_ratio=ratio).keep_ratios for ratio in (0.5, np.float32(0.5))]
    assert ratios[0] == ratios[1]


def test_ratios_may_come_from_a_generator():
    given = [0.7, 0.5, 0.3]
    assert baselines.from_timm(build("augreg"), "topk", keep_ratio=(r for r in given)).keep_ratios == tuple(given)


def test_what_is_no_host_is_refused():
    host = build("augreg")
    with pytest.raises(ValueError, match=r"'dynamicvit' is not one of evit, tome, .*registered models"):
        baselines.from_timm(host, "dynamicvit")
    for written, meant in (("ToMe", "tome"), ("Top-K", "topk"), ("DPC-KNN", "dpcknn")):  # as tables show them
        with pytest.raises(ValueError, match=f"did you mean '{meant}'"):
            baselines.from_timm(host, written)
    with pytest.raises(ValueError, match=r"'evo' is no baseline: call evovit\.from_timm"):
        baselines.from_timm(host, "evo")
    with pytest.raises(ValueError, match="class token"):
        baselines.from_timm(timm.create_model("vit_base_patch16_siglip_224", device="meta"), "tome")
    with pytest.raises(ValueError, match=r"it reduces tokens already; call evovit\.to_dense"):
        baselines.from_timm(baselines.from_timm(host, "topk"), "tome")
    with pytest.raises(ValueError, match="patch_drop_rate"):
        baselines.from_timm(build("augreg", patch_drop_rate=0.5), "evit")
    with pytest.raises(ValueError, match=r"padding .* give keep_profile"):
        baselines.from_timm(build("attention pooling"), "ats")
    with pytest.raises(ValueError, match=r"keep_ratio=1\.5 must lie in"):
        baselines.from_timm(host, "topk", keep_ratio=1.5)
    with pytest.raises(ValueError, match="did you mean 'dpcknn'"):
        baselines.from_timm(host, "dpc-knn")
    with pytest.raises(TypeError, match=r"no keyword 'ratio'; it has keep_ratio, .*did you mean 'keep_ratio'"):
        baselines.from_timm(host, "topk", ratio=0.5)
    with pytest.raises(ValueError, match="to_dense undoes from_timm"):
        baselines.to_dense(host)
