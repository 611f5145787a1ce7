"""Estimate how much faster a model could be on this machine.

Each operation takes the longer of its arithmetic at the machine's matrix rate and its traffic at the memory's
bandwidth, both measured. Traffic is what an operation reads and writes if nothing stays in a cache, so on a CPU, whose
caches hold much, this is a model and no bound. The ratio of the MACs is the bound that fewer operations give.
"""

import math
import time
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from workflow.bench.modes import DTYPES, synchronise

REPEATS = 5
LEAST_S = {"cpu": 0.0, "cuda": 0.5}
COPIED_MIB = {"cpu": 512, "cuda": 2048}
MATRIX = {"cpu": 2048, "cuda": 8192}
ATTENTION = "_scaled_dot_product"
VIEWS = ("_unsafe_view",)  # a view that torch does not mark as one
TAKE = ("gather", "index_select", "index")
PUT = ("index_copy_",)  # arguments: the tensor that changes, dimension, index, rows


@dataclass
class Traffic(TorchDispatchMode):
    """Record (name, FLOPs, bytes) of each operation of a forward pass, except views."""

    operations: list[tuple[str, int, int]] = field(default_factory=list)

    def __post_init__(self):
        super().__init__()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        packet = func._overloadpacket
        if packet not in flop_registry:  # a composed operation counts as its parts
            with self:
                composed = func.decompose(*args, **kwargs)
            if composed is not NotImplemented:
                return composed
        out = func(*args, **kwargs)
        if not func.is_view and packet.__name__ not in VIEWS:
            moved = _moved(packet.__name__, args, kwargs, out)
            self.operations.append((packet.__name__, _flops(packet, args, kwargs, out), moved))
        return out


def _moved(name: str, args: tuple, kwargs: dict, out) -> int:
    """Return the bytes that an operation reads and writes: of the taken rows only if it gathers or scatters."""
    tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
    outputs = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
    if name in TAKE:
        tensors = [*outputs, *tensors[1:]]  # as much of the first one as comes out
    elif name in PUT:
        tensors, outputs = tensors[1:], tensors[-1:]
    return sum(t.numel() * t.element_size() for t in (*tensors, *outputs))


def _flops(packet, args: tuple, kwargs: dict, out) -> int:
    """Return the floating-point operations of an operation, two for each MAC."""
    if packet in flop_registry:
        return flop_registry[packet](*args, **kwargs, out_val=out)
    if packet.__name__.startswith(ATTENTION):  # torch 2.7 counts nothing for a CPU's
        query, keys, values = args[:3]
        pairs = math.prod(query.shape[:-1]) * keys.shape[-2]
        return 2 * pairs * (query.shape[-1] + values.shape[-1])
    return 0


def operations(module: nn.Module, images: Tensor) -> list[tuple[str, int, int]]:
    """Return (name, FLOPs, bytes) of each operation of a pass of an uncompiled module."""
    with Traffic() as traffic:
        module(images)
    return traffic.operations


def attention_backends(operations: list[tuple[str, int, int]]) -> list[str]:
    """Return the fused kernels that ran, or else "products and softmax"."""
    names = {name.removeprefix("_") for name, *_ in operations if name.startswith(ATTENTION)}
    return sorted(names) or ["products and softmax"]


def seconds(operations: list[tuple[str, int, int]], machine: dict, fuses: bool) -> float:
    """Return the least time of a pass by the machine's two rates.

    `fuses`: a compiler joins operations without arithmetic to their neighbours, and their traffic is not counted.
    """
    rate = machine["matrix_tflop_s"] * 1e12
    bandwidth = machine["bandwidth_gb_s"] * 1e9
    return sum(max(flops / rate, moved / bandwidth) for _, flops, moved in operations if flops or not fuses)


def measure_machine(precision: str, device: torch.device) -> dict:
    """Return a copy's bandwidth in GB/s and a large product's rate in TFLOP/s (two FLOPs a MAC)."""
    count = COPIED_MIB[device.type] * 2**20 // 4
    source, target = (torch.ones(count, device=device) for _ in range(2))
    copied = _best(lambda: target.copy_(source), device)
    size = MATRIX[device.type]
    left, right = (torch.randn(size, size, device=device).to(DTYPES[precision]) for _ in range(2))
    multiplied = _best(lambda: left @ right, device)
    return {
        "bandwidth_gb_s": 2 * source.nbytes / copied / 1e9,
        "matrix_tflop_s": 2 * size**3 / multiplied / 1e12,
        "matrix_size": size,
    }


def _best(work, device: torch.device) -> float:
    """Return the seconds of the fastest of a few times, long enough for a clock to get up to speed."""
    taken: list[float] = []
    while len(taken) < REPEATS or sum(taken) < LEAST_S[device.type]:
        synchronise(device)
        started = time.perf_counter()
        work()
        synchronise(device)
        taken.append(time.perf_counter() - started)
    return min(taken)
