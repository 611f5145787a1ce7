"""PS-ViT (Tang et al. 2022, Patch Slimming): one fixed set of patches per layer, for all images.

Registered as ``ps_deit_*``. A layer computes queries and FFN for its own patches alone; its keys
and values are the patches that the layer before it computed. Sets only shrink with depth, so a
patch that a layer leaves out is gone. ``psvit_search`` finds the sets on a trained DeiT, from the
top down; fine-tuning the slimmed model is plain classification.

No code was released. Chosen here: a model without weights keeps every patch. ``keep_profile``
slims it without a search, to the patches nearest to the image's centre: throughput without
searched weights uses shares 1 - (layer / 12)^p, p = 3 for DeiT-T and DeiT-S and 2.4 for DeiT-B, so
that their MACs match Table 1's images/s; the sets that its authors found were not published.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Attention
from timm.models import checkpoint, generate_default_cfgs, register_model
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from .deit import BASE, SMALL, TINY, create_deit, pretrained_cfg
from .dropping import FeatureMaps, TokenDroppingTransformer
from .weights import (
    SplitsWeights,
    complete_dense,
    joined_weights,
    load_exactly,
    refuse_averaged_masks,
    split_weights,
)


class RowAttention(SplitsWeights, Attention):
    """timm's Attention that can compute some rows alone.

    Queries have a linear layer of their own, as they are made of fewer tokens than keys and values.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        qkv, bias = self.qkv, self.qkv.bias is not None
        dd = {"device": qkv.weight.device, "dtype": qkv.weight.dtype}
        del self.qkv
        self.q = nn.utils.skip_init(nn.Linear, qkv.in_features, self.attn_dim, bias=bias, **dd)
        self.kv = nn.utils.skip_init(nn.Linear, qkv.in_features, 2 * self.attn_dim, bias=bias, **dd)
        weights = {f"qkv.{key}": value for key, value in qkv.state_dict().items()}
        self.load_state_dict(weights, strict=False)
        for name, layer in list(self.named_children()):
            if name not in ("q", "kv"):  # stands behind them, so that a seed draws what timm draws
                delattr(self, name)
                setattr(self, name, layer)

    @staticmethod
    def split(state_dict: dict[str, Tensor], prefix: str) -> None:
        """Replace timm's ``qkv`` by ``q`` and ``kv``."""
        for name in ("weight", "bias"):
            if f"{prefix}qkv.{name}" in state_dict:
                joined = state_dict.pop(f"{prefix}qkv.{name}")
                query, key_value = joined.tensor_split((joined.shape[0] // 3,))
                state_dict[f"{prefix}q.{name}"] = query
                state_dict[f"{prefix}kv.{name}"] = key_value

    @staticmethod
    def join(state_dict: dict[str, Tensor], prefix: str) -> None:
        """Replace ``q`` and ``kv`` by timm's ``qkv``."""
        for name in ("weight", "bias"):
            if f"{prefix}q.{name}" in state_dict:
                parts = [state_dict.pop(f"{prefix}{part}.{name}") for part in ("q", "kv")]
                state_dict[f"{prefix}qkv.{name}"] = torch.cat(parts)

    def project(self, x: Tensor, rows: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens (B, L, C) to queries (B, H, R, d) of the rows, keys and values (B, H, L, d)."""
        q = self.q(x if rows is None else x.index_select(1, rows))
        q = q.unflatten(2, (self.num_heads, self.head_dim)).transpose(1, 2)
        kv = self.kv(x).unflatten(2, (2, self.num_heads, self.head_dim))
        k, v = kv.permute(2, 0, 3, 1, 4).unbind(0)
        return self.q_norm(q), self.k_norm(k), v

    def maps(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        """Attention probabilities (B, H, R, L) of the rows."""
        q, k, _ = self.project(x, rows)
        return (q * self.scale @ k.transpose(-2, -1)).softmax(dim=-1)

    def forward(self, x: Tensor, attn_mask=None, is_causal=False, rows: Tensor | None = None):
        """(B, L, C) -> (B, R, C); ``rows`` (R,) indexes the L tokens, None takes all."""
        if attn_mask is not None or is_causal:
            raise ValueError("PS-ViT's layers compute some rows alone: leave out attention masks")
        q, k, v = self.project(x, rows)
        if self.fused_attn:
            dropout = self.attn_drop.p if self.training else 0.0
            out = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        else:
            out = self.attn_drop((q * self.scale @ k.transpose(-2, -1)).softmax(dim=-1)) @ v
        out = out.transpose(1, 2).flatten(2)
        return self.proj_drop(self.proj(self.norm(out)))


class RowBlock(Block):
    """timm's Block that can compute some rows alone."""

    def forward(self, x: Tensor, attn_mask=None, is_causal=False, rows: Tensor | None = None):
        """(B, L, C) -> (B, R, C)."""
        kept = x if rows is None else x.index_select(1, rows)
        x = self.attn(self.norm1(x), attn_mask, is_causal, rows)
        x = kept + self.drop_path1(self.ls1(x))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


class SlimVisionTransformer(TokenDroppingTransformer):
    """Vision Transformer that computes a fixed set of patches in each layer.

    The buffer ``kept`` (depth, N), True for the patches of each layer, travels with the weights.

    Args (beside timm's):
        keep_profile: share of all N patches that each layer computes, those nearest to the
            image's centre; None: all, until ``set_patches`` or loaded weights say which.

    Raises:
        ValueError: for a profile that rises, leaves [0, 1] or has not one share per block, and for
            ``dynamic_img_size``: the sets belong to one grid.
    """

    fresh_keys = ("kept",)  # that no plain DeiT has
    _present: list[list[int]] | None = None  # the tokens of each layer, class token 0

    def __init__(self, *args: Any, keep_profile: Sequence[float] | None = None, **kwargs: Any):
        super().__init__(*args, block_fn=RowBlock, attn_layer=RowAttention, **kwargs)
        if self.dynamic_img_size:
            raise ValueError(
                "dynamic_img_size: PS-ViT's sets of patches belong to one grid; give img_size, or "
                "call set_input_size() for images of another size"
            )
        shape = (len(self.blocks), self.patch_embed.num_patches)
        self.register_buffer("kept", self.cls_token.new_ones(shape, dtype=torch.bool))
        self.set_patches(self._central(keep_profile) if keep_profile is not None else None)
        self.register_load_state_dict_pre_hook(refuse_averaged_masks)
        self.register_load_state_dict_post_hook(_read_kept)

    @property
    def depth(self) -> int:
        """Layers that have a set, also those that ``prune_intermediate_layers`` removed."""
        return len(self.kept)

    @property
    def patches(self) -> list[list[int]]:
        """Each layer's patches in raster order."""
        return [[index - 1 for index in present if index] for present in self._present]

    def set_patches(self, patches: Sequence[Sequence[int]] | None) -> None:
        """Choose which patches, counted from 0 in raster order, each layer computes; None: all.

        Raises:
            ValueError: for a wrong number of layers, a patch that is not there or stands twice, or
                one that the layer before does not compute.
        """
        total = self.patch_embed.num_patches
        if patches is None:
            patches = [range(total)] * self.depth
        if len(patches) != self.depth:
            raise ValueError(f"patches has {len(patches)} layers, the model {self.depth}")
        before = set(range(total))
        for layer, wanted in enumerate(patches):
            if len(set(wanted)) != len(wanted) or not before.issuperset(wanted):
                raise ValueError(f"layer {layer} must compute patches of the layer before it, each once")
            before = set(wanted)
        self._index([[0, *sorted(1 + index for index in wanted)] for wanted in patches])

    def set_input_size(self, *args: Any, **kwargs: Any) -> None:
        """timm's method; each patch of the new grid is kept where the nearest old one was."""
        before = self.patch_embed.grid_size
        super().set_input_size(*args, **kwargs)
        grid = self.patch_embed.grid_size
        old = self._mask(before[0] * before[1]).unflatten(1, before).unsqueeze(1).float()
        mask = F.interpolate(old, grid).flatten(1).bool()
        self.kept = self.kept.new_empty(mask.shape)
        self.set_patches([layer.nonzero().flatten().tolist() for layer in mask])

    def init_weights(self, mode: str = "", needs_reset: bool = True) -> None:
        """timm's method; the sets of patches stay as they are."""
        super().init_weights(mode, needs_reset)
        if self._present is not None:  # while the model is made there are none yet
            self._index(self._present)

    def _mask(self, total: int) -> Tensor:
        """The sets as a mask (depth, total) on the CPU, which also a model on "meta" can read."""
        mask = torch.zeros(self.depth, total, dtype=torch.bool, device="cpu")
        for layer, patches in enumerate(self.patches):
            mask[layer, patches] = True
        return mask

    def _index(self, present: list[list[int]]) -> None:
        """Write down the tokens (class token 0) of each layer, and where they stand before it."""
        self._present = present
        before = list(range(1 + self.patch_embed.num_patches))
        for layer, tokens in enumerate(present):
            place = {token: row for row, token in enumerate(before)}
            rows = torch.tensor([place[token] for token in tokens], device=self.kept.device)
            # beside the mask, so that no forward pass asks the device who is kept
            self.register_buffer(f"rows_{layer}", rows, persistent=False)
            before = tokens
        self.kept.copy_(self._mask(self.kept.shape[1]))

    def _central(self, keep_profile: Sequence[float]) -> list[list[int]]:
        """The patches of a profile."""
        falling = all(a >= b for a, b in zip((1.0, *keep_profile), keep_profile, strict=False))
        if len(keep_profile) != self.depth or not falling or min(keep_profile) < 0:
            raise ValueError(
                f"keep_profile={keep_profile} must hold a share for each of {self.depth} blocks, "
                "none above the one before"
            )
        height, width = self.patch_embed.grid_size
        total = height * width

        def distance(index: int) -> float:
            row, column = divmod(index, width)
            return (row - (height - 1) / 2) ** 2 + (column - (width - 1) / 2) ** 2

        nearest = sorted(range(total), key=distance)
        return [nearest[: int(share * total)] for share in keep_profile]

    def rows(self, layer: int) -> Tensor | None:
        """Where a layer's tokens stand in the layer before it (R,); None: it computes them all."""
        before = self._present[layer - 1] if layer else range(1 + self.patch_embed.num_patches)
        same = len(self._present[layer]) == len(before)
        return None if same else getattr(self, f"rows_{layer}")

    def embed(self, images: Tensor) -> Tensor:
        """Images to tokens (B, 1 + N, C) before the first layer."""
        return self.norm_pre(self._pos_embed(self.patch_embed(images)))

    def run(self, x: Tensor, first: int, end: int, maps: FeatureMaps | None = None) -> Tensor:
        """Blocks ``first`` to before ``end`` on the tokens that the layer before computed."""
        recompute = self.grad_checkpointing and torch.is_grad_enabled()
        for layer in range(first, end):
            block, rows = self.blocks[layer], self.rows(layer)
            x = checkpoint(block, x, rows=rows) if recompute else block(x, rows=rows)
            if maps is not None:
                if rows is not None:
                    maps.keep(rows)
                maps.record(layer, x)
        return x

    def forward_tokens(self, images: Tensor, maps: FeatureMaps | None = None) -> Tensor:
        """Images to normed tokens (B, 1 + n, C): the class token and the last layer's patches."""
        x = self.embed(images)
        if maps is not None:
            maps.start(x)
        return self.norm(self.run(x, 0, len(self.blocks) if maps is None else maps.end, maps))

    def load_pretrained_dense(self, state_dict: Mapping[str, Tensor]) -> list[str]:
        """Load a plain DeiT; returns the keys that stay as they are (who is kept).

        Raises:
            ValueError: listing every missing, unexpected or misshapen key; nothing is loaded then.
        """
        return load_exactly(self, state_dict, fresh=self.fresh_keys)

    def from_official(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return weights with timm's keys (``qkv``) under our keys."""
        return split_weights(self, state_dict)

    def timm_state_dict(self) -> dict[str, Tensor]:
        """Return copies of the weights under timm's keys, without the sets of patches."""
        state_dict = joined_weights(self)
        del state_dict["kept"]
        return state_dict


def _read_kept(model: SlimVisionTransformer, incompatible: Any) -> None:
    """After loading weights: compute the patches that the mask says, if it was among them."""
    if any(key.split(".")[-1] == "kept" for key in incompatible.missing_keys):
        model.set_patches(model.patches)
    elif not model.kept.is_meta:
        model.set_patches([layer.nonzero().flatten().tolist() for layer in model.kept.cpu()])


SIZES = {"tiny": TINY, "small": SMALL, "base": BASE}
default_cfgs = generate_default_cfgs({f"ps_deit_{size}_patch16_224": pretrained_cfg(224) for size in SIZES})


def _create(size: str, pretrained: bool, kwargs: dict[str, Any]) -> nn.Module:
    name = f"ps_deit_{size}_patch16_224"
    return create_deit(SlimVisionTransformer, name, pretrained, kwargs, SIZES[size], complete_dense)


@register_model
def ps_deit_tiny_patch16_224(pretrained: bool = False, **kwargs: Any) -> SlimVisionTransformer:
    """DeiT-T with a set of patches per layer."""
    return _create("tiny", pretrained, kwargs)


@register_model
def ps_deit_small_patch16_224(pretrained: bool = False, **kwargs: Any) -> SlimVisionTransformer:
    """DeiT-S with a set of patches per layer."""
    return _create("small", pretrained, kwargs)


@register_model
def ps_deit_base_patch16_224(pretrained: bool = False, **kwargs: Any) -> SlimVisionTransformer:
    """DeiT-B with a set of patches per layer."""
    return _create("base", pretrained, kwargs)
