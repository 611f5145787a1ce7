"""Train every family by DistributedDataParallel's defaults and a plain loss, as timm's train.py."""

import socket

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from tests import forked
from tests.models.families import EVERY, build, images

pytestmark = pytest.mark.integration
PROCESSES = 2


def train(rank: int, port: int) -> None:
    """Take two steps with each family; DDP raises if a parameter waits for a gradient."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=PROCESSES)
    for key in EVERY:
        model = DistributedDataParallel(build(key).train())
        for _ in range(2):
            model(images(key)).square().mean().backward()
    dist.destroy_process_group()


def test_plain_losses_train_on_two_processes():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    forked.start(train, (port,), PROCESSES)
