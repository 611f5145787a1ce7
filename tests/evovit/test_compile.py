"""torch.compile without graph breaks: static shapes, no data-dependent branches."""

import shutil

import pytest
import torch
from torch.testing import assert_close

from evovit import blocks, deit, dispatch, evolve, fusible
from tests.evovit import small


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


HOSTS = {
    "deit": lambda **kwargs: small.build(depth=4, start_block=2, blocks_per_stage=2, **kwargs),
    "levit": lambda **kwargs: small.levit(tradeoff="learned", **kwargs),
}
SIZE = {"deit": 32, "levit": 128}


@pytest.mark.parametrize("schedule", ["layer", "stage"])
@pytest.mark.parametrize("host", HOSTS)
def test_inference(host, schedule):
    model, images = HOSTS[host](schedule=schedule), small.images(size=SIZE[host])
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert_close(compiled(images), model(images), rtol=0, atol=1e-12)


@pytest.mark.parametrize("schedule", ["layer", "stage"])
@pytest.mark.parametrize("host", HOSTS)
def test_the_form_for_gpus(host, schedule, monkeypatch):
    model, images = HOSTS[host](schedule=schedule), small.images(size=SIZE[host])
    with torch.no_grad():
        expected = model(images)
        for place in (evolve, blocks, deit):
            monkeypatch.setattr(place, "functions_for", lambda x: fusible)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        assert_close(compiled(images), expected, rtol=0, atol=1e-12)


def test_only_a_compiler_for_a_gpu_gets_it():
    taken = []

    def traced(x):
        taken.append(dispatch.functions_for(x).__name__)
        return x

    with torch.no_grad():
        torch.compile(traced, backend="eager")(torch.ones(2))
    assert set(taken) == {"evovit.tokens"}


@pytest.mark.parametrize("schedule", ["layer", "stage"])
@pytest.mark.parametrize("host", HOSTS)
def test_training(host, schedule):
    model, images = HOSTS[host](schedule=schedule).train(), small.images(size=SIZE[host])
    model.set_training_outputs()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    grads = []
    for forward in (model, compiled):
        average, class_token = forward(images)
        grads.append(
            torch.autograd.grad((average.cos() + class_token.cos()).sum(), model.parameters())
        )
    assert_close(grads[1], grads[0], rtol=1e-9, atol=1e-11)


@pytest.mark.integration
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("c++")), reason="no C++ compiler")
def test_the_compilers_code(tmp_path, monkeypatch):
    """Inductor once, stage-wise: what a GPU would run is at least built and right."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    model, images = small.build(torch.float32, depth=3, start_block=1), small.images().float()
    compiled = torch.compile(model, fullgraph=True)
    with torch.no_grad():
        assert_close(compiled(images), model(images), rtol=1e-4, atol=1e-5)
