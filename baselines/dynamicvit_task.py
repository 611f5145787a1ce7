"""Training DynamicViT: four losses, a slow backbone that is frozen at first."""

from typing import Any

import torch
import torch.nn.functional as F
from timm.task import ClassificationTask
from timm.utils import unwrap_model
from torch import Tensor, nn

from evovit.task import register_task


@register_task("dynamicvit")
class DynamicViTTask(ClassificationTask):
    """Classification + kept-share + distillation losses of DynamicViT.

    Args (beside ClassificationTask's):
        teacher: the dense model, frozen, in evaluation mode; anything with timm's
            ``forward_features`` (B, 1 + N, C) and ``forward_head``.
        ratio_weight: of the squared distance of the kept share from its target, mean over stages.
        distill_weight: of the Kullback-Leibler divergence to the teacher's prediction.
        token_weight: of the mean squared distance of the kept tokens to the teacher's.
        backbone_lr_scale: learning rate of all but the predictors, relative to theirs.
        freeze_epochs: first epochs in which only the predictors learn.
    """

    def __init__(
        self,
        model: nn.Module,
        *args: Any,
        teacher: nn.Module,
        ratio_weight: float = 2.0,
        distill_weight: float = 0.5,
        token_weight: float = 0.5,
        backbone_lr_scale: float = 0.01,
        freeze_epochs: int = 5,
        **kwargs: Any,
    ):
        super().__init__(model, *args, **kwargs)
        self.teacher = teacher.eval().requires_grad_(False)
        self.ratio_weight, self.distill_weight = ratio_weight, distill_weight
        self.token_weight, self.backbone_lr_scale = token_weight, backbone_lr_scale
        self.freeze_epochs = freeze_epochs
        unwrap_model(model).set_training_outputs(True)

    def train(self, mode: bool = True) -> "DynamicViTTask":
        """Set training mode; the teacher stays in evaluation mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    def prepare_distributed(self, device_ids: list | None = None, **ddp_kwargs: Any):
        """Wrap in DDP, which must not wait for gradients of a frozen backbone."""
        if self.freeze_epochs:
            ddp_kwargs = {"find_unused_parameters": True, **ddp_kwargs}
        return super().prepare_distributed(device_ids, **ddp_kwargs)

    def start_epoch(self, epoch: int, epochs: int) -> None:
        """Freeze or free the backbone for ``epoch`` (from 0); call it also after a resume.

        Frozen parameters get no gradient at all, so the optimizer leaves them alone, weight decay
        included. Not done at construction: DDP would never learn of them.
        """
        for _, parameter in self._split()[1]:
            parameter.requires_grad_(epoch >= self.freeze_epochs)

    def unreached(self, epochs: int) -> list[str]:
        """A sentence if the backbone stands still in all ``epochs``."""
        if self.freeze_epochs < epochs:
            return []
        return [f"A training of {epochs} epochs never trains the backbone: freeze_epochs is {self.freeze_epochs}."]

    def param_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Parameter groups with timm's ``lr_scale``: predictors 1, backbone ``backbone_lr_scale``.

        No decay on biases, norms and what the model names in ``no_weight_decay``.
        """
        exempt = unwrap_model(self.trainable_module).no_weight_decay()
        groups = []
        for named, scale in zip(self._split(), (1.0, self.backbone_lr_scale), strict=True):
            for decayed in (True, False):
                parameters = [p for n, p in named if (p.ndim > 1 and n not in exempt) is decayed]
                decay = weight_decay if decayed else 0.0
                groups.append(dict(params=parameters, weight_decay=decay, lr_scale=scale))
        return [group for group in groups if group["params"]]

    def _split(self) -> tuple[list[tuple[str, Tensor]], list[tuple[str, Tensor]]]:
        """Named parameters of the predictors and of the backbone."""
        named = list(unwrap_model(self.trainable_module).named_parameters())
        predictors = [pair for pair in named if pair[0].startswith("score_predictor.")]
        return predictors, [pair for pair in named if not pair[0].startswith("score_predictor.")]

    def forward(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Images (B, 3, H, W) and targets to loss, logits (B, num_classes) and the four terms."""
        output = self.trainable_module(input)
        with torch.no_grad():
            features = self.teacher.forward_features(input)
            teacher_logits = self.teacher.forward_head(features)
        terms = {
            "class_loss": self.criterion(output.logits, target),
            "ratio_loss": ratio_loss(output.decisions, self._targets()),
            "distill_loss": F.kl_div(
                output.logits.log_softmax(-1), teacher_logits.log_softmax(-1),
                reduction="batchmean", log_target=True,
            ),
            "token_loss": token_loss(output.tokens, features[:, 1:], output.kept),
        }  # fmt: skip
        loss = (
            terms["class_loss"]
            + self.ratio_weight * terms["ratio_loss"]
            + self.distill_weight * terms["distill_loss"]
            + self.token_weight * terms["token_loss"]
        )
        logged = {name: term.detach() for name, term in terms.items()}
        return {"loss": loss, "output": output.logits, **logged, "kept_share": output.kept.mean()}

    def _targets(self) -> tuple[float, ...]:
        return unwrap_model(self.trainable_module).keep_ratios


def ratio_loss(decisions: tuple[Tensor, ...], targets: tuple[float, ...]) -> Tensor:
    """Mean over stages and images of (kept share - target)^2; decisions (B, N)."""
    parts = [(stage.mean(dim=1) - target).square().mean() for stage, target in zip(decisions, targets, strict=True)]
    return torch.stack(parts).mean()


def token_loss(tokens: Tensor, teacher_tokens: Tensor, kept: Tensor) -> Tensor:
    """Mean squared distance of the kept tokens (B, N, C) to the teacher's; 0 if none is kept."""
    dtype = torch.promote_types(tokens.dtype, torch.float32)
    distance = (tokens.to(dtype) - teacher_tokens.to(dtype)).square().mean(dim=-1)
    return (distance * kept).sum() / kept.sum().clamp_min(1)
