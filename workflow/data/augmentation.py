"""Augment images for training, and transform them for evaluation.

An image passes through `training_transform` in a loader process, then in batches on the device through random erasing
and mixup or cutmix. All of it is timm's, set by the recipe. `workflow/data/sampling.py` seeds the random numbers of
each image, `SeededErasing` those of each batch.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from timm.data import Mixup, create_transform

from workflow.data.sampling import seed_everything, stream_seed


def training_transform(recipe: dict, model_cfg: dict) -> Callable:
    """Return the random crop, flip, colour jitter and automatic augmentation of a recipe.

    Args:
        model_cfg: `input_size` (3, H, W), `mean` and `std`, as timm resolves them for a model.
    """
    return create_transform(
        model_cfg["input_size"],
        is_training=True,
        scale=tuple(recipe["crop_scale"]),
        hflip=recipe["hflip"],
        color_jitter=recipe["color_jitter"] or None,  # at 0 timm would still draw random numbers
        auto_augment=recipe["auto_augment"],
        interpolation=recipe["interpolation"],
        mean=model_cfg["mean"],
        std=model_cfg["std"],
        use_prefetcher=True,
    )


def evaluation_transform(recipe: dict, model_cfg: dict, use_prefetcher: bool = True) -> Callable:
    """Return the resizing and centre crop of evaluation; without timm's prefetcher it also normalises the image."""
    return create_transform(
        model_cfg["input_size"],
        is_training=False,
        interpolation=recipe["interpolation"],
        crop_pct=recipe["crop_pct"],
        mean=model_cfg["mean"],
        std=model_cfg["std"],
        use_prefetcher=use_prefetcher,
    )


@dataclass
class SeededErasing:
    """timm's RandomErasing, with random numbers that depend on seed, rank and the number of the batch."""

    erasing: Callable
    seed: int
    rank: int
    batch: int = 0  # how many batches came before; a loader sets it when it begins in the middle

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        seed_everything(stream_seed(self.seed, self.batch, self.rank, "erasing"))
        self.batch += 1
        return self.erasing(images)


def make_mixup(recipe: dict, num_classes: int) -> Mixup | None:
    """Return timm's mixup and cutmix of whole batches; None if the recipe has neither."""
    if not recipe["mixup"] and not recipe["cutmix"]:
        return None
    return Mixup(
        mixup_alpha=recipe["mixup"],
        cutmix_alpha=recipe["cutmix"],
        switch_prob=recipe["mixup_switch_prob"],
        label_smoothing=recipe["smoothing"],
        num_classes=num_classes,
    )
