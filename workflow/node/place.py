"""Where a process stands: its device, its rank, and how many there are."""

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist

from workflow.node import device as devices


@dataclass(frozen=True)
class Place:
    device: torch.device
    rank: int = 0
    world_size: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    @property
    def distributed(self) -> bool:
        return self.world_size > 1


def join(wanted: str) -> Place:
    """Join the job's other processes, if the environment (RANK, WORLD_SIZE, ...) says so.

    One process per GPU over NCCL; on CPUs over gloo.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        return Place(devices.choose(wanted))
    device = devices.choose(wanted, int(os.environ["LOCAL_RANK"]))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return Place(device, dist.get_rank(), world_size)


def leave(place: Place) -> None:
    if place.distributed:
        dist.destroy_process_group()
