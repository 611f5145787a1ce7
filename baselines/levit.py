"""The dense deep-narrow reference: LeViT on timm's, registered as ``plain_levit_*``."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import to_2tuple
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._input import update_model_input_size
from timm.models.levit import Attention, AttentionDownsample, Downsample, LevitDistilled, model_cfgs
from timm.task import TokenDistillationTask
from torch import Tensor, nn

from evovit.checkpoint import load_exactly
from evovit.features import NoSymbolicGraph, of_no_images, refuse_empty_training
from evovit.levit import STRIDE, init_levit_layers, source_grid, stage_grid
from evovit.task import register_task


class PlainLevit(NoSymbolicGraph, LevitDistilled):
    """timm's LeViT with its distillation head, for any image size.

    Modifications:
    - ``set_input_size`` resamples the attention biases, LeViT's only positions,
    - images of another size than the model's are refused instead of failing inside,
    - a model that was evaluated can still be copied and differentiated.

    Args (in addition to timm's):
        img_size: height and width in pixels, multiples of 16.

    Raises:
        ValueError: for a size that the stem can't divide.
    """

    def __init__(self, *args: Any, img_size: int | tuple[int, int] = 224, **kwargs: Any):
        size = _checked(img_size)
        super().__init__(*args, img_size=size, **kwargs)
        self.img_size = size
        self.register_load_state_dict_post_hook(PlainLevit._forget_gathered_biases)

    def init_weights(self, needs_reset: bool = True) -> None:
        """Initialize all weights and buffers, e.g. after ``to_empty``.

        Args:
            needs_reset: False does nothing, since every layer initializes itself when it is made.
        """
        if needs_reset:
            init_levit_layers(self)

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last grid's tokens (B, N, C) of images (B, 3, H, W)."""
        self._check(x)
        if x.shape[0] == 0:  # timm's attention can't view an empty batch
            return of_no_images(self.forward_features, x)
        self._forget_biases_with_gradients()
        x = super().forward_features(x)
        self._forget_biases_with_gradients()
        return x

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Return timm's intermediates: the map (B, C, H, W) of each stage."""
        self._check(x)
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt={output_fmt!r}: LeViT's intermediates are NCHW")
        if x.shape[0] == 0:
            return of_no_images(
                self.forward_intermediates, x, indices, norm, stop_early, output_fmt, intermediates_only
            )
        self._forget_biases_with_gradients()
        result = super().forward_intermediates(x, indices, norm, stop_early, output_fmt, intermediates_only)
        self._forget_biases_with_gradients()
        return result

    def _check(self, x: Tensor) -> None:
        self.refuse_symbolic_tracing(x)
        refuse_empty_training(self, x)
        if tuple(x.shape[-2:]) != self.img_size:
            raise ValueError(
                f"images are {tuple(x.shape[-2:])}, the model was made for {self.img_size}: "
                "use img_size=... or set_input_size()"
            )

    def _forget_biases_with_gradients(self) -> None:
        # In evaluation timm keeps the gathered biases. With their graph they could not be copied
        # (EMA); made in inference mode they could not be differentiated; while torch.export runs the
        # model they hold no numbers.
        exporting = torch.compiler.is_exporting()
        if not self.training and (torch.is_grad_enabled() or exporting):
            self._forget_gathered_biases()

    def _forget_gathered_biases(self, *_: Any) -> None:
        kinds = (Attention, AttentionDownsample)  # torch 2.7 can't export "|" between types
        for module in self.modules():
            if isinstance(module, kinds):
                module.attention_bias_cache.clear()

    def set_input_size(self, img_size: int | tuple[int, int] | None = None) -> None:
        """Make the model for another image size; the attention biases are resampled.

        Args:
            img_size: height and width in pixels, multiples of 16; None changes nothing.

        Raises:
            ValueError: for a size that the stem can't divide.
        """
        if img_size is None:
            return
        size = _checked(img_size)
        for name, module in self.named_modules():
            if isinstance(module, Attention | AttentionDownsample | Downsample):
                old, new = module.resolution, stage_grid(size, _stage_of_keys(name, module))
                module.resolution = new
            if isinstance(module, Attention | AttentionDownsample):
                biases = module.attention_biases
                resampled = resample_biases(biases, old, new)
                module.attention_biases = nn.Parameter(resampled, biases.requires_grad)
                module.attention_bias_idxs = module._compute_attention_bias_idxs(biases.device)
        self._forget_gathered_biases()
        self.img_size = size
        update_model_input_size(self, size)

    def from_official(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return weights that have facebookresearch/LeViT's keys under ours."""
        modules = []  # our names in the authors' order: attention and MLP in turn
        for number, stage in enumerate(self.stages):
            prefix = f"stages.{number}"
            if number > 0:
                modules += [f"{prefix}.downsample.attn_downsample", f"{prefix}.downsample.mlp"]
            for block in range(len(stage.blocks)):
                modules += [f"{prefix}.blocks.{block}.attn", f"{prefix}.blocks.{block}.mlp"]
        renamed = {}
        for key, value in state_dict.items():
            if key.endswith("attention_bias_idxs"):
                continue
            match = re.fullmatch(r"blocks\.(\d+)\.(.+)", key)
            if match and int(match[1]) < len(modules):
                layer = match[2].removeprefix("m.")
                layer = re.sub(r"^([02])\.", lambda m: f"ln{int(m[1]) // 2 + 1}.", layer)
                layer = re.sub(r"^(q|proj)\.1\.", r"\1.ln.", layer)
                key = f"{modules[int(match[1])]}.{layer}"
            key = re.sub(r"^patch_embed\.(\d+)\.", lambda m: f"stem.conv{int(m[1]) // 2 + 1}.", key)
            renamed[re.sub(r"\.[cl]\.", ".linear.", key)] = value
        return renamed


def _checked(img_size: int | tuple[int, int]) -> tuple[int, int]:
    size = to_2tuple(img_size)
    if any(side < STRIDE or side % STRIDE for side in size):
        raise ValueError(f"img_size={size}: both sides must be multiples of {STRIDE} pixels")
    return size


def _stage_of_keys(name: str, module: nn.Module) -> int:
    """Return the index of the stage whose grid a module's keys have; sub-sampling starts one before."""
    stage = int(name.split(".")[1])
    return stage if isinstance(module, Attention) else stage - 1


def resample_biases(biases: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Resample biases (H, R * S), one for each offset (0..R-1, 0..S-1) of a grid, to another grid's offsets.

    The offset 0 and the largest offset keep their biases; those between are interpolated.
    """
    biases = biases.detach()
    if old == new:
        return biases
    table = biases.unflatten(1, old).unsqueeze(0)
    table = table.to(torch.promote_types(biases.dtype, torch.float32))
    table = F.interpolate(table, size=new, mode="bicubic", align_corners=True)
    return table[0].flatten(1).to(biases.dtype)


def resample_positions(state_dict: Mapping[str, Any], model: PlainLevit) -> dict[str, Any]:
    """Filter pretrained weights for timm: attention biases are resampled to the model's grids."""
    state_dict = dict(state_dict.get("model", state_dict))
    for name, module in model.named_modules():
        key = f"{name}.attention_biases"
        state_dict.pop(f"{name}.attention_bias_idxs", None)
        if isinstance(module, Attention | AttentionDownsample) and key in state_dict:
            stage = _stage_of_keys(name, module)
            source = source_grid(model, state_dict[key].shape[1], stage)
            state_dict[key] = resample_biases(state_dict[key], source, module.resolution)
    return state_dict


def load_official(model: PlainLevit, state_dict: Mapping[str, Tensor]) -> None:
    """Load facebookresearch/LeViT's weights.

    Raises:
        ValueError: listing every missing, unexpected or misshapen key; nothing is loaded then.
    """
    load_exactly(model, model.from_official(state_dict))


@register_task("hard_distillation")
class HardDistillationTask(TokenDistillationTask):
    """LeViT's training (Graham et al. 2021, after DeiT): a second head learns the labels that a teacher predicts.

    Args (in addition to TokenDistillationTask's):
        teacher: a frozen model that predicts the same classes.
        distill_weight: of the distillation head's part of the loss; the labels' part has the rest.

    Raises:
        ValueError: for a model without a distillation head, or a weight outside [0, 1].
    """

    def __init__(self, model: nn.Module, *, teacher: nn.Module, distill_weight: float = 0.5, **kwargs: Any):
        if not 0 <= distill_weight <= 1:
            raise ValueError(f"distill_weight={distill_weight} must lie in [0, 1]")
        weights = {"task_loss_weight": 1 - distill_weight, "distill_loss_weight": distill_weight}
        super().__init__(model, teacher, distill_type="hard", **weights, **kwargs)


CFG = dict(
    url="",
    num_classes=1000,
    input_size=(3, 224, 224),
    pool_size=None,
    crop_pct=0.875,
    interpolation="bicubic",
    fixed_input_size=True,
    mean=IMAGENET_DEFAULT_MEAN,
    std=IMAGENET_DEFAULT_STD,
    first_conv="stem.conv1.linear",
    classifier=("head.linear", "head_dist.linear"),
    license="apache-2.0",
)
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
