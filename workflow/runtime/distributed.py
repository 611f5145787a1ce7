"""Connect the processes of one job: their devices and ranks, and the exchange of values between them."""

import gc
import os
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from workflow.runtime import device as devices
from workflow.storage import provenance


@dataclass(frozen=True)
class DistributedContext:
    """This process's device and its rank among the processes of the job.

    Attributes:
        control: process group for small values between CPUs; None for the default group.
    """

    device: torch.device
    rank: int = 0
    world_size: int = 1
    control: dist.ProcessGroup | None = None

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @property
    def is_distributed(self) -> bool:
        return self.world_size > 1

    def gather(self, value: Any) -> list:
        """Return every rank's value, on every rank."""
        if not self.is_distributed:
            return [value]
        values = [None] * self.world_size
        dist.all_gather_object(values, value, group=self.control)
        return values

    def broadcast(self, value: Any) -> Any:
        """Return rank 0's value, on every rank."""
        values = [value]
        if self.is_distributed:
            dist.broadcast_object_list(values, src=0, group=self.control)
        return values[0]

    def maximum(self, values: list[float]) -> list[float]:
        """Return the largest of each value over the ranks, on every rank."""
        if not self.is_distributed:
            return values
        largest = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(largest, dist.ReduceOp.MAX, group=self.control)
        return largest.tolist()


def join(requested: str) -> DistributedContext:
    """Join the other processes of the job, if the environment (RANK, WORLD_SIZE, ...) names any.

    GPUs have one process each and use NCCL; processes on CPUs use gloo.

    Args:
        requested: "auto", "cpu" or "cuda".

    Raises DeviceError if the device can't be used and CodeError if the processes run different code.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        return DistributedContext(devices.choose(requested))
    device = devices.choose(requested, int(os.environ["LOCAL_RANK"]))
    if device.type == "cuda":
        torch.cuda.set_device(device)
        dist.init_process_group("nccl")
        context = DistributedContext(device, dist.get_rank(), world_size, dist.new_group(backend="gloo"))
    else:
        dist.init_process_group("gloo")
        context = DistributedContext(device, dist.get_rank(), world_size)
    provenance.check_ranks(context.gather(provenance.running()))
    return context


def leave(context: DistributedContext) -> None:
    """Wait for the other processes, then leave their group.

    Everything that used the group (DDP) must be gone before: destroyed after the group it can hang.
    """
    if context.is_distributed:
        gc.collect()
        dist.barrier(group=context.control)
        dist.destroy_process_group()
