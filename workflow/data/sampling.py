"""In which order images are drawn, and what the random numbers of each draw depend on.

An image's augmentation depends on (seed, epoch, position in the epoch's global order), what happens
to a batch on (seed, step, rank): neither on workers nor on where a training was stopped.
"""

import hashlib
import random
from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from workflow.data.layout import DataError


class EpochSampler(Sampler[tuple[int, int]]):
    """One rank's draws for one epoch, (seed of the draw, index of the image).

    Each of the epoch's images stands `repeats` times in a row, spread over the ranks, and the epoch
    ends after as many images as the data set has (repeated augmentation, Hoffer et al. 2020).
    Only whole global batches are drawn. Iteration begins with step `first` of epoch `epoch`.
    """

    def __init__(self, size: int, batch_size: int, seed: int, repeats: int, rank: int, world: int):
        if size < batch_size:
            raise DataError(
                f"The training split has {size} images, less than one global batch of "
                f"{batch_size}; lower `batch_size` in workflow/config/."
            )
        self.size, self.batch_size, self.seed, self.repeats = size, batch_size, seed, repeats
        self.rank, self.world, self.epoch, self.first = rank, world, 0, 0
        self.steps = size // batch_size

    def __iter__(self) -> Iterator[tuple[int, int]]:
        drawn = self.steps * self.batch_size
        generator = torch.Generator().manual_seed(stream_seed(self.seed, self.epoch, "order"))
        order = torch.randperm(self.size, generator=generator)
        order = order[: -(-drawn // self.repeats)].repeat_interleave(self.repeats)[:drawn].tolist()
        for position in range(self.first * self.batch_size + self.rank, drawn, self.world):
            yield stream_seed(self.seed, self.epoch, position), order[position]

    def __len__(self) -> int:
        return (self.steps - self.first) * self.batch_size // self.world


class SeededDraws(Dataset):
    """A data set whose items are drawn as the sampler says."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __getitem__(self, draw: tuple[int, int]):
        seed, index = draw
        seed_host(seed)
        return self.dataset[index]


class SeededErasing:
    """timm's RandomErasing of whole batches, whose draws depend on how many went before."""

    def __init__(self, erasing, seed: int, rank: int):
        self.erasing, self.seed, self.rank, self.batch = erasing, seed, rank, 0

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        seed_everything(stream_seed(self.seed, self.batch, self.rank, "erasing"))
        self.batch += 1
        return self.erasing(images)


def stream_seed(*names: int | str) -> int:
    """A 63-bit seed for the random numbers that these names are of."""
    digest = hashlib.sha256("/".join(map(str, names)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def seed_host(seed: int) -> None:
    """Seed Python's, numpy's and torch's generators of the CPU (timm's transforms use all three).

    `torch.manual_seed` seeds the devices, too, and formats stack traces where none was used yet:
    too much for every image.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)


def seed_everything(seed: int) -> None:
    """Seed the generators of the CPU and of every device."""
    seed_host(seed)
    torch.manual_seed(seed)
