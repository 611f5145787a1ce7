"""PS-ViT (Tang et al. 2022, Patch Slimming, CVPR): one fixed set of patches per layer, for all images.

Registered as ``ps_deit_*``. A layer computes queries and FFN for its own patches only; its keys
and values are the patches that the layer before it computed. Sets only shrink with depth, so a
patch that a layer leaves out is dropped for good. ``TopDownSearch`` finds the sets on a trained DeiT,
from the last layer down; fine-tuning the slimmed model is plain classification.

No code and no sets were released. Chosen here: a model without weights keeps every patch.
``keep_profile`` slims it without a search, to the patches nearest to the image's centre. Throughput
without searched weights uses shares 1 - (layer / 12)^p in two versions: at the FLOPs that PS-ViT's
paper prints (p = 1.5, DeiT-B 1.43), and at more, which match the images/s that Evo-ViT's Table 1
prints of it (p = 3, DeiT-B 2.4).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timm.layers import Attention
from timm.models import generate_default_cfgs, register_model
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from evovit.task import register_task

from .deit import BASE, SMALL, TINY, create_deit, pretrained_cfg
from .dropping import ClassTokenTransformer, FeatureMaps
from .weights import SplitsWeights, complete_dense, joined_weights, refuse_averaged_masks, split_weights


class RowAttention(SplitsWeights, Attention):
    """timm's Attention that can compute only some rows.

    Queries have a linear layer of their own, as they are made of fewer tokens than keys and values.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        qkv, bias = self.qkv, self.qkv.bias is not None
        dd = {"device": qkv.weight.device, "dtype": qkv.weight.dtype}
        del self.qkv
        self.q = nn.utils.skip_init(nn.Linear, qkv.in_features, self.attn_dim, bias=bias, **dd)
        self.kv = nn.utils.skip_init(nn.Linear, qkv.in_features, 2 * self.attn_dim, bias=bias, **dd)
        weights = {f"qkv.{key}": value for key, value in qkv.state_dict().items()}
        self.load_state_dict(weights, strict=False)
        for name, layer in list(self.named_children()):
            if name not in ("q", "kv"):  # comes after them, so that a seed draws what timm draws
                delattr(self, name)
                setattr(self, name, layer)

    @staticmethod
    def split(state_dict: dict[str, Tensor], prefix: str) -> None:
        """Replace timm's ``qkv`` by ``q`` and ``kv``."""
        for name in ("weight", "bias"):
            if f"{prefix}qkv.{name}" in state_dict:
                joined = state_dict.pop(f"{prefix}qkv.{name}")
                query, key_value = joined.tensor_split((joined.shape[0] // 3,))
                state_dict[f"{prefix}q.{name}"] = query
                state_dict[f"{prefix}kv.{name}"] = key_value

    @staticmethod
    def join(state_dict: dict[str, Tensor], prefix: str) -> None:
        """Replace ``q`` and ``kv`` by timm's ``qkv``."""
        for name in ("weight", "bias"):
            if f"{prefix}q.{name}" in state_dict:
                parts = [state_dict.pop(f"{prefix}{part}.{name}") for part in ("q", "kv")]
                state_dict[f"{prefix}qkv.{name}"] = torch.cat(parts)

    def project(self, x: Tensor, rows: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries (B, H, R, d) of the rows, keys and values (B, H, L, d) of tokens (B, L, C)."""
        q = self.q(x if rows is None else x.index_select(1, rows))
        q = q.unflatten(2, (self.num_heads, self.head_dim)).transpose(1, 2)
        kv = self.kv(x).unflatten(2, (2, self.num_heads, self.head_dim))
        k, v = kv.permute(2, 0, 3, 1, 4).unbind(0)
        return self.q_norm(q), self.k_norm(k), v

    def probabilities(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        """Return the attention (B, H, R, L) of the rows (R,) of tokens (B, L, C); None: of all."""
        q, k, _ = self.project(x, rows)
        return (q * self.scale @ k.transpose(-2, -1)).softmax(dim=-1)

    def forward(self, x: Tensor, attn_mask=None, is_causal=False, rows: Tensor | None = None):
        """(B, L, C) -> (B, R, C); ``rows`` (R,) indexes the L tokens, None takes all."""
        if attn_mask is not None or is_causal:
            raise ValueError("PS-ViT's layers compute only some rows: leave out attention masks")
        q, k, v = self.project(x, rows)
        if self.fused_attn:
            dropout = self.attn_drop.p if self.training else 0.0
            out = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        else:
            out = self.attn_drop((q * self.scale @ k.transpose(-2, -1)).softmax(dim=-1)) @ v
        out = out.transpose(1, 2).flatten(2)
        return self.proj_drop(self.proj(self.norm(out)))


class RowBlock(Block):
    """timm's Block that can compute only some rows."""

    def forward(self, x: Tensor, attn_mask=None, is_causal=False, rows: Tensor | None = None):
        """(B, L, C) -> (B, R, C); ``rows`` (R,) indexes the L tokens, None takes all."""
        kept = x if rows is None else x.index_select(1, rows)
        x = self.attn(self.norm1(x), attn_mask, is_causal, rows)
        x = kept + self.drop_path1(self.ls1(x))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


class SlimVisionTransformer(ClassTokenTransformer):
    """Vision Transformer that computes a fixed set of patches in each layer.

    The buffer ``kept`` (depth, N), True for the patches of each layer, travels with the weights.

    Args (in addition to timm's):
        keep_profile: share of all N patches that each layer computes, those nearest to the
            image's centre; None: all, until ``set_patches`` or loaded weights say which.

    Raises:
        ValueError: for a profile that rises, leaves [0, 1] or has not one share per block, and for
            ``dynamic_img_size``: the sets belong to one grid.
    """

    fresh_keys = ("kept",)
    kept: Tensor  # (depth, N) bool
    _present: list[list[int]] | None = None  # the tokens of each layer, class token 0

    def __init__(self, *args: Any, keep_profile: Sequence[float] | None = None, **kwargs: Any):
        super().__init__(*args, block_fn=RowBlock, attn_layer=RowAttention, **kwargs)
        if self.dynamic_img_size:
            raise ValueError(
                "dynamic_img_size: PS-ViT's sets of patches belong to one grid; give img_size, or "
                "call set_input_size() for images of another size"
            )
        shape = (len(self.blocks), self.patch_embed.num_patches)
        self.register_buffer("kept", self.cls_token.new_ones(shape, dtype=torch.bool))
        self.set_patches(self._central(keep_profile) if keep_profile is not None else None)
        self.register_load_state_dict_pre_hook(refuse_averaged_masks)
        self.register_load_state_dict_post_hook(_read_kept)

    @property
    def depth(self) -> int:
        """Return how many layers have a set, with those that ``prune_intermediate_layers`` removed."""
        return len(self.kept)

    @property
    def patches(self) -> list[list[int]]:
        """Return each layer's patches in raster order."""
        return [[index - 1 for index in present if index] for present in self._present]

    def set_patches(self, patches: Sequence[Sequence[int]] | None) -> None:
        """Choose which patches, counted from 0 in raster order, each layer computes; None: all.

        Raises:
            ValueError: for a wrong number of layers, a patch that does not exist or comes twice, or
                one that the layer before does not compute.
        """
        total = self.patch_embed.num_patches
        if patches is None:
            patches = [range(total)] * self.depth
        if len(patches) != self.depth:
            raise ValueError(f"patches has {len(patches)} layers, the model {self.depth}")
        before = set(range(total))
        for layer, own in enumerate(patches):
            if len(set(own)) != len(own) or not before.issuperset(own):
                raise ValueError(f"layer {layer} must compute patches of the layer before it, each once")
            before = set(own)
        self._index([[0, *sorted(1 + index for index in own)] for own in patches])

    def set_input_size(self, *args: Any, **kwargs: Any) -> None:
        """Change the image size, as timm's method; each new patch is kept where the nearest old one was."""
        before = self.patch_embed.grid_size
        super().set_input_size(*args, **kwargs)
        grid = self.patch_embed.grid_size
        old = self._mask(before[0] * before[1]).unflatten(1, before).unsqueeze(1).float()
        mask = F.interpolate(old, grid).flatten(1).bool()
        self.kept = self.kept.new_empty(mask.shape)
        self.set_patches([layer.nonzero().flatten().tolist() for layer in mask])

    def init_weights(self, mode: str = "", needs_reset: bool = True) -> None:
        """Initialize all weights, as timm's method; the sets of patches stay as they are."""
        super().init_weights(mode, needs_reset)
        if self._present is not None:  # while the model is made there are none yet
            self._index(self._present)

    def _mask(self, total: int) -> Tensor:
        """Return the sets as a mask (depth, total) on the CPU, which also a model on "meta" can read."""
        mask = torch.zeros(self.depth, total, dtype=torch.bool, device="cpu")
        for layer, patches in enumerate(self.patches):
            mask[layer, patches] = True
        return mask

    def _index(self, present: list[list[int]]) -> None:
        """Note the tokens (class token 0) of each layer, and their rows in the layer before it."""
        self._present = present
        before = list(range(1 + self.patch_embed.num_patches))
        for layer, tokens in enumerate(present):
            row_of = {token: row for row, token in enumerate(before)}
            rows = torch.tensor([row_of[token] for token in tokens], device=self.kept.device)
            # also as rows, so that no forward pass has to read the mask from the device
            self.register_buffer(f"rows_{layer}", rows, persistent=False)
            before = tokens
        self.kept.copy_(self._mask(self.kept.shape[1]))

    def _central(self, keep_profile: Sequence[float]) -> list[list[int]]:
        """Return each layer's patches by a profile.

        Raises:
            ValueError: for a profile that rises, leaves [0, 1] or has not one share per block.
        """
        falling = all(a >= b for a, b in zip((1.0, *keep_profile), keep_profile, strict=False))
        if len(keep_profile) != self.depth or not falling or min(keep_profile) < 0:
            raise ValueError(
                f"keep_profile={keep_profile} must hold a share for each of {self.depth} blocks, "
                "none above the one before"
            )
        height, width = self.patch_embed.grid_size
        total = height * width

        def distance(index: int) -> float:
            row, column = divmod(index, width)
            return (row - (height - 1) / 2) ** 2 + (column - (width - 1) / 2) ** 2

        nearest = sorted(range(total), key=distance)
        return [nearest[: int(share * total)] for share in keep_profile]

    def rows(self, layer: int) -> Tensor | None:
        """Return the rows (R,) of a layer's tokens in the layer before it; None: it computes them all."""
        before = self._present[layer - 1] if layer else range(1 + self.patch_embed.num_patches)
        same = len(self._present[layer]) == len(before)
        return None if same else getattr(self, f"rows_{layer}")

    def run_blocks(self, x: Tensor, first: int, end: int, maps: FeatureMaps | None = None) -> Tensor:
        """Run blocks ``first`` to before ``end`` on the tokens that the layer before ``first`` computed."""
        for layer in range(first, end):
            rows = self.rows(layer)
            if maps is not None and rows is not None:
                maps.keep(rows[1:] - 1)  # without the class token's
            x = self.run_block(layer, x, maps, rows=rows)
        return x

    def forward_tokens(self, images: Tensor, maps: FeatureMaps | None = None) -> Tensor:
        """Return normed tokens (B, 1 + n, C) of images: the class token and the last layer's patches."""
        x = self.embed(images, maps)
        return self.norm(self.run_blocks(x, 0, len(self.blocks) if maps is None else maps.end, maps))

    def from_official(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return weights with timm's keys (``qkv``) under our keys."""
        return split_weights(self, state_dict)

    def timm_state_dict(self) -> dict[str, Tensor]:
        """Return copies of the weights under timm's keys, without the sets of patches."""
        state_dict = joined_weights(self)
        del state_dict["kept"]
        return state_dict


def _read_kept(model: SlimVisionTransformer, incompatible: Any) -> None:
    """Take over the patches of the mask if it was among the weights; a hook after loading them."""
    if any(key.split(".")[-1] == "kept" for key in incompatible.missing_keys):
        model.set_patches(model.patches)
    elif not model.kept.is_meta:
        model.set_patches([layer.nonzero().flatten().tolist() for layer in model.kept.cpu()])


class SearchedLayer(NamedTuple):
    """The result of the search for one layer."""

    layer: int
    patches: list[int]  # in raster order
    error: float  # of the next layer's output
    rounds: list[tuple[int, float]]  # number of patches tried, and the error that they left


@register_task("ps_vit_search")
class TopDownSearch:
    """The search for the sets, one layer at a time: call ``next_layer`` until ``done``.

    The last layer computes only the class token. Going down, a layer's set starts as that of the layer
    above; patches join it ``granularity`` at a time, the most important first, and the layer is
    fine-tuned, until the next layer's output is reconstructed. Layers below are still the dense ones.

    No code was released; chosen here: the error is relative, ||output - target||^2 / ||target||^2 over
    the sample images, where the target is the next layer's output (as slimmed so far) when all patches
    are kept, so that keeping everything always ends a layer; fine-tuning minimises this error by AdamW.

    The search slims ``model`` and fine-tunes its blocks in place. What ``state_dict`` returns between
    two layers is enough to go on without a change of the result.

    Args:
        model: a trained model, every patch kept.
        images: (n, 3, H, W), normalised: the sample on which errors are measured.
        epsilon: largest error that a layer may leave; the authors use 0.01 and 0.02.
        granularity: patches that join at a time.
        steps: fine-tuning steps after patches joined.
        batch_size: images per step.
        lr: learning rate of the fine-tuning.
        seed: of the fine-tuning's batches.

    Raises:
        ValueError: for a model that is no PS-ViT of two layers or more, or an option out of range.
    """

    def __init__(
        self,
        model: SlimVisionTransformer,
        images: Tensor,
        *,
        epsilon: float = 0.01,
        granularity: int = 10,
        steps: int = 50,
        batch_size: int = 64,
        lr: float = 1e-4,
        seed: int = 0,
    ):
        for name, value, least in (
            ("granularity", granularity, 1),
            ("batch_size", batch_size, 1),
            ("steps", steps, 0),
            ("epsilon", epsilon, 0),
            ("lr", lr, 0),
            ("the number of images", len(images), 1),
        ):
            if value < least:
                raise ValueError(f"{name} is {value}, but must be at least {least}")
        if not isinstance(model, SlimVisionTransformer):
            raise ValueError(f"{type(model).__name__} has no patch sets to search")
        if model.depth < 2:
            raise ValueError(f"a model of {model.depth} layers has no layer below the last")
        self.model = model.eval()
        self.images = images
        self.epsilon = epsilon
        self.granularity = granularity
        self.steps = steps
        self.batch_size = batch_size
        self.lr = lr
        self.seed = seed
        self.layers: list[SearchedLayer] = []  # from the top down, without the last layer
        self._apply([])

    @property
    def done(self) -> bool:
        """Return whether all layers have their set."""
        return len(self.layers) == self.model.depth - 1

    def state_dict(self) -> dict[str, Any]:
        """Return the model's weights and the layers searched so far."""
        return {"model": self.model.state_dict(), "layers": [tuple(layer) for layer in self.layers]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what ``state_dict`` returned."""
        self.model.load_state_dict(state["model"])
        self.layers = [SearchedLayer(*layer) for layer in state["layers"]]

    def summary(self) -> dict[str, Any]:
        """Return the result, ready for JSON; layers are counted from 0, patches in raster order."""
        sets = self.model.patches
        return {
            "patches": sets,
            "counts": [len(patches) for patches in sets],
            "of_patches": self.model.patch_embed.num_patches,
            "layers": [{"layer": layer.layer, "error": layer.error, "rounds": layer.rounds} for layer in self.layers],
        }

    def next_layer(self) -> SearchedLayer:
        """Search the set of the next layer down, and leave the model with it."""
        layer = self.model.depth - 2 - len(self.layers)
        block = self.model.blocks[layer]
        above = set(self.layers[-1].patches if self.layers else ())
        x = self._batched(self.images, lambda images: self.model.run_blocks(self.model.embed(images), 0, layer))
        target = self._batched(x, lambda part: self.model.run_blocks(part, layer, layer + 2))
        scores = self._batched(x, lambda part: importance(self.model, layer, part) * len(part), gather=sum)
        order = scores.argsort(descending=True, stable=True).tolist()
        candidates = [index for index in order if index not in above]
        dense = {key: value.clone() for key, value in block.state_dict().items()}
        optimizer = torch.optim.AdamW(block.parameters(), lr=self.lr, weight_decay=0)
        generator = torch.Generator().manual_seed(self.seed * self.model.depth + layer)
        rounds: list[tuple[int, float]] = []
        for joined in range(0, len(candidates) + self.granularity, self.granularity):
            patches = sorted(above.union(candidates[:joined]))
            self._apply([patches])
            if joined >= len(candidates):  # everything is kept: the layer as it was, no error
                block.load_state_dict(dense)
            else:
                self._fine_tune(layer, x, target, optimizer, generator)
            error = self._error(layer, x, target)
            rounds.append((len(patches), error))
            if error <= self.epsilon:
                break
        self.layers.append(SearchedLayer(layer, patches, error, rounds))
        return self.layers[-1]

    def _apply(self, candidate: list[list[int]]) -> None:
        """Give the model the sets so far, a candidate below them, and all patches further down."""
        from_top = [[], *(layer.patches for layer in self.layers), *candidate]
        everything = list(range(self.model.patch_embed.num_patches))
        self.model.set_patches([everything] * (self.model.depth - len(from_top)) + from_top[::-1])

    def _batched(self, x: Tensor, function: Callable[[Tensor], Tensor], gather: Callable = torch.cat) -> Tensor:
        """Apply the function to all of x in batches, without gradient."""
        with torch.no_grad():
            return gather([function(part) for part in x.split(self.batch_size)])

    def _error(self, layer: int, x: Tensor, target: Tensor) -> float:
        """Return the relative squared error of the next layer's output, from the layer's input x."""
        with torch.no_grad():
            parts = zip(x.split(self.batch_size), target.split(self.batch_size), strict=True)
            lost = 0.0
            for part, goal in parts:
                lost += (self.model.run_blocks(part, layer, layer + 2) - goal).double().square().sum()
            return (lost / target.double().square().sum()).item()

    def _fine_tune(self, layer: int, x: Tensor, target: Tensor, optimizer, generator: torch.Generator) -> None:
        """Bring the next layer's output closer to the target by training only this layer."""
        weights = list(self.model.blocks[layer].parameters())
        for _ in range(self.steps):
            drawn = torch.randperm(len(x), generator=generator)[: self.batch_size].to(x.device)
            goal = target[drawn]
            lost = (self.model.run_blocks(x[drawn], layer, layer + 2) - goal).square().sum()
            gradients = torch.autograd.grad(lost / goal.square().sum(), weights)
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.grad = gradient
            optimizer.step()
            optimizer.zero_grad()


@torch.no_grad()
def importance(model: SlimVisionTransformer, layer: int, x: Tensor) -> Tensor:
    """Return how significant each patch that ``layer`` computes is for the class token at the end.

    It is the sum of ||A[:, i] U[i, :]||^2 over the layer's heads and over all paths through the heads of the
    layers above, averaged over images. A (rows of the last layer, L) is the product of the attention maps on
    a path, each with its kept rows only; U = P|Z| (L, d) of a head of ``layer`` is its attention times its
    |values|. The norm of an outer product is that of its factors.

    Args:
        x: (B, 1 + N, C), the input of ``layer``; its own and lower layers keep all patches.

    Returns:
        (N,)
    """
    block = model.blocks[layer]
    normed = block.norm1(x)
    values = block.attn.project(normed, None)[2].abs()
    mixed = block.attn.probabilities(normed) @ values
    x = block(x)
    maps = []
    for above in range(layer + 1, model.depth):
        block, rows = model.blocks[above], model.rows(above)
        maps.append(block.attn.probabilities(block.norm1(x), rows))
        x = block(x, rows=rows)
    scores = reach(maps) * mixed.square().sum((1, 3))
    return scores.mean(0)[1:]


def reach(maps: Sequence[Tensor]) -> Tensor:
    """Return how much of each token arrives at the end: the sum of ||A[:, i]||^2 over all paths of heads.

    This sum is the diagonal of G, the sum of transpose(A) A. Going down by a layer with attention P, each path
    branches into the layer's heads: G becomes the sum of transpose(P) G P over the heads.

    Args:
        maps: attention (B, H, R, L) of each layer from the bottom up; the R rows of one are the L tokens of the next.

    Returns:
        (B, L) for the tokens of the lowest layer.
    """
    rows = maps[-1].shape[2]
    gram = torch.eye(rows, device=maps[-1].device, dtype=maps[-1].dtype)
    for attention in reversed(maps):
        gram = (attention.mT @ gram @ attention).sum(1)
        gram = gram.unsqueeze(1)  # for every head of the next layer down
    return gram.squeeze(1).diagonal(dim1=-2, dim2=-1)


default_cfgs = generate_default_cfgs(
    {
        "ps_deit_tiny_patch16_224": pretrained_cfg(224),
        "ps_deit_small_patch16_224": pretrained_cfg(224),
        "ps_deit_base_patch16_224": pretrained_cfg(224),
    }
)


def _create(name: str, pretrained: bool, kwargs: dict[str, Any], sizes: dict[str, Any]) -> nn.Module:
    return create_deit(SlimVisionTransformer, name, pretrained, kwargs, sizes, complete_dense)


@register_model
def ps_deit_tiny_patch16_224(pretrained: bool = False, **kwargs: Any) -> SlimVisionTransformer:
    """DeiT-T with a set of patches per layer."""
    return _create("ps_deit_tiny_patch16_224", pretrained, kwargs, TINY)


@register_model
def ps_deit_small_patch16_224(pretrained: bool = False, **kwargs: Any) -> SlimVisionTransformer:
    """DeiT-S with a set of patches per layer."""
    return _create("ps_deit_small_patch16_224", pretrained, kwargs, SMALL)


@register_model
def ps_deit_base_patch16_224(pretrained: bool = False, **kwargs: Any) -> SlimVisionTransformer:
    """DeiT-B with a set of patches per layer."""
    return _create("ps_deit_base_patch16_224", pretrained, kwargs, BASE)
