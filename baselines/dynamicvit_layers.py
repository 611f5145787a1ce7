"""Parts of DynamicViT: masked attention, score predictor, sampling of decisions."""

import torch
from timm.layers import Attention
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from .weights import SplitsWeights


class MaskedAttention(Attention):
    """timm's Attention; ``policy`` masks keys with a softmax that lets its gradient through."""

    def forward(self, x: Tensor, attn_mask=None, is_causal=False, policy: Tensor | None = None):
        """(B, L, C) -> (B, L, C); policy (B, L): 1 for kept tokens, 0 for the others."""
        if policy is None:
            return super().forward(x, attn_mask=attn_mask, is_causal=is_causal)
        qkv = self.qkv(x).unflatten(2, (3, self.num_heads, self.head_dim))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        q, k = self.q_norm(q), self.k_norm(k)
        attn = masked_softmax((q * self.scale) @ k.transpose(-2, -1), policy)
        out = (self.attn_drop(attn.to(v.dtype)) @ v).transpose(1, 2).flatten(2)
        return self.proj_drop(self.proj(self.norm(out)))


def masked_softmax(logits: Tensor, policy: Tensor, eps: float = 1e-6) -> Tensor:
    """Softmax of (B, H, L, L) over kept keys and each token itself, in float32.

    Self-attention is always allowed, so that no row is empty. The maximum is taken over all keys,
    dropped ones too: it only guards the exponential.
    """
    length = logits.shape[-1]
    itself = torch.eye(length, dtype=policy.dtype, device=policy.device)
    allowed = policy[:, None, None, :]
    allowed = allowed + (1 - allowed) * itself
    logits = logits - logits.amax(dim=-1, keepdim=True)
    weights = logits.float().exp() * allowed.float()
    return (weights + eps / length) / (weights.sum(dim=-1, keepdim=True) + eps)


class DynamicBlock(Block):
    """timm's Block with a ``policy`` for its attention."""

    def forward(self, x: Tensor, attn_mask=None, is_causal=False, policy: Tensor | None = None):
        """(B, L, C) -> (B, L, C); policy (B, L) or None."""
        if policy is None:
            return super().forward(x, attn_mask=attn_mask, is_causal=is_causal)
        x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x), policy=policy)))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


class ScorePredictor(SplitsWeights):
    """Log-probabilities of keeping and of dropping each token, from local and global features.

    The authors' first layer of ``out_conv`` reads both halves of the features. The global half is
    the same for all tokens of an image, so a layer of its own multiplies it once.
    """

    def __init__(self, dim: int, device=None, dtype=None):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        norm = nn.LayerNorm(dim, eps=1e-5, **dd)
        self.in_conv = nn.Sequential(norm, nn.Linear(dim, dim, **dd), nn.GELU())
        self.half = dim // 2
        self.out_local = nn.Linear(dim // 2, dim // 2, bias=False, **dd)
        self.out_global = nn.Linear(dim - dim // 2, dim // 2, **dd)
        self.out_conv = nn.Sequential(  # numbered as the authors' layers
            nn.Identity(), nn.GELU(),
            nn.Linear(dim // 2, dim // 4, **dd), nn.GELU(), nn.Linear(dim // 4, 2, **dd),
        )  # fmt: skip

    def forward(self, x: Tensor, policy: Tensor | None = None) -> Tensor:
        """Patches (B, n, C), policy (B, n) of those still kept (None: all) -> (B, n, 2)."""
        return self.logits(x, policy).log_softmax(dim=-1)

    def rank(self, x: Tensor) -> Tensor:
        """Patches (B, n, C) to numbers (B, n) in float32 at least, in the order of the scores.

        Those of a fresh predictor differ by less than a log-probability can tell in float32, so
        that rounding, which differs between devices and exported models, would decide.
        """
        keep, drop = self.logits(x).to(torch.promote_types(x.dtype, torch.float32)).unbind(-1)
        return keep - drop

    def logits(self, x: Tensor, policy: Tensor | None = None) -> Tensor:
        """Logits (B, n, 2) of the two probabilities, from the arguments of ``forward``."""
        x = self.in_conv(x)
        local, shared = x[..., : self.half], x[..., self.half :]
        if policy is None:
            shared = shared.mean(dim=1)
        else:
            mask = policy.unsqueeze(-1)
            # of an image with few tokens the samples may drop all: their mean is then 0, not NaN
            shared = (shared * mask).sum(dim=1) / mask.sum(dim=1).clamp_min(0.5)
        x = self.out_local(local) + self.out_global(shared).unsqueeze(1)
        return self.out_conv(x)

    @staticmethod
    def split(state_dict: dict[str, Tensor], prefix: str) -> None:
        """Replace the weight of the authors' first layer by those of the two halves."""
        if f"{prefix}out_conv.0.weight" in state_dict:
            weight = state_dict.pop(f"{prefix}out_conv.0.weight")
            local, shared = weight.tensor_split((weight.shape[1] // 2,), dim=1)
            state_dict[f"{prefix}out_local.weight"] = local
            state_dict[f"{prefix}out_global.weight"] = shared
        if f"{prefix}out_conv.0.bias" in state_dict:
            state_dict[f"{prefix}out_global.bias"] = state_dict.pop(f"{prefix}out_conv.0.bias")

    @staticmethod
    def join(state_dict: dict[str, Tensor], prefix: str) -> None:
        """Replace the weights of the two halves by that of the authors' first layer."""
        halves = [state_dict.pop(f"{prefix}{name}.weight") for name in ("out_local", "out_global")]
        state_dict[f"{prefix}out_conv.0.weight"] = torch.cat(halves, dim=1)
        state_dict[f"{prefix}out_conv.0.bias"] = state_dict.pop(f"{prefix}out_global.bias")


def sample_gumbel(like: Tensor) -> Tensor:
    """Standard Gumbel noise in the shape of ``like``, from torch's global generator."""
    return -torch.empty_like(like).exponential_().log()


def sample_keep(log_probs: Tensor) -> Tensor:
    """Decision (B, n) from (B, n, 2): Gumbel-softmax (tau 1), hard, straight-through."""
    soft = (log_probs + sample_gumbel(log_probs)).softmax(dim=-1)[..., 0]
    return (soft > 0.5).to(soft.dtype) - soft.detach() + soft
