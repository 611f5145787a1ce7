"""The dense deep-narrow reference: LeViT on timm's, registered as ``plain_levit_*``."""

import re
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import to_2tuple
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.levit import Attention, AttentionDownsample, Downsample, LevitDistilled, model_cfgs
from torch import Tensor, nn

from .weights import load_exactly

STRIDE = 16  # of the stem


class PlainLevit(LevitDistilled):
    """timm's LeViT with its distillation head, for any image size.

    Modifications:
    - ``set_input_size`` resamples the attention biases, LeViT's only positions,
    - images of another size than the model's are refused instead of failing inside,
    - a model that was evaluated can still be copied and differentiated.

    Args (beside timm's):
        img_size: height and width in pixels, multiples of 16.

    Raises:
        ValueError: for a size that the stem can't divide.
    """

    def __init__(self, *args: Any, img_size: int | tuple[int, int] = 224, **kwargs: Any):
        size = _checked(img_size)
        super().__init__(*args, img_size=size, **kwargs)
        self.img_size = size

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, 3, H, W) to the last grid's tokens (B, N, C)."""
        if tuple(x.shape[-2:]) != self.img_size:
            raise ValueError(
                f"images are {tuple(x.shape[-2:])}, the model was made for {self.img_size}: "
                "use img_size=... or set_input_size()"
            )
        if self.training or not torch.is_grad_enabled():
            return super().forward_features(x)
        # In evaluation timm keeps the gathered biases: with their graph they could not be copied
        # (EMA), made in inference mode they could not be differentiated.
        self._forget_gathered_biases()
        x = super().forward_features(x)
        self._forget_gathered_biases()
        return x

    def _forget_gathered_biases(self) -> None:
        for module in self.modules():
            if isinstance(module, Attention | AttentionDownsample):
                module.attention_bias_cache = {}

    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """Make the model for another image size; the attention biases are resampled."""
        size = _checked(img_size)
        grids = _grids(size, len(self.stages))
        for name, module in self.named_modules():
            if isinstance(module, Attention | AttentionDownsample | Downsample):
                old, new = module.resolution, grids[_grid_of(name, module)]
                module.resolution = new
            if isinstance(module, Attention | AttentionDownsample):
                biases = resample_biases(module.attention_biases, old, new)
                module.attention_biases = nn.Parameter(biases)
                module.attention_bias_idxs = module._compute_attention_bias_idxs(biases.device)
        self._forget_gathered_biases()
        self.img_size = size

    def from_official(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights under facebookresearch/LeViT's keys, under ours."""
        places = []  # ours, in the authors' order: attention and MLP in turn
        for number, stage in enumerate(self.stages):
            here = f"stages.{number}"
            if number > 0:
                places += [f"{here}.downsample.attn_downsample", f"{here}.downsample.mlp"]
            for block in range(len(stage.blocks)):
                places += [f"{here}.blocks.{block}.attn", f"{here}.blocks.{block}.mlp"]
        renamed = {}
        for key, value in state_dict.items():
            if key.endswith("attention_bias_idxs"):
                continue
            if (match := re.fullmatch(r"blocks\.(\d+)\.(.+)", key)) and int(match[1]) < len(places):
                layer = match[2].removeprefix("m.")
                layer = re.sub(r"^([02])\.", lambda m: f"ln{int(m[1]) // 2 + 1}.", layer)
                layer = re.sub(r"^(q|proj)\.1\.", r"\1.ln.", layer)
                key = f"{places[int(match[1])]}.{layer}"
            key = re.sub(r"^patch_embed\.(\d+)\.", lambda m: f"stem.conv{int(m[1]) // 2 + 1}.", key)
            renamed[re.sub(r"\.[cl]\.", ".linear.", key)] = value
        return renamed


def _checked(img_size: int | tuple[int, int]) -> tuple[int, int]:
    size = to_2tuple(img_size)
    if any(side < STRIDE or side % STRIDE for side in size):
        raise ValueError(f"img_size={size}: both sides must be multiples of {STRIDE} pixels")
    return size


def _grids(size: tuple[int, int], stages: int) -> list[tuple[int, int]]:
    """Rows and columns of the tokens in each stage."""
    grids = [tuple(side // STRIDE for side in size)]
    for _ in range(stages - 1):
        grids.append(tuple(-(-side // 2) for side in grids[-1]))
    return grids


def _grid_of(name: str, module: nn.Module) -> int:
    """Index of the grid that a module's keys lie on; sub-sampling starts from the stage before."""
    stage = int(name.split(".")[1])
    return stage if isinstance(module, Attention) else stage - 1


def resample_biases(biases: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Biases (H, R * S) for the offsets (0..R-1, 0..S-1), for another grid's offsets.

    The offset 0 keeps its bias, the largest stays the largest, what is between is interpolated.
    """
    if old == new:
        return biases.detach()
    table = biases.detach().unflatten(1, old).unsqueeze(0)
    table = F.interpolate(table, size=new, mode="bicubic", align_corners=True)
    return table[0].flatten(1)


def resample_positions(state_dict: Mapping[str, Any], model: PlainLevit) -> dict[str, Any]:
    """timm's filter for pretrained weights: attention biases resampled to the model's grids."""
    state_dict = dict(state_dict.get("model", state_dict))
    for name, module in model.named_modules():
        key = f"{name}.attention_biases"
        state_dict.pop(f"{name}.attention_bias_idxs", None)
        if not isinstance(module, Attention | AttentionDownsample) or key not in state_dict:
            continue
        count = state_dict[key].shape[1]
        if count != module.attention_biases.shape[1]:
            side = round(count**0.5)  # published files are of square images
            state_dict[key] = resample_biases(state_dict[key], (side, side), module.resolution)
    return state_dict


def load_official(model: PlainLevit, state_dict: Mapping[str, Tensor]) -> None:
    """Load facebookresearch/LeViT's weights.

    Raises:
        ValueError: listing every missing, unexpected or misshapen key; nothing is loaded then.
    """
    load_exactly(model, model.from_official(state_dict))


CFG = dict(
    url="", num_classes=1000, input_size=(3, 224, 224), pool_size=None, crop_pct=0.875,
    interpolation="bicubic", fixed_input_size=True, mean=IMAGENET_DEFAULT_MEAN,
    std=IMAGENET_DEFAULT_STD, first_conv="stem.conv1.linear", classifier=("head", "head_dist"),
    license="apache-2.0",
)  # fmt: skip
SIZES = ("128s", "128", "192", "256", "384")
default_cfgs = generate_default_cfgs({f"plain_levit_{size}": CFG for size in SIZES})


def _create(size: str, pretrained: bool, kwargs: dict[str, Any]) -> nn.Module:
    return build_model_with_cfg(
        PlainLevit,
        f"plain_levit_{size}",
        pretrained,
        pretrained_filter_fn=resample_positions,
        feature_cfg=dict(out_indices=kwargs.pop("out_indices", (0, 1, 2)), feature_cls="getter"),
        **{**model_cfgs[f"levit_{size}"], **kwargs},
    )


@register_model
def plain_levit_128s(pretrained: bool = False, **kwargs: Any) -> PlainLevit:
    """LeViT-128S."""
    return _create("128s", pretrained, kwargs)


@register_model
def plain_levit_128(pretrained: bool = False, **kwargs: Any) -> PlainLevit:
    """LeViT-128."""
    return _create("128", pretrained, kwargs)


@register_model
def plain_levit_192(pretrained: bool = False, **kwargs: Any) -> PlainLevit:
    """LeViT-192."""
    return _create("192", pretrained, kwargs)


@register_model
def plain_levit_256(pretrained: bool = False, **kwargs: Any) -> PlainLevit:
    """LeViT-256."""
    return _create("256", pretrained, kwargs)


@register_model
def plain_levit_384(pretrained: bool = False, **kwargs: Any) -> PlainLevit:
    """LeViT-384."""
    return _create("384", pretrained, kwargs)
