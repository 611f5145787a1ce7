"""Multiply-accumulate operations of a forward pass, counted by torch."""

import copy

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def count(model: nn.Module, input_size: tuple[int, int, int]) -> int:
    """MACs of one image (C, H, W): matrix products and convolutions, no element-wise work.

    Counted on a copy with unfused attention and gradients on: torch 2.7 counts nothing for fused
    attention on a CPU, and PiT fails without gradients. Two images run, because some models treat
    a single one as a special case; the count is halved.
    """
    model = copy.deepcopy(model).float().eval()
    for part in model.modules():
        if hasattr(part, "fused_attn"):
            part.fused_attn = False
    images = torch.zeros(2, *input_size, device=next(model.parameters()).device)
    with FlopCounterMode(display=False) as counter:
        model(images)
    return counter.get_total_flops() // 2 // len(images)  # an operation is a multiply or an add
