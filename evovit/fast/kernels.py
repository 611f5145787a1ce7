"""Class attention of several blocks, the scores it evolves to, and the selection, in two launches.

``choose`` is one operation to torch.compile. On a GPU it runs the two Triton kernels below, and
anywhere else ``reference``, which says what they compute. Forward only.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # torch for CPUs comes without
    triton = None

MOST_BLOCKS = 4  # in one launch
CHUNK = 32  # scores that a program compares its own with at a time

Chosen = tuple[Tensor, Tensor, Tensor, Tensor]


@torch.library.custom_op("evovit::choose", mutates_args=())
def choose(
    previous: Tensor | None,
    ranks: Tensor | None,
    queries: Sequence[Tensor],
    keys: Sequence[Tensor],
    alphas: Sequence[float],
    scale: float,
    factor: float,
    k: int,
    prefix: int = 1,
) -> Chosen:
    """Evolve scores by the class attention of blocks (Eqs. 3 and 4), then select k tokens.

    Args:
        previous: scores (B, N) before these blocks; None at the first one.
        ranks: (B, N) the index of a patch among the blocks' patch tokens; -1 for a patch that is not
            among them and keeps its score; None: all are, in order.
        queries: of each block the class token's (B, H, D).
        keys: of each block (B, L, C), with ``prefix`` tokens first.
        alphas: alpha of Eq. 4 for each block.
        scale: factor on the products of queries and keys, of all blocks.
        factor: on the sum over the heads, of all blocks; 1 / H for their mean.
        k: tokens to keep; 0 only evolves.
        prefix: number of tokens before the patches.

    Returns:
        scores (B, N) in float32 at least; kept positions (B, k), highest first; the index (B, N) of each
        patch in them, -1 for placeholders; the placeholders' weights (B, N) of Eq. 5, 0 for the kept ones.
    """
    first = _first(previous, queries)
    if triton is None or not first.is_cuda or first.dtype == torch.float64:
        return reference(previous, ranks, queries, keys, alphas, scale, factor, k, prefix)
    with torch.cuda.device(first.device):
        return _launch(previous, ranks, queries, keys, alphas, scale, factor, k, prefix)


def _first(previous: Tensor | None, queries: Sequence[Tensor]) -> Tensor:
    return queries[0] if previous is None else previous


def _dtype(first: Tensor) -> torch.dtype:
    """Return the type of scores: in bf16 they would tie at the cut."""
    return torch.promote_types(first.dtype, torch.float32)


def _num_patches(previous: Tensor | None, keys: Sequence[Tensor], prefix: int) -> int:
    return keys[0].shape[1] - prefix if previous is None else previous.shape[1]


@choose.register_fake
def _(previous, ranks, queries, keys, alphas, scale, factor, k, prefix=1) -> Chosen:
    first = _first(previous, queries)
    return _outputs(first, _num_patches(previous, keys, prefix), k)


def _outputs(like: Tensor, num_patches: int, k: int) -> Chosen:
    def empty(width: int, dtype: torch.dtype) -> Tensor:
        return like.new_empty((like.shape[0], width), dtype=dtype)

    scores, weights = (empty(num_patches, _dtype(like)) for _ in range(2))
    return scores, empty(k, torch.int64), empty(num_patches, torch.int64), weights


def reference(previous, ranks, queries, keys, alphas, scale, factor, k, prefix=1) -> Chosen:
    """Compute with torch's operations what the kernels compute."""
    dtype = _dtype(_first(previous, queries))
    scores = None if previous is None else previous.to(dtype)
    for query, key, alpha in zip(queries, keys, alphas, strict=True):
        heads = key.to(dtype).unflatten(2, query.shape[1:])
        products = (query.to(dtype) * scale).unsqueeze(1) * heads
        row = products.sum(dim=3).softmax(dim=1)[:, prefix:].sum(dim=2) * factor
        if ranks is not None:
            row = torch.where(ranks >= 0, row.gather(1, ranks.clamp_min(0)), scores)
        scores = row if scores is None else torch.lerp(row, scores, alpha)
    scores = scores.clone()
    rank = scores.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    kept = rank.argsort(dim=1)[:, :k].contiguous()
    weights = torch.where(rank < k, 0.0, scores)
    weights /= weights.sum(dim=1, keepdim=True).clamp_min(torch.finfo(dtype).tiny)
    return scores, kept, torch.where(rank < k, rank, -1), weights


def _in_one_layout(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """Return the tensors in one layout, as the kernel takes one for all blocks; in a model they are anyway."""
    if all(t.stride() == tensors[0].stride() and t.stride(-1) == 1 for t in tensors):
        return tensors
    return [t.contiguous() for t in tensors]


def _warps(block: int) -> int:
    """Return the number of warps of a program that holds a row of ``block`` tokens."""
    return min(16, max(4, block // 64))


def _launch(previous, ranks, queries, keys, alphas, scale, factor, k, prefix=1) -> Chosen:
    previous = None if previous is None else previous.contiguous()
    ranks = None if ranks is None else ranks.contiguous()
    queries = _in_one_layout(queries)
    keys = _in_one_layout(keys)
    count = len(queries)
    first = _first(previous, queries)
    batch = len(first)
    num_patches = _num_patches(previous, keys, prefix)
    scores, kept, new_ranks, weights = _outputs(first, num_patches, k)
    rows, heads, length = scores, 1, 1  # never read where there are no blocks
    if count:
        (_, heads, width), length = queries[0].shape, keys[0].shape[1]
        rows = first.new_empty((count, batch, heads, length), dtype=torch.float32)
        block = triton.next_power_of_2(length)
        spare = MOST_BLOCKS - count
        query, key = queries[0], keys[0]
        _class_rows[(batch, heads, count)](
            *queries, *[query] * spare, *keys, *[key] * spare, rows, scale, length,
            query.stride(0), query.stride(1), key.stride(0), key.stride(1),
            WIDTH=width, WIDTH_BLOCK=triton.next_power_of_2(width), BLOCK=block,
            num_warps=_warps(block),
        )  # fmt: skip
    block = triton.next_power_of_2(num_patches)
    alphas = [*alphas, *[0.0] * (MOST_BLOCKS - count)]
    _choose[(batch,)](
        scores if previous is None else previous, kept if ranks is None else ranks, rows,
        scores, kept, new_ranks, weights, *alphas, factor, k, length,
        PATCHES=num_patches, PREFIX=prefix, HEADS=heads, COUNT=count, PREVIOUS=previous is not None,
        RANKS=ranks is not None, BLOCK=block, CHUNK=CHUNK, num_warps=_warps(block),
    )  # fmt: skip
    return scores, kept, new_ranks, weights


if triton is not None:

    @triton.jit
    def _class_rows(
        query_0, query_1, query_2, query_3, key_0, key_1, key_2, key_3, rows, scale, length,
        query_batch, query_head, key_batch, key_token,
        WIDTH: tl.constexpr, WIDTH_BLOCK: tl.constexpr, BLOCK: tl.constexpr,
    ):  # fmt: skip
        """Eq. 3 of one image and head in one block: (count, B, H, L)."""
        image, head, which = tl.program_id(0), tl.program_id(1), tl.program_id(2)
        query, key = query_0, key_0
        if which == 1:
            query, key = query_1, key_1
        elif which == 2:
            query, key = query_2, key_2
        elif which == 3:
            query, key = query_3, key_3
        channel, token = tl.arange(0, WIDTH_BLOCK), tl.arange(0, BLOCK)
        query += image.to(tl.int64) * query_batch + head * query_head
        q = tl.load(query + channel, mask=channel < WIDTH, other=0.0).to(tl.float32) * scale
        key += image.to(tl.int64) * key_batch + head * WIDTH
        inside = (token[:, None] < length) & (channel[None, :] < WIDTH)
        k = tl.load(key + token[:, None] * key_token + channel[None, :], mask=inside, other=0.0)
        product = tl.sum(k.to(tl.float32) * q[None, :], axis=1)
        product = tl.where(token < length, product, float("-inf"))
        power = tl.exp(product - tl.max(product, axis=0))
        row = ((which * tl.num_programs(0) + image) * tl.num_programs(1) + head) * length
        tl.store(rows + row + token, power / tl.sum(power, axis=0), mask=token < length)

    @triton.jit
    def _choose(
        previous, ranks, rows, scores, kept, new_ranks, weights,
        alpha_0, alpha_1, alpha_2, alpha_3, factor, k, length,
        PATCHES: tl.constexpr, PREFIX: tl.constexpr, HEADS: tl.constexpr, COUNT: tl.constexpr,
        PREVIOUS: tl.constexpr, RANKS: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr,
    ):  # fmt: skip
        """Eq. 4, ranks and the weights of Eq. 5 of one image."""
        image, patch = tl.program_id(0), tl.arange(0, BLOCK)
        inside = patch < PATCHES
        first = image * PATCHES
        token = patch
        if RANKS:
            token = tl.load(ranks + first + patch, mask=inside, other=-1).to(tl.int32)
        scored = inside & (token >= 0)
        score = tl.zeros([BLOCK], tl.float32)
        if PREVIOUS:
            score = tl.load(previous + first + patch, mask=inside, other=0.0).to(tl.float32)
        for block in tl.static_range(COUNT):
            row = tl.zeros([BLOCK], tl.float32)
            start = (block * tl.num_programs(0) + image) * HEADS * length + PREFIX
            for head in tl.static_range(HEADS):
                row += tl.load(rows + start + head * length + token, mask=scored, other=0.0)
            row *= factor
            alpha = alpha_0
            if block == 1:
                alpha = alpha_1
            elif block == 2:
                alpha = alpha_2
            elif block == 3:
                alpha = alpha_3
            if PREVIOUS or block > 0:
                score = tl.where(scored, row + alpha * (score - row), score)
            else:
                score = row
        tl.store(scores + first + patch, score, mask=inside)
        tl.debug_barrier()  # other warps' scores are read next
        # as torch's top-k has it, what is not a number is higher than all
        order = tl.where(score == score, score, float("inf"))
        rank = tl.zeros([BLOCK], tl.int32)
        for start in range(0, PATCHES, CHUNK):
            other = start + tl.arange(0, CHUNK)
            others_score = tl.load(scores + first + other, mask=other < PATCHES, other=float("-inf"))
            others_score = tl.where(others_score == others_score, others_score, float("inf"))
            ahead = others_score[None, :] > order[:, None]
            tie = (others_score[None, :] == order[:, None]) & (other[None, :] < patch[:, None])
            rank += tl.sum((ahead | tie).to(tl.int32), axis=1)
        informative = inside & (rank < k)
        tl.store(kept + image * k + rank, patch.to(tl.int64), mask=informative)
        tl.store(new_ranks + first + patch, tl.where(informative, rank, -1).to(tl.int64), mask=inside)
        rest = tl.where(inside & (rank >= k), score, 0.0)
        total = tl.sum(rest, axis=0)
        weight = rest / tl.where(total < 1.1754943508222875e-38, 1.1754943508222875e-38, total)
        tl.store(weights + first + patch, weight, mask=inside)
