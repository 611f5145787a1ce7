"""The algorithm of Evo-ViT as pure functions on tensors. Read this first.

Shapes: B images, N patch tokens, C channels, H heads, D = C / H. ``tokens`` is always one buffer
(B, 1 + N, C): the class token, then the patches in raster order. ``kept`` (B, k) holds the patch
positions (class token not counted) of the informative tokens, in no particular order: nothing
below depends on it, so no feature is ever sorted and no order has to be restored.

Slices begin with ``...`` and not with ``:``, which torch.export of 2.7 takes for a limit of the
batch size.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from . import backward


def class_attention(query: Tensor, keys: Tensor, scale: float) -> Tensor:
    """Attention of the class token to every token, Eq. 3, one row per head.

    It is float32 at least, also under autocast: bf16 scores tie at the cut.

    Args:
        query: class queries (B, H, D).
        keys: keys (B, L, C) of L tokens, class token first; a strided view will do.
        scale: factor on the products (the text writes 1 / sqrt(C) for one head; D ** -0.5 here).

    Returns:
        (B, H, L), each row sums to 1.
    """
    if backward.records_gradient(query, keys):
        return backward.ClassAttention.apply(query, keys, scale)
    return backward.class_row(query, keys, scale)


def attention_scores(attn: Tensor, q: Tensor, k: Tensor, scale: float, kind: str) -> Tensor:
    """Token scores of an attention matrix that was made anyway, (B, H, L) in float32 at least.

    Args:
        attn: (B, H, Lq, L), class query first.
        q, k: what it was made of, (B, H, Lq, D) and (B, H, L, D).
        kind: "class", the class token's row, or "column_mean", the mean over all queries.
    """
    if kind == "column_mean":
        return attn.to(torch.promote_types(attn.dtype, torch.float32)).mean(dim=2)
    if torch.finfo(q.dtype).bits < 32:  # the row of this matrix would tie at the cut
        return class_attention(q.select(2, 0), k.transpose(1, 2).flatten(2), scale)
    return attn.select(2, 0).clone()  # a view would keep the matrix alive


def patch_scores(row: Tensor, sums: bool, lets_gradients: bool) -> Tensor:
    """Scores (B, L - 1) of the patches from attention (B, H, L) to all tokens.

    Args:
        sums: over the heads, as the authors' code does; else their mean.
        lets_gradients: through the scores to what they were made of.
    """
    row = row[..., 1:].sum(dim=1) if sums else row[..., 1:].mean(dim=1)
    return row if lets_gradients else row.detach()


def evolve_scores(previous: Tensor | None, current: Tensor, alpha: float | Tensor) -> Tensor:
    """Global class attention, Eq. 4: ``alpha`` (the paper's alpha) weighs the previous score.

    Args:
        previous: (B, k), or None in the first block.
        current: class attention (B, k) of the same tokens.
        alpha: a number, or a tensor () where it is learned.
    """
    if previous is None or (not isinstance(alpha, Tensor) and alpha == 0):
        return current
    if isinstance(alpha, Tensor):
        alpha = alpha.to(current.dtype)
    return torch.lerp(current, previous, alpha)


def subsample_scores(scores: Tensor, grid: tuple[int, int], keeps_tokens: bool) -> Tensor:
    """Scores of the tokens that remain when 2 x 2 windows become one token (supplement).

    Args:
        scores: (B, H * W) of the grid (H, W) in raster order.
        keeps_tokens: the window's first token survives (a stride) and keeps its own score; else the
            window was merged (average, convolution) and its highest score counts.

    Returns:
        (B, ceil(H / 2) * ceil(W / 2)).
    """
    scores = scores.reshape(scores.shape[0], *grid)
    if keeps_tokens:
        return scores[..., ::2, ::2].flatten(1)
    return F.max_pool2d(scores.unsqueeze(1), 2, ceil_mode=True).flatten(1)


def settled(scores: Tensor) -> Tensor:
    """Scores as a tensor, which other forms of these functions may put off."""
    return scores


def select(scores: Tensor, k: int) -> Tensor:
    """Positions (B, k) of the k highest of the scores (B, N), unsorted."""
    return torch.topk(scores.detach(), k, dim=1, sorted=False).indices


def selected_scores(scores: Tensor, kept: Tensor) -> Tensor:
    """The scores (B, N) that were selected by."""
    return scores


def positions(kept: Tensor) -> Tensor:
    """Those of a selection, (B, k)."""
    return kept


def token_rows(tokens: Tensor, kept: Tensor) -> Tensor:
    """Rows (B * (1 + k),) of the class token and the kept patches in tokens.flatten(0, 1).

    ``index_select`` and ``index_copy`` on whole rows are several times faster than ``gather`` and
    ``scatter`` with an index expanded to C.
    """
    batch, length, _ = tokens.shape
    first = torch.arange(batch, device=kept.device).unsqueeze(1) * length
    return torch.cat((first, kept + (first + 1)), dim=1).flatten()


def take_tokens(tokens: Tensor, kept: Tensor) -> Tensor:
    """Class token and informative tokens (B, 1 + k, C) of the buffer (B, 1 + N, C)."""
    batch, _, channels = tokens.shape
    rows = token_rows(tokens, kept)
    return tokens.flatten(0, 1).index_select(0, rows).reshape(batch, 1 + kept.shape[1], channels)


def placeholder_weights(scores: Tensor, kept: Tensor) -> Tensor:
    """Weights (B, N) of Eq. 5: the placeholders' scores over their sum, 0 for the kept tokens."""
    weights = scores.scatter(1, kept, 0.0)
    # Attention rows are positive, so only underflow can empty the sum; then all weights are 0.
    return weights / weights.sum(dim=1, keepdim=True).clamp_min(torch.finfo(weights.dtype).tiny)


def representative_token(tokens: Tensor, weights: Tensor) -> Tensor:
    """x_rep (B, 1, C) = weighted sum of the placeholders in the buffer (B, 1 + N, C), Eq. 5."""
    # of the whole buffer, the class token weighing 0: in bf16 a slice of it takes a CPU longer
    weights = F.pad(weights.to(tokens.dtype), (1, 0)).unsqueeze(1)
    return torch.bmm(weights, tokens)


def put_back(tokens: Tensor, kept: Tensor, slow: Tensor, residual: Tensor | None) -> Tensor:
    """Buffer (B, 1 + N, C) after slow-fast updating, Eqs. 6-7.

    Slowly updated tokens replace their old values; every placeholder receives the summed residuals
    of the representative token (phi_exp, a copy). Adding them to all rows first and overwriting
    the slow ones after needs no list of the placeholders.

    Args:
        tokens: the buffer before the update.
        kept: positions of the informative tokens.
        slow: updated class and informative tokens (B, 1 + k, C).
        residual: x_rep^(1) + x_rep^(2), summed over the blocks, (B, 1, C); None: no fast update.
    """
    rows, slow = token_rows(tokens, kept), slow.flatten(0, 1)
    if backward.records_gradient(tokens, slow, residual):
        return backward.ReplaceRows.apply(tokens, rows, slow, residual)
    return backward.replaced_rows(tokens, rows, slow, residual)


def evolve_kept(scores: Tensor | None, before: Tensor, kept: Tensor, row: Tensor, alpha: float | Tensor) -> Tensor:
    """Eq. 4 for the kept tokens (B, k) alone, whose scores are those ``before`` (B, N) at first; of
    the row (B, L - 1) theirs come first."""
    scores = before.gather(1, kept) if scores is None else scores
    return evolve_scores(scores, row[..., : kept.shape[1]], alpha)


def kept_scores(scores: Tensor, kept: Tensor) -> Tensor:
    """Scores (B, k) of the kept tokens, from what ``evolve_kept`` returned."""
    return scores


def put_back_scores(scores: Tensor, kept: Tensor, updated: Tensor) -> Tensor:
    """Scores (B, N) in which the kept tokens have their ``updated`` ones (B, k)."""
    return scores.scatter(1, kept, updated)
