"""How alike representations are: pure functions on tensors, in double precision.

Shapes: n images, N patch tokens, C channels.
"""

import torch
from torch import Tensor

JACKKNIFE = 32


def linear_cka(x: Tensor, y: Tensor) -> float:
    """Linear centered kernel alignment, ||Yᵀ X||² / (||Xᵀ X|| ||Yᵀ Y||) in Frobenius norms, of
    features whose columns are centred (Kornblith et al. 2019, Eq. 3 with linear kernels).

    It is 1 for features that are equal up to rotation, scale and shift. As in the paper cited, the
    estimate is the biased one: with few images for many channels it is too high.

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
    """`linear_cka` and its standard error over images: the jackknife that leaves out one of so many
    groups of images at a time, of at least two images."""
    groups = min(groups, len(x) // 2)
    place = torch.arange(len(x)) % groups
    without = torch.tensor([linear_cka(x[place != one], y[place != one]) for one in range(groups)], dtype=torch.float64)
    error = ((groups - 1) * without.var(correction=0)).sqrt()
    return linear_cka(x, y), error.item()


def correlation_with_mean(queries: Tensor) -> Tensor:
    """Pearson correlation, over the channels, of each token's query with the image's mean query.

    The Evo-ViT supplement names it the similarity of "each query token and the average query
    token in each MSA layer".

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
