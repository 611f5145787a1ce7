"""How alike representations are, and maps over patches: pure functions on tensors.

Shapes: n images, N patch tokens, C channels; maps may have more axes in front, such as layers.
Results are in double precision.
"""

import math

import torch
from torch import Tensor

JACKKNIFE = 32  # groups of images
NORMAL = 1.96  # standard errors on either side that hold 95 %


# -- features and queries -----------------------------------------------------------------------


def linear_cka(x: Tensor, y: Tensor) -> float:
    """Return the linear centred kernel alignment ||Yᵀ X||² / (||Xᵀ X|| ||Yᵀ Y||), in Frobenius norms.

    The columns are centred first (Kornblith et al. 2019, Eq. 3 with linear kernels). It is 1 for features that are
    equal up to rotation, scale and shift. As in that paper the estimate is biased: with few images for many channels it
    is too high.

    Args:
        x, y: features (n, C1) and (n, C2) of the same images, row by row.

    Raises:
        ValueError: for unequal numbers of images, or features that are the same for all of them.
    """
    if len(x) != len(y):
        raise ValueError(f"CKA compares features of the same images, not of {len(x)} and {len(y)}")
    x, y = (z.double() - z.double().mean(dim=0) for z in (x, y))
    norms = torch.linalg.norm(x.T @ x) * torch.linalg.norm(y.T @ y)
    if norms == 0:
        raise ValueError("CKA is not defined for features that are the same for all images")
    return (torch.linalg.norm(y.T @ x) ** 2 / norms).item()


def cka_with_error(x: Tensor, y: Tensor, groups: int = JACKKNIFE) -> tuple[float, float]:
    """Return `linear_cka` and its standard error over images.

    The error is the jackknife's, which leaves out one group of at least two images at a time.
    """
    groups = min(groups, len(x) // 2)
    group_of = torch.arange(len(x)) % groups
    left_out = [linear_cka(x[group_of != group], y[group_of != group]) for group in range(groups)]
    error = ((groups - 1) * torch.tensor(left_out, dtype=torch.float64).var(correction=0)).sqrt()
    return linear_cka(x, y), error.item()


def correlation_with_mean(queries: Tensor) -> Tensor:
    """Return Pearson's correlation over the channels between each token's query and the image's mean query.

    The Evo-ViT supplement names it the similarity of "each query token and the average query token in each MSA layer".

    Args:
        queries: (n, N, C), all heads side by side, without the class token's.

    Returns:
        (n, N), from -1 to 1; 0 where a query or the mean has the same value in all channels.
    """
    queries = queries.double()
    mean = queries.mean(dim=1, keepdim=True)
    queries, mean = (z - z.mean(dim=2, keepdim=True) for z in (queries, mean))
    norms = queries.norm(dim=2) * mean.norm(dim=2)
    return (queries * mean).sum(dim=2) / norms.clamp_min(torch.finfo(norms.dtype).tiny)


# -- maps over patches --------------------------------------------------------------------------


def correlations(maps: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Return Pearson's correlation over the patches between `maps` (..., n, N) and `others` (n, N).

    Returns:
        (..., n) with the map of the same image, and (..., n), the mean over the maps of all other
        images: what maps have in common whatever they show. 0 for a map with one value everywhere.
    """
    maps, others = (_standardised(z.double()) for z in (maps, others))
    products = maps @ others.T
    own = products.diagonal(dim1=-2, dim2=-1)
    return own, (products.sum(dim=-1) - own) / (len(others) - 1)


def _standardised(maps: Tensor) -> Tensor:
    maps = maps - maps.mean(dim=-1, keepdim=True)
    return maps / maps.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(maps.dtype).tiny)


def evenness(maps: Tensor) -> Tensor:
    """Return how evenly each map (..., N) of values >= 0 is spread: its entropy over the largest possible.

    It is 1 if all patches have the same value, and 0 if a single patch has all.
    """
    shares = maps.double() / maps.double().sum(dim=-1, keepdim=True)
    return torch.special.entr(shares).sum(dim=-1) / math.log(maps.shape[-1])


def shared(kept: Tensor, others: Tensor) -> Tensor:
    """Return the share of the kept patches (..., N) that `others` (..., N) keep; both are masks."""
    return (kept & others).sum(dim=-1).double() / kept.sum(dim=-1)


def over_images(values: dict[str, Tensor]) -> dict[str, dict[str, list[float]]]:
    """Return the means over the images of values (layers, n), and half the widths of their 95 % intervals."""
    curves = {}
    half_widths = {}
    for name, of_images in values.items():
        error = of_images.std(dim=1) / math.sqrt(of_images.shape[1])
        curves[name] = of_images.mean(dim=1).tolist()
        half_widths[name] = (NORMAL * error).tolist()
    return {"curves": curves, "half_widths": half_widths}
