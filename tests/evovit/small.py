"""Small Evo-ViTs with weights far from their initial values, so that nothing holds trivially."""

import timm
import torch

import evovit  # noqa: F401 (registers its models)

SIZES = dict(img_size=32, patch_size=8, embed_dim=24, num_heads=3, depth=6, num_classes=5)
LEVIT = dict(img_size=128, embed_dim=(16, 24, 32), key_dim=8, num_heads=(2, 2, 3), depth=(3, 2, 2),
             num_classes=5)  # fmt: skip
# LeViT for compilers, which trace each block and sub-sampling anew: two blocks share a selection, one comes after it.
SHALLOW_LEVIT = dict(embed_dim=(16, 24), num_heads=(2, 2), depth=(3, 1), start_block=1)


def build(dtype=torch.float64, seed=0, **kwargs):
    """Evo-DeiT on 4 x 4 patches of 8 px."""
    return fill("evo_deit_tiny_patch16_224", dtype, seed, 1.5, {**SIZES, **kwargs})


def levit(dtype=torch.float64, seed=0, **kwargs):
    """Evo-LeViT on grids of 8 x 8, 4 x 4 and 2 x 2."""
    return fill("evo_levit_128s", dtype, seed, 1.15, {**LEVIT, **kwargs})


def fill(name, dtype, seed, width, kwargs):
    """``width``: of the weights; wider ones saturate LeViT's softmax, as its BatchNorms rescale."""
    model = timm.create_model(name, **kwargs).to(dtype).eval()
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, value in model.state_dict().items():
            if not torch.is_tensor(value) or not value.is_floating_point():
                continue
            spread = 0.1 if value.ndim == 1 else value[0].numel() ** -0.5
            scales = (value.ndim == 1 and key.endswith("weight")) or key.endswith("running_var")
            noise = torch.randn(value.shape, generator=draw, dtype=dtype)
            value.copy_(float(scales) + width * spread * noise)
            if key.endswith("running_var"):
                value.abs_()
    return model


def images(batch=3, size=32, dtype=torch.float64, seed=1):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, size, size, generator=draw, dtype=dtype)
