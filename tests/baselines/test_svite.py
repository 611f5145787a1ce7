"""SViTE: the authors' numbers, what dies, what is regrown, and the dense model that is left."""

import math

import pytest
import timm
import torch
from torch.testing import assert_close

from baselines.svite import Gate, SViTETask, load_official, update
from tests.golden import reference
from tests.models import families

KEY = "svite_deit"
CASES = [name for name in reference.names("svite_") if name != "svite_death_rate_schedule"]
NEAR = dict(rtol=0, atol=1e-10)


def alive(model):
    return {layer: gate.alive.tolist() for gate, layer in model.gated_layers()}


def masks(model):
    """Which heads and which neurons live, a row for each block."""
    heads = torch.stack([block.attn.gate_heads.alive for block in model.blocks])
    return heads, torch.stack([block.mlp.gate_neurons.alive for block in model.blocks])


# -- the numbers of the authors' code --------------------------------------------------------------


def official_weights(about, dtype):
    weights = reference.weights(about["shapes"], torch.float32)
    scaled = about.get("scaled_keys")
    if scaled:
        for key in weights:
            if key.endswith(scaled["suffix"]):
                weights[key] = weights[key] * scaled["factor"]
    return {key: value.to(dtype) for key, value in weights.items()}


def build_official(about, dtype, **kwargs):
    sizes = ("img_size", "patch_size", "embed_dim", "depth", "num_heads", "num_classes")
    kwargs = {name: about["ctor"][name] for name in sizes} | dict(variant="official") | kwargs
    shares = dict(head_ratio=about["args"]["atten_density"], neuron_ratio=about["args"]["other_density"])
    return timm.create_model("svite_deit_tiny_patch16_224", **shares, **kwargs).to(dtype)


def load(about, expected, dtype=torch.float64, **kwargs):
    model = build_official(about, dtype, **kwargs)
    load_official(model, official_weights(about, dtype), expected["heads_before"], expected["mlp_before"])
    return model


def batch(about, seed, dtype=torch.float64):
    return reference.images(about | {"input_seed": seed}, dtype)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_inference_is_the_authors(name, fused):
    about, expected = reference.case(name)
    model = load(about, expected).eval()
    for block in model.blocks:
        block.attn.fused_attn = fused
    images, logits = batch(about, about["input_seeds"][0]), torch.tensor(expected["logits_before"])
    with torch.no_grad():
        assert_close(model(images), logits, **NEAR)
        assert_close(model.deployed()(images), logits, **NEAR)
        paper = load(about, expected, variant="paper").eval()
        assert not torch.allclose(paper(images), logits)  # as the value biases of dead heads are not zero
        for block, heads in zip(paper.blocks, expected["heads_before"], strict=True):
            dead = ~torch.tensor(heads).bool().repeat_interleave(block.attn.head_dim)
            values = block.attn.qkv.bias.chunk(3)[2]
            block.attn.proj.bias += block.attn.proj.weight[:, dead] @ values[dead]
        assert_close(paper(images), logits, **NEAR)
    single = load(about, expected, torch.float32).eval()(batch(about, about["input_seeds"][0], torch.float32))
    assert_close(single.double(), logits, rtol=0, atol=4 * about["max_abs_diff_f32_f64"])


def make_adamw(model, about):
    assert about["optimiser"]["name"] == "AdamW"
    decayed, others = [], []
    for name, parameter in model.named_parameters():
        (decayed if parameter.ndim > 1 and name not in ("pos_embed", "cls_token") else others).append(parameter)
    groups = [dict(params=decayed, weight_decay=0.05), dict(params=others, weight_decay=0.0)]
    keys = ("lr", "betas", "eps")
    return torch.optim.AdamW(groups, **{key: about["optimiser"][key] for key in keys})


def norms_of(model, values):
    """L1 norms (depth, H) of the values of q, k and v rows, and (depth, hidden) of those of MLP rows and columns."""
    heads, neurons = [], []
    for block in model.blocks:
        rows = values(block.attn.qkv.weight).abs().sum(1)
        heads.append(rows.view(3, block.attn.num_heads, -1).sum(dim=(0, 2)))
        neurons.append(values(block.mlp.fc1.weight).abs().sum(1) + values(block.mlp.fc2.weight).abs().sum(0))
    return torch.stack(heads), torch.stack(neurons)


def assert_norms(norms, expected, kind):
    for norm, name in zip(norms, ("head", "mlp"), strict=True):
        assert_close(norm.detach(), torch.tensor(expected[f"{name}_{kind}_l1_after"]), **NEAR)


@pytest.mark.parametrize("name", CASES)
def test_an_update_is_the_authors(name):
    about, expected = reference.case(name)
    model = load(about, expected)
    task = SViTETask(model, criterion_kwargs=dict(smoothing=0.0), verbose=False).train()
    optimizer = make_adamw(model, about) if "optimiser" in about else None
    for number, (seed, labels) in enumerate(zip(about["input_seeds"], about["train_labels_per_batch"], strict=True)):
        model.set_collecting(number == about["update_after_batch"])
        model.zero_grad()
        loss = task(batch(about, seed), torch.tensor(labels))["loss"]
        assert_close(loss.detach(), torch.tensor(expected["loss"][number]), **NEAR)
        loss.backward()
        if number == 0:
            norms = torch.stack([model.get_parameter(key).grad.norm() for key in about["grad_norm_keys"]])
            assert_close(norms, torch.tensor(expected["grad_norms_first_batch"]), **NEAR)
        if optimizer:
            optimizer.step()
        if number == about["update_after_batch"]:
            check_update(model, task, optimizer, about, expected)
    with torch.no_grad():
        logits = task.eval().trainable_module(batch(about, about["input_seeds"][0]))
        assert_close(logits, torch.tensor(expected["logits_after"]), **NEAR)
        assert_close(model.deployed()(batch(about, about["input_seeds"][0])), logits, **NEAR)


def check_update(model, task, optimizer, about, expected):
    rate = task.rate_at(about["steps_at_update"], about["total_iterations"])
    assert rate == pytest.approx(about["death_rate_at_update"], rel=1e-12)
    model.clear_dead()
    before = masks(model)
    for index, block in enumerate(model.blocks):
        images = about["input_shape"][0]  # the authors' scores of heads are means over images
        for layer, name, count in ((block.attn, "head", images), (block.mlp, "mlp", 1)):
            gate = layer.gate_heads if name == "head" else layer.gate_neurons
            death, growth = (torch.tensor(expected[f"{name}_{kind}_score"][index]) for kind in ("death", "growth"))
            assert_close((layer.death_scores() / count)[gate.alive], death[gate.alive], **NEAR)
            assert_close(layer.growth_scores() / count, growth, **NEAR)
            assert math.ceil(rate * gate.kept) == expected[f"n_{name}_update"][index]
            update(gate, layer, rate)
    model.clear_dead()
    after = masks(model)
    for name, kind, first, last in zip(("heads", "mlp"), ("head", "mlp"), before, after, strict=True):
        died, grown = (torch.tensor(expected[f"{kind}_{what}"]).bool() for what in ("died", "grown"))
        assert torch.equal(last, torch.tensor(expected[f"{name}_after"]).bool())
        assert torch.equal(last, (first & ~died) | grown)
    assert_norms(norms_of(model, lambda weight: weight), expected, "weight")
    if optimizer:
        assert_norms(norms_of(model, lambda weight: optimizer.state[weight]["exp_avg"]), expected, "exp_avg")


def test_the_rate_falls_as_the_authors():
    _, expected = reference.case("svite_death_rate_schedule")
    model = families.build(KEY)
    for (first, total, done), rate in zip(expected["inputs"], expected["death_rate"], strict=True):
        task = SViTETask(model, rate=float(first), verbose=False)
        assert task.rate_at(int(done), int(total)) == pytest.approx(float(rate), rel=1e-12)


def test_official_weights_that_do_not_fit_are_refused():
    about, expected = reference.case(CASES[0])
    weights, heads, neurons = (official_weights(about, torch.float32), torch.tensor(expected["heads_before"]),
                               torch.tensor(expected["mlp_before"]))  # fmt: skip
    model = build_official(about, torch.float32)
    before = {key: value.clone() for key, value in model.state_dict().items()}

    def refused(reason, weights=weights, heads=heads, neurons=neurons, model=model):
        with pytest.raises(ValueError, match=reason):
            load_official(model, weights, heads, neurons)

    refused(r"mask of heads is \(3, \d+\), needed \(\d+, 3\)", heads=heads.T)
    refused("mask of neurons holds values other than 0 and 1", neurons=neurons * 0.5)
    dead = heads.clone()
    dead[2] = 0
    refused("mask of heads leaves none alive in block 2", heads=dead)
    refused("missing norm.bias", weights={key: value for key, value in weights.items() if key != "norm.bias"})
    refused("sparsity='structured'", model=model.deployed())
    refused("sparsity='structured'", model=build_official(about, torch.float32, sparsity="unstructured"))
    refused("sparsity='structured'", model=families.build("plain_deit"))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    dead[2] = 1  # as many heads as the masks say
    load_official(model, weights, dead, neurons)
    assert model.deployed().blocks[2].attn.num_heads == 3
    assert torch.equal(model.blocks[0].attn.gate_heads.alive, heads[0].bool())


# -- what a model computes -------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["paper", "official"])
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_the_deployed_model_has_the_same_outputs(variant, fused, dtype, limit):
    model, images = families.build(KEY, num_heads=6, variant=variant).to(dtype).eval(), families.images(KEY)
    for block in model.blocks:
        torch.nn.init.normal_(block.attn.qkv.bias)  # else both variants are the same
        block.attn.fused_attn = fused
    small = model.deployed()
    with torch.no_grad():
        assert_close(small(images.to(dtype)), model(images.to(dtype)), rtol=0, atol=limit)
    assert [block.attn.num_heads for block in small.blocks] == [4] * 12
    assert [block.mlp.fc1.out_features for block in small.blocks] == [int(0.7 * 96)] * 12
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
                layer.fc1.weight[dead] = 5.0
                layer.fc2.weight[:, dead] = 7.0
            else:
                channels = dead.repeat_interleave(layer.head_dim)
                layer.qkv.weight[channels.repeat(3)] = 5.0
                layer.qkv.bias[channels.repeat(3)] = 3.0
                layer.proj.weight[:, channels] = 7.0
    assert_close(model(images), expected)


def test_units_live_at_random_at_first():
    first, second = families.build(KEY), timm.create_model(
        families.FAMILIES[KEY].example, **families.DEIT
    )  # fmt: skip
    assert list(alive(first).values()) != list(alive(second).values())
    assert all(sum(units) == 2 for units in list(alive(first).values())[::2])  # of 3 heads


def test_an_open_gate_changes_nothing_once_dead_weights_are_zero():
    for variant in ("paper", "official"):
        model, images = families.build(KEY, variant=variant).train(), families.images(KEY)
        expected = model(images)
        SViTETask(model, verbose=False)
        assert not torch.allclose(model(images), expected)
        model.clear_dead()
        assert_close(model(images), expected)
        assert_close(model.eval()(images), expected)


# -- what dies and what is regrown -----------------------------------------------------------------


def with_gate(layer, name, units, living):
    """Give the layer a gate of this number of units; the first ones live."""
    gate = Gate((units,), living / units)
    gate.alive.zero_()
    gate.alive[:living] = True
    setattr(layer, name, gate)
    return gate


def head_layer(scores, units, living):
    layer = families.build(KEY).blocks[0].attn
    layer.scores = torch.tensor(scores)
    return with_gate(layer, "gate_heads", units, living), layer


def test_heads_die_by_output_times_gradient_and_are_regrown_by_gradient():
    gate, layer = head_layer([[3.0, 1.0, 2.0, 0.0, 0.0, 0.0], [9.0, 0.5, 0.9, 1.0, 3.0, 2.0]], 6, 3)
    update(gate, layer, rate=0.5)  # ceil(0.5 * 3) = 2 of the three
    assert gate.alive.tolist() == [1, 0, 0, 0, 1, 1]


def test_a_unit_that_was_just_killed_may_be_regrown():
    gate, layer = head_layer([[1.0, 2.0, 0.0], [9.0, 9.0, 0.5]], 3, 2)
    update(gate, layer, rate=0.5)
    assert gate.alive.tolist() == [1, 1, 0]
    update(gate, layer, rate=1.0)
    assert gate.alive.tolist() == [1, 1, 0]
    layer.scores[1, 2] = 9.5
    update(gate, layer, rate=0.5)
    assert gate.alive.tolist() == [0, 1, 1]


def test_scores_that_are_not_finite_change_nothing():
    gate, layer = head_layer([[1.0, 2.0, 0.0], [9.0, torch.inf, 10.0]], 3, 2)
    update(gate, layer, rate=1.0)
    assert gate.alive.tolist() == [1, 1, 0]


def test_neurons_die_by_the_norm_of_their_weights_and_are_regrown_by_that_of_the_gradients():
    layer = families.build(KEY).blocks[0].mlp
    gate = with_gate(layer, "gate_neurons", 96, 48)
    layer.fc1.weight.grad = torch.zeros_like(layer.fc1.weight)
    layer.fc2.weight.grad = torch.zeros_like(layer.fc2.weight)
    layer.fc1.weight.grad[95] = -1.0
    layer.fc2.weight.grad[:, 94] = 2.0
    layer.fc2.weight.grad[:, 9] = 0.5
    with torch.no_grad():
        layer.fc1.weight[5], layer.fc2.weight[:, 5] = 0.0, 1e-3
        layer.fc1.weight[9], layer.fc2.weight[:, 9] = 0.0, 0.0
        layer.fc1.weight[60] = 0.0  # dead, so that it can't die
    update(gate, layer, rate=2 / 48)
    assert [i for i in range(48) if not gate.alive[i]] == [5, 9]
    assert [i for i in range(48, 96) if gate.alive[i]] == [94, 95]


def test_scores_of_heads_are_those_of_the_definitions():
    model = families.build(KEY).double()
    model.set_collecting(True)
    seen = {}
    attn = model.blocks[3].attn

    def keep(module, inputs):
        inputs[0].retain_grad()
        seen["out"] = inputs[0]

    attn.proj.register_forward_pre_hook(keep)
    sums = torch.zeros(2, 3).double()
    for part in (0, 1):  # two batches of a step
        model(families.images(KEY, 4)[2 * part : 2 * part + 2].double()).square().sum().backward()
        shape = (2, -1, 3, 8)
        output, gradient = seen["out"].detach().reshape(shape), seen["out"].grad.reshape(shape)  # (B, L, H, D)
        deaths = (output * gradient).sum(dim=(1, 3)).abs().sum(0)
        growths = gradient.abs().sum(dim=(0, 1, 3))
        sums += torch.stack((deaths, growths))
    assert_close(attn.scores, sums)
    assert (attn.growth_scores() > 0).all()  # of dead heads, too
    assert_close(attn.death_scores()[~attn.gate_heads.alive], torch.zeros(1).double())
    model.set_collecting(False)
    model(families.images(KEY).double()).square().sum().backward()
    assert (attn.scores == 0).all()


def train_step(task, optimizer, images, target, step=0, steps=3):
    task.start_step(step, steps)
    optimizer.zero_grad()
    task(images, target)["loss"].backward()
    optimizer.step()
    task.end_step(step, steps)


@pytest.mark.parametrize("kwargs", [{}, dict(variant="official"), dict(sparsity="unstructured")])
def test_a_regrown_unit_starts_from_zero_and_one_killed_and_regrown_keeps_its_weights(kwargs):
    model = families.build(KEY, **kwargs)
    for block in model.blocks:  # else dead neurons have no gradient
        torch.nn.init.normal_(block.mlp.fc1.bias, std=5.0)
    task = SViTETask(model, rate=1.0, verbose=False).train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    before = {gate: gate.alive.clone() for gate, _ in model.gated_layers()}
    task.start_epoch(1, 20)
    train_step(task, optimizer, families.images(KEY), torch.tensor([0, 3]))
    regrown, kept = 0, 0
    for gate, layer in model.gated_layers():
        if hasattr(layer, "qkv"):
            size = layer.qkv.weight.abs().sum(1).view(3, -1, layer.head_dim).sum(dim=(0, 2))
        else:
            size = layer.death_scores()  # the L1 norm of the weights
        fresh = gate.alive & ~before[gate]
        assert (size[fresh] == 0).all()
        assert (size[gate.alive & before[gate]] > 0).all()
        assert gate.alive.sum() == gate.kept
        regrown += int(fresh.sum())
        kept += int((gate.alive & before[gate]).sum())  # nearly all were killed
    assert regrown > 0
    assert kept > 0
    train_step(task, optimizer, families.images(KEY), torch.tensor([0, 3]), step=1)
    assert all(parameter.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("variant", ["paper", "official"])
def test_without_biases_the_masks_of_neurons_stay_as_in_the_authors_code(variant):
    """A head that is cut whole puts out nothing, so the one just killed has the larger gradient and comes back."""
    model = families.build(KEY, variant=variant)
    for block in model.blocks:
        assert (block.mlp.fc1.bias == 0).all()  # as timm draws them
    task = SViTETask(model, verbose=False).train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    heads, neurons = masks(model)
    moved = torch.zeros_like(heads)
    for epoch in range(20):
        task.start_epoch(epoch, 20)
        for step in range(3):
            images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(3 * epoch + step))
            train_step(task, optimizer, images, torch.arange(4), step)
        moved |= masks(model)[0] != heads
    assert torch.equal(masks(model)[1], neurons)
    assert moved.any() == (variant == "official")


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
            assert (linear.weight != 0).sum() == int(0.25 * linear.weight.numel())
    plain = timm.create_model("deit_tiny_patch16_224", **families.DEIT).eval()
    plain.load_state_dict(dense.state_dict())
    assert_close(plain(images), expected, rtol=0, atol=1e-6)


def test_weights_die_by_size_and_are_regrown_by_gradient(unstructured):
    layer = unstructured.blocks[2].mlp.fc1
    gate = layer.gate_weights
    before = gate.alive.clone()
    layer.weight.grad = torch.rand(layer.weight.shape) + 1
    layer.weight.grad[before] = 0.5  # those just killed are behind all others here
    layer.weight.grad *= torch.randn(layer.weight.shape).sign()
    size = layer.weight.detach().abs()
    smallest = size[before].sort().values[9]  # ten of them die
    largest = layer.weight.grad.abs()[~before].sort(descending=True).values[9]
    update(gate, layer, rate=10 / gate.kept)
    assert torch.equal(before & ~gate.alive, before & (size <= smallest))
    regrown = gate.alive & ~before
    assert torch.equal(regrown, ~before & (layer.weight.grad.abs() >= largest))
    assert regrown.sum() == 10


def test_dead_weights_have_a_gradient_to_be_regrown_by(unstructured):
    model = unstructured.double().train()
    task = SViTETask(model, criterion_kwargs=dict(smoothing=0.0), verbose=False)
    layer = model.blocks[3].attn.proj
    seen = {}

    def keep(module, inputs, output):
        output.retain_grad()
        seen["in"], seen["out"] = inputs[0], output

    layer.register_forward_hook(keep)
    task(families.images(KEY).double(), torch.tensor([0, 3]))["loss"].backward()
    gradient = seen["out"].grad.flatten(0, 1).T @ seen["in"].flatten(0, 1)
    assert_close(layer.growth_scores(), gradient.detach().abs())
    assert (layer.growth_scores()[~layer.gate_weights.alive] > 0).all()
    assert (layer.weight[~layer.gate_weights.alive] == 0).all()


@pytest.mark.parametrize("sparsity", ["structured", "unstructured"])
def test_an_update_follows_the_first_step_of_an_epoch(sparsity):
    model = families.build(KEY, sparsity=sparsity)
    task = SViTETask(model, criterion_kwargs=dict(smoothing=0.1), rate=1.0, verbose=False).train()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    units_after = []
    for epoch in (0, 1):
        task.start_epoch(epoch, 25)
        for step in range(3):
            train_step(task, optimizer, families.images(KEY), torch.tensor([0, 3]), step)
            units_after.append(alive(model))
    assert units_after[0] == units_after[1] == units_after[2]  # nothing in epoch 0
    assert units_after[3] != units_after[2]
    assert units_after[5] == units_after[4] == units_after[3]
    for layer, units in units_after[5].items():
        assert torch.tensor(units).sum() == torch.tensor(units_after[0][layer]).sum()


def test_when_and_how_many():
    model = families.build(KEY)
    task = SViTETask(model, verbose=False)
    assert task.update_epochs(25) == list(range(1, 20))
    assert task.update_epochs(300)[:2] == [5, 11]
    assert task.update_epochs(300)[-1] == 239  # before 0.8 of the training
    assert len(set(task.update_epochs(300))) == 40
    longer = SViTETask(model, updates=80, verbose=False).update_epochs(600)
    assert (len(set(longer)), longer[0], longer[-1]) == (80, 5, 479)
    assert task.update_epochs(1) == []
    assert task.rate_at(0, 300) == 0.5
    assert task.rate_at(150, 300) == pytest.approx(0.2525)
    assert task.rate_at(240, 300) == pytest.approx(0.05227, abs=1e-5)
    assert task.rate_at(300, 300) == pytest.approx(0.005)


def test_a_resumed_training_has_the_same_units():
    def train(task, epochs):
        optimizer = torch.optim.SGD(task.trainable_module.parameters(), 0.1)
        for epoch in epochs:
            task.train().start_epoch(epoch, 10)
            for step in range(3):
                train_step(task, optimizer, families.images(KEY), torch.tensor([0, 3]), step)
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


def test_an_unknown_sparsity_or_variant_is_refused():
    with pytest.raises(ValueError, match="is not one of structured, unstructured"):
        families.build(KEY, sparsity="weights")
    with pytest.raises(ValueError, match="is not one of paper, official"):
        families.build(KEY, variant="authors")


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


@pytest.mark.parametrize("kwargs", [{}, dict(variant="official"), dict(sparsity="unstructured")])
def test_the_averaged_model_has_the_same_units(kwargs):
    model = families.build(KEY, **kwargs)
    task = SViTETask(model, rate=1.0, verbose=False)
    averaged = task.setup_ema(decay=0.9).module
    before = alive(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    task.train().start_epoch(1, 10)
    for step in range(3):
        train_step(task, optimizer, families.images(KEY), torch.tensor([0, 3]), step)
        task.update_ema(step=step)
    assert alive(model) != before
    assert list(alive(averaged).values()) == list(alive(model).values())
    with torch.no_grad():
        assert_close(averaged.eval().deployed()(families.images(KEY)), averaged(families.images(KEY)))


def test_updates_that_too_few_epochs_have_no_room_for_are_told():
    task = SViTETask(families.build(KEY), verbose=False, updates=4)
    assert task.unreached(6) == []
    assert task.unreached(2) == ["A training of 2 epochs makes 1 of SViTE's 4 updates."]
