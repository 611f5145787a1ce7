"""State dicts hold weights alone, which other tools change; the schedule travels beside them."""

import copy
import functools
import json
import logging

import pytest
import safetensors.torch
import timm
import torch
from timm.models import get_model_args, save_for_hf

from tests.evovit import small

HOSTS = {"deit": small.build, "levit": small.levit}
SIZES = {"deit": 32, "levit": 128}
NAMES = {"deit": "evo_deit_tiny_patch16_224", "levit": "evo_levit_128s"}
ARGUMENTS = {"deit": small.SIZES, "levit": small.LEVIT}
every_host = pytest.mark.parametrize("host", HOSTS)


@every_host
@pytest.mark.parametrize("training", [False, True])
def test_weights_are_floating_point_parameters_and_buffers(host, training):
    model = HOSTS[host]()
    model.set_training_outputs(training)
    state = model.state_dict()
    names = {name for name, _ in (*model.named_parameters(), *model.named_buffers())}
    assert state.keys() == names


@every_host
def test_averaged_weights_load(host):
    states = [HOSTS[host](torch.float32, seed=seed).state_dict() for seed in (0, 1)]
    average = {key: (states[0][key].double() + states[1][key].double()) / 2 for key in states[0]}
    model = HOSTS[host](torch.float32)
    model.load_state_dict({key: value.float() for key, value in average.items()})
    for key, value in model.state_dict().items():
        assert torch.equal(value, average[key].float().to(value.dtype)), key


@every_host
@pytest.mark.parametrize("kind", ["halved", "safetensors", "pickled"])
def test_weights_go_through_files(host, kind, tmp_path):
    trained = HOSTS[host](torch.float32, schedule="layer")
    state = trained.state_dict()
    model = HOSTS[host](torch.float32, seed=1, schedule="layer")
    if kind == "safetensors":
        safetensors.torch.save_file(state, tmp_path / "weights.safetensors")
        state = safetensors.torch.load_file(tmp_path / "weights.safetensors")
    elif kind == "pickled":
        torch.save(state, tmp_path / "weights.pt")
        state = torch.load(tmp_path / "weights.pt", weights_only=True)
    else:
        state, model = trained.half().state_dict(), model.half()
    model.load_state_dict(state)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), trained.parameters(), strict=True))


@every_host
def test_older_files_hold_the_schedule_among_the_weights(host):
    model = HOSTS[host]()
    numbers = [0, 1] if host == "deit" else [0, 1, 0]
    state = {**model.state_dict(), "_extra_state": torch.tensor(numbers, dtype=torch.uint8)}
    model.load_state_dict(state)
    assert model.schedule == "layer"
    with pytest.raises(ValueError, match="trained to schedule='layer'"):
        HOSTS[host](schedule="stage").load_state_dict(state)
    averaged = {**state, "_extra_state": torch.tensor([0.5, *numbers[1:]])}
    with pytest.raises(ValueError, match="_extra_state holds"):
        model.load_state_dict(averaged)


def test_weights_that_say_no_schedule_are_reported(caplog):
    state = dict(small.build(schedule="layer").state_dict())
    small.build().load_state_dict(state)
    assert "do not say to which schedule" in caplog.text
    caplog.clear()
    small.build(schedule="layer").load_state_dict(state)
    assert "schedule='layer', which could not be checked" in caplog.text
    caplog.clear()
    small.build().load_state_dict(timm.create_model("deit_tiny_patch16_224", **small.SIZES).state_dict())
    assert not caplog.text  # a plain model has none


@every_host
@pytest.mark.parametrize("wrapping", ["plain", "state_dict", "state_dict_ema", "module."])
def test_files_that_timm_loads_say_their_schedule(host, wrapping, tmp_path, caplog):
    trained = HOSTS[host](torch.float32, schedule="layer")
    state = trained.state_dict()
    if wrapping == "module.":
        state = torch.nn.ModuleDict({"module": trained}).state_dict()
    content = {wrapping: state, "epoch": 3} if wrapping.startswith("state") else state
    torch.save(content, tmp_path / "weights.pt")
    build = functools.partial(timm.create_model, NAMES[host], **ARGUMENTS[host])
    cfg = dict(file=str(tmp_path / "weights.pt"), num_classes=5)
    model = build(pretrained=True, pretrained_cfg_overlay=cfg).eval()
    images = small.images(2, SIZES[host], torch.float32)
    assert torch.equal(model(images), trained(images))
    assert not caplog.text
    with pytest.raises(ValueError, match="trained to schedule='layer'"):
        build(pretrained=True, pretrained_cfg_overlay=cfg, schedule="stage")
    build(checkpoint_path=str(tmp_path / "weights.pt"), schedule="stage")  # timm has no hook here
    assert "schedule='stage', which could not be checked" in caplog.text


@every_host
def test_parts_of_training_load_both_ways(host, caplog):
    without, having = HOSTS[host](), HOSTS[host](seed=1)
    having.set_training_outputs()
    names = tuple(f"{part}." for part in having.training_parts)
    own = {key: value.clone() for key, value in having.state_dict().items()}
    having.load_state_dict(without.state_dict())
    assert "start fresh" in caplog.text
    for key, value in having.state_dict().items():
        expected = own if key.startswith(names) else without.state_dict()
        assert torch.equal(value, expected[key]), key
    without.load_state_dict(having.state_dict())
    with pytest.raises(RuntimeError, match="Unexpected"):
        without.load_state_dict({**having.state_dict(), "other.weight": torch.ones(1)})
    part = next(key for key in having.state_dict() if key.startswith(names))
    torn = {key: value for key, value in having.state_dict().items() if key != part}
    with pytest.raises(RuntimeError, match="Missing"):
        having.load_state_dict(torn)


@every_host
def test_a_part_of_training_that_weights_lack_starts_fresh(host, caplog):
    model, other = HOSTS[host](), HOSTS[host](seed=1)
    for each in (model, other):
        each.set_training_outputs()
    for lacking in model.training_parts:
        own = copy.deepcopy(model.state_dict())
        given = {k: v for k, v in other.state_dict().items() if not k.startswith(f"{lacking}.")}
        caplog.clear()
        model.load_state_dict(given)
        assert f"these keys start fresh: {lacking}." in caplog.text
        for key, value in model.state_dict().items():
            assert torch.equal(value, {**own, **given}[key]), key


@every_host
def test_a_model_saved_in_training_is_restored_without_its_parts(host, tmp_path):
    model = timm.create_model(NAMES[host], **ARGUMENTS[host])
    named = model.pretrained_cfg["classifier"]
    model.set_training_outputs()
    save_for_hf(model, tmp_path)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    names = again.pretrained_cfg["classifier"]
    assert [names] == [named] if isinstance(named, str) else tuple(names) == named
    images = small.images(2, SIZES[host], torch.float32)
    assert torch.equal(again.eval()(images), model.eval()(images))


@every_host
def test_parts_of_training_come_and_go(host):
    model = HOSTS[host]()
    before, named = model.state_dict().keys(), model.pretrained_cfg["classifier"]
    model.set_training_outputs()
    assert model.pretrained_cfg["classifier"] == named  # timm saves it for models without the parts
    model.reset_classifier(3)
    average, token = model.train()(small.images(2, SIZES[host]))
    assert average.shape == token.shape == (2, 3)
    model.set_training_outputs(False)
    assert (model.state_dict().keys(), model.pretrained_cfg["classifier"]) == (before, named)


@every_host
def test_every_parameter_has_a_gradient_under_a_plain_loss(host):
    model = HOSTS[host]().train()
    model(small.images(2, SIZES[host])).mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_timms_saved_models_know_their_schedule(tmp_path, caplog):
    caplog.set_level(logging.ERROR)
    model = timm.create_model("evo_deit_tiny_patch16_224", **small.SIZES)
    model.set_schedule("layer")
    assert get_model_args(model)["schedule"] == "layer"
    save_for_hf(model, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_args"]["schedule"] == "layer"
    name = f"local-dir:{tmp_path}"
    again = timm.create_model(name, pretrained=True)
    images = small.images().float()
    assert again.schedule == "layer"
    assert torch.equal(again.eval()(images), model.eval()(images))
    with pytest.raises(ValueError, match="trained to schedule='layer'"):
        timm.create_model(name, pretrained=True, schedule="stage")
