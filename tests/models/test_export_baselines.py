"""Exported baselines compute what the models compute, for batches of other sizes, too."""

import io

import onnxruntime
import pytest
import torch

import baselines
from tests.models import families, hosts

pytestmark = pytest.mark.integration  # minutes, all in all

SHALLOW = {
    "plain_deit": dict(depth=3),
    "dynamic_deit": dict(depth=3, reduction_blocks=(1, 2)),
    "evit_deit": dict(depth=3, reduction_blocks=(1, 2)),
    "topk_deit": dict(depth=3, reduction_blocks=(1, 2), keep_ratio=[0.6, 0.3]),
    "pooled_deit": dict(depth=3, pool_block=1),
    "ps_deit": dict(depth=3, keep_profile=[1, 0.6, 0.2]),
    "tome_deit": dict(depth=3, r=5),
    "svite_deit": dict(depth=3),
    "ia_red2_deit": dict(depth=3, keep_profile=[0.8, 0.5, 0.25]),
    "ats_deit": dict(depth=3, reduction_blocks=(1, 2), keep_profile=[0.6, 0.3]),
    "dpcknn_deit": dict(depth=3, reduction_blocks=(1, 2)),
    "plain_levit": dict(embed_dim=(16, 24), num_heads=(2, 2), depth=(1, 1)),
}
ON_HOSTS = {  # by from_timm: the host, the method and its keywords
    "evit of map": ("attention pooling", "evit", {}),
    "topk of registers": ("dinov2 with registers", "topk", {}),
    "tome of avg": ("average pooling", "tome", dict(r=3)),
    "tome of registers": ("dinov2 with registers", "tome", dict(r=3)),
    "ats of registers": ("dinov2 with registers", "ats", dict(keep_profile=[0.8, 0.5, 0.25])),
    "dpcknn of avg": ("average pooling", "dpcknn", {}),
}
DROPPING = ("dynamic_deit", "ps_deit", "ia_red2_deit", "ats_deit", "evit_deit", "topk_deit")


def build(key, **kwargs):
    if key in ON_HOSTS:
        name, method, keywords = ON_HOSTS[key]
        return baselines.from_timm(hosts.build(name, torch.float32, depth=3), method, **keywords)
    return families.build(key, **{**SHALLOW[key], **kwargs}).eval()


def example(key, model, batch):
    return hosts.images(model, batch) if key in ON_HOSTS else families.images(key, batch)


def check(key, model, run):
    for batch in (1, 2, 5):
        images = example(key, model, batch)
        with torch.no_grad():
            expected = model(images)
        assert (run(images) - expected).abs().max() <= 1e-4 * expected.abs().max(), batch


def dynamic_batch(key):
    limit = {"max": 64} if key in ("plain_levit", "evit of map") else {}  # slices in timm's layers need one
    return ({0: torch.export.Dim("batch", **limit)},)


@pytest.mark.filterwarnings("ignore")
def test_onnx_from_an_example_of_one_image_names_no_batch_size():
    model, file = build("pooled_deit"), io.BytesIO()
    torch.onnx.export(
        model, (families.images("pooled_deit", 1),), file, input_names=["images"],
        output_names=["logits"], dynamic_axes={"images": {0: "batch"}}, dynamo=False,
    )  # fmt: skip
    session = onnxruntime.InferenceSession(file.getvalue())
    assert isinstance(session.get_outputs()[0].shape[0], str)
    check("pooled_deit", model, in_onnx_runtime(file.getvalue()))


def in_onnx_runtime(model_bytes):
    session = onnxruntime.InferenceSession(model_bytes)
    name = session.get_inputs()[0].name
    return lambda images: torch.from_numpy(session.run(None, {name: images.numpy()})[0])


@pytest.mark.parametrize("key", [*SHALLOW, *ON_HOSTS])
def test_traced(key):
    model, file = build(key), io.BytesIO()
    with torch.no_grad():
        torch.jit.save(torch.jit.trace(model, example(key, model, 3)), file)
    file.seek(0)
    check(key, model, torch.jit.load(file))


@pytest.mark.parametrize("key", [*SHALLOW, *ON_HOSTS])
def test_onnx(key):
    model, file = build(key), io.BytesIO()
    torch.onnx.export(
        model, (example(key, model, 3),), file, input_names=["images"],
        dynamic_axes={"images": {0: "batch"}}, dynamo=False,
    )  # fmt: skip
    check(key, model, in_onnx_runtime(file.getvalue()))


def exported(key, model, strict):
    with torch.no_grad():
        return torch.export.export(model, (example(key, model, 3),), dynamic_shapes=dynamic_batch(key), strict=strict)


@pytest.mark.parametrize("key", [*SHALLOW, *ON_HOSTS])
def test_torch_export(key):
    model = build(key)
    check(key, model, exported(key, model, strict=True).module())


@pytest.mark.parametrize("key", SHALLOW)
def test_torch_export_without_the_compiler_and_onnx_by_way_of_it(key, tmp_path):
    """As ``torch.onnx.export(..., dynamo=True)`` does it, which tests/evovit/test_export.py calls with the model."""
    model = build(key)
    program = exported(key, model, strict=False)
    check(key, model, program.module())
    torch.onnx.export(program, verbose=False).save(tmp_path / "model.onnx")
    check(key, model, in_onnx_runtime(tmp_path / "model.onnx"))


IA_RED2_REFUSES = {
    "trace": torch.jit.trace,
    "onnx": lambda model, images: torch.onnx.export(model, images, io.BytesIO(), dynamo=False),
    "export": lambda model, images: torch.export.export(model, (images,), strict=False),
    "meta": lambda model, images: model.to("meta")(images.to("meta")),
}


@pytest.mark.parametrize("method", IA_RED2_REFUSES)
def test_ia_red2_names_the_option_that_fixes_the_counts(method):
    model, images = build("ia_red2_deit", keep_profile=None), families.images("ia_red2_deit", 3)
    with pytest.raises(NotImplementedError, match=r"keep_profile=\[0.8, 0.64, 0.512\]"):
        IA_RED2_REFUSES[method](model, images)


@pytest.mark.parametrize("key", DROPPING)
def test_what_can_not_be_traced_is_said(key):
    model = build(key)
    with pytest.raises(NotImplementedError, match=r"use torch\.export"):
        torch.fx.symbolic_trace(model)
    with pytest.raises(NotImplementedError, match=r"use torch\.jit\.trace or torch\.export"):
        torch.jit.script(model)
