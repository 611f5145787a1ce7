"""SViTE: what dies, what is regrown, and the dense model that is left."""

import math

import pytest
import timm
import torch
from torch.testing import assert_close

from baselines.svite import SViTETask, UnitGate, update
from tests.models import families

KEY = "svite_deit"


def alive(model):
    return {layer: gate.alive.tolist() for gate, layer in model.gated_layers()}


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_the_deployed_model_has_the_same_outputs(fused, dtype, limit):
    model, images = families.build(KEY, num_heads=6).to(dtype).eval(), families.images(KEY)
    for block in model.blocks:
        block.attn.fused_attn = fused
    small = model.deployed()
    with torch.no_grad():
        assert_close(small(images.to(dtype)), model(images.to(dtype)), rtol=0, atol=limit)
    assert [block.attn.num_heads for block in small.blocks] == [4] * 12
    assert [block.mlp.fc1.out_features for block in small.blocks] == [round(0.7 * 96)] * 12
    assert small.gated_layers() == []
    before, after = (sum(p.numel() for p in m.parameters()) for m in (model, small))
    assert after < 0.75 * before


def test_dead_units_do_not_count():
    model, images = families.build(KEY).eval(), families.images(KEY)
    expected = model(images)
    with torch.no_grad():
        for gate, layer in model.gated_layers():
            dead = ~gate.alive
            if hasattr(layer, "fc2"):
                layer.fc2.weight[:, dead] = 7.0
            else:
                layer.proj.weight[:, dead.repeat_interleave(layer.head_dim)] = 7.0
    assert_close(model(images), expected)


def test_units_live_at_random_at_first():
    first, second = families.build(KEY), timm.create_model(
        families.FAMILIES[KEY].example, **families.DEIT
    )  # fmt: skip
    assert list(alive(first).values()) != list(alive(second).values())
    assert all(sum(units) == 2 for units in list(alive(first).values())[::2])  # of 3 heads


def scored(units, share, taylor, growth):
    gate = UnitGate(units, share)
    gate.alive.zero_()
    gate.alive[: gate.kept] = True
    gate.taylor.copy_(torch.tensor(taylor))
    gate.growth.copy_(torch.tensor(growth))
    return gate


def test_heads_die_by_output_times_gradient_and_are_regrown_by_gradient():
    gate = scored(6, 0.5, [3.0, 1.0, 2.0, 0.0, 0.0, 0.0], [9.0, 9.0, 9.0, 1.0, 3.0, 2.0])
    layer = families.build(KEY).blocks[0].attn
    layer.gate_heads = gate
    update(gate, layer, rate=0.5)  # ceil(0.5 * 3) = 2
    assert gate.alive.tolist() == [1, 0, 0, 0, 1, 1]


def test_neurons_die_by_the_norm_of_their_weights():
    layer = families.build(KEY).blocks[0].mlp
    layer.gate_neurons = gate = scored(96, 0.5, [0.0] * 96, list(map(float, range(96))))
    with torch.no_grad():
        layer.fc1.weight[5], layer.fc2.weight[:, 5] = 0.0, 1e-3
        layer.fc1.weight[9], layer.fc2.weight[:, 9] = 0.0, 0.0
        layer.fc1.weight[60] = 0.0  # dead, so that it can't die
    update(gate, layer, rate=2 / 48)
    assert [i for i in range(48) if not gate.alive[i]] == [5, 9]
    assert [i for i in range(48, 96) if gate.alive[i]] == [94, 95]


def test_no_more_die_than_can_be_replaced():
    gate = scored(3, 0.7, [1.0, 2.0, 0.0], [0.0, 0.0, 0.5])
    layer = families.build(KEY).blocks[0].attn
    layer.gate_heads = gate
    update(gate, layer, rate=1.0)
    assert gate.alive.tolist() == [0, 1, 1]


def test_scores_are_those_of_the_definitions():
    model = families.build(KEY).double()
    model.set_collecting(True)
    seen = {}
    attn = model.blocks[3].attn

    def keep(module, inputs, output):
        output.retain_grad()
        seen["out"] = output

    attn.gate_heads.register_forward_hook(keep)
    model(families.images(KEY).double()).square().sum().backward()
    output, gradient = seen["out"], seen["out"].grad  # (B, L, H, D)
    for head in range(3):
        product = (output[:, :, head] * gradient[:, :, head]).sum().abs()
        assert_close(attn.gate_heads.taylor[head].double(), product.detach(), rtol=1e-5, atol=1e-9)
        norm = gradient[:, :, head].abs().sum()
        assert_close(attn.gate_heads.growth[head].double(), norm, rtol=1e-5, atol=1e-9)
        assert norm > 0  # also behind a closed gate


@pytest.fixture
def unstructured():
    return families.build(KEY, sparsity="unstructured", weight_ratio=0.25)


def test_dead_weights_do_not_count_and_are_zero_when_deployed(unstructured):
    images = families.images(KEY)
    expected = unstructured.eval()(images)
    dense = unstructured.deployed()
    assert_close(dense(images), expected, rtol=0, atol=1e-6)
    for block in dense.blocks:
        for linear in (block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2):
            assert type(linear) is torch.nn.Linear
            assert (linear.weight != 0).sum() == round(0.25 * linear.weight.numel())
    plain = timm.create_model("deit_tiny_patch16_224", **families.DEIT).eval()
    plain.load_state_dict(dense.state_dict())
    assert_close(plain(images), expected, rtol=0, atol=1e-6)


def test_weights_die_by_size_and_are_regrown_by_gradient_from_zero(unstructured):
    layer = unstructured.blocks[2].mlp.fc1
    gate = layer.gate_weights
    gate.growth.copy_(torch.rand(gate.growth.shape))
    size, before = layer.weight.detach().abs(), gate.alive.clone()
    smallest = size[before].sort().values[9]  # ten of them die
    largest = gate.growth[~before].sort(descending=True).values[9]
    update(gate, layer, rate=10 / gate.kept)
    assert torch.equal(before & ~gate.alive, before & (size <= smallest))
    regrown = gate.alive & ~before
    assert torch.equal(regrown, ~before & (gate.growth >= largest))
    assert regrown.sum() == 10
    assert (layer.weight[regrown] == 0).all()


def test_dead_weights_have_a_gradient_to_be_regrown_by(unstructured):
    unstructured.double().set_collecting(True)
    layer = unstructured.blocks[3].attn.proj
    seen = {}

    def keep(module, inputs, output):
        output.retain_grad()
        seen["in"], seen["out"] = inputs[0], output

    layer.register_forward_hook(keep)
    unstructured(families.images(KEY).double()).square().sum().backward()
    gradient = seen["out"].grad.flatten(0, 1).T @ seen["in"].flatten(0, 1)
    assert_close(layer.gate_weights.growth, gradient.detach().abs())
    assert (layer.weight.grad[~layer.gate_weights.alive] == 0).all()


@pytest.mark.parametrize("sparsity", ["structured", "unstructured"])
def test_an_update_follows_the_first_step_of_an_epoch(sparsity):
    model = families.build(KEY, sparsity=sparsity)
    task = SViTETask(model, criterion_kwargs=dict(smoothing=0.1), verbose=False).train()
    images, target = families.images(KEY), torch.tensor([0, 3])
    units_after = []
    for epoch in (0, 1):
        task.start_epoch(epoch, 25)
        for step in range(3):
            task.start_step(step, 3)
            task(images, target)["loss"].backward()
            units_after.append(alive(model))
    assert units_after[0] == units_after[1] == units_after[2] == units_after[3]  # nothing in epoch 0
    assert units_after[4] != units_after[3]
    assert units_after[5] == units_after[4]
    for layer, units in units_after[5].items():
        assert torch.tensor(units).sum() == torch.tensor(units_after[0][layer]).sum()


def test_when_and_how_many():
    task = SViTETask(families.build(KEY), verbose=False)
    assert task.update_epochs(25) == list(range(1, 20))
    assert len(task.update_epochs(300)) == 30
    assert max(task.update_epochs(300)) < 240
    assert task.update_epochs(1) == []
    assert task.rate_at(0, 300) == 0.5
    assert task.rate_at(120, 300) == pytest.approx(0.25)
    assert task.rate_at(240, 300) == pytest.approx(0.0)
    assert math.isclose(task.rate_at(60, 300), 0.25 * (1 + math.cos(math.pi / 4)))


def test_a_resumed_training_has_the_same_units():
    images, target = families.images(KEY), torch.tensor([0, 3])

    def train(task, epochs):
        optimizer = torch.optim.SGD(task.trainable_module.parameters(), 0.1)
        for epoch in epochs:
            task.train().start_epoch(epoch, 10)
            for step in range(3):
                task.start_step(step, 3)
                task(images, target)["loss"].backward()
                optimizer.step()
                optimizer.zero_grad()
        return task.trainable_module

    whole = train(SViTETask(families.build(KEY), verbose=False), range(4))
    half = train(SViTETask(families.build(KEY), verbose=False), range(2)).state_dict()
    torch.manual_seed(9)
    fresh = timm.create_model(families.FAMILIES[KEY].example, **families.DEIT)
    fresh.load_state_dict(half)
    rest = train(SViTETask(fresh, verbose=False), range(2, 4))
    for key, value in whole.state_dict().items():
        assert torch.equal(value, rest.state_dict()[key]), key


@pytest.mark.parametrize("kwargs", [dict(head_ratio=0.1), dict(neuron_ratio=1.5),
                                    dict(sparsity="unstructured", weight_ratio=0.0)])  # fmt: skip
def test_shares_are_checked(kwargs):
    with pytest.raises(ValueError, match="it must leave one"):
        families.build(KEY, **kwargs)


def test_an_unknown_sparsity_is_refused():
    with pytest.raises(ValueError, match="is not one of structured, unstructured"):
        families.build(KEY, sparsity="weights")


@pytest.mark.parametrize("kwargs", [dict(rate=2.0), dict(until=-1.0), dict(updates=0)])
def test_task_arguments_are_checked(kwargs):
    with pytest.raises(ValueError, match="must"):
        SViTETask(families.build(KEY), verbose=False, **kwargs)


def test_other_models_have_nothing_to_move():
    with pytest.raises(ValueError, match="has no gates"):
        SViTETask(families.build("plain_deit"), verbose=False)


@pytest.mark.parametrize("sparsity", ["structured", "unstructured"])
def test_a_plain_deit_loads(sparsity):
    dense = timm.create_model("deit_tiny_patch16_224", **families.DEIT)
    model = families.build(KEY, sparsity=sparsity)
    fresh = model.load_pretrained_dense(dense.state_dict())
    assert all(".gate_" in key for key in fresh)
    assert torch.equal(model.blocks[3].mlp.fc1.weight, dense.blocks[3].mlp.fc1.weight)


@pytest.mark.parametrize("sparsity", ["structured", "unstructured"])
def test_the_averaged_model_has_the_same_units(sparsity):
    model = families.build(KEY, sparsity=sparsity)
    task = SViTETask(model, verbose=False)
    averaged = task.setup_ema(decay=0.9).module
    images, target = families.images(KEY), torch.tensor([0, 3])
    task.train().start_epoch(1, 10)
    for step in range(3):
        task.start_step(step, 3)
        task(images, target)["loss"].backward()
        task.update_ema(step=step)
    assert list(alive(averaged).values()) == list(alive(model).values())
    with torch.no_grad():
        assert_close(averaged.eval().deployed()(images), averaged(images))


def test_updates_that_too_few_epochs_have_no_room_for_are_told():
    task = SViTETask(families.build(KEY), verbose=False, updates=4)
    assert task.unreached(6) == []
    assert task.unreached(2) == ["A training of 2 epochs makes 1 of SViTE's 4 updates."]
