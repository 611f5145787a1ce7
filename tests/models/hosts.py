"""Small timm Vision Transformers of many families, with random weights, as hosts for ``from_timm``."""

import torch

from tests.evovit import small

SIZES = dict(img_size=32, patch_size=8, embed_dim=32, num_heads=2, depth=6, num_classes=5)
HOSTS = {  # the family's name in timm, and what makes it small or different
    "augreg": ("vit_tiny_patch16_224", {}),
    "deit": ("deit_tiny_patch16_224", {}),
    "deit3": ("deit3_small_patch16_224", {}),  # LayerScale; positions for patches only
    "dino": ("vit_small_patch16_224", dict(num_classes=0)),
    "dinov2": ("vit_small_patch14_dinov2", dict(img_size=56, patch_size=14, dynamic_img_size=True)),
    "dinov2 with registers": ("vit_small_patch14_reg4_dinov2", {}),
    "clip": ("vit_base_patch16_clip_quickgelu_224", {}),  # a norm before the blocks
    "attention pooling": ("vit_tiny_patch16_224", dict(global_pool="map")),
    "average pooling": ("vit_tiny_patch16_224", dict(global_pool="avg")),  # which norms the mean
    "normed queries": ("vit_tiny_patch16_224", dict(qk_norm=True)),
    "seven blocks": ("vit_tiny_patch16_224", dict(depth=7)),
    "oblong images": ("vit_tiny_patch16_224", dict(img_size=(32, 48))),
}


def build(family: str, dtype: torch.dtype = torch.float64, seed: int = 0, **kwargs):
    """Return a host with weights far from their initial values."""
    name, options = HOSTS[family]
    return small.fill(name, dtype, seed, 1.5, {**SIZES, **options, **kwargs})


def images(model, batch: int = 2, seed: int = 1) -> torch.Tensor:
    """Return images (B, 3, H, W) of the size and dtype of a host."""
    draw = torch.Generator().manual_seed(seed)
    weight = model.patch_embed.proj.weight
    return torch.randn(batch, 3, *model.patch_embed.img_size, generator=draw, dtype=torch.float64).to(weight.dtype)
