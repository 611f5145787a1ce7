"""Small Evo-DeiTs with weights far from their initial values, so that nothing holds trivially."""

import timm
import torch

SIZES = dict(img_size=32, patch_size=8, embed_dim=24, num_heads=3, depth=6, num_classes=5)


def build(dtype=torch.float64, seed=0, **kwargs):
    model = timm.create_model("evo_deit_tiny_patch16_224", **{**SIZES, **kwargs}).to(dtype).eval()
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            spread = 0.1 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
            centre = 1.0 if parameter.ndim == 1 and parameter.mean() == 1 else 0.0
            noise = torch.randn(parameter.shape, generator=draw, dtype=dtype)
            parameter.copy_(centre + 1.5 * spread * noise)
    return model


def images(batch=3, size=32, dtype=torch.float64, seed=1):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, size, size, generator=draw, dtype=dtype)
