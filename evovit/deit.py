"""Evo-ViT on a flat host: ``from_timm`` makes it of any timm ViT, and ``evo_deit_*`` are registered in timm."""

import copy
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import Attention, get_device_dtype
from timm.models import (
    build_model_with_cfg,
    checkpoint,
    generate_default_cfgs,
    named_apply,
    register_model,
)
from timm.models._features import feature_take_indices
from timm.models.vision_transformer import Block, VisionTransformer, get_init_weights_vit
from torch import Tensor, nn
from torch.nn.utils import skip_init

from .checkpoint import deit_from_official, filter_deit
from .conversion import FromHost, check_host, convert, pop_options
from .fast.autograd import class_attention
from .fast.deferred import DeferredRow, DeferredScores
from .features import TokenPooling, fill_grid, pack_intermediates
from .host import EvoHost
from .options import Host, check_choice, check_options, refuse_old_keywords
from .scores import attention_scores
from .slow_fast import Observation, SlowFast, State


class EvoAttention(Attention):
    """Multi-head self-attention that can hand out token scores with its result.

    Modifications of timm's Attention:
    - ``scores="class"`` adds the attention of the class token (fused attention stays fused),
      ``"deferred"`` what it is to be computed from,
    - ``scores="column_mean"`` adds the mean over the queries. Only this needs the whole attention matrix.
    """

    def forward(self, x: Tensor, attn_mask=None, is_causal=False, scores: str | None = None):
        """Return (B, L, C) for (B, L, C), with ``scores`` also (B, H, L): one weight per head and token."""
        if scores is None:
            return super().forward(x, attn_mask=attn_mask, is_causal=is_causal)
        qkv = self.qkv(x).reshape(*x.shape[:2], 3, self.num_heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        q, k = self.q_norm(q), self.k_norm(k)
        if self.fused_attn and scores != "column_mean":
            dropout = self.attn_drop.p if self.training else 0.0
            out = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
            query = q.select(2, 0)
            keys = k.transpose(1, 2).flatten(2)
            if scores == "deferred":
                row = DeferredRow(query, keys, self.scale)
            else:
                row = class_attention(query, keys, self.scale)
        else:
            attn = ((q * self.scale) @ k.transpose(-2, -1)).softmax(dim=-1)
            out = self.attn_drop(attn) @ v
            row = attention_scores(attn, q, k, self.scale, scores)
        out = self.norm(out.transpose(1, 2).flatten(2))
        return self.proj_drop(self.proj(out)), row


class EvoBlock(Block):
    """timm's Block, handing on the token scores of its attention."""

    def forward(self, x: Tensor, attn_mask=None, is_causal=False, scores: str | None = None):
        """Return (B, L, C) for (B, L, C), with ``scores`` also (B, H, L)."""
        if scores is None:
            return super().forward(x, attn_mask=attn_mask, is_causal=is_causal)
        attended, row = self.attn(self.norm1(x), scores=scores)
        x = x + self.drop_path1(self.ls1(attended))
        del attended  # its memory is free while the MLP runs
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x)))), row


class EvoVisionTransformer(EvoHost, FromHost, TokenPooling, VisionTransformer):
    """Vision Transformer with structure-preserving token selection and slow-fast updating.

    Modifications of timm's VisionTransformer:
    - the options of ``evovit.options``; blocks run by ``evovit.slow_fast``,
    - prediction from the mean of the patch tokens, unless ``head="host"``; for Eq. 8 ``set_training_outputs``
      adds a norm and a head for the class token. Without them the state dict has the plain model's keys.

    Keywords are timm's, and those of ``configure``.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        options = pop_options(EvoVisionTransformer, kwargs)
        weight_init = kwargs.pop("weight_init", "")
        if options.get("head", "average") == "average":
            if kwargs.get("fc_norm"):
                raise ValueError(
                    "fc_norm=True: variant decides where Evo-ViT norms, before the mean of the "
                    "patches (paper) or after it (official); leave fc_norm out"
                )
            kwargs = {"global_pool": "avg", **kwargs, "fc_norm": False}  # None: timm would choose
        super().__init__(*args, block_fn=EvoBlock, attn_layer=EvoAttention, **kwargs, weight_init="skip")
        if options.get("head", "average") == "average":
            _refuse_pool(self.global_pool)
        self.configure_host(options)
        # Drawn and discarded: the class token's head was made here once, and a seed must go on giving the
        # weights that it gave, because recorded trainings are identified by their seed.
        self._classifier()
        self.weight_init_mode = "reset" if weight_init == "skip" else weight_init
        if weight_init != "skip":
            self.init_weights(needs_reset=False)

    training_parts = ("norm_cls", "head_cls")
    blocks: nn.Sequential
    from_official = staticmethod(deit_from_official)

    def configure(
        self,
        *,
        variant: str = "paper",
        keep_ratio: float | Sequence[float] = 0.5,
        start_block: int | None = 4,
        alpha: float | str | Sequence[float] | None = None,
        schedule: str | None = None,
        placeholders: str | None = None,
        scores: str = "global",
        blocks_per_stage: int | None = 4,
        pool_placeholders: bool = True,
        tile: int = 1,
        head: str = "average",
    ) -> None:
        """Check and store the options; docs/switches.md has their symbols.

        Args:
            variant: "paper" (the text) or "official" (the authors' code).
            keep_ratio: share of informative tokens, a number or one per block (1 before start_block).
            start_block: first selecting block, counted from 0; the paper's fifth layer is 4. None: a third
                of the depth.
            alpha: alpha of Eq. 4, weight of the previous score, a number or one per block; 0.5.
            schedule: "stage" or "layer". Given, a checkpoint of the other schedule is refused; left
                out, it is "stage" until a checkpoint says otherwise.
            placeholders: "update" (Eqs. 5-7; default of the paper's variant), "keep" (default of the
                official one) or "drop".
            scores: "global" (Eq. 4), "class" (no memory), "random" (torch's global generator),
                "last_class" (the last block's class attention, from a first pass without selection) or
                "column_mean" (of the attention matrix, no memory).
            blocks_per_stage: blocks that share a selection stage-wise. None: a third of the depth.
            pool_placeholders: False leaves the last placeholders out of the pooled mean.
            tile: keep a few tokens fewer, so that blocks run on a multiple of ``tile`` tokens (8 or 16 suit
                matrix units); the paper's 98 of 196 are 100 tokens with class and representative token.
            head: "average" predicts from the mean of the patches, as the paper does, or "host" from what timm's
                own pooling, norm and head make of the tokens.

        Raises:
            ValueError: for a value out of range or a combination that makes no sense, with the reason.
        """
        if not self.has_class_token:
            raise ValueError("Evo-ViT needs the class token, whose attention is the score")
        if not isinstance(self.patch_drop, nn.Identity):
            raise ValueError("patch_drop_rate drops tokens at random; Evo-ViT keeps the grid whole")
        check_choice("head", head, ("average", "host"))
        self.predicts_average = head == "average"
        if self.predicts_average:
            self._refuse_other_heads()
        depth = len(self.blocks)
        third = max(1, round(depth / 3))
        checked = check_options(
            Host(depth, prefix=self.num_prefix_tokens),
            variant,
            keep_ratio,
            third if start_block is None else start_block,
            alpha,
            placeholders,
            scores,
            third if blocks_per_stage is None else blocks_per_stage,
            pool_placeholders,
            tile,
        )
        self.set_options(checked, schedule)
        self._check_grid()

    def _refuse_other_heads(self) -> None:
        """Refuse the averaged prediction where the host has layers that it would leave out."""
        if self.attn_pool is not None or self.global_pool not in ("token", "avg", ""):
            raise ValueError(
                f"head='average' predicts from the mean of the patches, but the host has global_pool="
                f"{self.global_pool!r}: use head='host'"
            )
        if not isinstance(self.fc_norm, nn.Identity):
            raise ValueError(
                "head='average' norms each patch before the mean, but the host norms the mean itself (fc_norm): "
                "use head='host', which predicts from the mean as well"
            )

    def note_arguments(self, **arguments: Any) -> None:
        """Note arguments as EvoHost does; not those of a converted host, which timm builds without them."""
        if not self.is_converted:
            super().note_arguments(**arguments)

    def set_training_outputs(self, enable: bool = True) -> None:
        """Do what EvoHost's method does; Eq. 8 trains the averaged prediction, so head="host" is refused."""
        if enable and not self.predicts_average:
            raise ValueError(
                "Eq. 8 trains the averaged prediction and that of the class token: make the model with head='average', "
                "or train it as timm's own (task 'classification')"
            )
        super().set_training_outputs(enable)

    def _make_training_parts(self) -> dict[str, nn.Module]:
        head = nn.Identity()
        if self.num_classes > 0:  # drawn once, by timm's function below
            sizes = self.embed_dim, self.num_classes
            head = skip_init(nn.Linear, *sizes, **get_device_dtype(self))
        parts = {"norm_cls": copy.deepcopy(self.norm), "head_cls": head}
        for name, part in parts.items():
            named_apply(get_init_weights_vit(self.weight_init_mode), part, name, include_root=True)
        return parts

    def _block(self, index: int, x: Tensor, observed: bool, kind: str) -> tuple[Tensor, Tensor | DeferredRow | None]:
        """Run block ``index`` on (B, L, C).

        Args:
            observed: ask for the scores in any case, not only where a later selection depends on them.
            kind: of scores, as EvoAttention takes it.

        Returns:
            (B, L, C) and, where the scores count, (B, H, L).
        """
        scores = kind if observed or index in self.scoring else None
        block = self.blocks[index]
        recompute = self.grad_checkpointing and torch.is_grad_enabled()
        out = checkpoint(block, x, scores=scores) if recompute else block(x, scores=scores)
        return (out, None) if scores is None else out

    def _run_blocks(self, images: Tensor, observer: list[Observation] | None = None, end: int | None = None) -> Tensor:
        """Return tokens (B, prefix + n, C) after all blocks, or those before ``end``; not normed."""
        embedded = self.norm_pre(self._pos_embed(self.patch_embed(images)))
        num_patches = embedded.shape[1] - self.num_prefix_tokens
        scores = self.new_scores(embedded)
        kind = "class"
        if self.options.scores == "column_mean":
            kind = "column_mean"
        elif isinstance(scores, DeferredScores):
            kind = "deferred"
        ranking = None
        if self.groups and self.options.scores == "last_class":
            ranking = self._last_class_attention(embedded, kind)
        grid = None if observer is None else torch.arange(num_patches, device=embedded.device)
        run_block = partial(self._block, kind=kind)
        alphas = self.options.alphas
        slow_fast = SlowFast(run_block, self.options, self.groups, alphas, num_patches, ranking, grid, observer)
        end = len(self.blocks) if end is None else end
        return slow_fast.run(State(embedded, scores), 0, end).tokens

    @torch.no_grad()
    def _last_class_attention(self, x: Tensor, kind: str) -> Tensor:
        """Return the class attention (B, N) of the last block after a first pass in which nothing is selected."""
        for block in self.blocks[:-1]:
            x = block(x)
        _, row = self._block(len(self.blocks) - 1, x, True, kind)
        return self.new_scores(x).update(row, 0.0).settle()

    def forward_features(self, x: Tensor, attn_mask=None, is_causal=False) -> Tensor:
        """Return the tokens (B, prefix + N, C) of images: those before the patches, then the patches in raster order.

        They are normed, except in the official variant with head="average".

        With dropped or unpooled placeholders only the informative patches remain, in no order.
        """
        self._refuse_masks(x, attn_mask, is_causal)
        return self._normed(self._run_blocks(x))

    def _refuse_masks(self, x: Tensor, attn_mask: Tensor | None, is_causal: bool) -> None:
        self.refuse_symbolic_tracing(x)
        if attn_mask is not None or is_causal:
            raise ValueError("Evo-ViT ranks all tokens by class attention: no attention masks")

    def _normed(self, x: Tensor) -> Tensor:
        """Return normed tokens; with head="average" the official variant norms their mean instead."""
        return x if self._norms_mean else self.norm(x)

    @property
    def _norms_mean(self) -> bool:
        return self.predicts_average and self.options.variant == "official"

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return the logits of tokens from ``forward_features``: the mean of the patches is classified.

        The paper averages the tokens' predictions, that is their normed features; the authors'
        code averages the features and norms the mean. With head="host" this is timm's method.
        """
        if not self.predicts_average:
            return super().forward_head(x, pre_logits)
        x = self.pool(x, "avg" if self.global_pool else "")
        x = self.head_drop(self.norm(x) if self._norms_mean else x)
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor, attn_mask=None, is_causal=False) -> Any:
        """Return logits; with ``set_training_outputs`` in training (average, class token), Eq. 8."""
        if not (self.training and self.training_outputs):
            return self.forward_head(self.forward_features(x, attn_mask, is_causal))
        self._refuse_masks(x, attn_mask, is_causal)
        x = self._run_blocks(x)
        class_token = self.head_drop(self.norm_cls(x.select(1, 0)))
        return self.forward_head(self._normed(x)), self.head_cls(class_token)

    def observe(self, images: Tensor) -> tuple[list[Observation], Tensor]:
        """Return what every block did to images, for ``trace``, and the logits."""
        observed: list[Observation] = []
        x = self._run_blocks(images, observed)
        return observed, self.forward_head(self._normed(x))

    def forward_intermediates(
        self, x: Tensor, indices: int | Sequence[int] | None = None, return_prefix_tokens=False,
        norm=False, stop_early=False, output_fmt="NCHW", intermediates_only=False,
        output_dict=False, attn_mask=None, is_causal=False,
    ) -> Any:  # fmt: skip
        """Return what timm's method returns; after each block the tokens are those of the whole grid.

        Placeholders have the value that they would have if the group of blocks ended there; dropped
        ones keep their last value.
        """
        self._refuse_masks(x, attn_mask, is_causal)
        taken, last = feature_take_indices(len(self.blocks), indices)
        grid = self.patch_embed.dynamic_feat_size(x.shape[-2:])
        observed: list[Observation] = []
        final = self._run_blocks(x, observed, last + 1 if stop_early else None)
        after = [observed[0].tokens]  # all tokens (B, prefix + N, C) after each block
        for observation in observed[1:]:
            tokens = observation.tokens
            if tokens.shape[1] < after[-1].shape[1]:
                tokens = fill_grid(tokens, observation.kept, after[-1], self.num_prefix_tokens)
            after.append(tokens)
        return pack_intermediates(
            [self.norm(after[i]) if norm else after[i] for i in taken],
            [grid] * len(taken),
            self._normed(final),
            output_fmt=output_fmt,
            return_prefix_tokens=return_prefix_tokens,
            intermediates_only=intermediates_only,
            output_dict=output_dict,
            prefix=self.num_prefix_tokens,
        )

    def prune_intermediate_layers(self, indices=1, prune_norm=False, prune_head=True) -> list[int]:
        """Prune as timm's method does; ``scores="last_class"`` keeps all blocks, since the last one ranks."""
        blocks = self.blocks
        taken = super().prune_intermediate_layers(indices, prune_norm, prune_head)
        if self.options.scores == "last_class":
            self.blocks = blocks
        if prune_head:
            self.set_training_outputs(False)
        return taken

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        if self.predicts_average and global_pool is not None:
            _refuse_pool(global_pool)
        super().reset_classifier(num_classes, global_pool)
        if self.training_outputs:
            self.head_cls = self._classifier()

    def _classifier(self) -> nn.Module:
        if self.num_classes <= 0:
            return nn.Identity()
        head = nn.Linear(self.embed_dim, self.num_classes, **get_device_dtype(self))
        return head.train(self.training)

    def set_input_size(self, *args: Any, **kwargs: Any) -> None:
        super().set_input_size(*args, **kwargs)
        self._check_grid()

    def _check_grid(self) -> None:
        for block in range(self.options.host.depth):
            self.options.kept(self.patch_embed.num_patches, block)


def _refuse_pool(global_pool: str) -> None:
    if global_pool not in ("avg", ""):
        raise ValueError(
            f"global_pool={global_pool!r}: Evo-ViT predicts from the mean, so it is 'avg', or '' for all tokens"
        )


def from_timm(
    model: nn.Module,
    *,
    head: str = "host",
    start_block: int | None = None,
    blocks_per_stage: int | None = None,
    **keywords: Any,
) -> EvoVisionTransformer:
    """Return Evo-ViT made of a timm Vision Transformer, trained or not; nothing needs to be trained again.

    The result shares the parameters of ``model``, which stays as it is and usable. State dicts have the same keys,
    so that checkpoints go both ways. It has the mode, dtype and device of ``model``.

    Args:
        model: a timm VisionTransformer with a class token.
        head: "host" keeps the model's own pooling, norm and head; "average" is the paper's prediction.
        start_block: first selecting block, counted from 0; None: a third of the depth.
        blocks_per_stage: blocks that share a selection; None: a third of the depth.
        keywords: the others of ``EvoVisionTransformer.configure``, such as ``keep_ratio``.

    Raises:
        ValueError: for a model that is no such host, and for keywords that make no sense, with the reason.
    """
    check_host(model, "Evo-ViT")
    refuse_old_keywords(keywords)
    options = {"head": head, "start_block": start_block, "blocks_per_stage": blocks_per_stage, **keywords}
    evo = convert(model, EvoVisionTransformer, EvoBlock, EvoAttention)
    evo.configure_host(options)
    return evo


def _cfg(size: int) -> dict[str, Any]:
    """Return timm's pretrained_cfg; crop_pct as in DeiT's evaluation: resize to 256 / 224 of the size."""
    return dict(
        url="", num_classes=1000, input_size=(3, size, size), pool_size=None, crop_pct=0.875,
        interpolation="bicubic", fixed_input_size=True, mean=IMAGENET_DEFAULT_MEAN,
        std=IMAGENET_DEFAULT_STD, first_conv="patch_embed.proj",
        classifier="head", license="mit",
    )  # fmt: skip


SIZES = ("tiny_patch16_224", "small_patch16_224", "base_patch16_224",
         "small_patch16_384", "base_patch16_384")  # fmt: skip
default_cfgs = generate_default_cfgs({f"evo_deit_{s}": _cfg(int(s[-3:])) for s in SIZES})


def _create(name: str, pretrained: bool, kwargs: dict[str, Any], **sizes: Any) -> nn.Module:
    refuse_old_keywords(kwargs)
    # "variant" is also the name of a parameter of build_model_with_cfg
    model_cls = partial(EvoVisionTransformer, variant=kwargs.pop("variant", "paper"))
    return build_model_with_cfg(
        model_cls,
        name,
        pretrained,
        pretrained_filter_fn=filter_deit,
        feature_cfg=dict(out_indices=kwargs.pop("out_indices", 3), feature_cls="getter"),
        **{"patch_size": 16, **sizes, **kwargs},
    )


@register_model
def evo_deit_tiny_patch16_224(pretrained: bool = False, **kwargs: Any) -> EvoVisionTransformer:
    """Evo-DeiT-T at 224 px."""
    return _create("evo_deit_tiny_patch16_224", pretrained, kwargs, embed_dim=192, num_heads=3)


@register_model
def evo_deit_small_patch16_224(pretrained: bool = False, **kwargs: Any) -> EvoVisionTransformer:
    """Evo-DeiT-S at 224 px."""
    return _create("evo_deit_small_patch16_224", pretrained, kwargs, embed_dim=384, num_heads=6)


@register_model
def evo_deit_base_patch16_224(pretrained: bool = False, **kwargs: Any) -> EvoVisionTransformer:
    """Evo-DeiT-B at 224 px."""
    return _create("evo_deit_base_patch16_224", pretrained, kwargs, embed_dim=768, num_heads=12)


@register_model
def evo_deit_small_patch16_384(pretrained: bool = False, **kwargs: Any) -> EvoVisionTransformer:
    """Evo-DeiT-S at 384 px."""
    return _create("evo_deit_small_patch16_384", pretrained, kwargs, embed_dim=384, num_heads=6)


@register_model
def evo_deit_base_patch16_384(pretrained: bool = False, **kwargs: Any) -> EvoVisionTransformer:
    """Evo-DeiT-B at 384 px."""
    return _create("evo_deit_base_patch16_384", pretrained, kwargs, embed_dim=768, num_heads=12)
