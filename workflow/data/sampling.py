"""Choose the order in which training images are drawn, and the seeds of all random numbers.

The augmentation of an image depends on seed, epoch and the image's position in the epoch's order; what happens to a
batch depends on seed, step and rank. Neither depends on the number of workers or on where a training was stopped.
"""

import hashlib
import math
import random
from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler


class EpochSampler(Sampler[tuple[int, int]]):
    """Yield one rank's draws of one epoch, each (seed of the draw, index of the image).

    Each image of the epoch is drawn `repeats` times in a row, spread over the ranks, and the epoch ends after as many
    draws as the data set has images (repeated augmentation, Hoffer et al. 2020). Only whole global batches are drawn; a
    data set smaller than one is drawn from again and again until the batch is full. Iteration begins with step `first`
    of epoch `epoch`.

    Args:
        size: number of images.
        batch_size: images of a step, over all ranks.
    """

    def __init__(self, size: int, batch_size: int, seed: int, repeats: int, rank: int, world: int):
        self.size = size
        self.batch_size = batch_size
        self.seed = seed
        self.repeats = repeats
        self.rank = rank
        self.world = world
        self.epoch = 0
        self.first = 0
        self.steps = max(1, size // batch_size)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        draws = self.steps * self.batch_size
        images = math.ceil(draws / self.repeats)
        generator = torch.Generator().manual_seed(stream_seed(self.seed, self.epoch, "order"))
        rounds = math.ceil(images / self.size)  # more than one where the batch is larger than the data set
        order = torch.cat([torch.randperm(self.size, generator=generator) for _ in range(rounds)])[:images]
        order = order.repeat_interleave(self.repeats)[:draws].tolist()
        for position in range(self.first * self.batch_size + self.rank, draws, self.world):
            yield stream_seed(self.seed, self.epoch, position), order[position]

    def __len__(self) -> int:
        return (self.steps - self.first) * self.batch_size // self.world


class SeededDraws(Dataset):
    """A data set that seeds the random numbers of each item as the sampler says."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __getitem__(self, draw: tuple[int, int]):
        seed, index = draw
        seed_host(seed)
        return self.dataset[index]


def stream_seed(*names: int | str) -> int:
    """Return a 63-bit seed for the stream of random numbers that these names identify."""
    digest = hashlib.sha256("/".join(map(str, names)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def seed_host(seed: int) -> None:
    """Seed Python's, numpy's and torch's generators of the CPU (timm's transforms use all three).

    `torch.manual_seed` also seeds the devices, and formats a stack trace if no device was used yet: too slow for every
    image.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)


def seed_everything(seed: int) -> None:
    """Seed the generators of the CPU and of every device."""
    seed_host(seed)
    torch.manual_seed(seed)
