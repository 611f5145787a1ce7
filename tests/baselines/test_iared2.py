"""IA-RED2: the authors' numbers, the policies, the reward, the curriculum, and inference that gathers."""

import pytest
import timm
import torch
from torch.testing import assert_close

from baselines.iared2 import IARED2Task, load_official
from tests.golden import reference
from tests.models import families

KEY = "ia_red2_deit"


def build(spread=1.0, **kwargs):
    """Interpreters with opinions, unlike fresh ones."""
    model = families.build(KEY, **kwargs)
    for interpreter in model.interpreters:
        for linear in (interpreter.query, interpreter.key):
            torch.nn.init.normal_(linear.weight, std=spread)
            torch.nn.init.zeros_(linear.bias)
    return model


# -- the numbers of the authors' code --------------------------------------------------------------

CASES = reference.names("iared2_")
NEAR = dict(rtol=0, atol=1e-10)


def load(about, dtype):
    sizes = ("img_size", "patch_size", "embed_dim", "depth", "num_heads", "num_classes")
    kwargs = {name: about["ctor"][name] for name in sizes}
    model = timm.create_model("ia_red2_deit_tiny_patch16_224", groups=about["group_size"], **kwargs).to(dtype)
    load_official(model, reference.weights(about["shapes"], dtype))
    if about["cl_step"] >= 0:  # their step of the curriculum: later groups keep what this one chose
        model.acting = about["cl_step"] + 1
    return model.eval()


def watch(model, images):
    """Each group's scores (B, N) of all patches, and its class token (B, C), from a pass that drops nothing."""
    scores, class_tokens = [], []
    last = [sum(model.groups[: group + 1]) - 1 for group in range(len(model.groups))]
    hooks = [model.blocks[index].register_forward_hook(lambda *args: class_tokens.append(args[-1][:, 0]))
             for index in last]  # fmt: skip
    first = [0, *(index + 1 for index in last[:-1])]
    for interpreter, index in zip(model.interpreters, first, strict=True):
        hooks.append(model.blocks[index].register_forward_pre_hook(
            lambda block, inputs, interpreter=interpreter: scores.append(interpreter(inputs[0]))
        ))  # fmt: skip
    model.masked(images)
    for hook in hooks:
        hook.remove()
    return scores, class_tokens


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_inference_is_the_authors(name, fused):
    about, expected = reference.case(name)
    model, images = load(about, torch.float64), reference.images(about, torch.float64)
    for block in model.blocks:
        block.attn.fused_attn = fused
    with torch.no_grad():
        logits, counts = model(images), model.gathered(images)[1]
        scores, class_tokens = watch(model, images)
    assert_close(logits, torch.tensor(expected["logits"]), **NEAR)
    assert_close(torch.stack(class_tokens), torch.tensor(expected["cls_token_after_group"]), **NEAR)
    policies = torch.tensor(expected["policy"])[..., 1:].bool()
    assert torch.equal(torch.stack(counts), policies.sum(2))
    kept = torch.ones_like(policies[0])
    for group, policy in enumerate(policies):
        assert_close(scores[group] * kept, torch.tensor(expected["prob"])[group, :, 1:], **NEAR)
        if model.acts(group):
            kept = model.choose(group, scores[group], kept)
        assert torch.equal(kept, policy)
    # their estimate of the cost: the mean share of tokens over the blocks
    shares = (1 + torch.stack(counts)).double() / (1 + policies.shape[2])
    blocks = torch.tensor(model.groups).double()
    assert_close((shares * blocks[:, None]).sum(0) / blocks.sum(), torch.tensor(expected["flops_fraction"]))


@pytest.mark.parametrize("name", CASES)
def test_inference_in_float32(name):
    about, expected = reference.case(name)
    logits = load(about, torch.float32)(reference.images(about, torch.float32))
    limit = 4 * about["max_abs_diff_f32_f64"]
    assert_close(logits.double(), torch.tensor(expected["logits"]), rtol=0, atol=limit)


def test_official_weights_name_each_block_twice():
    about, expected = reference.case("iared2_custom_img112_groups345")
    model, weights = load(about, torch.float64), reference.weights(about["shapes"], torch.float64)
    first = 0
    for group, size in enumerate(model.groups):
        for block in range(size):
            prefix = f"blocks.{first + block}."
            for key in [key for key in weights if key.startswith(prefix)]:
                weights[f"groups.{group}.block_list.{block}.{key.removeprefix(prefix)}"] = weights[key]
        first += size
    torch.nn.init.zeros_(model.head.weight)
    load_official(model, weights)
    images = reference.images(about, torch.float64)
    assert_close(model(images).detach(), torch.tensor(expected["logits"]), **NEAR)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    twin = "groups.1.block_list.0.norm1.weight"
    with pytest.raises(ValueError, match=rf"{twin} differs from blocks.3.norm1.weight"):
        load_official(model, weights | {twin: weights[twin] + 1})
    with pytest.raises(ValueError, match=r"missing interpreters\.2\.key\.bias"):
        load_official(model, {key: value for key, value in weights.items() if key != "groups.2.agent.qk.bias"})
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


# -- what a model computes -------------------------------------------------------------------------


def test_scores_are_those_of_the_definition():
    interpreter = build().interpreters[0]
    x = torch.randn(2, 5, 24)
    scores = interpreter(x)
    normed = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    for image in range(2):
        for patch in range(4):
            query = interpreter.query(normed[image, 0]).view(3, 8)
            key = interpreter.key(normed[image, 1 + patch]).view(3, 8)
            heads = [torch.sigmoid(q @ k / 8**0.5) for q, k in zip(query, key, strict=True)]
            assert_close(scores[image, patch], sum(heads) / 3)


def test_a_fresh_model_is_the_dense_one():
    model, images = families.build(KEY).eval(), families.images(KEY)
    dense = timm.create_model("deit_tiny_patch16_224", **families.DEIT).eval()
    fresh = model.load_pretrained_dense(dense.state_dict())
    assert all(key.startswith("interpreters.") for key in fresh)
    assert_close(model(images), dense(images))
    scores = model.interpreters[0](model.embed(images))
    assert 0.6 < scores.min() < scores.max() < 0.85


@pytest.mark.parametrize("fused", [True, False])
def test_gathering_equals_masking(fused):
    model = build().eval()
    images = families.images(KEY, batch=6)
    for block in model.blocks:
        block.attn.fused_attn = fused
    gathered, counts = model.gathered(images)
    masked = model.masked(images)
    assert len(set(counts[-1].tolist())) > 1  # padding is at work
    assert 0 < counts[2].min() <= counts[0].max() < 16
    assert_close(model.forward_head(gathered), model.forward_head(masked), rtol=0, atol=1e-5)


def test_an_image_without_patches_still_has_its_class_token():
    model = build().eval()
    for interpreter in model.interpreters:
        torch.nn.init.constant_(interpreter.query.bias, 9.0)
        torch.nn.init.constant_(interpreter.key.bias, -9.0)
    tokens, counts = model.gathered(families.images(KEY))
    assert tokens.shape == (2, 1, 24)
    assert counts[0].tolist() == [0, 0]
    assert model(families.images(KEY)).isfinite().all()


def test_a_profile_fixes_the_counts():
    model = build(keep_profile=[0.8, 0.5, 0.25]).eval()
    tokens, counts = model.gathered(families.images(KEY))
    assert [count.tolist() for count in counts] == [[12, 12], [8, 8], [4, 4]]
    assert tokens.shape == (2, 5, 24)
    assert_close(model.forward_head(tokens), model.forward_head(model.masked(families.images(KEY))))


def task_of(model, **kwargs):
    return IARED2Task(model, criterion_kwargs=dict(smoothing=0.0), verbose=False, **kwargs)


@pytest.mark.parametrize("acting", [0, 1, 2])
def test_groups_that_do_not_act_keep_what_the_last_acting_one_kept(acting):
    model, images = build().eval(), families.images(KEY, batch=6)
    model.acting = acting
    tokens, counts = model.gathered(images)
    assert_close(model.forward_head(tokens), model.forward_head(model.masked(images)), rtol=0, atol=1e-5)
    first = torch.full((6,), 16) if acting == 0 else counts[acting - 1]
    assert all(torch.equal(count, first) for count in counts[acting:])
    maps = model.forward_intermediates(images, intermediates_only=True)
    assert len(maps) == 12


def test_reward():
    task = task_of(families.build(KEY), tau=0.5)
    kept = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]]).bool()
    logits = torch.tensor([[0.0, 1.0], [0.0, 1.0], [1.0, 0.0]])
    reward = task.reward(kept, logits, torch.tensor([1, 0, 0]))
    assert reward.tolist() == [1 - 0.25, -0.5, 0.0]
    assert task_of(families.build(KEY)).reward(kept, logits, torch.tensor([1, 0, 0]))[1] == -1


def test_the_curriculum_takes_turns():
    model = families.build(KEY)
    task = task_of(model)
    phases = []
    for epoch in range(12):
        task.start_epoch(epoch, 12)
        learning = {".".join(name.split(".")[:2]) for name, p in model.named_parameters() if p.requires_grad}
        interpreters = sorted(name for name in learning if name.startswith("interpreters"))
        phases.append((model.acting, interpreters, "head.weight" in learning, task.mixes_images))
    expected = []
    for group in range(3):
        expected += 2 * [(group + 1, [f"interpreters.{group}"], False, False)]
        expected += 2 * [(group + 1, [], True, True)]
    assert phases == expected


def test_the_loss_raises_what_was_rewarded():
    """REINFORCE with the greedy policy as baseline, written out."""
    model = build(0.3).train()
    task = task_of(model)
    task.start_epoch(0, 6)
    images, target = families.images(KEY, batch=8), torch.arange(8) % 5
    torch.manual_seed(3)
    output = model(images)
    torch.manual_seed(3)
    result = task(images, target)
    scores = model.interpreters[0](model.embed(images))
    assert torch.equal(output.greedy, scores > 0.5)
    chance = torch.where(output.sampled, scores, 1 - scores).log().sum(1)
    gains = []
    for kept, logits in ((output.sampled, output.sampled_logits),
                         (output.greedy, output.greedy_logits)):  # fmt: skip
        right = logits.argmax(1) == target
        gains.append(torch.where(right, 1 - kept.float().mean(1) ** 2, torch.tensor(-1.0)))
    advantage = gains[0] - gains[1]
    assert advantage.abs().max() > 0
    assert_close(result["loss"], -(advantage * chance).mean())
    result["loss"].backward()
    moved = {name for name, p in model.named_parameters() if p.grad is not None}
    assert {name.split(".")[1] for name in moved} == {"0"}
    assert all(name.startswith("interpreters.") for name in moved)


def test_later_interpreters_do_not_act_while_earlier_ones_learn():
    model = build().train()
    images = families.images(KEY)
    task = task_of(model)
    task.start_epoch(1, 6)  # the backbone, after the first interpreter
    expected = model(images)
    with torch.no_grad():
        for interpreter in model.interpreters[1:]:
            interpreter.query.bias.add_(3.0)
    assert_close(model(images), expected)
    assert_close(task(images, torch.tensor([0, 1]))["output"], expected)
    with torch.no_grad():
        model.interpreters[0].query.bias.add_(3.0)
    assert not torch.allclose(model(images), expected)


def test_a_policy_learns_to_drop_patches_that_do_not_count():
    """Always right, so that only the kept share is rewarded."""
    model = families.build(KEY, num_classes=2)
    task = task_of(model)
    images = torch.randn(16, 3, 32, 32)
    target = torch.zeros(16, dtype=torch.long)
    with torch.no_grad():
        model.head.bias.copy_(torch.tensor([5.0, -5.0]))
    task.train().start_epoch(0, 6)
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(learning, 1e-2)
    shares = []
    for _ in range(60):
        result = task(images, target)
        optimizer.zero_grad()
        result["loss"].backward()
        optimizer.step()
        shares.append(result["kept_share"].item())
    assert shares[0] == 1.0
    assert shares[-1] < 0.5


@pytest.mark.parametrize(
    ("kwargs", "reason"),
    [
        (dict(groups=(4, 4)), "make up 12 blocks"),
        (dict(interpreter_heads=5), "do not divide the width"),
        (dict(keep_profile=[0.5, 0.6, 0.4]), "none above the last"),
        (dict(keep_profile=[0.5]), "a share per group"),
        (dict(class_token=False, global_pool="avg"), "needs one class token"),
    ],
)
def test_nonsense_is_refused_with_the_reason(kwargs, reason):
    with pytest.raises(ValueError, match=reason):
        families.build(KEY, **kwargs)


def test_the_task_refuses_what_it_can_not_train():
    with pytest.raises(ValueError, match="no interpreters"):
        task_of(families.build("plain_deit"))
    with pytest.raises(ValueError, match="leave it out"):
        task_of(families.build(KEY, keep_profile=[0.9, 0.8, 0.7]))


def test_phases_that_too_few_epochs_skip_are_told():
    task = task_of(families.build(KEY))
    phases = 2 * len(task.trainable_module.groups)
    assert task.unreached(phases) == []
    assert task.unreached(2) == [f"A training of 2 epochs comes to 2 of IA-RED2's {phases} phases."]
