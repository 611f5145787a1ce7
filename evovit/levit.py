"""Evo-LeViT: Evo-ViT on the deep-narrow (LeViT) host, registered as ``evo_levit_*`` in timm."""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import (
    get_act_layer,
    get_device_dtype,
    resample_abs_pos_embed,
    to_2tuple,
    to_ntuple,
    trunc_normal_,
)
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from timm.models._input import update_model_input_size
from timm.models.levit import NormLinear, Stem16, model_cfgs
from torch import Tensor, nn

from . import plan
from .checkpoint import add_saved_metadata, levit_from_official
from .levit_layers import EvoLevitBlock, EvoLevitStage, EvoLevitSubsample, init_levit_layers
from .pyramid import PyramidHost

STRIDE = 16  # of the stem
HEADS = ("head", "head_dist")
TRAINING_HEADS = ("head_cls", "head_cls_dist")  # on the class token


class EvoLevit(PyramidHost, nn.Module):
    """LeViT with structure-preserving token selection and slow-fast updating.

    Against timm's Levit: a class token; position embeddings at the input and before each
    sub-sampling instead of attention biases; the switches of ``evovit.plan``; for Eq. 8
    ``set_training_outputs`` adds a second pair of heads, on the class token. All tokens keep their
    places in the raster, so that sub-sampling needs no order restored.

    Args (the sizes are timm's Levit's, one entry per stage):
        img_size: height and width in pixels, multiples of 16.
        variant: "paper" (the text: alpha 0.5, sub-sampled scores as they are) or "official" (the
            authors' code: alpha learned, sub-sampled scores rescaled to the sum they had before).
        keep_ratio: share of informative tokens, a number or one per block (1 before start_block).
        start_block: first selecting block, counted from 0 through all stages.
        alpha: alpha of Eq. 4, weight of the previous score; a number, one per attention
            (sub-sampling ones included, in order) or "learned".
        schedule: "stage" or "layer"; see EvoVisionTransformer.
        placeholders: "update" (Eqs. 5-7) or "keep".
        scores: "global" (Eq. 4), "class", "random" or "column_mean".
        subsample: queries of the sub-sampling attentions: "stride" (LeViT's) or "average" of each
            2 x 2 window; it decides how the scores are sub-sampled (supplement).
        tile: keep fewer tokens, so that blocks run on a multiple of so many; see
            EvoVisionTransformer.

    Raises:
        ValueError: for values out of range and combinations that make no sense, with the reason.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dim: Sequence[int] = (128, 256, 384),
        key_dim: int = 16,
        depth: Sequence[int] = (2, 3, 4),
        num_heads: int | Sequence[int] = (4, 6, 8),
        attn_ratio: float | Sequence[float] = 2.0,
        mlp_ratio: float | Sequence[float] = 2.0,
        act_layer: str = "hard_swish",
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        variant: str = "paper",
        keep_ratio: float | Sequence[float] = 0.5,
        start_block: int = 2,
        alpha: float | str | Sequence[float] | None = None,
        schedule: str | None = None,
        placeholders: str | None = None,
        scores: str = "global",
        subsample: str = "stride",
        tile: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        if subsample not in ("stride", "average"):
            raise ValueError(f"subsample={subsample!r} is not one of stride, average")
        self.num_classes, self.in_chans = num_classes, in_chans
        self.embed_dim, self.drop_rate = tuple(embed_dim), drop_rate
        self.num_features = self.head_hidden_size = embed_dim[-1]
        self.grad_checkpointing = self.distilled_training = False
        self._set_pool(global_pool)
        host = plan.Host(sum(depth), tuple(sum(depth[:i]) for i in range(len(depth))))
        switches = plan.resolve(host, variant, keep_ratio, start_block, alpha, placeholders, scores, tile=tile)
        self.set_switches(switches, schedule)
        self._set_grids(img_size)
        act = get_act_layer(act_layer)
        self.stem = Stem16(in_chans, embed_dim[0], act_layer=act, **dd)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim[0], **dd))
        rows, columns = self.grids[0]
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + rows * columns, embed_dim[0], **dd))
        trunc_normal_(self.pos_embed, std=0.02)
        self.stages, self.feature_info = nn.ModuleList(), []
        sizes = (to_ntuple(len(depth))(size) for size in (num_heads, attn_ratio, mlp_ratio))
        for i, (dim, count, *of_block) in enumerate(zip(embed_dim, depth, *sizes, strict=True)):
            downsample = None
            if i > 0:
                downsample = EvoLevitSubsample(
                    embed_dim[i - 1], dim, key_dim, self.grids[i - 1], subsample == "average",
                    act, drop_path_rate, **dd,
                )  # fmt: skip
            blocks = [EvoLevitBlock(dim, key_dim, *of_block, act, drop_path_rate, **dd) for _ in range(count)]
            self.stages.append(EvoLevitStage(downsample, blocks))
            info = dict(num_chs=dim, reduction=STRIDE * 2**i, module=f"stages.{i}")
            self.feature_info.append(info)
        # One vector, so that all of it has a gradient under every schedule (DDP wants that).
        learned = torch.zeros(host.attentions, **dd)
        self.alpha_logits = nn.Parameter(learned) if switches.learned else None
        self.learning_alpha = switches.learned
        self._set_classifiers(**dd)

    training_parts = TRAINING_HEADS

    def _make_training_parts(self) -> dict[str, nn.Module]:
        return {head: self._classifier(**get_device_dtype(self)) for head in TRAINING_HEADS}

    @torch.no_grad()
    def init_weights(self, needs_reset: bool = True) -> None:
        """Initialize all weights and buffers, e.g. after ``to_empty``.

        Args:
            needs_reset: False does nothing, since every layer initializes itself when it is made.
        """
        if not needs_reset:
            return
        init_levit_layers(self)
        nn.init.zeros_(self.cls_token)
        trunc_normal_(self.pos_embed, std=0.02)
        if self.alpha_logits is not None:
            nn.init.zeros_(self.alpha_logits)

    def _set_pool(self, global_pool: str) -> None:
        if global_pool not in ("avg", ""):
            raise ValueError(
                f"global_pool={global_pool!r}: Evo-ViT predicts from the mean, so it is 'avg', or '' for all tokens"
            )
        if not global_pool and self.num_classes > 0:
            raise ValueError(
                "global_pool='' leaves all tokens and LeViT's heads classify one vector: use it with num_classes=0"
            )
        self.global_pool = global_pool

    def _set_grids(self, img_size: int | tuple[int, int]) -> None:
        """Note the grid (rows, columns) of each stage; refuse what can't be selected from."""
        size = to_2tuple(img_size)
        if any(side < STRIDE or side % STRIDE for side in size):
            raise ValueError(f"img_size={size}: both sides must be multiples of {STRIDE} pixels")
        host, grid, grids = self.switches.host, tuple(side // STRIDE for side in size), []
        for first, end in pairwise((*host.stages, host.depth)):
            for block in range(first, end):
                self.switches.kept(grid[0] * grid[1], block)
            grids.append(grid)
            grid = tuple(-(-side // 2) for side in grid)
        self.img_size, self.grids = size, tuple(grids)

    def _set_classifiers(self, **dd: Any) -> None:
        for head in HEADS + (TRAINING_HEADS if self.training_outputs else ()):
            setattr(self, head, self._classifier(**dd).train(self.training))

    def _classifier(self, **dd: Any) -> nn.Module:
        if self.num_classes <= 0:
            return nn.Identity()
        return NormLinear(self.num_features, self.num_classes, drop=self.drop_rate, **dd)

    def from_official(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The authors' keys in ours."""
        return levit_from_official(state_dict, [len(stage.blocks) for stage in self.stages])

    def prune_intermediate_layers(self, indices=1, prune_norm=False, prune_head=True) -> list[int]:
        """timm's method; the heads go with the last stage, which they are sized for."""
        taken, last = feature_take_indices(len(self.stages), indices)
        shortened = last < len(self.stages) - 1
        self.stages = self.stages[: last + 1]
        if shortened:
            self.num_features = self.head_hidden_size = self.feature_info[last]["num_chs"]
        if prune_head or shortened:
            self.set_training_outputs(False)
            self.reset_classifier(0, "")
        blocks = sum(len(stage.blocks) for stage in self.stages)
        if blocks <= self.switches.start_block:  # nothing is left that selects by the alphas
            self.alpha_logits, self.learning_alpha = None, False
        return taken

    def no_weight_decay(self) -> set[str]:
        return {
            name for name, _ in self.named_parameters() if name.endswith(("pos_embed", "cls_token", "alpha_logits"))
        }

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return dict(
            stem=r"^(?:stem|cls_token|pos_embed|alpha_logits)",
            blocks=r"^stages\.(\d+)"
            if coarse
            else [
                (r"^stages\.(\d+)\.downsample", (0,)),
                (r"^stages\.(\d+)\.blocks\.(\d+)", None),
            ],
        )

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.grad_checkpointing = enable

    def get_classifier(self) -> tuple[nn.Module, nn.Module]:
        return self.head, self.head_dist

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        self.num_classes = num_classes
        self._set_pool(self.global_pool if global_pool is None else global_pool)
        self._set_classifiers(**get_device_dtype(self))

    def set_input_size(self, img_size: int | tuple[int, int] | None = None) -> None:
        """Make the model for another image size; all position embeddings are resampled.

        Args:
            img_size: height and width in pixels, multiples of 16; None changes nothing.

        Raises:
            ValueError: for a size that the stem can't divide or that leaves too few patches.
        """
        if img_size is None:
            return
        before = self.grids
        self._set_grids(img_size)
        self.pos_embed = _resampled(self.pos_embed, before[0], self.grids[0])
        for stage, old, new in zip(self.stages[1:], before, self.grids, strict=False):
            downsample = stage.downsample  # it starts from the grid before
            downsample.grid = new
            downsample.pos_embed = _resampled(downsample.pos_embed, old, new)
        update_model_input_size(self, self.img_size)


def _resampled(positions: Tensor, old: tuple[int, int], new: tuple[int, int]) -> nn.Parameter:
    """Position embeddings (1, 1 + N, C) of another grid; the class token keeps its own."""
    resampled = positions.detach()
    if old != new:
        resampled = resample_abs_pos_embed(resampled, new, old, num_prefix_tokens=1)
    return nn.Parameter(resampled, requires_grad=positions.requires_grad)


def resample_positions(state_dict: Mapping[str, Any], model: EvoLevit) -> dict[str, Any]:
    """timm's filter for pretrained weights: position embeddings resampled to the model's grids."""
    state_dict = dict(state_dict.get("model", state_dict))
    stages = range(1, len(model.stages))
    # sub-sampling starts from the grid of the stage before
    steps = {"pos_embed": 0} | {f"stages.{i}.downsample.pos_embed": i - 1 for i in stages}
    for name, step in steps.items():
        if name in state_dict:
            source = source_grid(model, state_dict[name].shape[1] - 1, step)
            state_dict[name] = _resampled(state_dict[name], source, model.grids[step]).data
    return add_saved_metadata(state_dict, model)


def stage_grid(size: Sequence[int], stage: int) -> tuple[int, int]:
    """Rows and columns of the tokens in a stage of LeViT, counted from 0, for an image size."""
    rows, columns = (side // STRIDE for side in size)
    for _ in range(stage):
        rows, columns = -(-rows // 2), -(-columns // 2)
    return rows, columns


def source_grid(model: nn.Module, tokens: int, stage: int) -> tuple[int, int]:
    """Rows and columns of the tokens in a stage of the LeViT that pretrained weights come from.

    Where the weights' own configuration does not explain how many there are, they are of square
    images, as published files are.

    Raises:
        ValueError: if no grid explains the number.
    """
    source = getattr(model, "pretrained_model_args", {}).get("img_size")
    source = to_2tuple(source or model.pretrained_cfg["input_size"][-2:])
    side = round(tokens**0.5)
    for grid in (stage_grid(source, stage), stage_grid(model.img_size, stage), (side, side)):
        if grid[0] * grid[1] == tokens:
            return grid
    raise ValueError(
        f"the weights hold positions of {tokens} patches in stage {stage}, which is no grid of "
        f"{source[0]} x {source[1]} pixels: give the size of their images as "
        "pretrained_cfg_overlay=dict(input_size=(3, height, width))"
    )


CFG = dict(
    url="", num_classes=1000, input_size=(3, 224, 224), pool_size=None, crop_pct=0.875,
    interpolation="bicubic", fixed_input_size=True, mean=IMAGENET_DEFAULT_MEAN,
    std=IMAGENET_DEFAULT_STD, first_conv="stem.conv1.linear",
    classifier=tuple(f"{head}.linear" for head in HEADS), license="mit",
)  # fmt: skip
SIZES = ("128s", "128", "192", "256", "384")
default_cfgs = generate_default_cfgs({f"evo_levit_{size}": CFG for size in SIZES})


def _create(size: str, pretrained: bool, kwargs: dict[str, Any]) -> nn.Module:
    plan.refuse_old_keywords(kwargs)
    # "variant" is also the name of a parameter of build_model_with_cfg
    model_cls = partial(EvoLevit, variant=kwargs.pop("variant", "paper"))
    return build_model_with_cfg(
        model_cls,
        f"evo_levit_{size}",
        pretrained,
        pretrained_filter_fn=resample_positions,
        feature_cfg=dict(out_indices=kwargs.pop("out_indices", (0, 1, 2)), feature_cls="getter"),
        **{**model_cfgs[f"levit_{size}"], **kwargs},
    )


@register_model
def evo_levit_128s(pretrained: bool = False, **kwargs: Any) -> EvoLevit:
    """Evo-LeViT-128S at 224 px, or another ``img_size``."""
    return _create("128s", pretrained, kwargs)


@register_model
def evo_levit_128(pretrained: bool = False, **kwargs: Any) -> EvoLevit:
    """Evo-LeViT-128 at 224 px, or another ``img_size``."""
    return _create("128", pretrained, kwargs)


@register_model
def evo_levit_192(pretrained: bool = False, **kwargs: Any) -> EvoLevit:
    """Evo-LeViT-192 at 224 px, or another ``img_size``."""
    return _create("192", pretrained, kwargs)


@register_model
def evo_levit_256(pretrained: bool = False, **kwargs: Any) -> EvoLevit:
    """Evo-LeViT-256 at 224 px, or another ``img_size``."""
    return _create("256", pretrained, kwargs)


@register_model
def evo_levit_384(pretrained: bool = False, **kwargs: Any) -> EvoLevit:
    """Evo-LeViT-384 at 224 px, or another ``img_size``."""
    return _create("384", pretrained, kwargs)
