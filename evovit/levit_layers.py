"""Attention, sub-sampling and blocks of the deep-narrow host, made of timm's LeViT layers."""

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath, trunc_normal_
from timm.models.levit import Attention, LevitMlp, LinearNorm, NormLinear
from torch import Tensor, nn

from . import tokens


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """(B, L, H * D) -> (B, L, H, D); torch's ONNX exporter takes the batch size that ``unflatten``
    was traced with for a constant."""
    return x.reshape(*x.shape[:2], num_heads, x.shape[2] // num_heads)


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float, scores: str | None) -> tuple[Tensor, Tensor | None]:
    """LeViT's attention, with the whole matrix: values are wider than keys, so that PyTorch's
    fused attention would take its slow path, and the class row is then free.

    Args:
        q, k, v: (B, Lq, H, Dk), (B, L, H, Dk) and (B, L, H, Dv).
        scores: what to hand out beside the result; see ``tokens.attention_scores``.

    Returns:
        (B, Lq, H * Dv) and, with ``scores``, (B, H, L).
    """
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    attn = ((q * scale) @ k.transpose(-2, -1)).softmax(dim=-1)
    row = None if scores is None else tokens.attention_scores(attn, q, k, scale, scores)
    return (attn @ v).transpose(1, 2).flatten(2), row


class EvoLevitAttention(nn.Module):
    """LeViT's attention without attention biases; it can hand out token scores."""

    def __init__(
        self, dim: int, key_dim: int, num_heads: int, attn_ratio: float, act_layer: type[nn.Module],
        **dd: Any,
    ):  # fmt: skip
        super().__init__()
        self.num_heads, self.scale = num_heads, key_dim**-0.5
        self.widths = (key_dim, key_dim, int(attn_ratio * key_dim))
        self.qkv = LinearNorm(dim, num_heads * sum(self.widths), **dd)
        self.proj = nn.Sequential()
        self.proj.add_module("act", act_layer())
        width = num_heads * self.widths[2]
        self.proj.add_module("ln", LinearNorm(width, dim, bn_weight_init=0, **dd))

    def forward(self, x: Tensor, scores: str | None = None) -> tuple[Tensor, Tensor | None]:
        """(B, L, C) -> (B, L, C) and, with ``scores``, (B, H, L)."""
        q, k, v = split_heads(self.qkv(x), self.num_heads).split(self.widths, dim=3)
        out, row = attend(q, k, v, self.scale, scores)
        return self.proj(out), row


class EvoLevitBlock(nn.Module):
    """Attention and MLP with residuals, handing on the token scores of the attention."""

    def __init__(
        self, dim: int, key_dim: int, num_heads: int, attn_ratio: float, mlp_ratio: float,
        act_layer: type[nn.Module], drop_path: float, **dd: Any,
    ):  # fmt: skip
        super().__init__()
        self.attn = EvoLevitAttention(dim, key_dim, num_heads, attn_ratio, act_layer, **dd)
        self.drop_path1 = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.mlp = LevitMlp(dim, int(dim * mlp_ratio), act_layer=act_layer, **dd)
        self.drop_path2 = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor, scores: str | None = None) -> tuple[Tensor, Tensor | None]:
        """(B, L, C) -> (B, L, C) and, with ``scores``, (B, H, L)."""
        out, row = self.attn(x, scores)
        x = x + self.drop_path1(out)
        return x + self.drop_path2(self.mlp(x)), row


class EvoLevitSubsample(nn.Module):
    """Attention from every second row and column of the grid to all of it, then an MLP.

    The class token stays a query of its own. A learned position embedding is added to the tokens
    before, at the resolution that is left. ``merge``: the queries are the averages of 2 x 2
    windows instead of each window's first token.
    """

    def __init__(
        self, in_dim: int, out_dim: int, key_dim: int, grid: tuple[int, int], merge: bool,
        act_layer: type[nn.Module], drop_path: float, **dd: Any,
    ):  # fmt: skip
        super().__init__()
        self.grid, self.merge = grid, merge
        self.num_heads, self.scale = in_dim // key_dim, key_dim**-0.5
        self.widths = (key_dim, 4 * key_dim)
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + grid[0] * grid[1], in_dim, **dd))
        self.reset_parameters()
        self.kv = LinearNorm(in_dim, self.num_heads * sum(self.widths), **dd)
        self.q = LinearNorm(in_dim, self.num_heads * key_dim, **dd)
        self.proj = nn.Sequential()
        self.proj.add_module("act", act_layer())
        self.proj.add_module("ln", LinearNorm(self.num_heads * self.widths[1], out_dim, **dd))
        self.mlp = LevitMlp(out_dim, 2 * out_dim, act_layer=act_layer, **dd)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def reset_parameters(self) -> None:
        """Initialize the position embedding."""
        trunc_normal_(self.pos_embed, std=0.02)

    def shrink(self, x: Tensor) -> Tensor:
        """(B, 1 + H * W, C) -> (B, 1 + ceil(H / 2) * ceil(W / 2), C)."""
        patches = x[..., 1:, :].reshape(x.shape[0], *self.grid, x.shape[2])
        if self.merge:  # windows at an odd edge average what they hold
            patches = F.avg_pool2d(patches.permute(0, 3, 1, 2), 2, ceil_mode=True)
            patches = patches.permute(0, 2, 3, 1)
        else:
            patches = patches[..., ::2, ::2, :]
        return torch.cat((x[..., :1, :], patches.flatten(1, 2)), dim=1)

    def forward(self, x: Tensor, scores: str | None = None) -> tuple[Tensor, Tensor | None]:
        """(B, 1 + H * W, C) to the smaller grid and, with ``scores``, (B, heads, 1 + H * W)."""
        x = x + self.pos_embed
        k, v = split_heads(self.kv(x), self.num_heads).split(self.widths, dim=3)
        q = split_heads(self.q(self.shrink(x)), self.num_heads)
        out, row = attend(q, k, v, self.scale, scores)
        x = self.proj(out)
        return x + self.drop_path(self.mlp(x)), row


class EvoLevitStage(nn.Module):
    """Blocks on one grid, after the sub-sampling that leads to it (None in the first stage)."""

    def __init__(self, downsample: nn.Module | None, blocks: list[nn.Module]):
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.ModuleList(blocks)


def init_levit_layers(model: nn.Module) -> None:
    """Initialize all layers of a LeViT as their constructors do, buffers included.

    timm's LeViT calls ``reset_parameters`` alone, which lets residual branches start at one and
    classifiers at another scale.
    """
    for module in model.modules():
        if module is not model and hasattr(module, "reset_parameters"):
            module.reset_parameters()
    for module in model.modules():
        if isinstance(module, LevitMlp):
            nn.init.zeros_(module.ln2.bn.weight)
        elif isinstance(module, Attention | EvoLevitAttention):
            nn.init.zeros_(module.proj.ln.bn.weight)
        elif isinstance(module, NormLinear):
            trunc_normal_(module.linear.weight, std=0.02)
            nn.init.zeros_(module.linear.bias)
