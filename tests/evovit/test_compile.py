"""torch.compile without graph breaks: static shapes, no data-dependent branches."""

import shutil
from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from evovit.fast import deferred, kernels
from evovit.fast.deferred import DeferredScores
from evovit.scores import Scores
from tests.evovit import small


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


HOSTS = {
    "deit": lambda **kwargs: small.build(depth=4, start_block=2, blocks_per_stage=2, **kwargs),
    "levit": lambda **kwargs: small.levit(alpha="learned", **small.SHALLOW_LEVIT, **kwargs),
}
SIZE = {"deit": 32, "levit": 128}
both = pytest.mark.parametrize(
    ("host", "schedule"),
    [
        ("deit", "layer"),
        ("deit", "stage"),
        pytest.param("levit", "stage", marks=pytest.mark.integration),  # LeViT takes long to trace
        pytest.param("levit", "layer", marks=pytest.mark.integration),
    ],
)


@both
def test_inference(host, schedule):
    model, images = HOSTS[host](schedule=schedule), small.images(size=SIZE[host])
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert_close(compiled(images), model(images), rtol=0, atol=1e-12)


@pytest.fixture
def for_gpus(monkeypatch):
    """From now on deferred scores, on this CPU."""
    return lambda: monkeypatch.setattr(deferred, "saves_time", lambda x: True)


@pytest.mark.parametrize("host", ["deit", pytest.param("levit", marks=pytest.mark.integration)])
def test_the_form_for_gpus(host, for_gpus):
    model, images = HOSTS[host](schedule="stage"), small.images(size=SIZE[host])
    with torch.no_grad():
        expected = model(images)
        for_gpus()
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        assert_close(compiled(images), expected, rtol=0, atol=1e-12)


FORMS = [
    {},
    {"schedule": "layer"},
    {"variant": "official"},
    {"depth": 8, "blocks_per_stage": 6},  # more blocks than one launch takes
    {"placeholders": "drop"},
    {"placeholders": "keep", "scores": "class"},
    {"scores": "last_class"},
    {"scores": "column_mean"},
    {"keep_ratio": [1, 1, 0.8, 0.5], "schedule": "layer"},
]


@pytest.mark.parametrize("switches", FORMS, ids=str)
def test_the_form_for_gpus_computes_the_same(switches, for_gpus):
    """Uncompiled, its observations included."""
    model = small.build(**{"depth": 4, "start_block": 2, "blocks_per_stage": 2, **switches})
    images = small.images()
    with torch.no_grad():
        expected, before = model(images), model.observe(images)[0]
        for_gpus()
        assert_close(model(images), expected, rtol=0, atol=1e-12)
        for one, other in zip(model.observe(images)[0], before, strict=True):
            assert_close(one.scores, other.scores, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("schedule", "launches"), [("stage", 2), ("layer", 4)])
def test_what_is_put_off_is_computed_once_a_selection(schedule, launches, for_gpus, monkeypatch):
    choose, called = kernels.choose, []

    def counted(*arguments):
        called.append(len(arguments[2]))  # blocks
        return choose(*arguments)

    monkeypatch.setattr(kernels, "choose", counted)
    model = small.build(depth=6, start_block=2, blocks_per_stage=2, schedule=schedule)
    for_gpus()
    with torch.no_grad():
        model(small.images())
    assert len(called) == launches
    # the last blocks lead to no selection
    assert sum(called) == (4 if schedule == "stage" else 5)


@pytest.mark.parametrize("differs", [None, "is_cuda", "is_compiling", "is_exporting", "grad"])
def test_only_a_compiler_of_inference_for_a_gpu_gets_it(differs, monkeypatch):
    x = SimpleNamespace(is_cuda=differs != "is_cuda")
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: differs != "is_compiling")
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: differs == "is_exporting")
    model = small.build()
    with torch.set_grad_enabled(differs == "grad"):
        assert isinstance(model.new_scores(x), DeferredScores if differs is None else Scores)
        model.defers_scores = False
        assert isinstance(model.new_scores(x), Scores)


@both
def test_training(host, schedule):
    model, images = HOSTS[host](schedule=schedule).train(), small.images(size=SIZE[host])
    model.set_training_outputs()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    grads = []
    for forward in (model, compiled):
        average, class_token = forward(images)
        grads.append(torch.autograd.grad((average.cos() + class_token.cos()).sum(), model.parameters()))
    assert_close(grads[1], grads[0], rtol=1e-9, atol=1e-11)


@pytest.mark.integration
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("c++")), reason="no C++ compiler")
def test_the_compilers_code():
    """Inductor once, stage-wise: what a GPU would run is at least built and right."""
    model, images = small.build(torch.float32, depth=3, start_block=1), small.images().float()
    compiled = torch.compile(model, fullgraph=True)
    with torch.no_grad():
        assert_close(compiled(images), model(images), rtol=1e-4, atol=1e-5)
