"""The algorithm of Evo-ViT, Eqs. 3-7, as functions of tensors. Read this first.

Shapes: B images, N patch tokens, C channels, H heads, D = C / H. ``tokens`` is one buffer (B, 1 + N, C):
the class token, then the patches in raster order. ``kept`` (B, k) holds the positions of the informative
patches (the class token is not counted) in no particular order: nothing below depends on it, so no feature
is ever sorted and no order has to be restored.

A host may have register tokens between the class token and the patches. They are treated as the class token
is, and never ranked: ``prefix`` is the number of tokens before the patches, and where it is given, read
1 + N and 1 + k as prefix + N and prefix + k.

Slices begin with ``...`` and not with ``:``, which torch.export of 2.7 takes for a limit of the batch size.
"""

import contextlib

import torch
import torch.nn.functional as F
from torch import Tensor


def class_attention(query: Tensor, keys: Tensor, scale: float) -> Tensor:
    """Return the attention of the class token to every token, Eq. 3, one row for each head.

    It is float32 at least, also under autocast: scores in bf16 would tie at the cut. One product with a
    head-block-diagonal query computes it, because a product of four dimensions would copy strided keys.

    Args:
        query: class queries (B, H, D).
        keys: keys (B, L, C) of L tokens, class token first; a strided view will do.
        scale: factor on the products (the text writes 1 / sqrt(C) for one head; D ** -0.5 here).

    Returns:
        (B, H, L); each row sums to 1.
    """
    dtype = torch.promote_types(keys.dtype, torch.float32)
    heads = query.shape[1]
    diagonal = torch.eye(heads, dtype=dtype, device=query.device).unsqueeze(2) * scale
    blocks = (query.to(dtype).unsqueeze(1) * diagonal).flatten(2)  # (B, H, C)
    with without_autocast(keys):
        return torch.bmm(blocks, keys.to(dtype).transpose(1, 2)).softmax(dim=2)


def without_autocast(x: Tensor) -> contextlib.AbstractContextManager:
    """Return a context without autocast; an empty one where there is no autocast, since exporters know none."""
    device = "cpu" if x.is_meta else x.device.type
    if not torch.is_autocast_enabled(device):
        return contextlib.nullcontext()
    return torch.autocast(device, enabled=False)


def evolve_scores(previous: Tensor | None, current: Tensor, alpha: float | Tensor) -> Tensor:
    """Return the global class attention, Eq. 4: alpha * previous + (1 - alpha) * current.

    Args:
        previous: (B, n), or None in the first block.
        current: class attention (B, n) of the same tokens.
        alpha: a number, or a tensor () where it is learned.
    """
    if previous is None or (not isinstance(alpha, Tensor) and alpha == 0):
        return current
    if isinstance(alpha, Tensor):
        alpha = alpha.to(current.dtype)
    return torch.lerp(current, previous, alpha)


def subsample_scores(scores: Tensor, grid: tuple[int, int], keeps_tokens: bool) -> Tensor:
    """Return the scores of the tokens that remain when 2 x 2 windows become one token (supplement).

    Args:
        scores: (B, H * W) of the grid (H, W) in raster order.
        keeps_tokens: the window's first token survives (a stride) and keeps its own score; otherwise
            the window was merged (average, convolution) and its highest score counts.

    Returns:
        (B, ceil(H / 2) * ceil(W / 2)).
    """
    scores = scores.reshape(scores.shape[0], *grid)
    if keeps_tokens:
        return scores[..., ::2, ::2].flatten(1)
    return F.max_pool2d(scores.unsqueeze(1), 2, ceil_mode=True).flatten(1)


def select(scores: Tensor, k: int) -> Tensor:
    """Return the positions (B, k) of the k highest scores (B, N), unsorted."""
    return torch.topk(scores.detach(), k, dim=1, sorted=False).indices


def token_rows(tokens: Tensor, kept: Tensor, prefix: int = 1) -> Tensor:
    """Return the rows (B * (1 + k),) of the class token and the kept patches in tokens.flatten(0, 1).

    ``index_select`` and ``index_copy`` of whole rows are several times faster than ``gather`` and
    ``scatter`` with an index expanded to C.
    """
    batch, length, _ = tokens.shape
    class_row = torch.arange(batch, device=kept.device).unsqueeze(1) * length
    first_patch_row = class_row + prefix
    prefix_rows = class_row if prefix == 1 else class_row + torch.arange(prefix, device=kept.device)
    return torch.cat((prefix_rows, first_patch_row + kept), dim=1).flatten()


def take_tokens(tokens: Tensor, kept: Tensor, prefix: int = 1) -> Tensor:
    """Return the class token and the informative tokens (B, 1 + k, C) of the buffer (B, 1 + N, C)."""
    batch, _, channels = tokens.shape
    rows = token_rows(tokens, kept, prefix)
    return tokens.flatten(0, 1).index_select(0, rows).reshape(batch, prefix + kept.shape[1], channels)


def replace_rows(tokens: Tensor, rows: Tensor, new: Tensor) -> Tensor:
    """Return tokens (B, L, C) whose ``rows`` (B * n,) in tokens.flatten(0, 1) are ``new`` (B, n, C)."""
    new = new.flatten(0, 1).to(tokens.dtype)
    return tokens.flatten(0, 1).index_copy(0, rows, new).reshape(tokens.shape)


def placeholder_weights(scores: Tensor, kept: Tensor) -> Tensor:
    """Return the weights (B, N) of Eq. 5: the placeholders' scores over their sum, 0 for kept tokens."""
    weights = scores.scatter(1, kept, 0.0)
    # Attention is positive, so only underflow can make the sum 0; then all weights are 0.
    return weights / weights.sum(dim=1, keepdim=True).clamp_min(torch.finfo(weights.dtype).tiny)


def representative_token(tokens: Tensor, weights: Tensor, prefix: int = 1) -> Tensor:
    """Return x_rep (B, 1, C), the weighted sum of the placeholders in the buffer (B, 1 + N, C), Eq. 5."""
    # The class token takes part with weight 0: a slice without it takes a CPU longer in bf16.
    weights = F.pad(weights.to(tokens.dtype), (prefix, 0)).unsqueeze(1)
    return torch.bmm(weights, tokens)


def put_back(tokens: Tensor, kept: Tensor, slow: Tensor, residual: Tensor | None, prefix: int = 1) -> Tensor:
    """Return the buffer (B, 1 + N, C) after slow-fast updating, Eqs. 6-7.

    Slowly updated tokens replace their old values; every placeholder receives the residuals of the
    representative token (phi_exp, a copy). These are added to all rows before the slow ones are
    overwritten, so that no list of the placeholders is needed.

    Args:
        tokens: the buffer before the update.
        kept: positions (B, k) of the informative tokens.
        slow: updated class and informative tokens (B, 1 + k, C).
        residual: x_rep^(1) + x_rep^(2), summed over the blocks, (B, 1, C); None: no fast update.
    """
    updated = tokens if residual is None else tokens + residual
    return replace_rows(updated, token_rows(tokens, kept, prefix), slow)
