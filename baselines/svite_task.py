"""Training SViTE: units are killed and regrown until most of the training is done."""

import math
from typing import Any

import torch
import torch.distributed as dist
from timm.task import ClassificationTask
from timm.utils import unwrap_model
from torch import nn

from evovit.task import register_task

from .svite import SparseVisionTransformer
from .svite_layers import Gate, GatedLinear


@register_task("svite")
class SViTETask(ClassificationTask):
    """Classification while a model's units are killed and regrown.

    An update takes place after the first step of an epoch, scored by that step's gradients (its
    last batch's, where a step has several).
    ceil(rate * alive) units of each layer die, but no more than there are dead ones to replace
    them, and as many of those that were dead before are regrown.

    Args (beside ClassificationTask's):
        rate: share of the living units that the first update kills; it falls to 0 with a cosine.
        until: share of the training after which nothing changes any more.
        updates: updates in a training, evenly spread before ``until``; at most one per epoch. The
            authors update every 7,000 to 20,000 steps, 15 to 43 times in 300 epochs of 1,250 steps.

    Raises:
        ValueError: for a model without gates, or a share outside [0, 1].
    """

    def __init__(
        self, model: nn.Module, *args: Any, rate: float = 0.5, until: float = 0.8,
        updates: int = 30, **kwargs: Any,
    ):  # fmt: skip
        super().__init__(model, *args, **kwargs)
        for name, share in (("rate", rate), ("until", until)):
            if not 0 <= share <= 1:
                raise ValueError(f"{name}={share} must lie in [0, 1]")
        if updates < 1:
            raise ValueError(f"updates={updates} must be at least 1")
        if not isinstance(unwrap_model(model), SparseVisionTransformer):
            raise ValueError(f"{type(unwrap_model(model)).__name__} has no gates to move")
        self.rate, self.until, self.updates = rate, until, updates
        self._due: float | None = None  # rate of this epoch's update

    def start_epoch(self, epoch: int, epochs: int) -> None:
        """Prepare the update of ``epoch`` (from 0) of ``epochs``, if it has one."""
        self._due = self.rate_at(epoch, epochs) if epoch in self.update_epochs(epochs) else None

    def update_epochs(self, epochs: int) -> list[int]:
        """The epochs with an update, evenly spread after the first and before ``until``."""
        end = math.ceil(self.until * epochs)
        count = min(self.updates, max(end - 1, 0))
        return sorted({1 + i * (end - 1) // count for i in range(count)})

    def unreached(self, epochs: int) -> list[str]:
        """A sentence if a training of ``epochs`` has no epoch for some of the updates."""
        count = len(self.update_epochs(epochs))
        if count == self.updates:
            return []
        return [f"A training of {epochs} epochs makes {count} of SViTE's {self.updates} updates."]

    def rate_at(self, epoch: int, epochs: int) -> float:
        """Share of the living units that die in this epoch."""
        return self.rate / 2 * (1 + math.cos(math.pi * epoch / (self.until * epochs)))

    def start_step(self, step: int) -> None:
        """Before step ``step`` (from 0) of the epoch: score in the first, move before the second.

        What it does follows from the step and the gates' buffers alone, also after a resume.
        """
        model = unwrap_model(self.trainable_module)
        model.set_collecting(self._due is not None and step == 0)
        if self._due is not None and step == 1:
            for gate, layer in model.gated_layers():
                update(gate, layer, self._due)


@torch.no_grad()
def update(gate: Gate, layer: nn.Module, rate: float) -> None:
    """Kill a layer's least important units and regrow as many others.

    Heads die by the smallest |sum of output * gradient|, neurons by the smallest L1 norm of their
    weights in both linear layers, weights by the smallest absolute value; what is regrown had the
    largest gradient behind its gate. A regrown head or neuron has the weights it died with, a
    regrown weight starts at zero.
    """
    importance, growth = layer.importance().flatten(), gate.growth.flatten()
    if dist.is_initialized():  # every process scored its own images
        importance, growth = importance.clone(), growth.clone()
        for scores in (importance, growth):
            dist.all_reduce(scores)
    alive = gate.alive.flatten()
    count = min(math.ceil(rate * gate.kept), gate.units - gate.kept)
    killed = importance.masked_fill(~alive, torch.inf).argsort(stable=True)[:count]
    regrown = growth.masked_fill(alive, -torch.inf).argsort(descending=True, stable=True)[:count]
    after = alive.clone()
    after[killed], after[regrown] = False, True
    gate.alive.copy_(after.view_as(gate.alive))
    if isinstance(layer, GatedLinear):
        layer.begin_anew(regrown)
