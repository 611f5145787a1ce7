"""DynamicViT's parts, its training task, and what it refuses."""

import pytest
import timm
import torch
import torch.distributed as dist
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch.testing import assert_close

from baselines import dynamicvit
from baselines.dynamicvit import NEVER_TRAINED, DynamicViTTask, load_official, ratio_loss, token_loss

SMALL = dict(img_size=32, patch_size=8, embed_dim=24, num_heads=3, num_classes=5)


def build(dtype=torch.float64, seed=0, name="dynamic_deit_tiny_patch16_224", **kwargs):
    torch.manual_seed(seed)
    model = timm.create_model(name, **{**SMALL, **kwargs}).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def images(batch=3, dtype=torch.float64):
    draw = torch.Generator().manual_seed(1)
    return torch.randn(batch, 3, 32, 32, generator=draw, dtype=dtype)


def task_of(model, **kwargs):
    dtype = next(model.parameters()).dtype
    teacher = build(dtype, 9, "plain_deit_tiny_patch16_224")
    return DynamicViTTask(model, teacher=teacher, verbose=False, **kwargs)


def test_masked_softmax_by_hand():
    logits, policy = torch.randn(2, 2, 4, 4), torch.tensor([[1.0, 0, 1, 0], [1, 1, 0, 1]])
    weights = dynamicvit.masked_softmax(logits, policy, eps=0)
    for b in range(2):
        for i in range(4):
            seen = [j for j in range(4) if policy[b, j] or i == j]
            expected = torch.zeros(2, 4)
            expected[:, seen] = logits[b, :, i, seen].softmax(dim=-1)
            assert_close(weights[b, :, i], expected, rtol=0, atol=1e-6)


def test_masking_equals_gathering():
    """With the same decisions, training's masked pass gives what inference gathers."""
    model = build(reduction_blocks=(3, 6)).eval()
    chosen = []

    def keep_best(stage, x, keep):
        chosen.append(type(model).keep_best(model, stage, x, keep))
        return chosen[-1]

    model.keep_best = keep_best
    logits = model(images())
    first = torch.zeros(3, 16, dtype=torch.float64).scatter(1, chosen[0], 1.0)
    second = torch.zeros_like(first).scatter(1, chosen[0].gather(1, chosen[1]), 1.0)
    x = model.embed(images())
    for index in range(12):
        policy = None if index < 3 else (first if index < 6 else second)
        policy = None if policy is None else torch.nn.functional.pad(policy, (1, 0), value=1.0)
        x = model.run_block(index, x, policy=policy)
    assert_close(model.forward_head(model.norm(x)), logits, rtol=0, atol=1e-4)
    assert first.sum() == 3 * 11
    assert second.sum() == 3 * 7


def test_an_image_does_not_feel_its_batch():
    model = build().eval()
    together = model(images())
    alone = torch.cat([model(image.unsqueeze(0)) for image in images()])
    assert_close(alone, together, rtol=0, atol=1e-12)


def test_predictor_without_and_with_a_full_policy_agree():
    predictor = build().score_predictor[0]
    x = torch.randn(2, 7, 24, dtype=torch.float64)
    full = predictor(x, torch.ones(2, 7, dtype=torch.float64))
    assert_close(predictor(x), full, rtol=0, atol=1e-13)
    half = torch.tensor([[1.0, 1, 1, 1, 0, 0, 0]] * 2, dtype=torch.float64)
    changed = x.clone()
    changed[:, 5] = torch.randn(24, dtype=torch.float64)
    kept = [0, 1, 2, 3, 4, 6]
    assert_close(predictor(changed, half)[:, kept], predictor(x, half)[:, kept])
    assert not torch.allclose(predictor(changed)[:, kept], predictor(x)[:, kept])


def test_sampled_decisions_follow_their_probability():
    torch.manual_seed(0)
    log_probs = torch.tensor([0.8, 0.2]).log().expand(1, 20000, 2).clone().requires_grad_()
    keep = dynamicvit.sample_keep(log_probs)
    assert set(keep.detach().round(decimals=5).unique().tolist()) == {0.0, 1.0}
    assert keep.mean().item() == pytest.approx(0.8, abs=0.015)
    keep.sum().backward()
    assert log_probs.grad.abs().sum() > 0  # straight through


def test_losses_by_hand():
    decisions = (torch.tensor([[1.0, 1, 0, 0], [1, 1, 1, 1]]),)
    assert ratio_loss(decisions, (0.75,)).item() == pytest.approx(0.25**2)
    tokens, teacher = torch.zeros(1, 2, 3), torch.tensor([[[1.0, 2, 3], [9, 9, 9]]])
    assert token_loss(tokens, teacher, torch.tensor([[1.0, 0]])).item() == pytest.approx(14 / 3)
    assert token_loss(tokens, teacher, torch.zeros(1, 2)).item() == 0


def test_task_reports_and_learns():
    model = build().train()
    task = task_of(model, criterion_kwargs=dict(soft_targets=True)).train()
    assert not task.teacher.training
    result = task(images(), torch.full((3, 5), 0.2, dtype=torch.float64))
    assert result["output"].shape == (3, 5)
    assert 0 <= result["kept_share"] <= 1
    result["loss"].backward()
    trained = [parameter for name, parameter in model.named_parameters() if name not in NEVER_TRAINED]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trained)
    assert all(p.grad is None and not p.requires_grad for p in task.teacher.parameters())


def test_weights_of_the_terms():
    def loss(**weights):
        torch.manual_seed(3)
        return task(weights)(images(), torch.tensor([0, 1, 2]))

    def task(weights):
        return task_of(build().train(), **weights)

    base = loss(ratio_weight=0, distill_weight=0, token_weight=0)
    assert_close(base["loss"].detach(), base["class_loss"])
    for name in ("ratio", "distill", "token"):
        weights = dict(ratio_weight=0, distill_weight=0, token_weight=0)
        result = loss(**{**weights, f"{name}_weight": 3.0})
        assert_close(result["loss"] - base["loss"], 3 * result[f"{name}_loss"], check_dtype=False)


def test_without_a_teacher_only_labels_and_kept_shares_count():
    torch.manual_seed(0)
    task = DynamicViTTask(build(), verbose=False, distill_weight=0.0, token_weight=0.0, freeze_epochs=0)
    task.train()
    losses = task(images(), torch.tensor([1, 2, 3]))
    assert_close(losses["loss"].detach(), losses["class_loss"] + 2 * losses["ratio_loss"])
    losses["loss"].backward()
    assert "distill_loss" not in losses
    for weights in ({"distill_weight": 0.0}, {"token_weight": 0.0}, {}):
        with pytest.raises(ValueError, match=r"distill_weight=.* and token_weight=.* need a teacher"):
            DynamicViTTask(build(), verbose=False, **weights)


def step(task, optimizer):
    before = {k: p.detach().clone() for k, p in task.trainable_module.named_parameters()}
    optimizer.zero_grad()
    target = torch.tensor([0, 1, 2])
    task(images(dtype=torch.float32), target)["loss"].backward()
    optimizer.step()
    now = task.trainable_module.named_parameters()
    return {key.removeprefix("module.") for key, p in now if not torch.equal(p, before[key])}


def optimizer_of(task):
    return create_optimizer_v2(
        task.get_trainable_module(), opt="adamw", lr=1e-2,
        param_group_fn=lambda _: task.param_groups(0.05),
    )  # fmt: skip


@pytest.mark.parametrize("distributed", [False, True])
def test_backbone_is_frozen_at_first_and_the_class_token_always(distributed, tmp_path):
    task = task_of(build(torch.float32).train(), freeze_epochs=2)
    optimizer = optimizer_of(task)
    if distributed:
        dist.init_process_group("gloo", init_method=f"file://{tmp_path}/r", rank=0, world_size=1)
    try:
        if distributed:
            task.prepare_distributed()
        for epoch in (1, 2, 0, 3):  # any order, as after a resume
            task.start_epoch(epoch, 30)
            changed = [step(task, optimizer) for _ in range(2)][-1]
            predictors = {key for key in changed if key.startswith("score_predictor.")}
            assert len(predictors) == 33
            assert not changed & set(NEVER_TRAINED)
            assert (changed == predictors) is (epoch < 2)
    finally:
        if distributed:
            dist.destroy_process_group()


def test_learning_rates_and_decay_of_the_groups():
    task = task_of(build(torch.float32))
    optimizer = optimizer_of(task)
    CosineLRScheduler(optimizer, t_initial=10).step(0)
    settings = {}
    names = {p: key for key, p in task.trainable_module.named_parameters()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            settings[names[parameter]] = (group["lr"], group["weight_decay"])
    assert set(settings) == set(names.values()) - {"cls_token", "pos_embed"}  # the authors train neither
    assert settings["score_predictor.0.in_conv.1.weight"] == pytest.approx((1e-2, 0.05))
    assert settings["score_predictor.0.in_conv.1.bias"] == pytest.approx((1e-2, 0))
    assert settings["blocks.3.mlp.fc1.weight"] == pytest.approx((1e-4, 0.05))
    assert settings["blocks.3.norm1.weight"] == pytest.approx((1e-4, 0))


def test_a_plain_deit_loads_and_names_what_starts_fresh():
    dense, model = build(name="plain_deit_tiny_patch16_224"), build(seed=4)
    fresh = model.load_pretrained_dense(dense.state_dict())
    assert len(fresh) == 33
    assert all(key.startswith("score_predictor.") for key in fresh)
    assert all(torch.equal(model.state_dict()[k], v) for k, v in dense.state_dict().items())
    with pytest.raises(ValueError, match=r"missing score_predictor\.0"):
        load_official(model, dense.state_dict())
    with pytest.raises(ValueError, match="unexpected extra"):
        model.load_pretrained_dense({**dense.state_dict(), "extra": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"head\.bias is \(9,\), needed \(5,\)"):
        model.load_pretrained_dense({**dense.state_dict(), "head.bias": torch.zeros(9)})


@pytest.mark.parametrize(
    ("kwargs", "reason"),
    [
        (dict(keep_ratio=1.0), "between 0 and 1"),
        (dict(keep_ratio=0.3), "keeps none in the last stage"),
        (dict(reduction_blocks=(6, 3)), "must ascend"),
        (dict(reduction_blocks=(3, 12)), "must ascend"),
        (dict(reg_tokens=1), "one class token"),
        (dict(prune_blocks=(3, 6)), r"prune_blocks is called reduction_blocks now: write reduction_blocks=\(3, 6\)"),
    ],
)
def test_nonsense_is_refused_with_the_reason(kwargs, reason):
    with pytest.raises(ValueError, match=reason):
        build(**kwargs)


def test_an_image_whose_tokens_were_all_dropped_stays_finite():
    """Gumbel samples may drop every token of a small grid in training."""
    torch.manual_seed(0)
    predictor = dynamicvit.ScorePredictor(16)
    tokens = torch.randn(2, 9, 16, requires_grad=True)
    policy = torch.ones(2, 9)
    policy[1] = 0
    scores = predictor(tokens, policy)
    assert scores.isfinite().all()
    scores.sum().backward()
    assert tokens.grad.isfinite().all()


def test_a_backbone_that_no_epoch_trains_is_told():
    task = task_of(build(torch.float32), freeze_epochs=2)
    assert task.unreached(3) == []
    assert "never trains the backbone: freeze_epochs is 2" in task.unreached(2)[0]
