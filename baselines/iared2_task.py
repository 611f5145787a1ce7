"""Training IA-RED2: interpreters by REINFORCE, the backbone by classification, in turns."""

from typing import Any

import torch
from timm.task import ClassificationTask
from timm.utils import unwrap_model
from torch import Tensor, nn

from evovit.task import register_task

from .iared2 import InterpretedVisionTransformer, PolicyOutput


@register_task("ia_red2")
class IARED2Task(ClassificationTask):
    """Classification and policy learning, group by group (the curriculum).

    The training is cut into one part per group of blocks. In its first half the group's
    interpreter learns by REINFORCE while all else stands still; in its second half the backbone
    learns to classify what the interpreters so far leave. Later interpreters do not act yet.

    Args (beside ClassificationTask's):
        tau: penalty for a wrong prediction; not known from the paper's text, 0.5 here.

    Raises:
        ValueError: for a model without interpreters, or one with a fixed keep_profile.
    """

    def __init__(self, model: nn.Module, *args: Any, tau: float = 0.5, **kwargs: Any):
        super().__init__(model, *args, **kwargs)
        inner = unwrap_model(model)
        if not isinstance(inner, InterpretedVisionTransformer):
            raise ValueError(f"{type(inner).__name__} has no interpreters to train")
        if inner.keep_profile is not None:
            raise ValueError("keep_profile fixes what is kept: leave it out to train the policies")
        self.tau = tau
        inner.set_training_outputs(True)  # before the optimizer and DDP look for parameters

    def prepare_distributed(self, device_ids: list | None = None, **ddp_kwargs: Any):
        """Wrap in DDP, which must not wait for gradients of what stands still."""
        ddp_kwargs = {"find_unused_parameters": True, **ddp_kwargs}
        return super().prepare_distributed(device_ids, **ddp_kwargs)

    def start_epoch(self, epoch: int, epochs: int) -> None:
        """Choose who learns in ``epoch`` (from 0) of ``epochs``; call it also after a resume.

        What stands still gets no gradient at all, so the optimizer leaves it alone.
        """
        model = unwrap_model(self.trainable_module)
        half = 2 * len(model.groups) * epoch // epochs
        model.acting, model.exploring = half // 2 + 1, half % 2 == 0
        learning = f"interpreters.{half // 2}."
        for name, parameter in model.named_parameters():
            policy = name.startswith("interpreters.")
            learns = name.startswith(learning) if model.exploring else not policy
            parameter.requires_grad_(learns)

    def unreached(self, epochs: int) -> list[str]:
        """A sentence if a training of ``epochs`` is too short for every group's two phases."""
        phases = 2 * len(unwrap_model(self.trainable_module).groups)
        reached = len({phases * epoch // epochs for epoch in range(epochs)})
        if reached == phases:
            return []
        return [f"A training of {epochs} epochs comes to {reached} of IA-RED2's {phases} phases."]

    def forward(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Images (B, 3, H, W) and targets to loss, logits (B, num_classes) and kept share."""
        output = self.trainable_module(input)
        if not isinstance(output, PolicyOutput):
            return {"loss": self.criterion(output, target), "output": output}
        labels = target.argmax(-1) if target.ndim > 1 else target
        sampled = self.reward(output.sampled, output.sampled_logits, labels)
        greedy = self.reward(output.greedy, output.greedy_logits, labels)
        return {
            "loss": -((sampled - greedy) * output.log_prob).mean(),
            "output": output.greedy_logits,
            "reward": greedy.mean(),
            "kept_share": output.greedy.float().mean(),
        }

    def reward(self, kept: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        """1 - (kept share)^2 (B,) where the prediction is right, else -tau."""
        share = kept.float().mean(1)
        right = logits.argmax(-1) == labels
        return torch.where(right, 1 - share.square(), -self.tau)
