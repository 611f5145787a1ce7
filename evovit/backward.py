"""Equations whose backward passes are written out, as torch's own keep or compute more.

Shapes as in ``tokens``.
"""

import contextlib

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad


def class_row(query: Tensor, keys: Tensor, scale: float) -> Tensor:
    """``tokens.class_attention``, Eq. 3, with the backward pass that torch makes of it.

    One product with a head-block-diagonal class query: a 4-D product would copy the strided keys.
    """
    dtype = torch.promote_types(keys.dtype, torch.float32)
    heads = query.shape[1]
    diagonal = torch.eye(heads, dtype=dtype, device=query.device).unsqueeze(2) * scale
    blocks = (query.to(dtype).unsqueeze(1) * diagonal).flatten(2)  # (B, H, C)
    with _as_given(keys):
        return torch.bmm(blocks, keys.to(dtype).transpose(1, 2)).softmax(dim=2)


def _as_given(keys: Tensor) -> contextlib.AbstractContextManager:
    """A context without autocast; none where there is no autocast, as exporters know none."""
    device = "cpu" if keys.is_meta else keys.device.type
    if not torch.is_autocast_enabled(device):
        return contextlib.nullcontext()
    return torch.autocast(device, enabled=False)


def records_gradient(*inputs: Tensor | None) -> bool:
    """Whether autograd records what is computed from the inputs, for the functions below.

    Otherwise torch's own operations are to be used: nothing else can be exported, and only they
    have derivatives in forward mode (torch.func.hessian).
    """
    if torch.jit.is_tracing() or torch.compiler.is_exporting() or not torch.is_grad_enabled():
        return False
    if not torch.compiler.is_compiling() and forward_ad._current_level >= 0:
        return False
    return any(tensor is not None and tensor.requires_grad for tensor in inputs)


class ClassAttention(Function):
    """``class_row``. Torch would keep each block's keys once more, in float32, where they are in 16
    bits; and each key's gradient would be a product with all H rows of the block-diagonal query,
    of which one is not zero."""

    generate_vmap_rule = True

    @staticmethod
    def forward(query: Tensor, keys: Tensor, scale: float) -> Tensor:
        return class_row(query, keys, scale)

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: Tensor) -> None:
        query, keys, ctx.scale = inputs
        ctx.save_for_backward(query, keys, output)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple:
        query, keys, row = ctx.saved_tensors
        # of row and then of the products with the keys, (B, H, L)
        grad = row * (grad - (grad * row).sum(dim=2, keepdim=True)) * ctx.scale
        grad = grad.to(keys.dtype)
        with _as_given(keys):
            by_head = torch.bmm(grad, keys).unflatten(2, query.shape[1:])  # (B, H, H, D)
        grad_keys = grad.transpose(1, 2).unsqueeze(3) * query.unsqueeze(1)  # (B, L, H, D)
        return by_head.diagonal(dim1=1, dim2=2).transpose(1, 2), grad_keys.flatten(2), None


def replaced_rows(tokens: Tensor, rows: Tensor, slow: Tensor, residual: Tensor | None) -> Tensor:
    """Tokens (B, L, C) with the residual (B, 1, C) added, but ``slow`` (B * n, C) in the rows
    (B * n,) of tokens.flatten(0, 1)."""
    # Before, not after: torch 2.11 compiles a gradient of zero where an operation hands on the
    # result as it is (no-op ``contiguous``, any in place on ``out``; pytorch/pytorch#180642).
    tokens = tokens.contiguous()
    if _is_captured():
        out = tokens if residual is None else tokens + residual
        return out.flatten(0, 1).index_copy(0, rows, slow.to(out.dtype)).reshape(out.shape)
    out = tokens.clone() if residual is None else tokens + residual
    out.view(-1, out.shape[2]).index_copy_(0, rows, slow.to(out.dtype))
    return out


def _is_captured() -> bool:
    """Whether a compiler, an exporter or a function transform runs the code instead of torch.

    They get the form without writing through a view: torch 2.7's ONNX exporter loses such a write,
    and vmap refuses one of a batched tensor into one that is not.
    """
    return (
        torch.compiler.is_compiling()
        or torch.compiler.is_exporting()
        or torch.jit.is_tracing()
        or torch._C._are_functorch_transforms_active()
    )


class ReplaceRows(Function):
    """``replaced_rows``. It keeps the rows, while torch's index_copy keeps all that it copies."""

    generate_vmap_rule = True

    @staticmethod
    def forward(tokens: Tensor, rows: Tensor, slow: Tensor, residual: Tensor | None) -> Tensor:
        return replaced_rows(tokens, rows, slow, residual)

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: Tensor) -> None:
        _, rows, _, residual = inputs
        ctx.save_for_backward(rows)
        ctx.fast = residual is not None

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple:
        (rows,) = ctx.saved_tensors
        flat = grad.flatten(0, 1)
        rest = flat.index_fill(0, rows, 0.0).view_as(grad)
        fast = rest.sum(dim=1, keepdim=True) if ctx.fast else None
        return rest, None, flat.index_select(0, rows), fast
