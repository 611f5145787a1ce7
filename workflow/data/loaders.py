"""Loaders from the images of a split to batches on the device, by timm's prefetcher."""

import math
from collections.abc import Iterator, Sequence

import torch
from timm.data.loader import PrefetchLoader, fast_collate
from torch.utils.data import DataLoader

from workflow.data import augmentation, worker_processes
from workflow.data.layout import DataError
from workflow.data.readers import StrictImageDataset, open_split
from workflow.data.sampling import EpochSampler, SeededDraws, stream_seed
from workflow.runtime.distributed import DistributedContext


class TrainLoader:
    """One process's batches of the training split, from any step of any epoch.

    In each step every process draws an equal part of the global batch, in `accumulate` batches of equal size if the
    recipe's `device_batch` allows no larger ones. Raises DataError if the parts can't be equal.

    Attributes:
        batch_size: images of one process in one pass.
        accumulate: passes per step.
        steps: steps per epoch.
    """

    def __init__(self, data: dict, site: dict, recipe: dict, model_cfg: dict, seed: int, context: DistributedContext):
        transform = augmentation.training_transform(recipe, model_cfg)
        dataset = open_split(data, site, data["train"], transform)
        self.batch_size, self.accumulate = split_batch(recipe, context.world_size)
        self.sampler = EpochSampler(
            len(dataset),
            recipe["batch_size"],
            seed,
            recipe["repeated_augmentation"],
            context.rank,
            context.world_size,
        )
        self.steps = self.sampler.steps
        loader = DataLoader(
            SeededDraws(dataset),
            batch_size=self.batch_size,
            sampler=self.sampler,
            pin_memory=context.device.type == "cuda",
            **worker_options(site["workers"], persistent=True),
        )
        self.prefetcher = PrefetchLoader(
            loader,
            mean=model_cfg["mean"],
            std=model_cfg["std"],
            device=context.device,
            re_prob=recipe["random_erasing"],
            re_mode="pixel",
        )
        if self.prefetcher.random_erasing is not None:
            erasing = augmentation.SeededErasing(self.prefetcher.random_erasing, seed, context.rank)
            self.prefetcher.random_erasing = erasing

    def batches(self, epoch: int, first: int = 0) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield images (B, 3, H, W), normalised on the device, and labels (B,), from step `first` on."""
        self.sampler.epoch, self.sampler.first = epoch, first
        if self.prefetcher.random_erasing is not None:
            self.prefetcher.random_erasing.batch = (epoch * self.steps + first) * self.accumulate
        return iter(self.prefetcher)


def split_batch(recipe: dict, processes: int) -> tuple[int, int]:
    """Return the images of one process in one pass, and the passes per step.

    Raises DataError, with the arithmetic, if the processes' parts of the batch can't be equal.
    """
    total, most = recipe["batch_size"], recipe["device_batch"]
    images, rest = divmod(total, processes)
    if rest:
        raise DataError(
            f"batch_size {total} can't be shared by {processes} processes: {total} = {processes} x "
            f"{images} + {rest}; choose a number of GPUs that divides it."
        )
    most = most or images
    in_pairs = recipe["mixup"] > 0 or recipe["cutmix"] > 0
    for passes in range(math.ceil(images / most), images + 1):
        per_pass, rest = divmod(images, passes)
        if not rest and not (in_pairs and per_pass % 2):
            return per_pass, passes
    raise DataError(
        f"batch_size {total} gives each of {processes} processes {images} images, which can't be "
        f"mixed in pairs at {most} at a time; choose an even share."
    )


def eval_loader(data: dict, site: dict, recipe: dict, model_cfg: dict, context: DistributedContext) -> PrefetchLoader:
    """Return a loader of this process's part of the validation split, in order; each image is in one part."""
    dataset = eval_dataset(data, site, "val", recipe, model_cfg)
    indices = range(context.rank, len(dataset), context.world_size)
    batch_size = max(1, min(256, 2 * recipe["batch_size"]) // context.world_size)
    return plain_loader(dataset, indices, batch_size, site, model_cfg, context.device, persistent=True)


def sample(
    data: dict, site: dict, recipe: dict, model_cfg: dict, count: int, seed: int, device: torch.device
) -> torch.Tensor:
    """Return random training images (n, 3, H, W), transformed as in evaluation; all, if fewer than `count`."""
    dataset = eval_dataset(data, site, "train", recipe, model_cfg)
    generator = torch.Generator().manual_seed(stream_seed(seed, "sample"))
    indices = torch.randperm(len(dataset), generator=generator)[:count].tolist()
    loader = plain_loader(dataset, indices, min(count, 256), site, model_cfg, device)
    return torch.cat([images for images, _ in loader])


def named_images(
    images: dict, site: dict, model_cfg: dict, count: int, device: torch.device
) -> tuple[torch.Tensor, list[str]]:
    """Return validation images (count, 3, H, W), evenly spaced over the split, and their names in it.

    Args:
        images: `data`, `interpolation` and `crop_pct`.

    Raises DataError if the split has fewer images.
    """
    split = images["data"]["val"]
    dataset = eval_dataset(images["data"], site, "val", images, model_cfg)
    if len(dataset) < count:
        raise DataError(
            f"{site['data_root']}/{split} has {len(dataset)} images, but a batch of {count} is to "
            "be timed; lower `throughput.batch_size` in workflow/config/settings.yaml."
        )
    indices = spaced(len(dataset), count)
    loader = plain_loader(dataset, indices, min(count, 256), site, model_cfg, device)
    names = [str(dataset.filename(index)) for index in indices]
    return torch.cat([batch for batch, _ in loader]), names


def spaced(size: int, most: int) -> list[int]:
    """Return at most `most` indices of `size` images, evenly spaced."""
    count = min(most, size)
    return [index * size // count for index in range(count)]


def eval_dataset(data: dict, site: dict, split: str, recipe: dict, model_cfg: dict) -> StrictImageDataset:
    """Return the "train" or the "val" split with the transforms of evaluation."""
    return open_split(data, site, data[split], augmentation.evaluation_transform(recipe, model_cfg))


def plain_loader(
    dataset: StrictImageDataset,
    indices: Sequence[int],
    batch_size: int,
    site: dict,
    model_cfg: dict,
    device: torch.device,
    persistent: bool = False,
) -> PrefetchLoader:
    """Return a loader of these images in this order, normalised on the device.

    Its worker processes are `persistent` if it is iterated again and again.
    """
    loader = DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=indices,
        pin_memory=device.type == "cuda",
        **worker_options(site["workers"], persistent),
    )
    return PrefetchLoader(loader, mean=model_cfg["mean"], std=model_cfg["std"], device=device)


def worker_options(workers: int, persistent: bool) -> dict:
    """Return the options of a DataLoader with `workers` processes, which stay from epoch to epoch if `persistent`.

    Processes that are started again import torch each time, unless the system forks them.
    """
    if not workers:
        return {"collate_fn": fast_collate}
    return {
        "collate_fn": fast_collate,
        "num_workers": workers,
        "persistent_workers": persistent,
        "multiprocessing_context": worker_processes.context(),
        "worker_init_fn": worker_processes.initialise,
    }
