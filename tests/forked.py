"""Processes of a test that are forked from one with all imports: torch and timm take each new one 5 s otherwise."""

import multiprocessing
from collections.abc import Callable

import torch.multiprocessing as processes


def start(function: Callable, arguments: tuple, count: int, join: bool = True):
    """Call `function(rank, *arguments)` in `count` processes, as torch.multiprocessing.spawn does."""
    multiprocessing.set_forkserver_preload([function.__module__])
    return processes.start_processes(function, arguments, nprocs=count, join=join, start_method="forkserver")
