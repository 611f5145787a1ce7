"""From a recipe's numbers to timm's optimiser, schedule and mixup."""

import torch
from timm.data import Mixup
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from timm.task import TrainingTask
from timm.utils import dispatch_clip_grad


def make_mixup(recipe: dict, num_classes: int) -> Mixup | None:
    if not recipe["mixup"] and not recipe["cutmix"]:
        return None
    return Mixup(
        mixup_alpha=recipe["mixup"],
        cutmix_alpha=recipe["cutmix"],
        switch_prob=recipe["mixup_switch_prob"],
        label_smoothing=recipe["smoothing"],
        num_classes=num_classes,
    )


def make_optimizer(task: TrainingTask, recipe: dict) -> torch.optim.Optimizer:
    lr = recipe["lr"]
    if recipe["lr_base_batch"] is not None:
        lr *= recipe["batch_size"] / recipe["lr_base_batch"]
    groups = getattr(task, "param_groups", None)
    adamw = recipe["optimizer"] == "adamw"
    return create_optimizer_v2(
        task.get_trainable_module(),
        opt=recipe["optimizer"],
        lr=lr,
        weight_decay=recipe["weight_decay"],
        param_group_fn=groups and (lambda _: groups(recipe["weight_decay"])),
        **({"fused": True} if adamw else {}),  # one pass over all weights
    )


def clip(task: TrainingTask, recipe: dict) -> None:
    """Clip the gradients; adaptively all but the head's (Brock et al. 2021), as timm does."""
    adaptive = recipe["clip_mode"] == "agc"
    parameters = task.get_clip_parameters(exclude_head=adaptive)
    dispatch_clip_grad(parameters, recipe["clip_grad"], recipe["clip_mode"])


def make_scheduler(optimizer: torch.optim.Optimizer, recipe: dict, steps_per_epoch: int) -> Scheduler:
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
