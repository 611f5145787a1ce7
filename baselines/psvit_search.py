"""The search for PS-ViT's patch sets on a trained DeiT, from the top layer down (Tang et al. 2022).

The last layer computes the class token alone. Going down, a layer's set starts as that of the layer
above; patches join it ``granularity`` at a time, the most important first, and the layer is
fine-tuned, until the next layer's output is reconstructed. Layers below are still the dense ones.

No code was released; chosen here: the error is relative, ||found - wanted||^2 / ||wanted||^2 over
the sample images, where wanted is what the next layer (as slimmed so far) makes of all patches, so
that keeping everything always ends a layer; fine-tuning minimises this error by AdamW; the heads
of the attention maps above are multiplied head by head.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from evovit.task import register_task

from .psvit import SlimVisionTransformer


class LayerFound(NamedTuple):
    """What the search found for one layer."""

    layer: int
    patches: list[int]  # in raster order
    error: float  # of the next layer's output
    rounds: list[tuple[int, float]]  # patches tried, and the error they left


@torch.no_grad()
def importance(model: SlimVisionTransformer, layer: int, x: Tensor) -> Tensor:
    """How much each patch that ``layer`` computes matters to the class token at the end.

    Sum over heads of ||A[:, i] U[i, :]||^2, averaged over images; A (rows of the last layer, L) is
    the product of the attention maps of the layers above, each with its kept rows alone, U (L, d)
    the layer's |values|. The norm of an outer product is that of its factors.

    Args:
        x: (B, 1 + N, C), the input of ``layer``; its own and lower layers keep all patches.

    Returns:
        (N,)
    """
    block = model.blocks[layer]
    values = block.attn.project(block.norm1(x), None)[2]
    reach, x = None, block(x)
    for above in range(layer + 1, model.depth):
        block, rows = model.blocks[above], model.rows(above)
        maps = block.attn.maps(block.norm1(x), rows)
        reach = maps if reach is None else maps @ reach
        x = block(x, rows=rows)
    scores = reach.square().sum(2) * values.square().sum(3)
    return scores.sum(1).mean(0)[1:]


@register_task("ps_vit_search")
class TopDownSearch:
    """The search, one layer at a time: call ``next_layer`` until ``done``.

    Slims ``model`` and fine-tunes its blocks in place. What ``state_dict`` returns between two
    layers is enough to go on without a change of result.

    Args:
        model: a trained model, every patch kept.
        images: (n, 3, H, W), normalised: the sample on which errors are measured.
        epsilon: largest error that a layer may leave.
        granularity: patches that join at a time.
        steps: fine-tuning steps after patches joined.
        batch_size: images per step.
        lr: learning rate of the fine-tuning.
        seed: of the fine-tuning's batches.

    Raises:
        ValueError: for a model that is no PS-ViT of two layers or more, or an option that can't be.
    """

    def __init__(
        self, model: SlimVisionTransformer, images: Tensor, *, epsilon: float = 0.01,
        granularity: int = 10, steps: int = 50, batch_size: int = 64, lr: float = 1e-4,
        seed: int = 0,
    ):  # fmt: skip
        for name, value, least in (
            ("granularity", granularity, 1), ("batch_size", batch_size, 1), ("steps", steps, 0),
            ("epsilon", epsilon, 0), ("lr", lr, 0), ("the number of images", len(images), 1),
        ):  # fmt: skip
            if value < least:
                raise ValueError(f"{name} is {value}, but must be at least {least}")
        if not isinstance(model, SlimVisionTransformer):
            raise ValueError(f"{type(model).__name__} has no patch sets to search")
        if model.depth < 2:
            raise ValueError(f"a model of {model.depth} layers has no layer below the last")
        self.model, self.images = model.eval(), images
        self.epsilon, self.granularity = epsilon, granularity
        self.steps, self.batch_size, self.lr, self.seed = steps, batch_size, lr, seed
        self.found: list[LayerFound] = []  # from the top down, without the last layer
        self._show([])

    @property
    def done(self) -> bool:
        return len(self.found) == self.model.depth - 1

    def state_dict(self) -> dict[str, Any]:
        return {"model": self.model.state_dict(), "found": [tuple(layer) for layer in self.found]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.found = [LayerFound(*layer) for layer in state["found"]]

    def summary(self) -> dict[str, Any]:
        """What was found, ready for JSON; layers are counted from 0, patches in raster order."""
        sets = self.model.patches
        return {
            "patches": sets,
            "counts": [len(patches) for patches in sets],
            "of_patches": self.model.patch_embed.num_patches,
            "layers": [{"layer": found.layer, "error": found.error, "rounds": found.rounds} for found in self.found],
        }

    def next_layer(self) -> LayerFound:
        """Find the set of the next layer down, and leave the model with it."""
        layer = self.model.depth - 2 - len(self.found)
        above = set(self.found[-1].patches if self.found else ())
        x = self._through(self.images, lambda images: self._below(images, layer))
        wanted = self._through(x, lambda part: self.model.run(part, layer, layer + 2))
        scores = self._through(x, lambda part: importance(self.model, layer, part) * len(part), sum)
        order = scores.argsort(descending=True, stable=True).tolist()
        candidates = [index for index in order if index not in above]
        dense = {k: v.clone() for k, v in self.model.blocks[layer].state_dict().items()}
        optimizer = torch.optim.AdamW(self.model.blocks[layer].parameters(), lr=self.lr, weight_decay=0)
        generator = torch.Generator().manual_seed(self.seed * self.model.depth + layer)
        rounds: list[tuple[int, float]] = []
        for joined in range(0, len(candidates) + self.granularity, self.granularity):
            patches = sorted(above.union(candidates[:joined]))
            self._show([patches])
            if joined >= len(candidates):  # everything is kept: the layer as it was, no error
                self.model.blocks[layer].load_state_dict(dense)
            else:
                self._fine_tune(layer, x, wanted, optimizer, generator)
            rounds.append((len(patches), self.error(layer, x, wanted)))
            if rounds[-1][1] <= self.epsilon:
                break
        self.found.append(LayerFound(layer, patches, rounds[-1][1], rounds))
        return self.found[-1]

    def _show(self, candidate: list[list[int]]) -> None:
        """Give the model the sets found, a candidate below them, and all patches further down."""
        known = [[], *(layer.patches for layer in self.found), *candidate]
        everything = list(range(self.model.patch_embed.num_patches))
        self.model.set_patches([everything] * (self.model.depth - len(known)) + known[::-1])

    def _through(self, x: Tensor, function, gather=torch.cat) -> Any:
        """The function of all of x in batches, without gradient."""
        with torch.no_grad():
            return gather([function(part) for part in x.split(self.batch_size)])

    def _below(self, images: Tensor, layer: int) -> Tensor:
        return self.model.run(self.model.embed(images), 0, layer)

    def error(self, layer: int, x: Tensor, wanted: Tensor) -> float:
        """Relative squared error of the next layer's output, from the layer's input x."""
        with torch.no_grad():
            parts = zip(x.split(self.batch_size), wanted.split(self.batch_size), strict=True)
            lost = sum(
                (self.model.run(part, layer, layer + 2) - right).double().square().sum() for part, right in parts
            )
            return (lost / wanted.double().square().sum()).item()

    def _fine_tune(self, layer: int, x: Tensor, wanted: Tensor, optimizer, generator) -> None:
        """Bring this layer alone, under the set that the model has, closer to what is wanted."""
        weights = list(self.model.blocks[layer].parameters())
        for _ in range(self.steps):
            drawn = torch.randperm(len(x), generator=generator)[: self.batch_size].to(x.device)
            right = wanted[drawn]
            lost = (self.model.run(x[drawn], layer, layer + 2) - right).square().sum()
            gradients = torch.autograd.grad(lost / right.square().sum(), weights)
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.grad = gradient
            optimizer.step()
            optimizer.zero_grad()
