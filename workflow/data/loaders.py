"""Load the images of a split in batches on the device, by timm's prefetcher."""

import math
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from timm.data.loader import PrefetchLoader, fast_collate
from torch.utils.data import DataLoader

from workflow.data import augmentation, worker_processes
from workflow.data.layout import DataError
from workflow.data.readers import StrictImageDataset, open_split
from workflow.data.sampling import EpochSampler, SeededDraws, stream_seed
from workflow.runtime.distributed import DistributedContext


class Loader(DataLoader):
    """torch's DataLoader without torch's signal handler.

    That handler raises a RuntimeError wherever the main process is when a worker process dies, even while it writes
    a checkpoint or after it was asked to stop. Without it the next batch raises the error, at most 5 seconds later.
    """

    def __iter__(self):
        iterator = super().__iter__()
        if self.num_workers and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        return iterator


@dataclass(frozen=True)
class ImageSource:
    """A setting's images as a model takes them.

    Attributes:
        data: the setting's `data`, which names the splits.
        site: data_root, workers and, in the workflow, the root of the setting's results.
        recipe: the resizing of evaluation and, for TrainLoader, augmentation and batch size.
        model_cfg: input_size (3, H, W), mean and std, as factory.data_config returns them.
    """

    data: dict
    site: dict
    recipe: dict
    model_cfg: dict
    context: DistributedContext

    def evaluation_set(self, split: str) -> StrictImageDataset:
        """Return the "train" or the "val" split with the transforms of evaluation."""
        transform = augmentation.evaluation_transform(self.recipe, self.model_cfg)
        return open_split(self.data, self.site, self.data[split], transform)

    def load(
        self, dataset: StrictImageDataset, indices: Sequence[int], batch_size: int, persistent: bool = False
    ) -> PrefetchLoader:
        """Return a loader of these images in this order, normalised on the device.

        Its worker processes are `persistent` if it is iterated again and again.
        """
        loader = Loader(
            dataset,
            batch_size=batch_size,
            sampler=indices,
            pin_memory=self.context.device.type == "cuda",
            **worker_options(self.site["workers"], persistent),
        )
        return PrefetchLoader(
            loader, mean=self.model_cfg["mean"], std=self.model_cfg["std"], device=self.context.device
        )

    def validation(self) -> PrefetchLoader:
        """Return a loader of this process's part of the validation split, in order; each image is in one part."""
        dataset = self.evaluation_set("val")
        indices = range(self.context.rank, len(dataset), self.context.world_size)
        batch_size = max(1, min(256, 2 * self.recipe["batch_size"]) // self.context.world_size)
        return self.load(dataset, indices, batch_size, persistent=True)

    def sample(self, count: int, seed: int) -> torch.Tensor:
        """Return random training images (n, 3, H, W), transformed as in evaluation; all, if fewer than `count`."""
        dataset = self.evaluation_set("train")
        generator = torch.Generator().manual_seed(stream_seed(seed, "sample"))
        indices = torch.randperm(len(dataset), generator=generator)[:count].tolist()
        return torch.cat([images for images, _ in self.load(dataset, indices, min(count, 256))])

    def spaced(self, count: int) -> tuple[torch.Tensor, list[str]]:
        """Return validation images (count, 3, H, W), evenly spaced over the split, and their names in it.

        Raises DataError if the split has fewer images.
        """
        dataset = self.evaluation_set("val")
        if len(dataset) < count:
            raise DataError(
                f"{self.site['data_root']}/{self.data['val']} has {len(dataset)} images, but a batch of {count} is to "
                "be timed; lower `throughput.batch_size` in workflow/config/settings.yaml."
            )
        indices = spaced(len(dataset), count)
        images = torch.cat([images for images, _ in self.load(dataset, indices, min(count, 256))])
        return images, [dataset.reader.names[index] for index in indices]

    def timed(self, count: int) -> tuple[torch.Tensor, list[str]]:
        """Return what `spaced` does; where the split has fewer images, they come again and again."""
        available = min(count, len(self.evaluation_set("val")))
        images, names = self.spaced(available)
        times = -(-count // available)
        return images.repeat(times, 1, 1, 1)[:count], (names * times)[:count]


class TrainLoader:
    """One process's batches of the training split, from any step of any epoch.

    In each step every process draws an equal part of the global batch, in `accumulate` batches of equal size if the
    recipe's `device_batch` allows no larger ones. Raises DataError if the parts can't be equal.

    Attributes:
        batch_size: images of one process in one pass.
        accumulate: passes per step.
        steps: steps per epoch.
        remarks: sentences for the user.
    """

    def __init__(self, source: ImageSource, seed: int):
        recipe = source.recipe
        context = source.context
        transform = augmentation.training_transform(recipe, source.model_cfg)
        dataset = open_split(source.data, source.site, source.data["train"], transform)
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
        self.remarks: list[str] = []
        if len(dataset) < recipe["batch_size"]:
            self.remarks.append(
                f"The training split has {len(dataset)} images, fewer than a batch of "
                f"{recipe['batch_size']}: an epoch is one step, in which images come more than once."
            )
        loader = Loader(
            SeededDraws(dataset),
            batch_size=self.batch_size,
            sampler=self.sampler,
            pin_memory=context.device.type == "cuda",
            **worker_options(source.site["workers"], persistent=True),
        )
        self.prefetcher = PrefetchLoader(
            loader,
            mean=source.model_cfg["mean"],
            std=source.model_cfg["std"],
            device=context.device,
            re_prob=recipe["random_erasing"],
            re_mode="pixel",
        )
        if self.prefetcher.random_erasing is not None:
            erasing = augmentation.SeededErasing(self.prefetcher.random_erasing, seed, context.rank)
            self.prefetcher.random_erasing = erasing

    def batches(self, epoch: int, first: int = 0) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield images (B, 3, H, W), normalised on the device, and labels (B,), from step `first` on."""
        self.sampler.epoch = epoch
        self.sampler.first = first
        if self.prefetcher.random_erasing is not None:
            self.prefetcher.random_erasing.batch = (epoch * self.steps + first) * self.accumulate
        return iter(self.prefetcher)


def split_batch(recipe: dict, processes: int) -> tuple[int, int]:
    """Return the images of one process in one pass, and the passes per step.

    Raises DataError, with the arithmetic, if the processes' parts of the batch can't be equal.
    """
    total = recipe["batch_size"]
    images, rest = divmod(total, processes)
    if rest:
        raise DataError(
            f"batch_size {total} can't be shared by {processes} processes: {total} = {processes} x "
            f"{images} + {rest}; choose a number of GPUs that divides it."
        )
    most = recipe["device_batch"] or images
    in_pairs = recipe["mixup"] > 0 or recipe["cutmix"] > 0
    for passes in range(math.ceil(images / most), images + 1):
        per_pass, rest = divmod(images, passes)
        if not rest and not (in_pairs and per_pass % 2):
            return per_pass, passes
    raise DataError(
        f"batch_size {total} gives each of {processes} processes {images} images, which can't be "
        f"mixed in pairs at {most} at a time; choose an even share."
    )


def spaced(size: int, most: int) -> list[int]:
    """Return at most `most` indices of `size` images, evenly spaced."""
    count = min(most, size)
    return [index * size // count for index in range(count)]


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
