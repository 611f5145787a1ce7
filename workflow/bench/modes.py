"""Run a model for inference as a mode says: attention, number format, memory layout, compilation, graphs.

| mode | attention | numbers | as |
| --- | --- | --- | --- |
| paper | unfused | fp32, no TF32 | what a V100 did in 2021 |
| fused | fused | weights and images in the precision | the plain way today |
| amp | fused | fp32 weights under autocast | how trainings evaluate |
| compiled | fused | as fused, compiled: BatchNorm folded, weights frozen | the fast way |

In mode compiled, convolutions without overlap are matrix products (PatchProduct). Up to a batch size of `cuda_graphs`
the passes of a GPU are replayed as one CUDA graph, except in mode paper.
"""

import contextlib
from collections.abc import Callable, Iterator

import torch
from timm.utils import reparameterize_model
from torch import Tensor, nn

from workflow.bench.process import MeasurementError
from workflow.runtime import device as devices
from workflow.train import checkpoints, factory

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
GRAPH_WARM_UP = 3
# torch's own random numbers, so that models which select at random can be compared
OPTIONS = {"freezing": True, "fallback_random": True}

Run = Callable[[Tensor], Tensor]


class Refused(MeasurementError):
    """The mode can't run this model; it may run others of its group."""


def set_up(spec: dict) -> torch.device:
    """Set threads and backends for a measurement, and return the spec's device.

    TF32 is off, which an A100 and later would use in convolutions; cuDNN searches for the fastest kernels, as in the
    field's training scripts. Raises DeviceError for a device or a precision that the machine does not have.
    """
    torch.set_num_threads(spec["threads"])
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    device = devices.choose(spec["device"])
    devices.check_precision(spec["precision"], device, "fp16 runs on every GPU, bf16 on every CPU, fp32 everywhere")
    return device


def synchronise(device: torch.device) -> None:
    """Wait until a GPU has done all that it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def make_model(model: dict, device: torch.device, site: dict | None = None) -> nn.Module:
    """Return the model in fp32 on the device, ready for inference.

    A model that is rebuilt after its training has a `deployed` method. `site` is needed for a model with the weights of
    a training.
    """
    module = factory.build_model(model)
    if "weights" in model:
        if site is None:
            raise MeasurementError(f"{model['run']} needs its trained weights: give --site.")
        module.load_state_dict(checkpoints.final_weights(site, model["weights"]))
    else:
        fill_zero_weights(module)
    module = module.eval().to(device)
    if hasattr(module, "deployed"):
        return module.deployed()
    return module


def fill_zero_weights(module: nn.Module) -> None:
    """Give every layer of a fresh model an influence on the output.

    Some layers start with weights of zero, which would hide wrong numbers before them.
    """
    with torch.no_grad():
        for layer in module.modules():
            weight = getattr(layer, "weight", None)
            if isinstance(weight, nn.Parameter) and not weight.any():
                if weight.dim() == 1:
                    weight.fill_(1.0)
                else:
                    weight.normal_(std=0.02)


def set_attention(module: nn.Module, mode: str) -> None:
    """Let mode `paper` compute attention matrices, as in 2021, and the other modes fuse them."""
    for layer in module.modules():
        if hasattr(layer, "fused_attn"):
            layer.fused_attn = mode != "paper"


def cast(module: nn.Module, images: Tensor, spec: dict) -> tuple[nn.Module, Tensor]:
    """Return the module, changed in place, and the images (B, 3, H, W) in the mode's format."""
    set_attention(module, spec["mode"])
    if spec["mode"] == "compiled":
        # timm folds LeViT's BatchNorm into new layers, which it makes on the CPU
        module = with_products(reparameterize_model(module).to(images.device))
    dtype = torch.float32 if spec["mode"] == "amp" else DTYPES[spec["precision"]]
    layout = torch.channels_last if spec["channels_last"] else torch.contiguous_format
    return module.to(dtype=dtype, memory_format=layout), images.to(dtype, memory_format=layout)


class CapturedPass:
    """Replay a forward pass as a CUDA graph: no launches from Python, always the same memory."""

    def __init__(self, run: Run, images: Tensor):
        self.images = images.clone()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(GRAPH_WARM_UP):
                run(self.images)
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.output = run(self.images)

    def __call__(self, images: Tensor) -> Tensor:
        if images is not self.images:  # a copy that an eager pass does not need
            self.images.copy_(images)
        self.graph.replay()
        return self.output


def uncompiled(module: nn.Module, spec: dict) -> Run:
    """Return a pass of the uncompiled module.

    In mode amp each pass casts the weights anew, as autocast does where a model is called once.
    """
    if spec["mode"] != "amp":
        return module

    def run(images: Tensor) -> Tensor:
        with torch.autocast(spec["device"], DTYPES[spec["precision"]], cache_enabled=False):
            return module(images)

    return run


def wants_graph(spec: dict) -> bool:
    """Return whether passes at this batch size are replayed as a CUDA graph."""
    return spec["device"] == "cuda" and spec["mode"] != "paper" and spec["batch_size"] <= spec["cuda_graphs"]


def make_run(module: nn.Module, images: Tensor, spec: dict) -> Run:
    """Return the mode's forward pass of a module and images that were cast.

    A compiled pass is one graph with its weights as constants. Raises Refused for a model that can't be compiled:
    nothing else is timed instead.
    """
    if spec["mode"] != "compiled":
        return uncompiled(module, spec)
    with refused(module, "compiled"):
        run = torch.compile(module, fullgraph=True, dynamic=False, options=OPTIONS)
        run(images)
    return run


@contextlib.contextmanager
def refused(module: nn.Module, verb: str) -> Iterator[None]:
    """Raise errors of the compiler, Triton, CUDA and ONNX Runtime, except those of memory, as Refused."""
    try:
        yield
    except Exception as error:
        of_tools = isinstance(error, RuntimeError) or type(error).__module__.startswith(("triton", "onnxruntime"))
        if devices.is_out_of_memory(error) or not of_tools:
            raise
        reason = checkpoints.first_line(error)
        raise Refused(f"{type(module).__name__} can't be {verb}: {reason}") from error


class PatchProduct(nn.Module):
    """A convolution with stride = kernel size as a matrix product, (B, C, H, W) to (B, D, H/p, W/q).

    Its windows neither overlap nor leave gaps: patch embeddings, PVTv2's spatial reduction. cuDNN has no fast kernel
    for three channels in bf16: of compiled DeiT-S on an H200, a fifth of the time was this one convolution
    (results/measured/).
    """

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        self.kernel_size = conv.kernel_size
        sizes = conv.weight[0].numel(), conv.out_channels
        self.product = nn.Linear(*sizes, bias=conv.bias is not None, device="meta")
        self.product.weight = nn.Parameter(conv.weight.detach().flatten(1))
        if conv.bias is not None:
            self.product.bias = conv.bias

    def forward(self, x: Tensor) -> Tensor:
        height, width = self.kernel_size
        x = x[..., : x.shape[2] // height * height, : x.shape[3] // width * width]
        x = x.unflatten(3, (-1, width)).unflatten(2, (-1, height))  # (B, C, H/p, p, W/q, q)
        x = x.permute(0, 2, 4, 1, 3, 5).flatten(3)
        return self.product(x).permute(0, 3, 1, 2)


def is_patches(module: nn.Module) -> bool:
    """Return whether a module is a convolution that PatchProduct can replace."""
    return (
        type(module) is nn.Conv2d  # others compute their weight first
        and module.kernel_size == module.stride
        and module.padding in ((0, 0), "valid")
        and module.dilation == (1, 1)
        and module.groups == 1
        and module.kernel_size != (1, 1)
    )


def with_products(module: nn.Module) -> nn.Module:
    """Replace a module's convolutions without overlap in place, and return the module."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if is_patches(child):
                setattr(parent, name, PatchProduct(child))
    return module
