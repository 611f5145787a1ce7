"""Multiply-accumulate operations of a forward pass, counted by torch."""

import copy

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


def count(model: nn.Module, input_size: tuple[int, int, int]) -> int:
    """MACs of one image (C, H, W): matrix products and convolutions, no element-wise work."""
    return _count(_countable(model), torch.zeros(1, *input_size))


def per_image(model: nn.Module, images: Tensor) -> dict[str, float]:
    """Mean and standard deviation (n - 1) in G MACs over images (n, C, H, W), each alone."""
    model = _countable(model)
    counts = torch.tensor([_count(model, image[None]) / 1e9 for image in images]).double()
    spread = counts.std().item() if len(counts) > 1 else 0.0
    return {"mean_g": counts.mean().item(), "sd_g": spread, "images": len(counts)}


def _countable(model: nn.Module) -> nn.Module:
    """A copy with unfused attention: torch 2.7 counts nothing for fused attention on a CPU."""
    model = copy.deepcopy(model).float().eval()
    for part in model.modules():
        if hasattr(part, "fused_attn"):
            part.fused_attn = False
    return model


def _count(model: nn.Module, image: Tensor) -> int:
    """With gradients on, because PiT fails without; the image (1, C, H, W) runs twice in a batch
    and is counted once, because some models treat a single one as a special case."""
    images = image.to(next(model.parameters()).device).expand(2, -1, -1, -1)
    with torch.enable_grad(), FlopCounterMode(display=False) as seen:
        model(images)
    return seen.get_total_flops() // 2 // len(images)  # an operation is a multiply or an add
