"""The kernels of deferred scores against their reference, by Triton's interpreter and on a GPU."""

import os
import subprocess
import sys

import pytest
import torch
from torch.testing import assert_close

from evovit.fast import kernels

BATCH, PATCHES, HEADS, WIDTH, SCALE = 2, 11, 3, 4, 0.5
KEPT = 5


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def row(length, seed):
    """Class queries, and keys as a strided view, as in the model."""
    qkv = drawn(BATCH, length, 3, HEADS * WIDTH, seed=seed)
    return qkv[:, 0, 0].unflatten(1, (HEADS, WIDTH)), qkv[:, :, 1], SCALE


INTERPRETED = """
import torch
from tests.evovit.fast import test_kernels as made
from evovit.fast import kernels
for arguments in (*(made.arguments(*case) for case in made.CASES), *made.awkward()):
    for found, expected in zip(kernels._launch(*arguments), kernels.reference(*arguments)):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6, equal_nan=True)
"""
CASES = [  # blocks, with previous scores, of kept tokens only, tokens to keep, dtype
    (1, False, False, 5, torch.float32),
    (4, False, False, 5, torch.bfloat16),
    (3, True, True, 4, torch.float32),
    (2, True, False, 0, torch.float32),
    (0, True, False, 10, torch.float32),
]


def arguments(blocks, before, some, k, dtype):
    previous = drawn(BATCH, PATCHES, seed=50).abs().float() if before else None
    ranks = kernels.reference(previous, None, [], [], [], 1.0, 1.0, KEPT)[2] if some else None
    length = KEPT + 2 if some else 1 + PATCHES
    rows = [row(length, seed) for seed in range(blocks)]
    queries, keys = ([made[i].to(dtype) for made in rows] for i in range(2))
    alphas = [0.5, 0.25, 0.0, 0.75][:blocks]
    return previous, ranks, queries, keys, alphas, SCALE, 1 / HEADS, k


def awkward():
    """More patches than are compared at a time, with ties; not a number; other layouts; registers."""
    ties = drawn(BATCH, 70, seed=60).float().round(decimals=1)
    yield ties, None, [], [], [], 1.0, 1.0, 33
    lost = ties.clone()
    lost[0, 5] = lost[1] = float("nan")
    yield lost, None, [], [], [], 1.0, 1.0, 33
    yield ties.T.contiguous().T, None, [], [], [], 1.0, 1.0, 33
    previous, ranks, queries, keys, *rest = arguments(3, True, True, 4, torch.float32)
    keys[1] = keys[1].contiguous()
    yield previous, ranks.T.contiguous().T, queries, keys, *rest
    yield previous, ranks, queries, [k.mT.contiguous().mT for k in keys], *rest
    four_registers = [row(PATCHES + 5, seed) for seed in (70, 71)]
    queries, keys = ([made[i].float() for made in four_registers] for i in range(2))
    yield None, None, queries, keys, [0.5, 0.25], SCALE, 1 / HEADS, 4, 5


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu_the_kernels_compute_what_the_reference_does():
    for case in CASES:
        found = [
            [t.cuda() for t in given] if isinstance(given, list) and given and
            isinstance(given[0], torch.Tensor) else
            given.cuda() if isinstance(given, torch.Tensor) else given
            for given in arguments(*case)
        ]  # fmt: skip
        assert_close(kernels._launch(*found), kernels.reference(*found), rtol=1e-5, atol=1e-6)


@pytest.mark.integration
@pytest.mark.skipif(kernels.triton is None, reason="this torch comes without Triton")
def test_the_kernels_compute_what_the_reference_does():
    """In a process of its own: Triton decides at its import whether it interprets."""
    done = subprocess.run(
        [sys.executable, "-c", INTERPRETED], env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.skipif(kernels.triton is None, reason="this torch comes without Triton")
@pytest.mark.parametrize("capability", [70, 80, 90])
def test_the_kernels_can_be_built_for_gpus(capability):
    """For a V100, an A100 and an H100; no GPU is needed for that."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    target = GPUTarget("cuda", capability, 32)
    pointers = {"queries": "*bf16" if capability >= 80 else "*fp16", "rows": "*fp32"}
    names = [f"{kind}_{i}" for kind in ("query", "key") for i in range(4)]
    numbers = ("length", "query_batch", "query_head", "key_batch", "key_token")
    signature = dict.fromkeys(names, pointers["queries"]) | {"rows": "*fp32", "scale": "fp32"}
    signature |= dict.fromkeys(numbers, "i32")
    constants = {"WIDTH": 64, "WIDTH_BLOCK": 64, "BLOCK": 256}
    build(compile, ASTSource, kernels._class_rows, signature, constants, target)
    signature = dict.fromkeys(("previous", "rows", "scores", "weights"), "*fp32")
    signature |= dict.fromkeys(("ranks", "kept", "new_ranks"), "*i64")
    signature |= dict.fromkeys([f"alpha_{i}" for i in range(4)] + ["factor"], "fp32")
    signature |= {"k": "i32", "length": "i32"}
    constants = {"PATCHES": 196, "PREFIX": 1, "HEADS": 6, "COUNT": 4, "PREVIOUS": True, "RANKS": True}
    constants |= {"BLOCK": 256, "CHUNK": 32}
    build(compile, ASTSource, kernels._choose, signature, constants, target)


def build(compile, source, kernel, signature, constants, target):
    ordered = {name: signature.get(name, "constexpr") for name in kernel.arg_names}
    made = compile(source(fn=kernel, signature=ordered, constexprs=constants), target=target)
    assert "cubin" in made.asm
