"""What the methods that drop or merge patches share: timm's interface, and feature maps of the whole grid.

In shapes P is the number of tokens before the patches: the class token, and the registers that some hosts have.

A dropped patch keeps its last value in a feature map: the value after the last block that updated
it. A merged patch shows the token that it went into.
"""

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import Attention
from timm.models import checkpoint
from timm.models._features import feature_take_indices
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from evovit.conversion import FromHost, pop_options
from evovit.features import fill_grid, pack_intermediates
from evovit.tokens import take_tokens

from .deit import DeitVariant


class FeatureMaps:
    """Collects the tokens of the whole grid after chosen blocks while a model drops patches.

    Args:
        blocks: the chosen blocks, counted from 0.
        end: the block before which the forward pass may stop.
        prefix: number P of tokens before the patches, the class token and registers.
    """

    def __init__(self, blocks: Sequence[int], end: int, prefix: int = 1):
        self.blocks = frozenset(blocks)
        self.end = end
        self.prefix = prefix
        self.maps: list[Tensor] = []  # (B, P + N, C) for each chosen block
        self._grid: Tensor | None = None  # the last value of every token, then of those without a place
        self._places = 0  # number of tokens on the grid, the P before the patches included
        self._kept: Tensor | None = None  # positions (B, n) on the grid of the patches still present; None: all
        self._merged: Tensor | None = None  # for each patch of the grid its token (B, N); None: patches are tokens

    def start(self, tokens: Tensor) -> None:
        """Note the embedded tokens (B, P + N, C), the patches last."""
        self._grid = tokens
        self._places = tokens.shape[1]

    def keep(self, kept: Tensor) -> None:
        """Note that of the patches present only those at the positions ``kept`` (B, k) or (k,) stay."""
        kept = kept.expand(len(self._grid), -1)
        self._kept = kept if self._kept is None else self._kept.gather(1, kept)

    def append(self, tokens: Tensor) -> None:
        """Note tokens (B, m, C) that have no place on the grid, such as fused ones; they follow those that stay."""
        batch, present, _ = self._grid.shape
        first = present - self.prefix
        number = torch.arange(first, first + tokens.shape[1], device=tokens.device)
        self._kept = torch.cat((self._kept, number.expand(batch, -1)), dim=1)
        self._grid = torch.cat((self._grid, tokens.to(self._grid.dtype)), dim=1)

    def merge(self, groups: Tensor) -> None:
        """Note that the patches present were merged into fewer: number i of them into ``groups[:, i]`` (B, n)."""
        self._merged = groups if self._merged is None else groups.gather(1, self._merged)

    def record(self, block: int, tokens: Tensor, valid: Tensor | None = None) -> None:
        """Note the tokens (B, P + n, C) after a block; those where ``valid`` (B, P + n) is False are dropped.

        A dropped token only fills the shape of the batch, so its value does not count.
        """
        tokens = tokens.to(self._grid.dtype)
        if valid is not None:
            before = self._grid if self._kept is None else take_tokens(self._grid, self._kept, self.prefix)
            tokens = torch.where(valid[..., None], tokens, before)
        if self._merged is not None:
            tokens = take_tokens(tokens, self._merged, self.prefix)
        self._grid = tokens if self._kept is None else fill_grid(tokens, self._kept, self._grid, self.prefix)
        if block in self.blocks:
            self.maps.append(self._grid[..., : self._places, :])


class TokenDroppingTransformer(DeitVariant):
    """A Vision Transformer that drops or merges patches on the way.

    The P tokens before the patches, a class token and timm's registers after it, are never dropped or merged. A
    subclass defines ``forward_tokens``, and embeds and runs its blocks by ``embed`` and ``run_block``.

    Raises:
        ValueError: for a model without a class token, and for timm's random dropping of patches.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if not self.has_class_token:
            raise ValueError(f"{type(self).__name__} needs one class token; leave class_token out")
        if not isinstance(self.patch_drop, nn.Identity):
            raise ValueError(
                f"patch_drop_rate={self.patch_drop.prob}: {type(self).__name__} chooses itself "
                "which patches it drops; leave patch_drop_rate out"
            )

    def forward_tokens(self, images: Tensor, maps: FeatureMaps | None = None) -> Tensor:
        """Return normed tokens (B, P + n, C) of images (B, 3, H, W), and fill ``maps`` on the way."""
        raise NotImplementedError

    def embed(self, images: Tensor, maps: FeatureMaps | None = None) -> Tensor:
        """Return the tokens (B, P + N, C) of images (B, 3, H, W) before the first block."""
        x = self.norm_pre(self._pos_embed(self.patch_embed(images)))
        if maps is not None:
            maps.start(x)
        return x

    def run_block(
        self, index: int, x: Tensor, maps: FeatureMaps | None = None, valid: Tensor | None = None, **options: Any
    ) -> Tensor:
        """Run a block, with its own ``options``, on tokens (B, L, C) and record the result in ``maps``.

        Args:
            valid: which of the resulting tokens are not dropped (B, L); None: all.
        """
        x = self.call_block(index, x, **options)
        if maps is not None:
            maps.record(index, x, valid)
        return x

    def call_block(self, index: int, x: Tensor, **options: Any) -> Any:
        """Return what a block gives for tokens (B, L, C); timm's ``set_grad_checkpointing`` holds."""
        block = self.blocks[index]
        if self.grad_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, x, **options)
        return block(x, **options)

    def forward_features(self, x: Tensor, attn_mask=None, is_causal=False) -> Tensor:
        """Return normed tokens (B, P + n, C) of images: those before the patches, and the patches that remain."""
        self.check_inputs(x, attn_mask, is_causal)
        return self.forward_tokens(x)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        output_dict: bool = False,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Any:
        """Return timm's intermediates, over the whole grid: (B, C, H, W), or (B, N, C) as "NLC".

        A dropped patch keeps its last value. Arguments and results are those of timm's method.

        Raises:
            ValueError: for another ``output_fmt``, or an attention mask.
        """
        self.check_inputs(x, attn_mask, is_causal)
        taken, last = feature_take_indices(len(self.blocks), indices)
        maps = FeatureMaps(taken, last + 1 if stop_early else len(self.blocks), self.num_prefix_tokens)
        tokens = self.forward_tokens(x, maps)
        grid = self.patch_embed.dynamic_feat_size(x.shape[-2:])
        return pack_intermediates(
            [self.norm(features) if norm else features for features in maps.maps],
            [grid] * len(maps.maps),
            tokens,
            prefix=self.num_prefix_tokens,
            output_fmt=output_fmt,
            return_prefix_tokens=return_prefix_tokens,
            intermediates_only=intermediates_only,
            output_dict=output_dict,
        )

    def check_inputs(self, images: Any, attn_mask: Any, is_causal: Any) -> None:
        """Refuse inputs that the model can't use.

        Raises:
            NotImplementedError: while torch.fx traces the model.
            ValueError: for an attention mask.
        """
        self.refuse_symbolic_tracing(images)
        if attn_mask is not None or is_causal:
            raise ValueError(f"{type(self).__name__} drops patches on the way: leave out attn_mask and is_causal")


class AnyHostTransformer(FromHost, TokenDroppingTransformer):
    """A Vision Transformer that drops or merges patches and that ``baselines.from_timm`` makes of any host.

    A subclass names the classes of its blocks and attentions, which have timm's parameters, and takes its keywords in
    ``configure``. timm's own pooling and head predict; where they pool patches, they pool those that remain.
    """

    block_cls: type[Block] = Block
    attn_cls: type[Attention] = Attention

    def __init__(self, *args: Any, **kwargs: Any):
        options = pop_options(type(self), kwargs)
        super().__init__(*args, block_fn=self.block_cls, attn_layer=self.attn_cls, **kwargs)
        self.configure_host(options)

    @property
    def pools_patches(self) -> bool:
        """Return whether the prediction depends on other tokens than the class token."""
        return self.attn_pool is not None or self.global_pool not in ("token", "")


class ClassTokenTransformer(TokenDroppingTransformer):
    """A Vision Transformer that drops patches on the way and predicts from its class token.

    Raises:
        ValueError: for register tokens, and for another pooling.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if self.num_reg_tokens:
            raise ValueError(f"{type(self).__name__} needs one class token and no other prefix token")
        self._check_pool(self.global_pool)

    def _check_pool(self, global_pool: str) -> None:
        if global_pool not in ("token", ""):
            raise ValueError(
                f"global_pool={global_pool!r}: {type(self).__name__} predicts from its class "
                "token; use global_pool='token', or '' for the tokens themselves"
            )

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Make a new classifier, as timm's method; the pooling stays the class token or none."""
        if global_pool is not None:
            self._check_pool(global_pool)
        super().reset_classifier(num_classes, global_pool)


def kept_first(kept: Tensor, counts: Tensor, reason: str) -> Tensor:
    """Return positions (B, n) of the patches that ``kept`` (B, N) marks, in their order, then of what pads the rest.

    n is the largest of the counts (B,) of marked patches, so it depends on the images.

    Raises:
        NotImplementedError: saying the ``reason``, where the number of tokens has to be known before the
            images are: in an export or a trace, or on the meta device.
    """
    if kept.is_meta or torch.jit.is_tracing() or torch.compiler.is_exporting():
        if torch.compiler.is_dynamo_compiling():  # it reports this message, but no exception's
            torch._dynamo.graph_break(msg=reason)
        raise NotImplementedError(reason)
    longest = int(counts.max()) if len(counts) else 0
    return (~kept).to(torch.uint8).argsort(dim=1, stable=True)[:, :longest]


def check_reduction_blocks(reduction_blocks: Sequence[int] | None, depth: int) -> tuple[int, ...]:
    """Return the blocks that drop patches.

    Args:
        reduction_blocks: counted from 0; None: those at a quarter, half and three quarters of the depth, which are
            (3, 6, 9) of 12.
        depth: number of blocks of the model.

    Raises:
        ValueError: for blocks that do not ascend or that a model of ``depth`` blocks lacks, and for none.
    """
    if reduction_blocks is None:
        reduction_blocks = sorted({quarters * depth // 4 for quarters in (1, 2, 3)})
    blocks = tuple(reduction_blocks)
    if not blocks or list(blocks) != sorted(set(blocks) & set(range(depth))):
        raise ValueError(f"reduction_blocks={blocks} must ascend within 0..{depth - 1}")
    return blocks
