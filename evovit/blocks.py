"""Attention and block of the flat host, which can hand out token scores."""

import torch.nn.functional as F
from timm.layers import Attention
from timm.models.vision_transformer import Block
from torch import Tensor

from . import tokens
from .dispatch import functions_for


class EvoAttention(Attention):
    """Multi-head self-attention that can hand out token scores beside its result.

    Modifications of timm's Attention:
    - ``scores="class"`` adds the class token's attention row (fused attention stays fused),
    - ``scores="column_mean"`` adds the mean over the queries, for which alone the whole attention
      matrix is made.
    """

    def forward(self, x: Tensor, attn_mask=None, is_causal=False, scores: str | None = None):
        """(B, L, C) -> (B, L, C), with ``scores`` also (B, H, L): one weight per head and token."""
        if scores is None:
            return super().forward(x, attn_mask=attn_mask, is_causal=is_causal)
        qkv = self.qkv(x).reshape(*x.shape[:2], 3, self.num_heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        q, k = self.q_norm(q), self.k_norm(k)
        if self.fused_attn and scores == "class":
            dropout = self.attn_drop.p if self.training else 0.0
            out = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
            keys = k.transpose(1, 2).flatten(2)
            row = functions_for(x).class_attention(q.select(2, 0), keys, self.scale)
        else:
            attn = ((q * self.scale) @ k.transpose(-2, -1)).softmax(dim=-1)
            out = self.attn_drop(attn) @ v
            row = tokens.attention_scores(attn, q, k, self.scale, scores)
        out = self.norm(out.transpose(1, 2).flatten(2))
        return self.proj_drop(self.proj(out)), row


class EvoBlock(Block):
    """timm's Block, handing on the token scores of its attention."""

    def forward(self, x: Tensor, attn_mask=None, is_causal=False, scores: str | None = None):
        """(B, L, C) -> (B, L, C), with ``scores`` also (B, H, L)."""
        if scores is None:
            return super().forward(x, attn_mask=attn_mask, is_causal=is_causal)
        attended, row = self.attn(self.norm1(x), scores=scores)
        x = x + self.drop_path1(self.ls1(attended))
        del attended  # its memory is free while the MLP runs
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x)))), row
