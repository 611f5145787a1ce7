"""The dense reference: DeiT on timm's building blocks, registered as ``plain_deit_*``.

The methods that change a DeiT build on this file: on ``DeitVariant``, the sizes and ``create_deit``.
"""

from collections.abc import Callable, Mapping
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, fx, jit, nn

from evovit.checkpoint import load_exactly
from evovit.conversion import register_host
from evovit.features import NoSymbolicGraph, TokenPooling, of_no_images

from .weights import split_weights


@register_host
class PlainVisionTransformer(TokenPooling, VisionTransformer):
    """timm's Vision Transformer, with an error that says why torch.fx can't trace it."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False):
        """Return logits (B, num_classes) of images (B, 3, H, W)."""
        if not jit.is_scripting():
            self._refuse_symbolic_tracing(x)
        x = self.forward_features(x, attn_mask=attn_mask, is_causal=is_causal)
        return self.forward_head(x)

    def forward_intermediates(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Return timm's intermediates, also of a batch without images."""
        if x.shape[0] == 0:
            return of_no_images(super().forward_intermediates, x, *args, **kwargs)
        return super().forward_intermediates(x, *args, **kwargs)

    def _refuse_symbolic_tracing(self, x: Tensor) -> None:
        if isinstance(x, fx.Proxy) and self.blocks[0].attn.fused_attn:
            raise NotImplementedError(
                "torch.fx can't trace fused attention: use torch.export for the graph, "
                "forward_intermediates() or features_only=True for features, or set "
                "TIMM_FUSED_ATTN=0 before timm is imported"
            )


class DeitVariant(NoSymbolicGraph, TokenPooling, VisionTransformer):
    """The base class of the DeiTs that a method changes; the weights of a plain DeiT start them."""

    fresh_keys: tuple[str, ...] = ()  # prefixes of the keys that a plain DeiT lacks

    def load_pretrained_dense(self, state_dict: Mapping[str, Tensor]) -> list[str]:
        """Load the weights of a plain DeiT and return the keys that it lacks, which keep their values.

        Raises:
            ValueError: listing every missing, unexpected or misshapen key; nothing is loaded then.
        """
        return load_exactly(self, split_weights(self, state_dict), fresh=self.fresh_keys)


def pretrained_cfg(size: int) -> dict[str, Any]:
    """Return timm's pretrained_cfg; DeiT's evaluation resizes to 256 / 224 of the size, its crop_pct."""
    return dict(
        url="",
        num_classes=1000,
        input_size=(3, size, size),
        pool_size=None,
        crop_pct=0.875,
        interpolation="bicubic",
        fixed_input_size=True,
        mean=IMAGENET_DEFAULT_MEAN,
        std=IMAGENET_DEFAULT_STD,
        first_conv="patch_embed.proj",
        classifier="head",
        license="mit",
    )


TINY = dict(embed_dim=192, num_heads=3)
SMALL = dict(embed_dim=384, num_heads=6)
BASE = dict(embed_dim=768, num_heads=12)


def create_deit(
    model_cls: Callable[..., nn.Module],
    name: str,
    pretrained: bool,
    kwargs: dict[str, Any],
    sizes: dict[str, Any],
    pretrained_filter: Callable = checkpoint_filter_fn,
) -> nn.Module:
    """Build ``model_cls`` with DeiT's ``sizes``, which the caller's ``kwargs`` override."""
    return build_model_with_cfg(
        model_cls,
        name,
        pretrained,
        pretrained_filter_fn=pretrained_filter,
        feature_cfg=dict(out_indices=kwargs.pop("out_indices", 3), feature_cls="getter"),
        **{"patch_size": 16, **sizes, **kwargs},
    )


default_cfgs = generate_default_cfgs(
    {
        "plain_deit_tiny_patch16_224": pretrained_cfg(224),
        "plain_deit_small_patch16_224": pretrained_cfg(224),
        "plain_deit_base_patch16_224": pretrained_cfg(224),
        "plain_deit_small_patch16_384": pretrained_cfg(384),
        "plain_deit_base_patch16_384": pretrained_cfg(384),
    }
)


@register_model
def plain_deit_tiny_patch16_224(pretrained: bool = False, **kwargs: Any) -> PlainVisionTransformer:
    """DeiT-T at 224 px."""
    return create_deit(PlainVisionTransformer, "plain_deit_tiny_patch16_224", pretrained, kwargs, TINY)


@register_model
def plain_deit_small_patch16_224(pretrained: bool = False, **kwargs: Any) -> PlainVisionTransformer:
    """DeiT-S at 224 px."""
    return create_deit(PlainVisionTransformer, "plain_deit_small_patch16_224", pretrained, kwargs, SMALL)


@register_model
def plain_deit_base_patch16_224(pretrained: bool = False, **kwargs: Any) -> PlainVisionTransformer:
    """DeiT-B at 224 px."""
    return create_deit(PlainVisionTransformer, "plain_deit_base_patch16_224", pretrained, kwargs, BASE)


@register_model
def plain_deit_small_patch16_384(pretrained: bool = False, **kwargs: Any) -> PlainVisionTransformer:
    """DeiT-S at 384 px."""
    return create_deit(PlainVisionTransformer, "plain_deit_small_patch16_384", pretrained, kwargs, SMALL)


@register_model
def plain_deit_base_patch16_384(pretrained: bool = False, **kwargs: Any) -> PlainVisionTransformer:
    """DeiT-B at 384 px."""
    return create_deit(PlainVisionTransformer, "plain_deit_base_patch16_384", pretrained, kwargs, BASE)
