"""Images to batches, by timm's datasets, transforms and prefetcher."""

from collections.abc import Iterator

import torch
from timm.data import create_transform
from timm.data.loader import PrefetchLoader, fast_collate
from torch.utils.data import DataLoader

from workflow.data import worker_processes
from workflow.data.layout import DataError
from workflow.data.readers import StrictImageDataset, open_split
from workflow.data.sampling import EpochSampler, SeededDraws, SeededErasing, stream_seed
from workflow.runtime.distributed import Place


class TrainLoader:
    """One process's batches of the training split, from any step of any epoch.

    A step draws its share of the global batch, in `accumulate` batches of equal size if the
    recipe's `device_batch` allows no larger ones. Raises DataError if the shares can't be equal.
    """

    def __init__(self, data: dict, site: dict, recipe: dict, model_cfg: dict, seed: int, place: Place):
        transform = create_transform(
            model_cfg["input_size"],
            is_training=True,
            scale=tuple(recipe["crop_scale"]),
            hflip=recipe["hflip"],
            color_jitter=recipe["color_jitter"] or None,  # at 0 timm would still draw, for nothing
            auto_augment=recipe["auto_augment"],
            interpolation=recipe["interpolation"],
            mean=model_cfg["mean"],
            std=model_cfg["std"],
            use_prefetcher=True,
        )
        dataset = open_split(data, site, data["train"], transform)
        batch_size, repeats = recipe["batch_size"], recipe["repeated_augmentation"]
        self.batch_size, self.accumulate = shares(recipe, place.world_size)
        self.sampler = EpochSampler(len(dataset), batch_size, seed, repeats, place.rank, place.world_size)
        self.steps = self.sampler.steps
        loader = DataLoader(
            SeededDraws(dataset),
            batch_size=self.batch_size,
            sampler=self.sampler,
            pin_memory=place.device.type == "cuda",
            **in_processes(site["workers"], stay=True),
        )
        self.prefetcher = PrefetchLoader(
            loader,
            mean=model_cfg["mean"],
            std=model_cfg["std"],
            device=place.device,
            re_prob=recipe["random_erasing"],
            re_mode="pixel",
        )
        if self.prefetcher.random_erasing is not None:
            erasing = SeededErasing(self.prefetcher.random_erasing, seed, place.rank)
            self.prefetcher.random_erasing = erasing

    def batches(self, epoch: int, first: int = 0) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Images (B, 3, H, W), normalised on the device, and labels (B,), from step `first` on."""
        self.sampler.epoch, self.sampler.first = epoch, first
        if self.prefetcher.random_erasing is not None:
            self.prefetcher.random_erasing.batch = (epoch * self.steps + first) * self.accumulate
        return iter(self.prefetcher)


def shares(recipe: dict, processes: int) -> tuple[int, int]:
    """Images of one process in one pass, and passes per step.

    Raises DataError, with the arithmetic, if the processes' shares can't be equal.
    """
    total, most = recipe["batch_size"], recipe["device_batch"]
    share, rest = divmod(total, processes)
    if rest:
        raise DataError(
            f"batch_size {total} can't be shared by {processes} processes: {total} = {processes} x "
            f"{share} + {rest}; choose a number of GPUs that divides it."
        )
    even = recipe["mixup"] > 0 or recipe["cutmix"] > 0  # images are mixed in pairs
    for passes in range(-(-share // (most or share)), share + 1):
        if share % passes == 0 and not (even and (share // passes) % 2):
            return share // passes, passes
    raise DataError(
        f"batch_size {total} gives each of {processes} processes {share} images, which can't be "
        f"mixed in pairs at {most or share} at a time; choose an even share."
    )


def eval_loader(data: dict, site: dict, recipe: dict, model_cfg: dict, place) -> PrefetchLoader:
    """The validation split in order, each image once over all processes."""
    dataset = eval_dataset(data, site, "val", recipe, model_cfg)
    mine = range(place.rank, len(dataset), place.world_size)
    batch_size = max(1, min(256, 2 * recipe["batch_size"]) // place.world_size)
    return plain_loader(dataset, mine, batch_size, site, model_cfg, place.device, stay=True)


def sample(data: dict, site: dict, recipe: dict, model_cfg: dict, count: int, seed: int, device) -> torch.Tensor:
    """Training images (n, 3, H, W) drawn at random, as in evaluation; all, if fewer than count."""
    dataset = eval_dataset(data, site, "train", recipe, model_cfg)
    generator = torch.Generator().manual_seed(stream_seed(seed, "sample"))
    drawn = torch.randperm(len(dataset), generator=generator)[:count].tolist()
    loader = plain_loader(dataset, drawn, min(count, 256), site, model_cfg, device)
    return torch.cat([images for images, _ in loader])


def named_images(images: dict, site: dict, model_cfg: dict, count: int, device) -> tuple[torch.Tensor, list[str]]:
    """Validation images (count, 3, H, W), evenly spaced over the split, and their paths in it.

    Raises DataError if there are fewer.
    """
    split = images["data"]["val"]
    dataset = eval_dataset(images["data"], site, "val", images, model_cfg)
    if len(dataset) < count:
        raise DataError(
            f"{site['data_root']}/{split} has {len(dataset)} images, but a batch of {count} is to "
            "be timed; lower `throughput.batch_size` in workflow/config/settings.yaml."
        )
    chosen = spaced(len(dataset), count)
    loader = plain_loader(dataset, chosen, min(count, 256), site, model_cfg, device)
    names = [str(dataset.filename(index)) for index in chosen]
    return torch.cat([batch for batch, _ in loader]), names


def spaced(size: int, most: int) -> list[int]:
    """So many indices of `size` images, evenly spaced; all if there are no more."""
    count = min(most, size)
    return [index * size // count for index in range(count)]


def eval_dataset(data: dict, site: dict, split: str, recipe: dict, model_cfg: dict) -> StrictImageDataset:
    """The "train" or "val" split with the transforms of evaluation: resize, centre crop."""
    transform = create_transform(
        model_cfg["input_size"],
        is_training=False,
        interpolation=recipe["interpolation"],
        crop_pct=recipe["crop_pct"],
        mean=model_cfg["mean"],
        std=model_cfg["std"],
        use_prefetcher=True,
    )
    return open_split(data, site, data[split], transform)


def in_processes(workers: int, stay: bool) -> dict:
    """Return options of a DataLoader with `workers` processes; they `stay` from epoch to epoch.

    Started anew they would import torch each time, unless the system forks them.
    """
    if not workers:
        return {"collate_fn": fast_collate}
    return {
        "collate_fn": fast_collate,
        "num_workers": workers,
        "persistent_workers": stay,
        "multiprocessing_context": worker_processes.context(),
        "worker_init_fn": worker_processes.in_process,
    }


def plain_loader(
    dataset: StrictImageDataset,
    indices,
    batch_size: int,
    site: dict,
    model_cfg: dict,
    device,
    stay: bool = False,
) -> PrefetchLoader:
    """Batches of these images in this order, normalised on the device; its processes `stay` if it
    is iterated again and again."""
    loader = DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=indices,
        pin_memory=device.type == "cuda",
        **in_processes(site["workers"], stay),
    )
    return PrefetchLoader(loader, mean=model_cfg["mean"], std=model_cfg["std"], device=device)
