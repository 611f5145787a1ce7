"""Every model of the project in the registry, and a small one of each class."""

from typing import NamedTuple

import timm
import torch

import baselines
import evovit  # noqa: F401 (registers its models)
from tests.models import hosts


class Family(NamedTuple):
    """What the contract needs to know of one family of models."""

    example: str  # sizes differ in numbers only, which ``small`` overrides
    small: dict
    size: int  # pixels
    width: int  # of the features that are classified
    tokens: int  # that forward_features gives
    heads: tuple[str, ...] = ("head",)
    no_decay: tuple[str, ...] = ("cls_token", "pos_embed")
    first_layer: str = "patch_embed.proj.weight"
    blocks: tuple[str, str] = ("blocks.0.norm1.weight", "blocks.11.norm1.weight")
    maps: tuple[int, ...] = ()  # side of each feature map; none: it has no maps
    prefix: int = 1  # number of tokens before the patches
    method: str | None = None  # of baselines.from_timm; the example is then its host, ``small`` its keywords


DEIT = dict(img_size=32, patch_size=8, embed_dim=24, num_heads=3, depth=12, num_classes=5)
PROFILE = [1, 1, 1, 0.9, 0.8, 0.7, 0.6, 0.6, 0.5, 0.3, 0.2, 0.15]  # PS-ViT's shares per layer
LEVIT = dict(img_size=128, embed_dim=(16, 24, 32), key_dim=8, num_heads=(2, 2, 3), depth=(3, 2, 2),
             num_classes=5)  # fmt: skip
LEVIT_BLOCKS = ("stages.0.blocks.0.attn.qkv.linear.weight", "stages.2.blocks.1.mlp.ln1.bn.weight")
POSITIONS = ("pos_embed", "stages.1.downsample.pos_embed", "stages.2.downsample.pos_embed")
ATTENTIONS = [f"stages.{i}.blocks.{j}.attn" for i, depth in enumerate((3, 2, 2))
              for j in range(depth)]  # fmt: skip
ATTENTIONS += [f"stages.{i}.downsample.attn_downsample" for i in (1, 2)]

FAMILIES = {
    "plain_deit": Family("plain_deit_tiny_patch16_224", DEIT, 32, 24, 17, maps=(4,) * 12),
    "evo_deit": Family(
        "evo_deit_tiny_patch16_224", DEIT, 32, 24, 17, maps=(4,) * 12
    ),
    "dynamic_deit": Family("dynamic_deit_tiny_patch16_224", DEIT, 32, 24, 6, maps=(4,) * 12),
    "pooled_deit": Family(
        "pooled_deit_tiny_patch16_224", {**DEIT, "pooling": "conv"}, 32, 24, 5,
        maps=(4,) * 7 + (2,) * 5,
    ),
    "ps_deit": Family(
        "ps_deit_tiny_patch16_224", {**DEIT, "keep_profile": PROFILE}, 32, 24, 3, maps=(4,) * 12
    ),
    "evit_deit": Family("evit_deit_tiny_patch16_224", DEIT, 32, 24, 10, maps=(4,) * 12),
    "topk_deit": Family("topk_deit_tiny_patch16_224", DEIT, 32, 24, 6, maps=(4,) * 12),
    "random_deit": Family("random_deit_tiny_patch16_224", DEIT, 32, 24, 6, maps=(4,) * 12),
    "tome_deit": Family("tome_deit_tiny_patch16_224", {**DEIT, "r": 1}, 32, 24, 5, maps=(4,) * 12),
    "svite_deit": Family("svite_deit_tiny_patch16_224", DEIT, 32, 24, 17, maps=(4,) * 12),
    "ia_red2_deit": Family(
        "ia_red2_deit_tiny_patch16_224", {**DEIT, "interpreter_heads": 3}, 32, 24, 17,
        maps=(4,) * 12,
    ),
    "ats_deit": Family("ats_deit_tiny_patch16_224", DEIT, 32, 24, 14, maps=(4,) * 12),
    "dpcknn_deit": Family("dpcknn_deit_tiny_patch16_224", DEIT, 32, 24, 6, maps=(4,) * 12),
    "plain_levit": Family(
        "plain_levit_128s", LEVIT, 128, 32, 4, ("head", "head_dist"),
        tuple(f"{name}.attention_biases" for name in ATTENTIONS),
        "stem.conv1.linear.weight", LEVIT_BLOCKS, (8, 4, 2),
    ),
    "evo_levit": Family(
        "evo_levit_128s", LEVIT, 128, 32, 5, ("head", "head_dist"),
        ("cls_token", *POSITIONS), "stem.conv1.linear.weight", LEVIT_BLOCKS, (8, 4, 2),
    ),
}  # fmt: skip
HOST_BLOCKS = ("blocks.0.norm1.weight", "blocks.5.norm1.weight")
HOSTED = {  # models that from_timm makes of a host; registered are none of them
    "evit of map": Family("attention pooling", {}, 32, 32, 10, blocks=HOST_BLOCKS, maps=(4,) * 6, method="evit"),
    "topk of avg": Family("average pooling", {}, 32, 32, 6, blocks=HOST_BLOCKS, maps=(4,) * 6, method="topk"),
    "tome of registers": Family(
        "dinov2 with registers",
        {"r": 2},
        32,
        32,
        9,
        no_decay=("cls_token", "pos_embed", "reg_token"),
        blocks=HOST_BLOCKS,
        maps=(4,) * 6,
        prefix=5,
        method="tome",
    ),
    "ats of clip": Family("clip", {}, 32, 32, 7, blocks=HOST_BLOCKS, maps=(4,) * 6, method="ats"),
    "dpcknn of deit3": Family("deit3", {}, 32, 32, 6, blocks=HOST_BLOCKS, maps=(4,) * 6, method="dpcknn"),
}
EVERY = {**FAMILIES, **HOSTED}
NAMES = {name: key for key in FAMILIES for name in timm.list_models(f"{key}_*")}


def build(key: str, **kwargs):
    """The small example of a family, its weights away from values that hide mistakes."""
    torch.manual_seed(0)
    if key in HOSTED:
        family = HOSTED[key]
        host = hosts.build(family.example, torch.float32, **kwargs).train()
        return baselines.from_timm(host, family.method, **family.small)
    model = timm.create_model(FAMILIES[key].example, **{**FAMILIES[key].small, **kwargs})
    for name, parameter in model.named_parameters():
        if name.endswith("bn.weight"):  # LeViT's residuals start at zero
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return model


def fixed_scores(x: torch.Tensor, prefix: int) -> torch.Tensor:
    """Numbers (B, n) for tokens x (B, P + n, C) in place of ``topk.draw_scores``: the same in every pass."""
    return torch.arange(x.shape[1] - prefix, device=x.device).sin().expand(x.shape[0], -1)


def images(key: str, batch: int = 2, channels: int = 3) -> torch.Tensor:
    side = EVERY[key].size
    return torch.randn(batch, channels, side, side, generator=torch.Generator().manual_seed(1))
