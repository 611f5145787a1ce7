"""Make the optimizer of a recipe and its learning-rate schedule, and clip gradients."""

from typing import Any

import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from timm.task import TrainingTask
from timm.utils import dispatch_clip_grad


def make_optimizer(task: TrainingTask, recipe: dict) -> torch.optim.Optimizer:
    """Return the recipe's optimizer over the task's trainable parameters.

    `lr` holds for `lr_base_batch` images, if that is set, and is scaled to the recipe's batch. A task with a method
    `param_groups(weight_decay)` chooses its parameters' groups itself, as DynamicViT does for its slow backbone.
    """
    learning_rate = recipe["lr"]
    if recipe["lr_base_batch"] is not None:
        learning_rate *= recipe["batch_size"] / recipe["lr_base_batch"]
    options: dict[str, Any] = {}
    if hasattr(task, "param_groups"):
        options["param_group_fn"] = lambda module: task.param_groups(recipe["weight_decay"])
    if recipe["optimizer"] == "adamw":
        options["fused"] = True  # one pass over all weights
    return create_optimizer_v2(
        task.get_trainable_module(),
        opt=recipe["optimizer"],
        lr=learning_rate,
        weight_decay=recipe["weight_decay"],
        **options,
    )


def make_scheduler(optimizer: torch.optim.Optimizer, recipe: dict, steps_per_epoch: int) -> Scheduler:
    """Return a cosine schedule with linear warm-up, which is advanced after every step."""
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched="cosine",
        num_epochs=recipe["epochs"],
        warmup_epochs=recipe["warmup_epochs"],
        warmup_lr=recipe["warmup_lr"],
        min_lr=recipe["min_lr"],
        step_on_epochs=False,
        updates_per_epoch=steps_per_epoch,
    )
    return scheduler


def clip_gradients(task: TrainingTask, recipe: dict) -> None:
    """Clip the gradients in place by the recipe's `clip_grad` and `clip_mode`.

    Adaptive clipping ("agc", Brock et al. 2021) clips all parameters, the heads' included, as LeViT's and Evo-ViT's
    authors do. timm can leave out a head, but takes the last two parameters for it, which are one head of several here.
    """
    dispatch_clip_grad(task.get_clip_parameters(), recipe["clip_grad"], recipe["clip_mode"])
