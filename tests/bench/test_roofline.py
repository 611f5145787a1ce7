"""The roofline: every operation's arithmetic and traffic, and the time they need at least."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.models import families
from workflow.bench import modes, roofline
from workflow.train import macs

MACHINE = {"matrix_tflop_s": 1e-6, "bandwidth_gb_s": 1e-6}  # a million FLOPs, 1000 bytes a second


def test_a_linear_layer_is_counted_by_hand():
    layer, images = nn.Linear(8, 4, bias=False), torch.randn(3, 8)
    with torch.no_grad():
        operations = roofline.operations(layer, images)
    assert sum(flops for _, flops, _ in operations) == 2 * 3 * 8 * 4
    assert sum(moved for *_, moved in operations) == 4 * (3 * 8 + 8 * 4 + 3 * 4)


def test_views_move_nothing():
    class Views(nn.Module):
        def forward(self, x):
            return x.transpose(0, 1).unflatten(0, (2, 4))[1:]

    assert roofline.operations(Views(), torch.randn(3, 8)) == []


@pytest.mark.integration
@pytest.mark.parametrize("key", families.FAMILIES)
@pytest.mark.parametrize("mode", ["paper", "fused"])
def test_its_macs_are_those_that_torch_counts(key, mode):
    """Fused attention too, of which torch 2.7 counts nothing on a CPU."""
    model, images = families.build(key).eval(), families.images(key)
    modes.set_attention(model, mode)
    with torch.inference_mode():
        flops = sum(flops for _, flops, _ in roofline.operations(model, images))
    counted = macs.count(model, tuple(images.shape[1:]))
    if key in ("ia_red2_deit", "ats_deit"):  # its two images keep different patches
        counted = macs.per_image(model, images)["mean_g"] * 1e9
    assert flops / 2 / len(images) == pytest.approx(counted, rel=0.02)


def test_the_longer_of_arithmetic_and_traffic_counts():
    operations = [("mm", 2_000_000, 10), ("add", 0, 3_000)]
    assert roofline.seconds(operations, MACHINE, fuses=False) == pytest.approx(2 + 3)
    assert roofline.seconds(operations, MACHINE, fuses=True) == pytest.approx(2)


def test_the_attention_kernel_is_named():
    class Attends(nn.Module):
        def forward(self, x):
            return F.scaled_dot_product_attention(x, x, x)

    with torch.inference_mode():
        operations = roofline.operations(Attends(), torch.randn(1, 2, 16, 8))
    assert roofline.attention_backends(operations) == ["scaled_dot_product_flash_attention_for_cpu"]
    assert roofline.attention_backends([("mm", 1, 1)]) == ["products and softmax"]


def test_the_machines_rates_are_measured(monkeypatch):
    monkeypatch.setattr(roofline, "MATRIX", {"cpu": 256})
    monkeypatch.setattr(roofline, "COPIED_MIB", {"cpu": 8})
    rates = roofline.measure_machine("fp32", torch.device("cpu"))
    assert rates["matrix_tflop_s"] > 0
    assert rates["bandwidth_gb_s"] > 0


def test_taking_and_putting_rows_moves_those_rows_alone():
    to, of = torch.tensor([1, 2]), torch.tensor([3, 4])

    class Rows(nn.Module):
        def forward(self, x):
            return x.index_copy_(0, to, x.index_select(0, of))

    with torch.inference_mode():
        operations = roofline.operations(Rows(), torch.ones(9, 5))
    rows, index = 2 * 5 * 4, 2 * 8
    moved_by_name = {name: moved for name, _, moved in operations}
    assert moved_by_name == {"index_select": 2 * rows + index, "index_copy_": 2 * rows + index}


def test_a_product_that_ends_in_a_view_moves_nothing_more():
    class Attends(nn.Module):
        def forward(self, x):
            return x @ x.transpose(-2, -1)

    with torch.inference_mode():
        operations = roofline.operations(Attends(), torch.ones(2, 3, 4, 4))
    assert {name for name, *_ in operations} == {"bmm"}
