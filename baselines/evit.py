"""EViT (Liang et al. 2022, ICLR) on DeiT, registered as ``evit_deit_*``.

Between the attention and the MLP of blocks 3, 6 and 9 the patches to which the class token attends most stay (mean over
the heads), and the others become one token, their sum weighted by this attention; the weights are not scaled to
a sum of 1. They pass a gradient. The fused token takes part in later selections as the patches do: it can stay, or be
fused again. ``EViTTask`` trains it from scratch with a share of kept tokens that falls from 1 to the model's own.

Chosen here, where the authors have one rate for all blocks: in a list of different rates each falls to its own value.
The falling rate holds in training only; evaluations during a training use the model's own rate, as the reported
costs do. A feature map shows the last value of a fused patch from before its fusion, as of a dropped one.
"""

import math
from collections.abc import Sequence
from typing import Any

from timm.models import generate_default_cfgs, register_model
from timm.task import ClassificationTask
from timm.utils import unwrap_model
from torch import nn

from evovit.options import check_ratios
from evovit.task import register_task

from .deit import BASE, SMALL, TINY, create_deit, pretrained_cfg
from .dropping import check_reduction_blocks
from .ranking import RankingTransformer


class ReorganizingVisionTransformer(RankingTransformer):
    """Vision Transformer that keeps the most attended tokens and fuses the others.

    Where the patches are pooled, the fused token counts as one of them.
    """

    def configure(
        self,
        *,
        keep_ratio: float | Sequence[float] = 0.7,
        fuse: bool = True,
        reduction_blocks: Sequence[int] | None = None,
    ) -> None:
        """Take the method's keywords.

        Args:
            keep_ratio: share of the patches present that each reduction block keeps, rounded up; or a list of one
                share for each block of the model, which drops nothing where it is 1.
            fuse: let dropped tokens become one; False: they leave for good.
            reduction_blocks: blocks in which tokens are dropped, counted from 0; None: those that a list of ratios
                says, else those at a quarter, half and three quarters of the depth.

        Raises:
            ValueError: for a ratio outside (0, 1], a list of ratios of another length, and blocks that do not ascend
                or that contradict the list.
        """
        self.fuse = fuse
        depth = len(self.blocks)
        ratios = check_ratios("keep_ratio", keep_ratio)
        if isinstance(ratios, float):
            self.reduction_blocks = check_reduction_blocks(reduction_blocks, depth)
            ratios = tuple(ratios if block in self.reduction_blocks else 1.0 for block in range(depth))
        else:
            self.reduction_blocks = tuple(block for block, ratio in enumerate(ratios) if ratio < 1)
            if reduction_blocks is not None and tuple(reduction_blocks) != self.reduction_blocks:
                raise ValueError(
                    f"reduction_blocks={tuple(reduction_blocks)}: the list keep_ratio says that blocks "
                    f"{self.reduction_blocks} drop tokens; leave reduction_blocks out"
                )
        self.keep_ratios = ratios
        if len(self.keep_ratios) != depth:
            raise ValueError(
                f"keep_ratio={self.keep_ratios} has {len(self.keep_ratios)} entries for {depth} blocks: "
                "give one for each block, 1 where nothing is dropped, or a number"
            )
        self.training_ratios: tuple[float, ...] | None = None

    def set_training_ratios(self, ratios: Sequence[float] | None) -> None:
        """Set the share that each block keeps in training; None: that of evaluation."""
        self.training_ratios = None if ratios is None else tuple(ratios)

    def count_kept(self, block: int, present: int, patches: int) -> int:
        """Return how many of the tokens that are ``present`` a block keeps, a fused one counted among them."""
        ratios = self.keep_ratios
        if self.training and self.training_ratios is not None:
            ratios = self.training_ratios
        return math.ceil(ratios[block] * present)


@register_task("evit")
class EViTTask(ClassificationTask):
    """Classification while the share of kept tokens falls from 1 to the model's own by half a cosine, step by step.

    Args (in addition to ClassificationTask's):
        shrink_start: epoch, from 0, before which every token stays.
        shrink_epochs: epochs in which the share falls; 0: at once.

    Raises:
        ValueError: for a model that is no EViT, or a negative number of epochs.
    """

    def __init__(
        self, model: nn.Module, *args: Any, shrink_start: float = 10, shrink_epochs: float = 100, **kwargs: Any
    ):
        super().__init__(model, *args, **kwargs)
        for name, epochs in (("shrink_start", shrink_start), ("shrink_epochs", shrink_epochs)):
            if epochs < 0:
                raise ValueError(f"{name}={epochs} is a number of epochs and must be at least 0")
        if not isinstance(unwrap_model(model), ReorganizingVisionTransformer):
            raise ValueError(f"{type(unwrap_model(model)).__name__} is no EViT: the task evit trains evit_deit models")
        self.shrink_start = shrink_start
        self.shrink_epochs = shrink_epochs
        self._epoch = 0

    def start_epoch(self, epoch: int, epochs: int) -> None:
        """Set the shares of the first step of ``epoch`` (from 0)."""
        self._epoch = epoch
        self.start_step(0, 1)

    def start_step(self, step: int, steps: int) -> None:
        """Set the shares of step ``step`` (from 0) of the epoch's ``steps``; nothing else decides them."""
        model = unwrap_model(self.trainable_module)
        ratios = [
            shrunk_ratio(ratio, self._epoch, step, steps, self.shrink_start, self.shrink_epochs)
            for ratio in model.keep_ratios
        ]
        model.set_training_ratios(ratios)

    def unreached(self, epochs: int) -> list[str]:
        """Return a sentence if the shares do not come down in a training of ``epochs``."""
        end = self.shrink_start + self.shrink_epochs
        if end <= epochs:
            return []
        return [
            f"A training of {epochs} epochs never keeps as few tokens as the model at inference: "
            f"shrink_start + shrink_epochs is {end}."
        ]


def shrunk_ratio(ratio: float, epoch: int, step: int, steps: int, shrink_start: float, shrink_epochs: float) -> float:
    """Return the share of tokens that is kept in a step of a training that ends at the share ``ratio``.

    Args:
        ratio: share from ``shrink_epochs`` after ``shrink_start`` on.
        epoch: counted from 0.
        step: counted from 0 within the epoch.
        steps: number of steps of an epoch.
        shrink_start: epoch before which the share is 1.
        shrink_epochs: epochs between both, in which the share falls by half a cosine.
    """
    if epoch < shrink_start:
        return 1.0
    if epoch >= shrink_start + shrink_epochs:
        return ratio
    done = (epoch + step / steps - shrink_start) / shrink_epochs
    return ratio + (1 - ratio) * (1 + math.cos(math.pi * done)) / 2


default_cfgs = generate_default_cfgs(
    {
        "evit_deit_tiny_patch16_224": pretrained_cfg(224),
        "evit_deit_small_patch16_224": pretrained_cfg(224),
        "evit_deit_base_patch16_224": pretrained_cfg(224),
    }
)


@register_model
def evit_deit_tiny_patch16_224(pretrained: bool = False, **kwargs: Any) -> ReorganizingVisionTransformer:
    """DeiT-T that fuses the least attended tokens."""
    return create_deit(ReorganizingVisionTransformer, "evit_deit_tiny_patch16_224", pretrained, kwargs, TINY)


@register_model
def evit_deit_small_patch16_224(pretrained: bool = False, **kwargs: Any) -> ReorganizingVisionTransformer:
    """DeiT-S that fuses the least attended tokens."""
    return create_deit(ReorganizingVisionTransformer, "evit_deit_small_patch16_224", pretrained, kwargs, SMALL)


@register_model
def evit_deit_base_patch16_224(pretrained: bool = False, **kwargs: Any) -> ReorganizingVisionTransformer:
    """DeiT-B that fuses the least attended tokens."""
    return create_deit(ReorganizingVisionTransformer, "evit_deit_base_patch16_224", pretrained, kwargs, BASE)
