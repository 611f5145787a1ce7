"""torch.compile without graph breaks: static shapes, no data-dependent branches."""

import pytest
import torch
from torch.testing import assert_close

from tests.evovit import small


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def build(schedule):
    return small.build(schedule=schedule, depth=4, start_block=2, blocks_per_stage=2)


@pytest.mark.parametrize("schedule", ["layer", "stage"])
def test_inference(schedule):
    model, images = build(schedule), small.images()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert_close(compiled(images), model(images), rtol=0, atol=1e-12)


@pytest.mark.parametrize("schedule", ["layer", "stage"])
def test_training(schedule):
    model, images = build(schedule).train(), small.images()
    model.set_training_outputs()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    grads = []
    for forward in (model, compiled):
        average, class_token = forward(images)
        grads.append(
            torch.autograd.grad((average.cos() + class_token.cos()).sum(), model.parameters())
        )
    assert_close(grads[1], grads[0], rtol=1e-9, atol=1e-11)
