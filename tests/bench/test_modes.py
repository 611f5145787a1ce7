"""Every model in every mode computes what it does in fp32 with unfused attention."""

import pytest
import torch

from tests.models import families
from workflow.bench import modes, throughput
from workflow.bench.process import MeasurementError

CPU, LINEAR = torch.device("cpu"), torch.nn.Linear(1, 1)
CONFIGURATIONS = [
    {"mode": "paper", "precision": "fp32"},
    {"mode": "fused", "precision": "fp32"},
    {"mode": "fused", "precision": "bf16"},
    {"mode": "amp", "precision": "bf16"},
    {"mode": "fused", "precision": "fp32", "channels_last": True},
]


def spec(**configuration) -> dict:
    whole = {"channels_last": False, "cuda_graphs": 16, "batch_size": 2, "rounds": 5}
    return {"device": "cpu", **whole, **configuration}


@pytest.mark.parametrize(
    "configuration", CONFIGURATIONS, ids=lambda configuration: "-".join(map(str, configuration.values()))
)
@pytest.mark.parametrize("key", families.FAMILIES)
def test_outputs_are_the_reference_s(key, configuration):
    if key == "dynamic_deit" and configuration["precision"] == "bf16":
        pytest.skip("of 16 patches, bf16 drops others than fp32: too small a model to compare")
    whole = spec(**configuration)
    with torch.inference_mode():
        timed = throughput.prepare(families.build(key).eval(), families.images(key), whole)
    assert timed.method["check"]["distance"] <= timed.method["check"]["tolerance"]
    dtype = torch.bfloat16 if configuration["precision"] == "bf16" else torch.float32
    assert timed.images.dtype == (torch.float32 if configuration["mode"] == "amp" else dtype)


@pytest.mark.integration  # the compiler takes a minute
def test_a_compiled_model_computes_the_same():
    """Of two blocks, one of which selects, and at random: those numbers must be the same too."""
    whole = spec(mode="compiled", precision="fp32")
    model = families.build("evo_deit", depth=2, start_block=1, scores="random").eval()
    with torch.inference_mode():
        timed = throughput.prepare(model, families.images("evo_deit"), whole)
    assert timed.run is not model
    assert timed.method["check"]["distance"] <= 1e-4


@pytest.mark.parametrize("key", ["evo_levit", "plain_levit"])
def test_folded_layers_go_where_the_images_are(key):
    """timm makes them anew, on the CPU."""
    images = families.images(key).to("meta")
    whole = spec(mode="compiled", precision="bf16")
    cast, _ = modes.cast(families.build(key).eval(), images, whole)
    assert {parameter.device.type for parameter in cast.parameters()} == {"meta"}


def test_the_compilers_errors_are_refusals_and_ours_are_not():
    shared = type("OutOfResources", (Exception,), {"__module__": "triton.runtime.errors"})
    for error, message in ((shared("shared memory\nof 99"), "shared memory"), (shared(), "OutOf")):
        sentence = f"Linear can't be compiled: {message}"
        with pytest.raises(modes.Refused, match=sentence), modes.refused(LINEAR, "compiled"):
            raise error
    for error in (KeyError("ours"), torch.OutOfMemoryError("out of memory")):
        with pytest.raises(type(error)), modes.refused(LINEAR, "compiled"):
            raise error


def test_what_can_not_be_compiled_is_said():
    """IA-RED2 with weights of its own decides how many patches stay: no one graph."""
    whole = spec(mode="compiled", precision="fp32")
    model = families.build("ia_red2_deit").eval()
    with torch.inference_mode(), pytest.raises(MeasurementError, match="can't be compiled"):
        throughput.prepare(model, families.images("ia_red2_deit"), whole)


@pytest.mark.parametrize(("mode", "fused"), [("paper", False), ("fused", True), ("amp", True)])
def test_the_papers_mode_is_unfused_everywhere(mode, fused):
    model = families.build("evo_deit")
    modes.set_attention(model, mode)
    flags = {part.fused_attn for part in model.modules() if hasattr(part, "fused_attn")}
    assert flags == {fused}


def test_every_layer_of_a_fresh_model_counts():
    model = {"name": "evo_levit_128s", "kwargs": {"num_classes": 5}}
    module = modes.make_model(model, CPU)
    assert all(p.any() for name, p in module.named_parameters() if name.endswith("weight"))


@pytest.mark.parametrize(
    ("configuration", "device", "graph"),
    [
        ({"mode": "fused", "batch_size": 16}, "cuda", True),
        ({"mode": "fused", "batch_size": 17}, "cuda", False),
        ({"mode": "paper", "batch_size": 1}, "cuda", False),
        ({"mode": "fused", "batch_size": 1}, "cpu", False),
    ],
)
def test_small_batches_of_a_gpu_are_replayed_as_graphs(configuration, device, graph):
    assert modes.wants_graph(spec(**configuration) | {"device": device}) == graph


@pytest.mark.parametrize("size", [(32, 32), (35, 50)])  # the second leaves a margin unseen
def test_patches_embedded_by_a_product_are_those_of_the_convolution(size):
    conv = torch.nn.Conv2d(3, 8, kernel_size=(4, 8), stride=(4, 8)).double()
    images = torch.randn(2, 3, *size, dtype=torch.float64)
    expected = conv(images)
    product = modes.with_products(torch.nn.Sequential(conv))[0]
    assert isinstance(product, modes.PatchProduct)
    torch.testing.assert_close(product(images), expected)


def test_other_convolutions_stay():
    others = [dict(kernel_size=3, stride=2), dict(kernel_size=4, stride=4, padding=1),
              dict(kernel_size=1), dict(kernel_size=2, stride=2, groups=2)]  # fmt: skip
    module = torch.nn.Sequential(*(torch.nn.Conv2d(4, 4, **kwargs) for kwargs in others))
    assert all(isinstance(child, torch.nn.Conv2d) for child in modes.with_products(module))
