"""DPC-KNN: the numbers of the benchmark's code, the clusters, and what they cost."""

import pytest
import timm
import torch
import torch.nn.functional as F
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from baselines import dpcknn
from tests.golden import reference
from tests.models import families

KEY = "dpcknn_deit"
NEAR = dict(rtol=0, atol=1e-10)


def load(about):
    sizes = ("img_size", "patch_size", "embed_dim", "num_heads", "num_classes")
    options = about["args"]
    model = timm.create_model(
        "dpcknn_deit_tiny_patch16_224",
        **{k: about["ctor"][k] for k in sizes},
        keep_ratio=options["keep_rate"][0],
        reduction_blocks=options["reduction_loc"],
        k_neighbors=options["k_neighbors"],
        equal_weight=options["equal_weight"],
    ).double()
    model.load_state_dict(reference.weights(about["shapes"], torch.float64))
    return model


@pytest.fixture
def calls(monkeypatch):
    """Per reduction the scores and the clusters."""
    recorded = {"centre_scores": [], "cluster": []}

    def recording(name, function):
        return lambda *args: recorded[name].append(function(*args)) or recorded[name][-1]

    for name in recorded:
        monkeypatch.setattr(dpcknn, name, recording(name, getattr(dpcknn, name)))
    return recorded


@pytest.mark.parametrize("name", reference.names("dpcknn"))
def test_inference(name, calls):
    about, expected = reference.case(name)
    logits = load(about).eval()(reference.images(about, torch.float64))
    assert_close(logits, torch.tensor(expected["logits"]), **NEAR)
    group = torch.arange(about["num_patches"]).expand(2, -1)
    counts = []
    for event, (scores, clusters) in enumerate(zip(calls["centre_scores"], calls["cluster"], strict=True)):
        assert_close(scores, torch.tensor(expected[f"center_score_{event}"]), **NEAR)
        centres = torch.tensor(expected[f"centers_{event}"]).long()
        counts.append(centres.shape[1])
        assert torch.equal(scores.topk(counts[-1]).indices, centres)
        assert torch.equal(clusters, torch.tensor(expected[f"cluster_{event}"]).long())
        group = clusters.gather(1, group)
        assert torch.equal(group, torch.tensor(expected[f"group_{event}"]).long())
    assert counts == about["cluster_count"]


def test_training():
    about, expected = reference.case("dpcknn_custom_img80")
    model = load(about).train()
    logits = model(reference.images(about, torch.float64))
    loss = F.cross_entropy(logits, torch.tensor(about["train_labels"]))
    loss.backward()
    assert_close(logits, torch.tensor(expected["train_logits"]), **NEAR)
    assert_close(loss, torch.tensor(expected["train_loss"]), **NEAR)
    parameters = dict(model.named_parameters())
    assert set(parameters) == set(about["grad_norm_keys"])
    norms = torch.stack([parameters[key].grad.norm() for key in about["grad_norm_keys"]])
    assert_close(norms, torch.tensor(expected["grad_norms"]), **NEAR)
    assert_close(model.pos_embed.grad.float(), torch.tensor(expected["grad_pos_embed"]))
    assert_close(model.cls_token.grad.float(), torch.tensor(expected["grad_cls_token"]))


def cluster_one_by_one(patches, count, k):
    """The clusters of one image (n, C), patch by patch."""
    n, width = patches.shape
    distance = [[float((a - b).square().sum() / width) ** 0.5 for b in patches] for a in patches]
    nearest = [sorted(row)[:k] for row in distance]
    density = [2.718281828459045 ** -(sum(d * d for d in row) / len(row)) for row in nearest]
    largest = max(max(row) for row in distance)
    scores = []
    for i in range(n):
        denser = [distance[i][j] for j in range(n) if density[j] > density[i]]
        scores.append(density[i] * min(denser, default=largest))
    centres = sorted(range(n), key=lambda i: -scores[i])[:count]
    return [centres.index(i) if i in centres else min(range(count), key=lambda c: distance[i][centres[c]])
            for i in range(n)]  # fmt: skip


def test_clusters_patch_by_patch():
    patches = torch.randn(4, 11, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 3
    for k in (3, 5, 20):
        found = dpcknn.cluster(patches, 4, k)
        assert found.tolist() == [cluster_one_by_one(image, 4, k) for image in patches]


def test_a_cluster_is_the_weighted_mean_of_its_patches():
    patches = torch.randn(2, 5, 3, dtype=torch.float64)
    clusters = torch.tensor([[0, 1, 0, 0, 1], [1, 1, 1, 0, 1]])
    weights = torch.rand(2, 5, dtype=torch.float64)
    for given in (None, weights):
        merged = dpcknn.merge(patches, clusters, 2, given)
        used = torch.ones_like(weights) if given is None else given
        for image in range(2):
            for number in range(2):
                mine = clusters[image] == number
                total = (patches[image, mine] * used[image, mine, None]).sum(0)
                assert_close(merged[image, number], total / (used[image, mine].sum() + 1e-6))


def test_equal_patches_do_no_harm():
    model = families.build(KEY).double().eval()
    model.pos_embed.data.zero_()
    batch = torch.ones(2, 3, 32, 32, dtype=torch.float64)
    assert dpcknn.cluster(torch.ones(1, 6, 3), 3, 5).unique().tolist() == [0, 1, 2]
    assert model(batch).isfinite().all()


def test_a_merged_patch_shows_the_token_of_its_cluster(calls):
    model, batch = families.build(KEY).double().eval(), families.images(KEY).double()
    outputs = []
    for block in model.blocks:
        block.register_forward_hook(lambda *args: outputs.append(args[-1]))
    maps = model.forward_intermediates(batch, intermediates_only=True, output_fmt="NLC")
    for image in range(2):
        group = list(range(16))
        for block in range(12):
            if block in (3, 6, 9):
                clusters = calls["cluster"][block // 3 - 1][image]
                group = [int(clusters[token]) for token in group]
            for patch in range(16):
                assert torch.equal(maps[block][image, patch], outputs[block][image, 1 + group[patch]])


def test_an_image_does_not_depend_on_its_batch():
    model, batch = families.build(KEY).double().eval(), families.images(KEY, 5).double()
    assert_close(model(batch), torch.cat([model(image[None]) for image in batch]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_low_precision(dtype, calls):
    model, batch = families.build(KEY).eval(), families.images(KEY)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is torch.float32):
        logits = model.to(dtype)(batch.to(dtype))
    assert logits.dtype == torch.bfloat16
    assert logits.isfinite().all()
    assert {scores.dtype for scores in calls["centre_scores"]} == {torch.float32}


def test_equal_weights_need_no_layers():
    dense = families.build("plain_deit").state_dict()
    model = families.build(KEY, equal_weight=True)
    assert model.state_dict().keys() == dense.keys()
    assert model.load_pretrained_dense(dense) == []
    fresh = [f"cluster_layers.{i}.score.{kind}" for i in range(3) for kind in ("weight", "bias")]
    assert sorted(families.build(KEY).load_pretrained_dense(dense)) == sorted(fresh)


def reduction_macs(before, after, width, learned):
    """All distances, the sums of the clusters, and the learned weights of patches."""
    return before**2 * width + before * after * width + (before * width if learned else 0)


@pytest.mark.parametrize(("size", "width"), [("tiny", 192), ("small", 384), ("base", 768)])
@pytest.mark.parametrize("learned", [True, False])
def test_macs(size, width, learned):
    with torch.device("meta"):
        model = timm.create_model(f"dpcknn_deit_{size}_patch16_224", equal_weight=not learned).eval()
        for block in model.blocks:
            block.attn.fused_attn = False
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, 3, 224, 224))
    total, before = 196 * 768 * width + width * 1000, 196
    for present in (196, 137, 96, 67):
        if present < before:
            total += reduction_macs(before, present, width, learned)
        total += 3 * (12 * (1 + present) * width**2 + 2 * (1 + present) ** 2 * width)
        before = present
    assert counter.get_total_flops() // 2 == total


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (dict(keep_ratio=1.2), r"keep_ratio=1.2 must be a number in \(0, 1\]"),
        (dict(keep_ratio=0.3), "keeps none in the last stage: use more patches"),
        (dict(reduction_blocks=(6, 3)), "must ascend within 0..11"),
        (dict(reduction_blocks=()), "must ascend within 0..11"),
        (dict(k_neighbors=1), "k_neighbors=1 must be at least 2"),
    ],
)
def test_options_that_can_not_be_are_refused(options, reason):
    with pytest.raises(ValueError, match=reason):
        families.build(KEY, **options)
