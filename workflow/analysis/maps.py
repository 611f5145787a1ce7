"""How maps over the patches of images agree: pure functions on tensors.

Shapes: n images, N patches; in front of both any others, such as layers.
"""

import math

import torch
from torch import Tensor

NORMAL = 1.96  # standard errors on either side that hold 95 %


def correlations(maps: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Pearson correlation over the patches between `maps` (..., n, N) and `others` (n, N).

    Returns:
        (..., n) with the same image's, and (..., n) with those of all other images in the mean:
        what maps have in common whatever they show. 0 where a map has the same value everywhere.
    """
    maps, others = (_standardised(z.double()) for z in (maps, others))
    found = maps @ others.T
    own = found.diagonal(dim1=-2, dim2=-1)
    return own, (found.sum(dim=-1) - own) / (len(others) - 1)


def _standardised(maps: Tensor) -> Tensor:
    maps = maps - maps.mean(dim=-1, keepdim=True)
    return maps / maps.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(maps.dtype).tiny)


def evenness(maps: Tensor) -> Tensor:
    """How evenly each map (..., N) of values >= 0 is spread: its entropy as a share of the largest,
    1 where all patches have the same value and 0 where one has all."""
    shares = maps.double() / maps.double().sum(dim=-1, keepdim=True)
    return torch.special.entr(shares).sum(dim=-1) / math.log(maps.shape[-1])


def shared(kept: Tensor, others: Tensor) -> Tensor:
    """Which share of the kept patches (..., N) the others (..., N) keep, too; both are masks."""
    return (kept & others).sum(dim=-1).double() / kept.sum(dim=-1)


def over_images(values: dict[str, Tensor]) -> dict[str, dict[str, list[float]]]:
    """The means over the images of values (points, n) as `curves`, and half the width of their
    95 % intervals as `half_widths`."""
    wide = {name: NORMAL * each.std(dim=1) / math.sqrt(each.shape[1]) for name, each in values.items()}
    return {
        "curves": {name: each.mean(dim=1).tolist() for name, each in values.items()},
        "half_widths": {name: half.tolist() for name, half in wide.items()},
    }
