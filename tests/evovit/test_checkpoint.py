"""What a state dict brings along, and loading weights from elsewhere."""

import argparse

import pytest
import timm
import torch
from torch.testing import assert_close

from evovit.checkpoint import load_file, load_official
from tests.evovit import small
from tests.golden import reference

CASE = "evo_deit_custom_img64_stage"


def test_a_checkpoint_knows_its_schedule():
    trained = small.build(seed=1)
    trained.set_schedule("layer")
    model = small.build(seed=2)
    model.load_state_dict(trained.state_dict())
    assert model.schedule == "layer"
    images = small.images()
    assert torch.equal(model(images), trained(images))
    model.set_schedule("stage")  # asked for
    assert not torch.allclose(model(images), trained(images))


def test_another_schedule_than_the_one_given_is_refused():
    layer = small.build(schedule="layer").state_dict()
    with pytest.raises(ValueError, match="trained to schedule='layer'"):
        small.build(schedule="stage").load_state_dict(layer)
    model = small.build(schedule="layer")
    model.load_state_dict(layer)
    assert model.schedule == "layer"


def test_a_checkpoint_knows_whether_it_selects():
    trained = small.build()
    trained.set_selecting(False)
    model = small.build()
    model.load_state_dict(trained.state_dict())
    assert not model.selecting
    dense = small.build(keep_ratio=1)
    assert_close(model(small.images()), dense(small.images()), rtol=0, atol=1e-12)


def test_state_survives_a_file(tmp_path):
    trained = small.build(schedule="layer")
    torch.save(trained.state_dict(), tmp_path / "model.pt")
    model = small.build()
    model.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    assert model.schedule == "layer"


def test_a_plain_deit_loads_and_names_what_starts_fresh():
    dense = timm.create_model("deit_tiny_patch16_224", **small.SIZES).double()
    model = small.build()
    assert model.state_dict().keys() == dense.state_dict().keys()
    assert model.load_pretrained_dense(dense.state_dict()) == []
    model.set_training_outputs()
    head = model.head_cls.weight.clone()
    fresh = model.load_pretrained_dense(dense.state_dict())
    assert set(fresh) == {"norm_cls.weight", "norm_cls.bias", "head_cls.weight", "head_cls.bias"}
    for key, value in dense.state_dict().items():
        assert torch.equal(model.state_dict()[key], value)
    assert torch.equal(model.head_cls.weight, head)


def test_timms_pretrained_path_takes_a_plain_deit_too(tmp_path):
    dense = timm.create_model("deit_tiny_patch16_224", **small.SIZES)
    torch.save(dense.state_dict(), tmp_path / "dense.pt")
    overlay = dict(file=str(tmp_path / "dense.pt"), num_classes=5, input_size=(3, 32, 32))
    model = timm.create_model(
        "evo_deit_tiny_patch16_224", pretrained=True, pretrained_cfg_overlay=overlay, **small.SIZES
    )
    assert torch.equal(model.blocks[2].mlp.fc1.weight, dense.blocks[2].mlp.fc1.weight)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda s: s.pop("blocks.1.norm1.bias"), r"missing blocks\.1\.norm1\.bias"),
        (lambda s: s.update(extra=torch.zeros(1)), "unexpected extra"),
        (lambda s: s.update({"head.bias": torch.zeros(9)}), r"head\.bias is \(9,\), needed \(5,\)"),
    ],
)
def test_misfits_are_listed_and_nothing_is_loaded(change, complaint):
    model = small.build()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = timm.create_model("deit_tiny_patch16_224", **small.SIZES).double().state_dict()
    change(state)
    with pytest.raises(ValueError, match=complaint):
        model.load_pretrained_dense(state)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("key", "complaint"),
    [
        ("qks.3.qk.weight", r"only \['vs'\] of blocks\.3\.attn\.qkv\.weight"),
        ("projs.0.bias", r"missing blocks\.0\.attn\.proj\.bias"),
        ("norm_cls.bias", r"missing norm_cls\.bias"),
    ],
)
def test_incomplete_official_weights_are_refused(key, complaint):
    about, _ = reference.case(CASE)
    state = reference.weights(about["shapes"], torch.float32)
    del state[key]
    model = small.build(torch.float32, img_size=64, patch_size=16, embed_dim=48, depth=12,
                        num_classes=16)  # fmt: skip
    model.set_training_outputs()
    with pytest.raises(ValueError, match=complaint):
        load_official(model, state)


class Stranger:
    pass


def test_published_files_may_hold_a_namespace_and_nothing_else(tmp_path):
    weight = torch.ones(2)
    torch.save({"model": {"w": weight}, "args": argparse.Namespace(lr=1)}, tmp_path / "fine.pth")
    assert torch.equal(load_file(tmp_path / "fine.pth")["w"], weight)
    torch.save({"model": {"w": weight}, "args": Stranger()}, tmp_path / "strange.pth")
    with pytest.raises(Exception, match="Stranger"):
        load_file(tmp_path / "strange.pth")
