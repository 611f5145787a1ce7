"""How a model runs for inference: attention, number format, memory layout, compilation, graphs.

| mode | attention | numbers | as |
| --- | --- | --- | --- |
| paper | unfused | fp32, no TF32 | what a V100 did in 2021 |
| fused | fused | weights and images in the precision | the plain way today |
| amp | fused | fp32 weights under autocast | how trainings evaluate |
| compiled | fused | as fused, compiled: BatchNorm folded, weights frozen | the fast way |

In mode compiled, convolutions without overlap are matrix products (products.py).
Up to a batch size of `cuda_graphs` the passes of a GPU are replayed as one CUDA graph, except in
mode paper.
"""

import contextlib
from collections.abc import Callable, Iterator

import torch
from timm.utils import reparameterize_model
from torch import Tensor, nn

from workflow.bench.fresh import MeasurementError
from workflow.bench.products import with_products
from workflow.campaign.benchmarks import BenchmarkError, check
from workflow.runtime import device
from workflow.train import checkpoints, factory

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
GRAPH_WARM_UP = 3
# torch's own random numbers, so that models which select at random can be compared
OPTIONS = {"freezing": True, "fallback_random": True}

Run = Callable[[Tensor], Tensor]


class Refused(MeasurementError):
    """The mode can't run this model; others of its section it may."""


def check_point(spec: dict) -> None:
    """Raise MeasurementError for a point that nothing can run."""
    try:
        check(spec)
    except BenchmarkError as error:
        raise MeasurementError(str(error)) from None


def set_backends() -> None:
    """No TF32, which an A100 and later would otherwise use in convolutions; and of cuDNN's kernels
    the fastest, as the field's training scripts have it."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True


def make_model(model: dict, where: torch.device, site: dict | None = None) -> nn.Module:
    """The model in fp32 on the device, ready for inference.

    A model that is rebuilt after its training says so with a `deployed` method. `site` is needed
    where the model has the weights of a training.
    """
    module = factory.build_model(model)
    if "weights" in model:
        if site is None:
            raise MeasurementError(f"{model['run']} needs its trained weights: give --site.")
        module.load_state_dict(checkpoints.final_weights(site, model["weights"]))
    else:
        wake(module)
    module = module.eval().to(where)
    return module.deployed() if hasattr(module, "deployed") else module


def wake(module: nn.Module) -> None:
    """Let every layer of a fresh model count: some start with weights of zero, and whatever came
    before them, wrong outputs would pass for right ones."""
    with torch.no_grad():
        for part in module.modules():
            weight = getattr(part, "weight", None)
            if isinstance(weight, nn.Parameter) and not weight.any():
                weight.fill_(1.0) if weight.dim() == 1 else weight.normal_(std=0.02)


def set_attention(module: nn.Module, mode: str) -> None:
    """`paper` multiplies queries and keys into an attention matrix, as in 2021; the others fuse."""
    for part in module.modules():
        if hasattr(part, "fused_attn"):
            part.fused_attn = mode != "paper"


def cast(module: nn.Module, images: Tensor, spec: dict) -> tuple[nn.Module, Tensor]:
    """Weights and images in the format of the mode, the module itself being changed."""
    set_attention(module, spec["mode"])
    if spec["mode"] == "compiled":
        # LeViT's BatchNorm goes into the layers before it, which timm makes anew, on the CPU
        module = with_products(reparameterize_model(module).to(images.device))
    dtype = torch.float32 if spec["mode"] == "amp" else DTYPES[spec["precision"]]
    layout = torch.channels_last if spec["channels_last"] else torch.contiguous_format
    return module.to(dtype=dtype, memory_format=layout), images.to(dtype, memory_format=layout)


def compiled(module: nn.Module) -> Run:
    """The whole forward pass in one graph, its weights constants of it."""
    return torch.compile(module, fullgraph=True, dynamic=False, options=OPTIONS)


class Replayed:
    """A forward pass captured as a CUDA graph: no launches from Python, always the same memory."""

    def __init__(self, run: Run, images: Tensor):
        self.images = images.clone()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(GRAPH_WARM_UP):
                run(self.images)
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.output = run(self.images)

    def __call__(self, images: Tensor) -> Tensor:
        if images is not self.images:  # a copy that an eager pass does not need
            self.images.copy_(images)
        self.graph.replay()
        return self.output


def plain(module: nn.Module, spec: dict, where: torch.device) -> Run:
    """A pass of the uncompiled module. In mode amp each pass casts the weights anew, as a model
    that is called under autocast does."""
    if spec["mode"] != "amp":
        return module

    def run(images: Tensor) -> Tensor:
        with torch.autocast(where.type, DTYPES[spec["precision"]], cache_enabled=False):
            return module(images)

    return run


def wants_graph(spec: dict, where: torch.device) -> bool:
    small = spec["batch_size"] <= spec["cuda_graphs"]
    return where.type == "cuda" and spec["mode"] != "paper" and small


def make_run(module: nn.Module, images: Tensor, spec: dict, where: torch.device) -> Run:
    """A pass of a module and images that were cast, as the mode wants it.

    Raises Refused for a model that can't be compiled: nothing else is timed in its place.
    """
    if spec["mode"] != "compiled":
        return plain(module, spec, where)
    with refused(module, "compiled"):
        run = compiled(module)
        run(images)
    return run


def captured(module: nn.Module, run: Run, images: Tensor) -> Replayed:
    """A pass of the module as a CUDA graph. Raises Refused for one that can't be."""
    with refused(module, "captured as a CUDA graph"):
        return Replayed(run, images)


@contextlib.contextmanager
def refused(module: nn.Module, what: str) -> Iterator[None]:
    """The compiler's, Triton's and CUDA's errors as Refused; but for memory."""
    try:
        yield
    except Exception as error:
        theirs = isinstance(error, RuntimeError) or type(error).__module__.startswith("triton")
        if device.is_out_of_memory(error) or not theirs:
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise Refused(f"{type(module).__name__} can't be {what}: {reason}") from error
