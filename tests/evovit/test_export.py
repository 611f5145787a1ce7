"""What leaves Python: ONNX by both exporters, torch.export, and traced programs."""

import io

import pytest
import torch
from torch.testing import assert_close

from tests.evovit import small

pytestmark = pytest.mark.integration  # minutes, all in all

OPTIONS = {
    "deit-stage": ("deit", {}),
    "deit-layer": ("deit", {"schedule": "layer"}),
    "deit-official": ("deit", {"variant": "official"}),
    "deit-keep": ("deit", {"placeholders": "keep", "scores": "class"}),
    "deit-drop": ("deit", {"placeholders": "drop", "scores": "column_mean", "schedule": "layer"}),
    "deit-last-class": ("deit", {"scores": "last_class"}),
    "deit-unpooled": ("deit", {"pool_placeholders": False}),
    "levit-stage": ("levit", {}),
    # grids of 7 and 4, so that windows reach over the edge
    "levit-average": ("levit", {"subsample": "average", "img_size": 112}),
    "levit-official": ("levit", {"variant": "official", "schedule": "layer"}),
    "levit-keep": ("levit", {"placeholders": "keep", "scores": "column_mean"}),
}
SIZES = {"deit": 32, "levit": 128}


def build(host, kwargs):
    if host == "levit":
        return small.levit(torch.float32, **small.SHALLOW_LEVIT, **kwargs)
    sizes = {"depth": 4, "start_block": 2, "blocks_per_stage": 1}
    return small.build(torch.float32, **{**sizes, **kwargs})


def example(options):
    host, kwargs = OPTIONS[options]
    size = kwargs.get("img_size", SIZES[host])
    return build(host, kwargs), lambda batch: small.images(batch, size, torch.float32, seed=batch)


def assert_equal_at_every_batch(program, model, images):
    for batch in (1, 2, 5):
        with torch.no_grad():
            expected = model(images(batch))
        assert_close(program(images(batch)), expected, rtol=1e-4, atol=1e-4)


def batch_of_any_size():
    return ({0: torch.export.Dim("batch")},)


def in_onnx_runtime(path):
    onnxruntime = pytest.importorskip("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: torch.from_numpy(session.run(None, {name: images.numpy()})[0])


def export_to_onnx(model, images, path):
    torch.onnx.export(model, (images,), path, input_names=["images"], dynamic_axes={"images": {0: "batch"}})


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("options", OPTIONS)
def test_onnx(options, tmp_path):
    model, images = example(options)
    export_to_onnx(model, images(2), tmp_path / "model.onnx")
    assert_equal_at_every_batch(in_onnx_runtime(tmp_path / "model.onnx"), model, images)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("options", ["deit-stage", "levit-stage"])
def test_onnx_by_way_of_torch_export(options, tmp_path):
    pytest.importorskip("onnxscript")
    model, images = example(options)
    torch.onnx.export(model, (images(2),), tmp_path / "model.onnx", dynamo=True,
                      dynamic_shapes=batch_of_any_size(), verbose=False)  # fmt: skip
    assert_equal_at_every_batch(in_onnx_runtime(tmp_path / "model.onnx"), model, images)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("host", ["deit", "levit"])
def test_a_random_selection_is_exported_too(host, tmp_path):
    model, images = build(host, {"scores": "random"}), small.images(2, SIZES[host], torch.float32)
    export_to_onnx(model, images, tmp_path / "model.onnx")
    run = in_onnx_runtime(tmp_path / "model.onnx")
    larger = small.images(5, SIZES[host], torch.float32)
    assert run(larger).shape == (5, 5)
    assert not torch.equal(run(larger), run(larger))


@pytest.mark.parametrize(
    ("options", "strict"),
    [
        ("deit-stage", False),
        ("deit-stage", True),
        ("deit-drop", True),
        ("levit-stage", True),
        ("levit-average", False),
    ],
)
def test_torch_export(options, strict):
    model, images = example(options)
    shapes = batch_of_any_size()
    program = torch.export.export(model, (images(2),), dynamic_shapes=shapes, strict=strict)
    assert_equal_at_every_batch(program.module(), model, images)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("options", ["deit-stage", "deit-drop", "levit-average"])
def test_a_traced_program_survives_a_file(options):
    model, images = example(options)
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(model, images(2)), file)
    file.seek(0)
    assert_equal_at_every_batch(torch.jit.load(file), model, images)
