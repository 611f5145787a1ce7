"""Equations of ``tokens`` whose backward passes are written out, because torch's own keep or compute more.

Shapes as in ``tokens``.
"""

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from .. import tokens as equations


def class_attention(query: Tensor, keys: Tensor, scale: float) -> Tensor:
    """Return ``tokens.class_attention``, Eq. 3."""
    if records_gradient(query, keys):
        return ClassAttention.apply(query, keys, scale)
    return equations.class_attention(query, keys, scale)


def put_back(tokens: Tensor, kept: Tensor, slow: Tensor, residual: Tensor | None, prefix: int = 1) -> Tensor:
    """Return ``tokens.put_back``, Eqs. 6-7."""
    rows = equations.token_rows(tokens, kept, prefix)
    if records_gradient(tokens, slow, residual):
        return PutBack.apply(tokens, rows, slow, residual)
    return _put_back(tokens, rows, slow, residual)


def records_gradient(*inputs: Tensor | None) -> bool:
    """Return whether autograd records what the functions of this file compute from the inputs.

    Otherwise torch's own operations are to be used: nothing else can be exported, and only they
    have derivatives in forward mode (torch.func.hessian).
    """
    if torch.jit.is_tracing() or torch.compiler.is_exporting() or not torch.is_grad_enabled():
        return False
    if not torch.compiler.is_compiling() and forward_ad._current_level >= 0:
        return False
    return any(tensor is not None and tensor.requires_grad for tensor in inputs)


class ClassAttention(Function):
    """``tokens.class_attention``.

    Torch would keep the keys of each block once more, in float32, where they are in 16 bits; and it would
    compute the gradient of a key as a product with all H rows of the block-diagonal query, although only
    one of them is not zero.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(query: Tensor, keys: Tensor, scale: float) -> Tensor:
        return equations.class_attention(query, keys, scale)

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: Tensor) -> None:
        query, keys, ctx.scale = inputs
        ctx.save_for_backward(query, keys, output)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple:
        query, keys, row = ctx.saved_tensors
        # the gradient of the products with the keys, (B, H, L), from that of the softmax
        grad = row * (grad - (grad * row).sum(dim=2, keepdim=True)) * ctx.scale
        grad = grad.to(keys.dtype)
        with equations.without_autocast(keys):
            by_head = torch.bmm(grad, keys).unflatten(2, query.shape[1:])  # (B, H, H, D)
        grad_keys = grad.transpose(1, 2).unsqueeze(3) * query.unsqueeze(1)  # (B, L, H, D)
        return by_head.diagonal(dim1=1, dim2=2).transpose(1, 2), grad_keys.flatten(2), None


class PutBack(Function):
    """``tokens.put_back``. It keeps the rows, while torch's index_copy keeps all that it copies."""

    generate_vmap_rule = True

    @staticmethod
    def forward(tokens: Tensor, rows: Tensor, slow: Tensor, residual: Tensor | None) -> Tensor:
        return _put_back(tokens, rows, slow, residual)

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: Tensor) -> None:
        _, rows, slow, residual = inputs
        ctx.save_for_backward(rows)
        ctx.num_slow = slow.shape[1]
        ctx.fast = residual is not None

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple:
        (rows,) = ctx.saved_tensors
        batch, _, channels = grad.shape
        of_slow = grad.flatten(0, 1).index_select(0, rows).reshape(batch, ctx.num_slow, channels)
        of_tokens = grad.flatten(0, 1).index_fill(0, rows, 0.0).view_as(grad)
        of_residual = of_tokens.sum(dim=1, keepdim=True) if ctx.fast else None
        return of_tokens, None, of_slow, of_residual


def _put_back(tokens: Tensor, rows: Tensor, slow: Tensor, residual: Tensor | None) -> Tensor:
    """Return ``tokens.put_back`` for the rows of ``tokens.token_rows``; in torch itself with one copy less."""
    # Before, not after: torch 2.11 compiles a gradient of zero where an operation hands on the
    # result as it is (no-op ``contiguous``, any in place on ``updated``; pytorch/pytorch#180642).
    tokens = tokens.contiguous()
    if _is_captured():
        updated = tokens if residual is None else tokens + residual
        return equations.replace_rows(updated, rows, slow)
    updated = tokens.clone() if residual is None else tokens + residual
    updated.view(-1, updated.shape[2]).index_copy_(0, rows, slow.flatten(0, 1).to(updated.dtype))
    return updated


def _is_captured() -> bool:
    """Return whether a compiler, an exporter or a function transform runs the code instead of torch.

    They get the form without writing through a view: torch 2.7's ONNX exporter loses such a write,
    and vmap refuses one of a batched tensor into one that is not.
    """
    return (
        torch.compiler.is_compiling()
        or torch.compiler.is_exporting()
        or torch.jit.is_tracing()
        or torch._C._are_functorch_transforms_active()
    )
