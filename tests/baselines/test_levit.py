"""plain_levit_* is timm's LeViT, and the authors' on their weights."""

import copy

import pytest
import timm
import torch
from torch import nn
from torch.testing import assert_close

from baselines import levit
from tests.golden import reference
from tests.models import families

CASE = "levit_128S"


def official(dtype):
    about, expected = reference.case(CASE)
    model = timm.create_model("plain_levit_128s").to(dtype).eval()
    levit.load_official(model, reference.weights(about["shapes"], dtype))
    return model, reference.images(about, dtype), expected


def test_equals_timm():
    own = families.build("plain_levit").double().eval()
    timms = timm.create_model("levit_128s", **families.FAMILIES["plain_levit"].small).double()
    images = families.images("plain_levit").double()
    assert not torch.allclose(own(images), timms.eval()(images))
    timms.load_state_dict(own.state_dict())
    assert torch.equal(own(images), timms(images))


def test_an_evaluated_model_can_be_copied_and_differentiated():
    model, images = families.build("plain_levit").eval(), families.images("plain_levit")
    with torch.inference_mode():
        expected = model(images)
    model(images).sum().backward()
    assert_close(copy.deepcopy(model)(images), expected.clone())


@pytest.mark.parametrize("size", levit.SIZES)
def test_has_timms_weights(size):
    with torch.device("meta"):
        own = timm.create_model(f"plain_levit_{size}").state_dict()
        timms = timm.create_model(f"levit_{size}").state_dict()
    assert {k: v.shape for k, v in own.items()} == {k: v.shape for k, v in timms.items()}


def test_golden_inference_in_float64():
    model, images, expected = official(torch.float64)
    assert_close(model(images), torch.tensor(expected["logits"]), rtol=0, atol=1e-9)


def test_golden_inference_in_float32():
    model, images, expected = official(torch.float32)
    limit = 4 * reference.case(CASE)[0]["max_abs_diff_f32_f64"]
    reference_logits = torch.tensor(expected["logits"])
    assert_close(model(images).double(), reference_logits, rtol=0, atol=limit)


def test_golden_heads_in_training():
    model, images, expected = official(torch.float64)
    model.set_distilled_training(True)
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.eval()
    for logits, head in zip(model(images), ("train_head", "train_head_dist"), strict=True):
        assert_close(logits, torch.tensor(expected[head]), rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda s: s.pop("blocks.4.q.1.c.weight"), r"missing stages\.1\.downsample\.attn_down"),
        (lambda s: s.update(extra=torch.zeros(1)), "unexpected extra"),
        (lambda s: s.update({"head.l.bias": torch.zeros(9)}), r"head\.linear\.bias is \(9,\)"),
    ],
)
def test_official_weights_that_do_not_fit_are_refused(change, complaint):
    about, _ = reference.case(CASE)
    state = reference.weights(about["shapes"], torch.float32)
    model = timm.create_model("plain_levit_128s")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    change(state)
    with pytest.raises(ValueError, match=complaint):
        levit.load_official(model, state)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_resampled_biases_keep_their_ends():
    table = torch.arange(12.0).view(1, 12)  # offsets (0..2, 0..3)
    larger = levit.resample_biases(table, (3, 4), (5, 7)).view(5, 7)
    assert_close(larger[[0, 0, -1, -1], [0, -1, 0, -1]], torch.tensor([0.0, 3.0, 8.0, 11.0]))
    assert (larger[0].diff() > 0).all()
    assert torch.equal(levit.resample_biases(table, (3, 4), (3, 4)), table)


def test_pretrained_weights_of_another_size_are_resampled(tmp_path):
    small = families.build("plain_levit").eval()
    torch.save(small.state_dict(), tmp_path / "small.pt")
    overlay = dict(file=str(tmp_path / "small.pt"), num_classes=5, input_size=(3, 192, 192))
    kwargs = {**families.FAMILIES["plain_levit"].small, "img_size": 192}
    model = timm.create_model("plain_levit_128s", pretrained=True, pretrained_cfg_overlay=overlay, **kwargs)
    small.set_input_size(192)
    probe = torch.randn(2, 3, 192, 192)
    assert torch.equal(model.eval()(probe), small(probe))
