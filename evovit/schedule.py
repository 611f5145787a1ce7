"""Training Evo-ViT: layer-to-stage schedule, start of selection, assisted class-token loss."""

from typing import Any

from timm.task import ClassificationTask
from timm.utils import unwrap_model
from torch import Tensor, nn


class AssistedTokenTask(ClassificationTask):
    """Classification with the assisted class-token loss (Eq. 8) and the layer-to-stage schedule.

    Eq. 8 adds the loss of the class token to that of the average prediction; the authors' code
    weighs both with 0.5 (``variant="official"`` of the model).

    Args (beside ClassificationTask's):
        class_weight, average_weight: factors of the two losses; None: 1 and 1, official 0.5 each.
        switch_at: share of the training after which tokens are selected once per stage instead
            of in each layer (the paper: 200 of 300 epochs); None keeps the model's own schedule.
        select_from: share of the training after which tokens are selected at all.
    """

    def __init__(
        self,
        model: nn.Module,
        *args: Any,
        class_weight: float | None = None,
        average_weight: float | None = None,
        switch_at: float | None = 2 / 3,
        select_from: float = 0.0,
        **kwargs: Any,
    ):
        super().__init__(model, *args, **kwargs)
        for name, share in (("switch_at", switch_at), ("select_from", select_from)):
            if share is not None and not 0 <= share <= 1:
                raise ValueError(f"{name}={share} is a share of the training, from 0 to 1")
        inner = unwrap_model(model)
        default = 0.5 if inner.switches.variant == "official" else 1.0
        self.class_weight = default if class_weight is None else class_weight
        self.average_weight = default if average_weight is None else average_weight
        self.switch_at, self.select_from = switch_at, select_from
        inner.set_training_outputs(True)
        # From here on this task decides the schedule, also over what a checkpoint brings along.
        inner.set_schedule(inner.schedule)

    def start_epoch(self, epoch: int, epochs: int) -> None:
        """Set what holds in ``epoch`` (from 0) of ``epochs``; call it also after a resume."""
        for ema in (False, True):
            module = self.get_trainable_module(ema=ema)
            if module is None:
                continue
            model = unwrap_model(module)
            model.set_selecting(_reached(epoch, epochs, self.select_from))
            if self.switch_at is not None:
                stage = _reached(epoch, epochs, self.switch_at)
                model.set_schedule("stage" if stage else "layer")

    def forward(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Images (B, 3, H, W) and targets to loss, logits (B, num_classes) and both terms."""
        average, class_token = self.trainable_module(input)
        average_loss = self.criterion(average, target)
        class_loss = self.criterion(class_token, target)
        return {
            "loss": self.average_weight * average_loss + self.class_weight * class_loss,
            "output": average,
            "average_loss": average_loss.detach(),
            "class_loss": class_loss.detach(),
        }


def _reached(epoch: int, epochs: int, share: float) -> bool:
    # 2/3 of 300 must mean epoch 200 whatever the rounding of the product
    return epoch + 1e-6 * epochs >= share * epochs
