"""Parts of IA-RED2: the interpreter, and attention that can leave out keys."""

from typing import Any

import torch
from timm.layers import Attention
from timm.models.vision_transformer import Block
from torch import Tensor, nn

FRESH_LOGIT = 1.0  # sigmoid(1) = 0.73: kept by the threshold, dropped now and then by a sample


class Interpreter(nn.Module):
    """Scores (B, N) in (0, 1) of the patches, by their products with the class token."""

    def __init__(self, dim: int, num_heads: int, **dd: Any):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"{num_heads} interpreter heads do not divide the width {dim}")
        self.num_heads, self.scale = num_heads, (dim // num_heads) ** -0.5
        self.norm = nn.LayerNorm(dim, elementwise_affine=False, **dd)
        self.query = nn.Linear(dim, dim, **dd)
        self.key = nn.Linear(dim, dim, **dd)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Equal biases make a fresh interpreter keep everything, whatever the image."""
        for linear in (self.query, self.key):
            nn.init.trunc_normal_(linear.weight, std=0.02)
            head_dim = linear.out_features // self.num_heads
            nn.init.constant_(linear.bias, (FRESH_LOGIT / self.scale / head_dim) ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, 1 + N, C), class token first, to scores (B, N) in float32 at least."""
        x = self.norm(x)
        # not x[:, 1:]: torch 2.7 then exports no batch without an upper limit
        query = self.query(x.narrow(1, 0, 1)).unflatten(2, (self.num_heads, -1))
        key = self.key(x.narrow(1, 1, x.shape[1] - 1)).unflatten(2, (self.num_heads, -1))
        logits = (query * key).to(torch.promote_types(x.dtype, torch.float32)).sum(-1)
        return torch.sigmoid(logits * self.scale).mean(-1)


class KeyMaskedAttention(Attention):
    """timm's Attention that can leave out keys; ``keys`` (B, L) is True for those that count."""

    def forward(self, x: Tensor, attn_mask=None, is_causal=False, keys: Tensor | None = None):
        """(B, L, C) -> (B, L, C)."""
        mask = attn_mask if keys is None else keys[:, None, None, :]
        if mask is not None and not self.fused_attn:  # timm adds the mask there
            mask = torch.zeros_like(mask, dtype=x.dtype).masked_fill(~mask, -torch.inf)
        return super().forward(x, attn_mask=mask, is_causal=is_causal)


class MaskedBlock(Block):
    """timm's Block whose attention can leave out keys."""

    def forward(self, x: Tensor, attn_mask=None, is_causal=False, keys: Tensor | None = None):
        """(B, L, C) -> (B, L, C)."""
        x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x), attn_mask, is_causal, keys)))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))
