"""DynamicViT against the numbers of the authors' code."""

import pytest
import timm
import torch
from torch.testing import assert_close

from baselines import dynamicvit
from baselines.weights import joined_weights
from tests.golden import reference

NAME = "dynamicvit_custom_img112_p8"


@pytest.fixture(scope="module")
def golden():
    return reference.case(NAME)


def build(about, dtype, name="dynamic_deit_tiny_patch16_224"):
    sizes = ("img_size", "patch_size", "embed_dim", "num_heads", "num_classes")
    return timm.create_model(name, **{k: about["ctor"][k] for k in sizes}).to(dtype)


def load(about, dtype):
    model = build(about, dtype)
    dynamicvit.load_official(model, reference.weights(about["shapes"], dtype))
    return model


def test_inference_in_float64(golden):
    about, expected = golden
    model = load(about, torch.float64).eval()
    stages = []
    model.keep_best = lambda stage, x, keep: (
        stages.append(model.score_predictor[stage](x[:, 1:])[..., 0])
        or type(model).keep_best(model, stage, x, keep).sort(dim=1).values
    )
    logits = model(reference.images(about, torch.float64))
    assert_close(logits, torch.tensor(expected["logits"]), rtol=0, atol=1e-9)
    for positions, order, scores, stage in walk(expected, stages):
        # ours are in raster order, theirs by falling score of the stage before
        theirs = torch.tensor(expected[f"score_{stage}"])
        where = positions.unsqueeze(2).eq(order.unsqueeze(1)).long().argmax(2)
        assert_close(scores, theirs.gather(1, where), rtol=0, atol=1e-9)


def walk(expected, stages):
    """Per stage: our positions (ascending), their order, our scores."""
    batch = stages[0].shape[0]
    order = torch.arange(stages[0].shape[1]).expand(batch, -1)
    for stage, scores in enumerate(stages):
        yield order.sort(dim=1).values, order, scores, stage
        theirs = torch.tensor(expected[f"score_{stage}"])
        kept = torch.tensor(expected[f"kept_{stage}"]).long()
        best = theirs.topk(kept.shape[1], dim=1, sorted=True).indices
        order = order.gather(1, best)
        assert torch.equal(order.sort(dim=1).values, kept)


def test_inference_in_float32(golden):
    about, expected = golden
    logits = load(about, torch.float32).eval()(reference.images(about, torch.float32))
    limit = 4 * about["max_abs_diff_f32_f64"]
    assert_close(logits.double(), torch.tensor(expected["logits"]), rtol=0, atol=limit)


def test_training_in_float64(golden, monkeypatch):
    about, expected = golden
    model, images = load(about, torch.float64).train(), reference.images(about, torch.float64)
    teacher = build(about, torch.float64, "plain_deit_tiny_patch16_224")
    dense = {k: s for k, s in about["shapes"].items() if not k.startswith("score_predictor.")}
    teacher.load_state_dict(reference.weights(dense, torch.float64, "teacher."))
    noise = iter(torch.tensor(expected["gumbel_noise"]))
    monkeypatch.setattr(dynamicvit, "sample_gumbel", lambda like: next(noise))
    task = dynamicvit.DynamicViTTask(model, teacher=teacher, verbose=False)
    outputs = []
    model.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    result = task(images, torch.tensor(about["train_labels"]))
    (output,) = outputs

    near = dict(rtol=0, atol=1e-5)
    assert_close(output.logits, torch.tensor(expected["train_pred"]), **near)
    assert_close(output.tokens.sum(-1), torch.tensor(expected["train_features_sum"]), **near)
    decisions = torch.stack(output.decisions).round().to(torch.int8)
    assert torch.equal(decisions, torch.tensor(expected["train_decisions"]))
    assert torch.equal(output.kept.to(torch.int8), torch.tensor(expected["train_final_decision"]))
    features = teacher.forward_features(images)
    assert_close(teacher.forward_head(features), torch.tensor(expected["teacher_logits"]),
                 rtol=0, atol=1e-9)  # fmt: skip
    names = ("class_loss", "ratio_loss", "distill_loss", "token_loss")
    parts = torch.tensor(expected["loss_parts"]) / torch.tensor([1, 3, 1, 1])
    assert_close(torch.stack([result[name].double() for name in names]), parts, **near)
    assert result["loss"].item() == pytest.approx(float(expected["loss"]), abs=1e-5)

    result["loss"].backward()
    untrained = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert untrained == {"cls_token", "pos_embed"}  # the authors' optimizer leaves them out
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.copy_(parameter.grad)
    gradients = joined_weights(model)
    for key, norm in zip(about["shapes"], expected["grad_norms"], strict=True):
        if key in untrained:
            continue
        assert gradients[key].norm().item() == pytest.approx(norm, rel=1e-4, abs=1e-7), key
