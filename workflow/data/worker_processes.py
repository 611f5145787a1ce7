"""Start the processes that load images, and explain in one sentence why one of them was lost.

The main process then sees a ConnectionResetError, an EOFError or torch's RuntimeError; only the processes' exit codes
tell the cause. Standard library only, since the job imports this before its kind's own module.
"""

import contextlib
import copy
import math
import multiprocessing
import shutil
import signal
from collections.abc import Iterator
from multiprocessing.connection import wait
from multiprocessing.context import BaseContext
from typing import Any

FAULTS = (RuntimeError, OSError, EOFError)  # errors that a lost process may cause
SHARED_MEMORY = "/dev/shm"
TOO_MANY_FILES = ("Too many open files", "items of ancdata")
NO_ROOM = ("No space left on device", "insufficient shared memory", "Bus error")
FULL_BYTES = 1 << 20  # with less left, shared memory counts as full
DYING_S = 1.0  # the time between the loss of a process's connection and its end
_started: list = []


class LoaderError(RuntimeError):
    """A loader process was lost; the message says why and what to do."""


def context() -> BaseContext:
    """Return a DataLoader's `multiprocessing_context`: a copy of Python's that remembers its processes."""
    remembering: Any = copy.copy(multiprocessing.get_context())
    make_process = remembering.Process

    def make_and_remember(*arguments, **options):
        process = make_process(*arguments, **options)
        _started.append(process)
        return process

    remembering.Process = make_and_remember
    return remembering


def initialise(number: int) -> None:
    """Ignore the notice of a time limit in a loader process: only the job's main process reacts to it."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)


def lost() -> list[int]:
    """Return the exit codes, -n for signal n, of the loader processes that did not end as they should.

    To be called after an error; it waits for a process that is about to end.
    """
    wait([process.sentinel for process in _started if process.is_alive()], timeout=DYING_S)
    return [process.exitcode for process in _started if process.exitcode]


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Raise LoaderError, with fault and remedy, for an error of the block that a lost process caused."""
    try:
        yield
    except FAULTS as error:
        sentence = explain(error)
        if sentence is None:
            raise
        raise LoaderError(sentence) from error


def explain(error: BaseException) -> str | None:
    """Return a sentence with the fault of the loader processes that caused an error, and the remedy.

    Returns None if they did not cause it.
    """
    text = str(error)
    if any(words in text for words in TOO_MANY_FILES):
        return (
            "The loader processes ran out of open files; raise the limit (ulimit -n 65536), or set "
            "fewer `workers` in workflow/config/settings.yaml."
        )
    ours = type(error).__module__.startswith(("workflow", "evovit", "baselines"))
    codes = lost() if isinstance(error, FAULTS) and not ours else []
    size, free = _shared_memory()
    no_room = any(words in text for words in NO_ROOM)
    if -signal.SIGBUS in codes or (no_room and (free < FULL_BYTES or "shared memory" in text)):
        return (
            f"The loader processes found no room in shared memory ({SHARED_MEMORY} has {size >> 20} MB); give it more "
            "(docker run --shm-size=8g), or set `workers: 0` in workflow/config/settings.yaml."
        )
    if -signal.SIGKILL in codes:
        return (
            "A loader process was killed (signal 9), as the kernel does where memory runs out; set "
            "fewer `workers` in workflow/config/settings.yaml, or give the job more memory."
        )
    if codes:
        end = signal.Signals(-codes[0]).name if codes[0] < 0 else f"code {codes[0]}"
        return (
            f"A loader process ended with {end}; its last messages are in the job's log. Started again, the job goes "
            "on; if it happens again, set `workers: 0` in workflow/config/settings.yaml to see the error itself."
        )
    return None


def _shared_memory() -> tuple[int, float]:
    """Return the size and the free part, in bytes; 0 and infinity on macOS, which shows no such folder."""
    try:
        usage = shutil.disk_usage(SHARED_MEMORY)
    except OSError:
        return 0, math.inf
    return usage.total, usage.free
