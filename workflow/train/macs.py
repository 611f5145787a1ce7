"""Count the multiply-accumulate operations (MACs) of a forward pass by torch."""

import copy

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


def count(model: nn.Module, input_size: tuple[int, int, int]) -> int:
    """Count the MACs of one image (C, H, W): matrix products and convolutions, no element-wise work."""
    return _count(_countable(model), torch.zeros(1, *input_size))


def per_image(model: nn.Module, images: Tensor) -> dict[str, float]:
    """Return mean and standard deviation (n - 1), in G MACs, over images (n, C, H, W) that are counted one by one."""
    model = _countable(model)
    counts = torch.tensor([_count(model, image[None]) / 1e9 for image in images]).double()
    deviation = counts.std().item() if len(counts) > 1 else 0.0
    return {"mean_g": counts.mean().item(), "sd_g": deviation, "images": len(counts)}


def _countable(model: nn.Module) -> nn.Module:
    """Return a copy with unfused attention: torch 2.7 counts nothing for fused attention on a CPU."""
    model = copy.deepcopy(model).float().eval()
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    return model


def _count(model: nn.Module, image: Tensor) -> int:
    """Count the MACs of an image (1, C, H, W).

    The image runs twice in a batch and is counted once, because some models treat a single image as a special case.
    Gradients are on, because PiT fails without.
    """
    images = image.to(next(model.parameters()).device).expand(2, -1, -1, -1)
    with torch.enable_grad(), FlopCounterMode(display=False) as counter:
        model(images)
    return counter.get_total_flops() // 2 // len(images)  # torch counts multiplications and additions
