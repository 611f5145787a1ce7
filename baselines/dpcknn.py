"""DPC-KNN, the clustering of patches that Haurum et al. (2023, ICCV workshops) compare, on DeiT.

Registered as ``dpcknn_deit_*``. Before chosen blocks the patches are clustered by density peaks (Du et al. 2016),
and each cluster becomes one token, as in TCFormer (Zeng et al. 2022, CVPR). A patch's density falls with its mean
squared distance to its nearest neighbours; its separation is the distance to the nearest denser patch. The patches
of the largest density times separation are the centres, and every patch joins its nearest centre. Learned weights,
or equal ones, say how much a patch counts in its cluster's token.

The authors' code adds random noise of up to 1e-6 to the densities, so that none are equal. Neither evaluation nor
training adds it here: equal densities do no harm, since neither of two such patches is the denser one. Distances
and weights are computed in float32 at least, and the clustering itself has no gradient. Clusters are numbered by
rank, the best centre first, and their tokens follow in this order.
"""

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import get_device_dtype
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from evovit.options import is_number
from evovit.tokens import take_tokens, without_autocast

from .deit import BASE, SMALL, TINY, create_deit, pretrained_cfg
from .dropping import AnyHostTransformer, FeatureMaps, check_reduction_blocks
from .weights import complete_dense


def squared_distances(patches: Tensor) -> Tensor:
    """Return squared distances per channel (B, n, n) between patches (B, n, C), in float32 at least."""
    x = patches.to(torch.promote_types(patches.dtype, torch.float32))
    x = x - x.mean(1, keepdim=True)  # what all patches share would only cost precision
    with without_autocast(x):
        products = torch.bmm(x, x.transpose(1, 2))
    squares = products.diagonal(dim1=1, dim2=2)
    distances = squares.unsqueeze(2) + squares.unsqueeze(1) - 2 * products
    return distances.clamp_min(0) / patches.shape[2]


def centre_scores(distances: Tensor, k_neighbors: int) -> Tensor:
    """Return density times separation (B, n) from squared distances (B, n, n).

    A patch is one of its own ``k_neighbors`` nearest; where there are fewer patches, all are. The densest
    patch has the largest distance of the image as its separation.
    """
    neighbours = min(k_neighbors, distances.shape[2])
    nearest = distances.topk(neighbours, dim=2, largest=False, sorted=False).values
    density = nearest.mean(2).neg().exp()
    denser = density.unsqueeze(1) > density.unsqueeze(2)  # [b, i, j]: j is denser than i
    largest = distances.amax((1, 2), keepdim=True)
    separation = torch.where(denser, distances, largest).amin(2).sqrt()
    return separation * density


@torch.no_grad()
def cluster(patches: Tensor, count: int, k_neighbors: int) -> Tensor:
    """Return the number (B, n), from 0 to count - 1, of each patch's cluster; patches (B, n, C)."""
    distances = squared_distances(patches)
    centres = centre_scores(distances, k_neighbors).topk(count, dim=1).indices
    batch, length = centres.shape[0], distances.shape[1]
    first_row = torch.arange(batch, device=centres.device).unsqueeze(1) * length
    rows = (first_row + centres).flatten()
    from_centres = distances.flatten(0, 1).index_select(0, rows).reshape(batch, count, length)
    numbers = torch.arange(count, device=centres.device).expand_as(centres)
    # a centre is in its own cluster, also where another centre has the same features
    return from_centres.argmin(1).scatter(1, centres, numbers)


def merge(patches: Tensor, clusters: Tensor, count: int, weights: Tensor | None = None) -> Tensor:
    """Return each cluster's weighted mean (B, count, C).

    Args:
        patches: (B, n, C).
        clusters: the number (B, n) of each patch's cluster.
        weights: (B, n), at least 0; None: all are 1.
    """
    dtype = torch.promote_types(patches.dtype, torch.float32)
    numbers = torch.arange(count, device=clusters.device).unsqueeze(1)
    shares = (clusters.unsqueeze(1) == numbers).to(dtype)
    if weights is not None:
        shares = shares * weights.unsqueeze(1)
    shares = shares / (shares.sum(2, keepdim=True) + 1e-6)
    with without_autocast(patches):
        return torch.bmm(shares.to(patches.dtype), patches)


class ClusterLayer(nn.Module):
    """Says how much each patch counts in the token of its cluster."""

    def __init__(self, dim: int, device=None, dtype=None):
        super().__init__()
        self.score = nn.Linear(dim, 1, device=device, dtype=dtype)
        # all patches count alike until a training or the model's init_weights says otherwise
        nn.init.zeros_(self.score.weight)
        nn.init.zeros_(self.score.bias)

    def forward(self, patches: Tensor) -> Tensor:
        """Return weights (B, n), positive and in float32 at least, of patches (B, n, C)."""
        score = self.score(patches).squeeze(2)
        return score.to(torch.promote_types(score.dtype, torch.float32)).exp()


class ClusteringVisionTransformer(AnyHostTransformer):
    """Vision Transformer that merges clusters of patches.

    In a feature map a patch shows the token of its cluster. So it does where the patches are pooled: a cluster counts
    once for each of its patches.
    """

    fresh_keys = ("cluster_layers.",)
    near_ties = True  # rounding decides between centres, and so which patches are merged

    def __init__(self, *args: Any, **kwargs: Any):
        weight_init = kwargs.pop("weight_init", "")
        super().__init__(*args, **kwargs, weight_init="skip")
        self.weight_init_mode = "reset" if weight_init == "skip" else weight_init
        if weight_init != "skip":
            self.init_weights(needs_reset=False)

    def configure(
        self,
        *,
        keep_ratio: float = 0.7,
        reduction_blocks: Sequence[int] | None = None,
        k_neighbors: int = 5,
        equal_weight: bool = False,
    ) -> None:
        """Take the method's keywords.

        Args:
            keep_ratio: share of tokens kept per stage; stage i keeps int(N * keep_ratio ** (i + 1)), and with 1 there
                is none.
            reduction_blocks: blocks before which patches are clustered, counted from 0; None: those at a quarter,
                half and three quarters of the depth.
            k_neighbors: how many nearest neighbours, the patch itself included, say how dense it is.
            equal_weight: whether all patches of a cluster count alike; then there are no ``cluster_layers``.

        Raises:
            ValueError: for a ratio outside (0, 1] or one that keeps no patch, for blocks that do not ascend, and for
                less than two neighbours.
        """
        if not is_number(keep_ratio) or not 0 < keep_ratio <= 1:
            raise ValueError(f"keep_ratio={keep_ratio!r} must be a number in (0, 1]; 1 clusters nothing")
        if k_neighbors < 2:
            raise ValueError(f"k_neighbors={k_neighbors} must be at least 2, since a patch is its own first neighbour")
        blocks = check_reduction_blocks(reduction_blocks, len(self.blocks))
        self.reduction_blocks = blocks if keep_ratio < 1 else ()
        self.keep_ratios = tuple(keep_ratio ** (stage + 1) for stage in range(len(self.reduction_blocks)))
        self.k_neighbors = k_neighbors
        weighted = () if equal_weight else self.reduction_blocks
        layers = [ClusterLayer(self.embed_dim, **get_device_dtype(self)) for _ in weighted]
        self.cluster_layers = nn.ModuleList(layers).train(self.training)
        self._check_grid(self.patch_embed.num_patches)

    def _check_grid(self, patches: int) -> None:
        if self.keep_ratios and int(patches * self.keep_ratios[-1]) < 1:
            raise ValueError(
                f"keep_ratio {self.keep_ratios[-1]:.3f} of {patches} patches "
                "keeps none in the last stage: use more patches or a higher keep_ratio"
            )

    def embed(self, images: Tensor, maps: FeatureMaps | None = None) -> Tensor:
        """Return the tokens (B, P + N, C) of images (B, 3, H, W) before the first block."""
        x = super().embed(images, maps)
        if self.dynamic_img_size:
            self._check_grid(x.shape[1] - self.num_prefix_tokens)
        return x

    def forward_tokens(self, images: Tensor, maps: FeatureMaps | None = None) -> Tensor:
        """Return normed tokens (B, P + k, C) of images: those before the patches and the last clusters.

        Where the patches are pooled, return (B, P + N, C): each of them shows its cluster.
        """
        x = self.embed(images, maps)
        patches = x.shape[1] - self.num_prefix_tokens
        groups = None  # (B, N): the number of the token that each patch is in; None while it is its own
        for index in range(len(self.blocks) if maps is None else maps.end):
            if index in self.reduction_blocks:
                stage = self.reduction_blocks.index(index)
                x, clusters = self.reduce(stage, x, int(patches * self.keep_ratios[stage]))
                if maps is not None:
                    maps.merge(clusters)
                if self.pools_patches:
                    groups = clusters if groups is None else clusters.gather(1, groups)
            x = self.run_block(index, x, maps)
        x = self.norm(x)
        return x if groups is None else take_tokens(x, groups, self.num_prefix_tokens)

    def reduce(self, stage: int, x: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Return (B, P + count, C), with ``count`` clusters of the patches, and the number (B, n) of each patch's.

        Args:
            stage: which of the reductions, counted from 0.
            x: tokens (B, P + n, C).
        """
        prefix = self.num_prefix_tokens
        # not x[:, 1:]: torch 2.7 then exports no batch without an upper limit
        patches = x.narrow(1, prefix, x.shape[1] - prefix)
        clusters = cluster(patches, count, self.k_neighbors)
        weights = self.cluster_layers[stage](patches) if self.cluster_layers else None
        return torch.cat((x.narrow(1, 0, prefix), merge(patches, clusters, count, weights)), dim=1), clusters

    def set_input_size(self, *args: Any, **kwargs: Any) -> None:
        """Change the image size, as timm's method.

        Raises:
            ValueError: for a grid so small that the last stage would keep no patch.
        """
        super().set_input_size(*args, **kwargs)
        self._check_grid(self.patch_embed.num_patches)

    def prune_intermediate_layers(self, indices=1, prune_norm=False, prune_head=True) -> list[int]:
        """Remove what no block up to the last of ``indices`` needs, as timm's method."""
        taken = super().prune_intermediate_layers(indices, prune_norm, prune_head)
        stages = sum(block < len(self.blocks) for block in self.reduction_blocks)
        self.reduction_blocks = self.reduction_blocks[:stages]
        self.keep_ratios = self.keep_ratios[:stages]
        self.cluster_layers = self.cluster_layers[:stages]
        return taken


default_cfgs = generate_default_cfgs(
    {
        "dpcknn_deit_tiny_patch16_224": pretrained_cfg(224),
        "dpcknn_deit_small_patch16_224": pretrained_cfg(224),
        "dpcknn_deit_base_patch16_224": pretrained_cfg(224),
    }
)


def _create(name: str, pretrained: bool, kwargs: dict[str, Any], sizes: dict[str, Any]) -> nn.Module:
    return create_deit(ClusteringVisionTransformer, name, pretrained, kwargs, sizes, complete_dense)


@register_model
def dpcknn_deit_tiny_patch16_224(pretrained: bool = False, **kwargs: Any) -> ClusteringVisionTransformer:
    """DPC-KNN on DeiT-T at 224 px."""
    return _create("dpcknn_deit_tiny_patch16_224", pretrained, kwargs, TINY)


@register_model
def dpcknn_deit_small_patch16_224(pretrained: bool = False, **kwargs: Any) -> ClusteringVisionTransformer:
    """DPC-KNN on DeiT-S at 224 px."""
    return _create("dpcknn_deit_small_patch16_224", pretrained, kwargs, SMALL)


@register_model
def dpcknn_deit_base_patch16_224(pretrained: bool = False, **kwargs: Any) -> ClusteringVisionTransformer:
    """DPC-KNN on DeiT-B at 224 px."""
    return _create("dpcknn_deit_base_patch16_224", pretrained, kwargs, BASE)
