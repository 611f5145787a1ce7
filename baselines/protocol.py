"""What a method may define for the workflow, in addition to what timm expects of models and tasks.

The hooks of models and tasks are optional: the workflow checks whether a method has them. No class has to
inherit from these. ``tests/baselines/test_protocol.py`` compares the methods and the workflow with them.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn


class ModelHooks(Protocol):
    """What a model, registered by timm's ``register_model``, may define."""

    near_ties: bool
    """Whether a fresh model's scores are nearly equal, so that rounding decides between tokens. Its outputs may then
    differ more between precisions than those of other models before a benchmark refuses them. Default: False."""

    cost_varies: bool
    """Whether the cost depends on the image. The record of a training then has the mean and the spread of the MACs
    over validation images. Default: False."""

    training_parts: tuple[str, ...]
    """Names of the modules that only training needs: ``set_training_outputs`` makes them, and weights may hold them
    or not. Default: ()."""

    def set_training_outputs(self, enable: bool = True) -> None:
        """Set whether a forward pass in training returns what the method's task needs instead of logits.

        The method's task calls it before an optimizer or DDP takes the parameters.
        """

    def load_pretrained_dense(self, state_dict: Mapping[str, Tensor]) -> list[str]:
        """Load the weights of the plain model that a training starts from; return the keys that keep their values.

        Needed for a run whose ``start`` is a run of another model.

        Raises:
            ValueError: listing every missing, unexpected or misshapen key; nothing is loaded then.
        """

    def from_official(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return weights that have the authors' keys under the model's own.

        Called when a setting names a file of weights whose keys are not the model's own.
        """

    def deployed(self) -> nn.Module:
        """Return the model for inference if training needs another one; benchmarks time the returned one."""

    def observe(self, images: Tensor) -> tuple[list[Any], Tensor]:
        """Return what every attention scored and selected on images (B, 3, H, W), and the logits.

        ``evovit.trace`` calls it, for the analysis of selected tokens.
        """


class TaskHooks(Protocol):
    """What a training task, a timm ``TrainingTask`` registered by ``evovit.task.register_task``, may define."""

    mixes_images: bool
    """Whether the recipe's mixup and cutmix apply in this epoch. Default: True."""

    def start_epoch(self, epoch: int, epochs: int) -> None:
        """Set what holds in ``epoch`` (from 0) of ``epochs``; called before its first step, and after a resume."""

    def start_step(self, step: int, steps: int) -> None:
        """Set what holds in step ``step`` (from 0) of the epoch's ``steps``; called before each, also a skipped one."""

    def end_step(self, step: int, steps: int) -> None:
        """Use the step's gradients after the optimizer has; called after each step but those that are left out."""

    def unreached(self, epochs: int) -> list[str]:
        """Return a sentence for each part of the task's schedule that a training of ``epochs`` never reaches."""

    def param_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Return the optimizer's parameter groups, with timm's ``lr_scale``. Default: timm's own groups."""


class SearchHooks(Protocol):
    """What a search before a training, registered by ``evovit.task.register_task``, must define.

    Its arguments are a trained model, a sample of images, the recipe's ``task_args`` and ``seed``.
    """

    model: nn.Module
    """The model, which the search changes in place; its final weights start the training."""

    images: Tensor
    """The sample of training images (n, 3, H, W)."""

    layers: list[NamedTuple]
    """What ``next_layer`` returned so far."""

    @property
    def done(self) -> bool:
        """Return whether the search is complete."""

    def next_layer(self) -> NamedTuple:
        """Search one layer; return at least ``layer`` (from 0), ``patches`` and ``error``."""

    def state_dict(self) -> dict[str, Any]:
        """Return all that is needed to go on between two layers without a change of the result."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what ``state_dict`` returned."""

    def summary(self) -> dict[str, Any]:
        """Return the result, ready for JSON: the record's results, with the patches that each layer keeps."""
