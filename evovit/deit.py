"""Evo-DeiT: Evo-ViT on the flat (DeiT) host, registered as ``evo_deit_*`` in timm."""

import copy
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import get_device_dtype
from timm.models import (
    build_model_with_cfg,
    checkpoint,
    generate_default_cfgs,
    named_apply,
    register_model,
)
from timm.models._features import feature_take_indices
from timm.models.vision_transformer import VisionTransformer, get_init_weights_vit
from torch import Tensor, nn
from torch.nn.utils import skip_init

from . import plan
from .blocks import EvoAttention, EvoBlock
from .checkpoint import deit_from_official, filter_deit
from .dispatch import functions_for
from .evolve import Evolution, Observation, State, evolve
from .features import TokenPooling, fill_grid, pack_intermediates
from .host import EvoHost


class EvoVisionTransformer(EvoHost, TokenPooling, VisionTransformer):
    """Vision Transformer with structure-preserving token selection and slow-fast updating.

    Modifications of timm's VisionTransformer:
    - the switches of ``evovit.plan``; blocks run by ``_evolve``,
    - prediction from the mean of the patch tokens; for Eq. 8 ``set_training_outputs`` adds a norm
      and a head for the class token. Without them the state dict has the plain model's keys.

    Args (beside timm's; docs/switches.md has their symbols):
        variant: "paper" (the text) or "official" (the authors' code).
        keep_ratio: share of informative tokens, a number or one per block (1 before start_block).
        start_block: first selecting block, counted from 0; the paper's fifth layer is 4.
        alpha: alpha of Eq. 4, weight of the previous score, a number or one per block; 0.5.
        schedule: "stage" or "layer". Given, a checkpoint of the other schedule is refused; left
            out, it is "stage" until a checkpoint says otherwise.
        placeholders: "update" (Eqs. 5-7; default of the paper's variant), "keep" (default of the
            official one) or "drop".
        scores: "global" (Eq. 4), "class" (no memory), "random" (torch's global generator),
            "last_class" (the last block's class attention, found by a first dense pass) or
            "column_mean" (of the attention matrix, no memory).
        blocks_per_stage: blocks that share a selection stage-wise.
        pool_placeholders: False leaves the last placeholders out of the pooled mean.
        tile: keep a few tokens fewer, so that blocks run on a multiple of so many (8 or 16: what
            matrix units like); the paper's 98 of 196 are 100 tokens with class and representative.
    """

    def __init__(
        self,
        *args: Any,
        variant: str = "paper",
        keep_ratio: float | Sequence[float] = 0.5,
        start_block: int = 4,
        alpha: float | str | Sequence[float] | None = None,
        schedule: str | None = None,
        placeholders: str | None = None,
        scores: str = "global",
        blocks_per_stage: int = 4,
        pool_placeholders: bool = True,
        tile: int = 1,
        **kwargs: Any,
    ):
        weight_init = kwargs.pop("weight_init", "")
        if kwargs.get("fc_norm"):
            raise ValueError(
                "fc_norm=True: variant says where Evo-ViT's norm stands, before the mean of the "
                "patches (paper) or behind it (official); leave fc_norm out"
            )
        kwargs = {"global_pool": "avg", **kwargs, "fc_norm": False}  # None: timm would choose
        super().__init__(*args, block_fn=EvoBlock, attn_layer=EvoAttention, **kwargs,
                         weight_init="skip")  # fmt: skip
        self._refuse_unsupported(kwargs)
        switches = plan.resolve(
            plan.Host(len(self.blocks)), variant, keep_ratio, start_block, alpha, placeholders,
            scores, blocks_per_stage, pool_placeholders, tile,
        )  # fmt: skip
        self.set_switches(switches, schedule)
        self._check_grid()
        # Drawn and let go: the class token's head was made here once, and a seed must go on giving
        # the weights that it gave, for recorded trainings are found by their seed.
        self._classifier()
        self.weight_init_mode = "reset" if weight_init == "skip" else weight_init
        if weight_init != "skip":
            self.init_weights(needs_reset=False)

    training_parts = ("norm_cls", "head_cls")
    from_official = staticmethod(deit_from_official)

    def _make_training_parts(self) -> dict[str, nn.Module]:
        head = nn.Identity()
        if self.num_classes > 0:  # drawn once, by timm's function below
            sizes = self.embed_dim, self.num_classes
            head = skip_init(nn.Linear, *sizes, **get_device_dtype(self))
        parts = {"norm_cls": copy.deepcopy(self.norm), "head_cls": head}
        for name, part in parts.items():
            named_apply(get_init_weights_vit(self.weight_init_mode), part, name, include_root=True)
        return parts

    def _refuse_unsupported(self, kwargs: dict[str, Any]) -> None:
        _refuse_pool(self.global_pool)
        if not self.has_class_token or self.num_reg_tokens:
            raise ValueError("Evo-ViT needs the class token (its attention is the score) alone")
        if kwargs.get("patch_drop_rate"):
            raise ValueError("patch_drop_rate drops tokens at random; Evo-ViT keeps the grid whole")

    def _block(self, index: int, x: Tensor, observed: bool) -> tuple[Tensor, Tensor | None]:
        """Block ``index`` on (B, L, C); with the patches' scores (B, L - 1) where they count."""
        kind = "column_mean" if self.switches.scores == "column_mean" else "class"
        kind = kind if observed or index in self.scoring else None
        block = self.blocks[index]
        recompute = self.grad_checkpointing and torch.is_grad_enabled()
        out = checkpoint(block, x, scores=kind) if recompute else block(x, scores=kind)
        if kind is None:
            return out, None
        x, row = out
        # Only Eq. 5's weights let a gradient through; without them the scores just rank.
        lets_gradients = self.switches.placeholders == "update"
        tk = functions_for(x)
        return x, tk.patch_scores(row, self.switches.variant == "official", lets_gradients)

    def _evolve(self, images: Tensor, observer: list[Observation] | None = None, end: int | None = None) -> Tensor:
        """Images to tokens (B, 1 + n, C) after all blocks, or those before ``end``; not normed."""
        embedded = self.norm_pre(self._pos_embed(self.patch_embed(images)))
        num_patches = embedded.shape[1] - 1
        ranking = None
        if self.runs and self.switches.scores == "last_class":
            ranking = self._last_class_attention(embedded)
        grid = torch.arange(num_patches, device=embedded.device) if observer is not None else None
        this = Evolution(self._block, self.switches, self.runs, self.switches.alphas,
                         num_patches, ranking, grid, observer)  # fmt: skip
        end = len(self.blocks) if end is None else end
        return evolve(this, State(embedded), 0, end).tokens

    @torch.no_grad()
    def _last_class_attention(self, x: Tensor) -> Tensor:
        """First of two passes: class attention (B, N) of the last block, nothing selected."""
        for block in self.blocks[:-1]:
            x = block(x)
        _, row = self._block(len(self.blocks) - 1, x, observed=True)
        return functions_for(x).settled(row)

    def forward_features(self, x: Tensor, attn_mask=None, is_causal=False) -> Tensor:
        """Images to tokens (B, 1 + N, C) in raster order; normed in the paper's variant.

        With dropped or unpooled placeholders only the informative patches remain, in no order.
        """
        self._refuse_masks(x, attn_mask, is_causal)
        return self._normed(self._evolve(x))

    def _refuse_masks(self, x: Tensor, attn_mask: Tensor | None, is_causal: bool) -> None:
        self.refuse_symbolic_tracing(x)
        if attn_mask is not None or is_causal:
            raise ValueError("Evo-ViT ranks all tokens by class attention: no attention masks")

    def _normed(self, x: Tensor) -> Tensor:
        """Norm the tokens here in the paper's variant; the official one norms their mean."""
        return self.norm(x) if self.switches.variant == "paper" else x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Tokens of ``forward_features`` to logits: the mean of the patches is classified.

        The paper averages the tokens' predictions, that is their normed features; the authors'
        code averages the features and norms the mean.
        """
        x = self.pool(x)
        x = self.head_drop(x if self.switches.variant == "paper" else self.norm(x))
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor, attn_mask=None, is_causal=False) -> Any:
        """Logits; with ``set_training_outputs`` in training (average, class token), Eq. 8."""
        if not (self.training and self.training_outputs):
            return self.forward_head(self.forward_features(x, attn_mask, is_causal))
        self._refuse_masks(x, attn_mask, is_causal)
        x = self._evolve(x)
        class_token = self.head_drop(self.norm_cls(x.select(1, 0)))
        return self.forward_head(self._normed(x)), self.head_cls(class_token)

    def observe(self, images: Tensor) -> tuple[list[Observation], Tensor]:
        """What every block did to images, for ``trace``; and the logits."""
        observed: list[Observation] = []
        x = self._evolve(images, observed)
        return observed, self.forward_head(self._normed(x))

    def forward_intermediates(
        self, x: Tensor, indices: int | Sequence[int] | None = None, return_prefix_tokens=False,
        norm=False, stop_early=False, output_fmt="NCHW", intermediates_only=False,
        output_dict=False, attn_mask=None, is_causal=False,
    ) -> Any:  # fmt: skip
        """timm's method; after each block every patch has its place in the grid.

        Placeholders have the value that they would have if the run of blocks ended there; dropped
        ones keep their last value.
        """
        self._refuse_masks(x, attn_mask, is_causal)
        taken, last = feature_take_indices(len(self.blocks), indices)
        grid = self.patch_embed.dynamic_feat_size(x.shape[-2:])
        observed: list[Observation] = []
        final = self._evolve(x, observed, last + 1 if stop_early else None)
        after = [observed[0].tokens]  # all tokens (B, 1 + N, C) after each block
        for seen in observed[1:]:
            dropped = seen.tokens.shape[1] < after[-1].shape[1]
            after.append(fill_grid(seen.tokens, seen.kept, after[-1]) if dropped else seen.tokens)
        return pack_intermediates(
            [self.norm(after[i]) if norm else after[i] for i in taken],
            [grid] * len(taken),
            self._normed(final),
            output_fmt=output_fmt,
            return_prefix_tokens=return_prefix_tokens,
            intermediates_only=intermediates_only,
            output_dict=output_dict,
        )

    def prune_intermediate_layers(self, indices=1, prune_norm=False, prune_head=True) -> list[int]:
        """timm's method; ``scores="last_class"`` keeps all blocks, since the last one ranks."""
        blocks = self.blocks
        taken = super().prune_intermediate_layers(indices, prune_norm, prune_head)
        if self.switches.scores == "last_class":
            self.blocks = blocks
        if prune_head:
            self.set_training_outputs(False)
        return taken

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        _refuse_pool(global_pool or self.global_pool)
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
        for block in range(self.switches.host.depth):
            self.switches.kept(self.patch_embed.num_patches, block)


def _refuse_pool(global_pool: str) -> None:
    if global_pool not in ("avg", ""):
        raise ValueError(
            f"global_pool={global_pool!r}: Evo-ViT predicts from the mean, so it is 'avg', or '' for all tokens"
        )


def _cfg(size: int) -> dict[str, Any]:
    """timm's pretrained_cfg; crop_pct as in DeiT's evaluation: resize to 256 / 224 of the size."""
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
    plan.refuse_old_keywords(kwargs)
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
