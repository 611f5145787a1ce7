"""Training Evo-ViT: layer-to-stage schedule, start of selection, assisted class-token loss."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from timm.task import ClassificationTask, DistillationTeacher
from timm.utils import unwrap_model
from torch import Tensor, nn

TASKS: dict[str, type] = {"classification": ClassificationTask}  # by the name that recipes use


def register_task(name: str) -> Callable[[type], type]:
    """Return a decorator that lets recipes call a task, or a search, by ``name``.

    Raises:
        ValueError: if another class has this name.
    """

    def register(cls: type) -> type:
        if name in TASKS:
            raise ValueError(f"the task {name!r} is registered twice, for {TASKS[name].__name__} and {cls.__name__}")
        TASKS[name] = cls
        return cls

    return register


@register_task("assisted_tokens")
class AssistedTokenTask(ClassificationTask):
    """Classification with the assisted class-token loss (Eq. 8) and the layer-to-stage schedule.

    Eq. 8 adds the loss of the class token to that of the average prediction; the authors' code
    weighs both with 0.5 (``variant="official"`` of the model).

    Args (besides ClassificationTask's):
        class_weight, average_weight: factors of the two losses; None: 1 and 1, official 0.5 each.
        switch_at: share of the training after which tokens are selected once per stage instead
            of in each layer (the paper: 200 of 300 epochs); None keeps the model's own schedule.
        select_from: share of the training after which tokens are selected at all.
        learn_alpha_from: share after which Evo-LeViT's learned alphas count; None: when
            the schedule switches, as in the authors' code.
    """

    def __init__(
        self,
        model: nn.Module,
        *args: Any,
        class_weight: float | None = None,
        average_weight: float | None = None,
        switch_at: float | None = 2 / 3,
        select_from: float = 0.0,
        learn_alpha_from: float | None = None,
        **kwargs: Any,
    ):
        super().__init__(model, *args, **kwargs)
        shares = dict(switch_at=switch_at, select_from=select_from, learn_alpha_from=learn_alpha_from)
        for name, share in shares.items():
            if share is not None and not 0 <= share <= 1:
                raise ValueError(f"{name}={share} is a share of the training, from 0 to 1")
        inner = unwrap_model(model)
        default = 0.5 if inner.options.variant == "official" else 1.0
        self.class_weight = default if class_weight is None else class_weight
        self.average_weight = default if average_weight is None else average_weight
        self.switch_at, self.select_from = switch_at, select_from
        self.learn_alpha_from = switch_at if learn_alpha_from is None else learn_alpha_from
        inner.set_training_outputs(True)
        # From here on this task decides the schedule, also over what a checkpoint brings along.
        inner.set_schedule(inner.schedule)

    def prepare_distributed(self, device_ids: list | None = None, **ddp_kwargs: Any):
        """Wrap in DDP, which must not wait for alphas that nothing selects by yet."""
        if self.select_from > 0 and unwrap_model(self.trainable_module).options.learned:
            ddp_kwargs = {"find_unused_parameters": True, **ddp_kwargs}
        return super().prepare_distributed(device_ids, **ddp_kwargs)

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
            model.set_alpha_learning(_reached(epoch, epochs, self.learn_alpha_from or 0.0))

    def unreached(self, epochs: int) -> list[str]:
        """Return a sentence for each part of the schedule that a training of ``epochs`` never reaches."""
        learned = unwrap_model(self.trainable_module).options.learned
        parts = {
            "select_from": (self.select_from, "selects no tokens at all"),
            "switch_at": (self.switch_at, "never becomes stage-wise, so it is no layer-to-stage"),
            "learn_alpha_from": (
                self.learn_alpha_from if learned else None,
                "never learns its alphas",
            ),
        }
        return [
            f"A training of {epochs} epochs {what}: {name} is {share:.3g} of them."
            for name, (share, what) in parts.items()
            if share is not None and not _reached(epochs - 1, epochs, share)
        ]

    def forward(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Images (B, 3, H, W) and targets to loss, logits (B, num_classes) and both terms."""
        average, class_token = self.trainable_module(input)
        average_loss = self.criterion(average, target)
        class_loss = self.criterion(class_token, target)
        return {
            "loss": self._weigh(average_loss, class_loss),
            "output": average,
            "average_loss": average_loss.detach(),
            "class_loss": class_loss.detach(),
        }

    def _weigh(self, average_loss: Tensor, class_loss: Tensor) -> Tensor:
        """Eq. 8."""
        return self.average_weight * average_loss + self.class_weight * class_loss


@register_task("assisted_distillation")
class AssistedDistillationTask(AssistedTokenTask):
    """Eq. 8 for LeViT's heads and, against the labels a teacher predicts, for their twins.

    Args (besides AssistedTokenTask's):
        teacher: a frozen model that predicts the same classes.
        distill_weight: of the twins' part of the loss; the labels' part has the rest.

    Raises:
        ValueError: for a model without distillation heads, or a weight outside [0, 1].
    """

    def __init__(
        self,
        model: nn.Module,
        *args: Any,
        teacher: nn.Module,
        distill_weight: float = 0.5,
        **kwargs: Any,
    ):
        super().__init__(model, *args, **kwargs)
        inner = unwrap_model(model)
        if not hasattr(inner, "set_distilled_training"):
            raise ValueError(f"{type(inner).__name__} has no heads to distil a teacher into")
        if not 0 <= distill_weight <= 1:
            raise ValueError(f"distill_weight={distill_weight} must lie in [0, 1]")
        self.distill_weight = distill_weight
        inner.set_distilled_training(True)
        self.teacher = DistillationTeacher(teacher, device=self.device, dtype=self.dtype)
        self.teacher.requires_grad_(False)
        for name in ("mean", "std"):  # of the student's images, which the teacher may not share
            value = torch.tensor(inner.pretrained_cfg[name], device=self.device, dtype=self.dtype)
            self.register_buffer(f"student_{name}", value.view(1, -1, 1, 1), persistent=False)

    def train(self, mode: bool = True) -> "AssistedDistillationTask":
        """Set training mode; the teacher stays in evaluation mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Images (B, 3, H, W) and targets to loss, logits (B, num_classes) and all terms."""
        (average, average_dist), (token, token_dist) = self.trainable_module(input)
        with torch.no_grad():
            images = self.teacher.normalize_input(input, self.student_mean, self.student_std)
            predicted = self.teacher(images).argmax(dim=-1)
        average_loss = self.criterion(average, target)
        class_loss = self.criterion(token, target)
        distill_loss = self._weigh(F.cross_entropy(average_dist, predicted), F.cross_entropy(token_dist, predicted))
        label_loss = self._weigh(average_loss, class_loss)
        return {
            "loss": torch.lerp(label_loss, distill_loss, self.distill_weight),
            "output": (average + average_dist) / 2,
            "average_loss": average_loss.detach(),
            "class_loss": class_loss.detach(),
            "distill_loss": distill_loss.detach(),
        }


def _reached(epoch: int, epochs: int, share: float) -> bool:
    # 2/3 of 300 must mean epoch 200 whatever the rounding of the product
    return epoch + 1e-6 * epochs >= share * epochs
