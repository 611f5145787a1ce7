"""ToMe (Bolya et al. 2023, Token Merging: Your ViT But Faster, ICLR), registered as ``tome_deit_*``.

Between attention and MLP of each block, the r patches that resemble another one most become one token with it, so
that no patch is dropped and nothing has to be trained. Two sets of alternate tokens are matched (bipartite soft
matching): each token of the first set finds the most similar of the second by the cosine of their keys, and the r best
of these pairs merge. A merged token is the mean of its patches, and attention to it counts once per patch
(proportional attention: the logarithm of its size is added to the logits).

Written from the paper. Chosen where it leaves something open, so that the authors' reference numbers come out:
the keys are averaged over the heads; the tokens at even places look for partners among those at odd places; after a
merging the even ones that are left come first, in their order, then all odd ones; the class token neither merges nor
is merged into. A block merges at most as many tokens as its first set has. The matching is computed in float32 at
least and has no gradient.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timm.layers import Attention
from timm.models import generate_default_cfgs, register_model
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from evovit.tokens import without_autocast

from .deit import BASE, SMALL, TINY, create_deit, pretrained_cfg
from .dropping import AnyHostTransformer, FeatureMaps
from .weights import complete_dense


class Matching(NamedTuple):
    """Which of L tokens merge; places are counted from 0, and the patches' are the last."""

    kept: Tensor  # (B, L - r) places of the tokens that stay, in their new order
    merged: Tensor  # (B, r) places of the tokens that merge into one of them
    into: Tensor  # (B, r) new places of the tokens that these merge into


def match(keys: Tensor, r: int, prefix: int = 1) -> Matching:
    """Match the patches whose keys, among (B, L, d) of all tokens, are most similar.

    Behind a class token the places of the first set are 2, 4, 6, ..., those of the second 1, 3, 5, ...

    Args:
        r: how many patches merge into others, 1 to (L - P) // 2, the size of the first set.
        prefix: number P of tokens before the patches.
    """
    with without_autocast(keys):
        keys = F.normalize(keys, dim=2)
        similarity = torch.bmm(keys[..., prefix + 1 :: 2, :], keys[..., prefix::2, :].transpose(1, 2))
    best, partner = similarity.max(dim=2)
    order = best.argsort(dim=1, descending=True)
    merged = order[..., :r]
    unmerged = order[..., r:].sort(dim=1).values
    first = 2 * unmerged + (prefix + 1)  # one addition of tensors
    if prefix == 1:
        first = F.pad(first, (1, 0))  # the class token's place is 0
    else:
        places = torch.arange(prefix, device=keys.device).expand(first.shape[0], -1)
        first = torch.cat((places, first), dim=1)
    second = first[..., :1] + torch.arange(prefix, keys.shape[1], 2, device=keys.device)
    return Matching(
        kept=torch.cat((first, second), dim=1),
        merged=2 * merged + (prefix + 1),
        into=partner.gather(1, merged) + first.shape[1],
    )


def rows_at(places: Tensor, length: int) -> Tensor:
    """Return the rows (B * n,) in tokens.flatten(0, 1) of the places (B, n) among ``length`` tokens."""
    class_row = torch.arange(places.shape[0], device=places.device).unsqueeze(1) * length
    return (class_row + places).flatten()


def merge_tokens(tokens: Tensor, sizes: Tensor | None, matching: Matching) -> tuple[Tensor, Tensor]:
    """Return the means (B, L - r, C) of tokens (B, L, C) that merge, by their sizes, and the new sizes (B, L - r).

    Only the rows that merge are computed: a token moves towards another by the share of the new size which
    the other brings. The other tokens stay exactly as they are.

    Args:
        sizes: number of initial tokens in each token (B, L); None: 1 in each.
    """
    batch, length, channels = tokens.shape
    if sizes is None:
        sizes = tokens.new_ones(batch, length, dtype=torch.promote_types(tokens.dtype, torch.float32))
    brought = sizes.gather(1, matching.merged)
    sizes = sizes.gather(1, matching.kept).scatter_add(1, matching.into, brought)
    share = brought / sizes.gather(1, matching.into)

    rows = tokens.flatten(0, 1)
    kept = rows.index_select(0, rows_at(matching.kept, length))
    into = rows_at(matching.into, matching.kept.shape[1])
    change = rows.index_select(0, rows_at(matching.merged, length)) - kept.index_select(0, into)
    change = change * share.flatten().unsqueeze(1).to(tokens.dtype)
    # not index_add, which older ONNX exporters get wrong where several tokens merge into one
    kept = kept.scatter_add_(0, into.unsqueeze(1).expand(-1, channels), change)
    return kept.reshape(batch, matching.kept.shape[1], channels), sizes


def regroup(groups: Tensor | None, matching: Matching) -> Tensor:
    """Return the places (B, P + N), after a merging, of the tokens that hold the initial tokens.

    Args:
        groups: the same before the merging; None: each initial token is at its own place.
    """
    kept, merged, into = matching
    new = torch.arange(kept.shape[1], device=kept.device).expand(kept.shape[0], -1)
    places = kept.new_zeros(kept.shape[0], kept.shape[1] + merged.shape[1])
    places = places.scatter(1, kept, new).scatter(1, merged, into)
    return places if groups is None else places.gather(1, groups)


class KeyAttention(Attention):
    """timm's Attention that can also return what its keys say of the tokens."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal=False, return_keys: bool = False) -> Any:
        """(B, L, C) -> (B, L, C); with ``return_keys`` also the keys (B, L, d), averaged over the heads.

        Args:
            attn_mask: added to the logits (B, H, L, L) of the attention.
        """
        if not return_keys:
            return super().forward(x, attn_mask=attn_mask, is_causal=is_causal)
        batch, length, _ = x.shape
        # not unflatten, after which older ONNX exporters take the batch size of the example for the only one
        qkv = self.qkv(x).reshape(batch, length, 3, self.num_heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        q, k = self.q_norm(q), self.k_norm(k)
        keys = k.detach().mean(dim=1, dtype=torch.promote_types(k.dtype, torch.float32))
        if self.fused_attn:
            dropout = self.attn_drop.p if self.training else 0.0
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, dropout_p=dropout)
        else:
            logits = q * self.scale @ k.transpose(-2, -1)
            if attn_mask is not None:
                logits = logits + attn_mask
            out = self.attn_drop(logits.softmax(dim=-1)) @ v
        out = out.transpose(1, 2).flatten(2)
        return self.proj_drop(self.proj(self.norm(out))), keys


class MergingBlock(Block):
    """timm's Block that can merge tokens between its attention and its MLP."""

    def forward(
        self,
        x: Tensor,
        attn_mask: Tensor | None = None,
        is_causal=False,
        r: int = 0,
        sizes: Tensor | None = None,
        prefix: int = 1,
    ) -> Any:
        """Return tokens (B, L, C) of tokens (B, L, C); with r > 0 tokens (B, L - r, C), their sizes and the Matching.

        Args:
            r: how many patches merge into others.
            sizes: number of initial tokens in each token (B, L); None: 1 in each.
            prefix: number of tokens before the patches.
        """
        if r == 0:
            return super().forward(x, attn_mask=attn_mask, is_causal=is_causal)
        attended, keys = self.attn(self.norm1(x), attn_mask, is_causal, return_keys=True)
        x = x + self.drop_path1(self.ls1(attended))
        matching = match(keys, r, prefix)
        x, sizes = merge_tokens(x, sizes, matching)
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x)))), sizes, matching


def merges_per_block(r: int | Sequence[float], depth: int) -> tuple[int, ...]:
    """Return how many tokens each of ``depth`` blocks merges into others.

    Args:
        r: the same number for every block; or (r, inflection), the mean number and a float in [-1, 1], for a
            number that changes by equal steps, truncated, from r * (1 - inflection) in the first block to
            r * (1 + inflection) in the last; or a list, with 0 for the blocks after its end.

    Raises:
        ValueError: for anything else.
    """
    if not isinstance(r, Sequence):
        return _check_merges(r, (r,) * depth)
    r = tuple(r)
    if len(r) == 2 and isinstance(r[1], float):
        return _schedule(r[0], r[1], depth)
    if len(r) == 2 and depth != 2:
        raise ValueError(
            f"r={r} may be meant as a schedule or as a list: write the inflection of a schedule as a float "
            f"({r[0]}, {r[1]}.0), and for a list a number for each of {depth} blocks"
        )
    if len(r) > depth:
        raise ValueError(f"r={r} has {len(r)} entries for {depth} blocks: leave out the last ones")
    return _check_merges(r, r + (0,) * (depth - len(r)))


def _schedule(r: float, inflection: float, depth: int) -> tuple[int, ...]:
    """Return numbers that change by equal steps around the mean ``r``."""
    _check_merges((r, inflection), (r,))
    if not -1 <= inflection <= 1:
        raise ValueError(
            f"r={(r, inflection)}: the inflection must lie in [-1, 1], from a number that falls to 0 to one that "
            "rises from 0"
        )
    first = int(r * (1 - inflection))
    last = 2 * r - first
    step = (last - first) / max(1, depth - 1)
    return tuple(int(first + step * block) for block in range(depth))


def _check_merges(r: Any, merges: Sequence[Any]) -> tuple[int, ...]:
    for number in merges:
        if not isinstance(number, int) or number < 0:
            raise ValueError(f"r={r}: the number of tokens to merge must be a whole number from 0 on, not {number}")
    return tuple(merges)


class MergingVisionTransformer(AnyHostTransformer):
    """Vision Transformer that merges similar tokens in its blocks.

    A feature map shows for every patch the value of the token that the patch has been merged into. So it is where the
    patches are pooled: a merged token counts once for each of its patches.
    """

    block_cls = MergingBlock
    attn_cls = KeyAttention

    def configure(self, *, r: int | Sequence[float] = 13, prop_attn: bool = True) -> None:
        """Take the method's keywords.

        Args:
            r: how many tokens each block merges into others: a number, a schedule (r, inflection) or a list, see
                ``merges_per_block``. A block merges at most half of its patches.
            prop_attn: whether attention to a token counts once for each of its patches.

        Raises:
            ValueError: for numbers that are negative or not whole, or more of them than blocks.
        """
        self.merges = merges_per_block(r, len(self.blocks))
        self.prop_attn = prop_attn

    def forward_tokens(self, images: Tensor, maps: FeatureMaps | None = None) -> Tensor:
        """Return normed tokens (B, P + n, C) of images: those before the patches and the merged patches.

        Where the patches are pooled, return (B, P + N, C): each of them shows the token that it is in.
        """
        x = self.embed(images, maps)
        prefix = self.num_prefix_tokens
        sizes = None  # (B, P + n): of each token; None while all are 1
        groups = None  # (B, P + N): the place of the token that holds an initial one; None while it is its own
        length = int(x.shape[1])  # int, as it is a tensor while torch.jit traces
        for index in range(len(self.blocks) if maps is None else maps.end):
            mask = self.size_bias(sizes, x.dtype)
            r = min(self.merges[index], (length - prefix) // 2)
            if r == 0:
                x = self.run_block(index, x, attn_mask=mask)
            else:
                x, sizes, matching = self.run_block(index, x, attn_mask=mask, r=r, sizes=sizes, prefix=prefix)
                length -= r
                if maps is not None or self.pools_patches:
                    groups = regroup(groups, matching)
            if maps is not None and index in maps.blocks:
                maps.record(index, x if groups is None else spread(x, groups))
        x = self.norm(x)
        return spread(x, groups) if groups is not None and self.pools_patches else x

    def size_bias(self, sizes: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        """Return what attention adds to the logits of each key (B, 1, 1, L), from sizes (B, L); None: nothing."""
        if sizes is None or not self.prop_attn:
            return None
        return sizes.log().to(dtype).unsqueeze(1).unsqueeze(1)


def spread(tokens: Tensor, groups: Tensor) -> Tensor:
    """Return for all initial tokens (B, P + N, C) the one of tokens (B, L, C) that holds them by ``groups``."""
    batch, length, channels = tokens.shape
    rows = rows_at(groups, length)
    return tokens.flatten(0, 1).index_select(0, rows).reshape(batch, groups.shape[1], channels)


default_cfgs = generate_default_cfgs(
    {
        "tome_deit_tiny_patch16_224": pretrained_cfg(224),
        "tome_deit_small_patch16_224": pretrained_cfg(224),
        "tome_deit_base_patch16_224": pretrained_cfg(224),
    }
)


def _create(name: str, pretrained: bool, kwargs: dict[str, Any], sizes: dict[str, Any]) -> nn.Module:
    return create_deit(MergingVisionTransformer, name, pretrained, kwargs, sizes, complete_dense)


@register_model
def tome_deit_tiny_patch16_224(pretrained: bool = False, **kwargs: Any) -> MergingVisionTransformer:
    """DeiT-T that merges tokens."""
    return _create("tome_deit_tiny_patch16_224", pretrained, kwargs, TINY)


@register_model
def tome_deit_small_patch16_224(pretrained: bool = False, **kwargs: Any) -> MergingVisionTransformer:
    """DeiT-S that merges tokens."""
    return _create("tome_deit_small_patch16_224", pretrained, kwargs, SMALL)


@register_model
def tome_deit_base_patch16_224(pretrained: bool = False, **kwargs: Any) -> MergingVisionTransformer:
    """DeiT-B that merges tokens."""
    return _create("tome_deit_base_patch16_224", pretrained, kwargs, BASE)
