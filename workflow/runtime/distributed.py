"""Where a process stands: its device, its rank, and how many there are."""

import gc
import os
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from workflow.runtime import device as devices
from workflow.storage import provenance


@dataclass(frozen=True)
class Place:
    device: torch.device
    rank: int = 0
    world_size: int = 1
    control: dist.ProcessGroup | None = None  # for small things between CPUs; None: the one there is

    @property
    def first(self) -> bool:
        return self.rank == 0

    @property
    def distributed(self) -> bool:
        return self.world_size > 1

    def gather(self, value: Any) -> list:
        """Every rank's value, on every rank."""
        if not self.distributed:
            return [value]
        values = [None] * self.world_size
        dist.all_gather_object(values, value, group=self.control)
        return values

    def from_first(self, value: Any) -> Any:
        """Rank 0's value, on every rank."""
        held = [value]
        if self.distributed:
            dist.broadcast_object_list(held, src=0, group=self.control)
        return held[0]

    def share_of(self, sums: list[dict]) -> dict:
        """This rank's of the sums that ranks gathered; rank 0 has all if there were others."""
        if len(sums) == self.world_size:
            return sums[self.rank]
        names = sums[0] if self.first else ()
        return {name: sum(rank[name] for rank in sums) for name in names}

    def agree(self, values: list[float]) -> list[float]:
        """The largest of each value on any rank."""
        if not self.distributed:
            return values
        largest = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(largest, dist.ReduceOp.MAX, group=self.control)
        return largest.tolist()


def join(wanted: str) -> Place:
    """Join the job's other processes, if the environment (RANK, WORLD_SIZE, ...) says so.

    One process per GPU over NCCL; on CPUs over gloo. Raises CodeError if they run different code.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        return Place(devices.choose(wanted))
    device = devices.choose(wanted, int(os.environ["LOCAL_RANK"]))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if device.type == "cpu":
        dist.init_process_group("gloo")
        place = Place(device, dist.get_rank(), world_size)
    else:
        dist.init_process_group("nccl")
        place = Place(device, dist.get_rank(), world_size, dist.new_group(backend="gloo"))
    provenance.check_ranks(place.gather(provenance.running()))
    return place


def leave(place: Place) -> None:
    """Part from the other processes, once all are done.

    Whatever used the processes' group (DDP) must be gone: destroyed after the group it can hang.
    """
    if place.distributed:
        gc.collect()
        dist.barrier(group=place.control)
        dist.destroy_process_group()
