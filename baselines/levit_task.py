"""LeViT's training: hard distillation into a second head (Graham et al. 2021, after DeiT)."""

from typing import Any

from timm.task import TokenDistillationTask
from torch import nn

from evovit.task import register_task


@register_task("hard_distillation")
class HardDistillationTask(TokenDistillationTask):
    """timm's token distillation against the labels that a teacher predicts.

    Args (beside TokenDistillationTask's):
        teacher: a frozen model that predicts the same classes.
        distill_weight: of the distillation head's part of the loss; the labels' part has the rest.

    Raises:
        ValueError: for a model without a distillation head, or a weight outside [0, 1].
    """

    def __init__(self, model: nn.Module, *, teacher: nn.Module, distill_weight: float = 0.5, **kwargs: Any):
        if not 0 <= distill_weight <= 1:
            raise ValueError(f"distill_weight={distill_weight} must lie in [0, 1]")
        weights = {"task_loss_weight": 1 - distill_weight, "distill_loss_weight": distill_weight}
        super().__init__(model, teacher, distill_type="hard", **weights, **kwargs)
