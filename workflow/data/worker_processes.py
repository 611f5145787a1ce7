"""The processes that load images: how they are started, and one sentence where one is lost.

What reaches the main process then is a ConnectionResetError, an EOFError or torch's RuntimeError,
as it happens; the processes' exit codes tell the cause. Standard library only.
"""

import copy
import math
import multiprocessing
import shutil
import signal
import threading
from multiprocessing.connection import wait
from multiprocessing.context import BaseContext

FAULTS = (RuntimeError, OSError, EOFError)  # in which a lost process may end
SHARED_MEMORY = "/dev/shm"
TOO_MANY_FILES = ("Too many open files", "items of ancdata")
NO_ROOM = ("No space left on device", "insufficient shared memory", "Bus error")
FULL_BYTES = 1 << 20  # what is left of a shared memory that counts as full
DYING_S = 1.0  # what a process may need to be gone after its connection is
_started: list = []


class LoaderError(RuntimeError):
    """A loader process was lost; the message says why and what to do."""


def context() -> BaseContext:
    """For a DataLoader's `multiprocessing_context`: Python's own, that remembers its processes."""
    made = copy.copy(multiprocessing.get_context())
    start = made.Process

    def remembered(*arguments, **options):
        process = start(*arguments, **options)
        _started.append(process)
        return process

    made.Process = remembered
    return made


def in_process(number: int) -> None:
    """In each loader process: the notice of a time limit is for the job's main process alone."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)


def lost() -> list[int]:
    """After an error: exit codes of the loader processes that ended otherwise than they should, -n
    for signal n. One that is dying is waited for."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler raises, for each that dies
    wait([process.sentinel for process in _started if process.is_alive()], timeout=DYING_S)
    return [process.exitcode for process in _started if process.exitcode]


def explain(error: BaseException) -> str | None:
    """Which fault of the loader processes the error comes from, and the remedy; None: of none."""
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
            f"The loader processes found no room in shared memory ({SHARED_MEMORY} has "
            f"{size >> 20} MB); give it more (docker run --shm-size=8g), or set `workers: 0` in "
            "workflow/config/settings.yaml."
        )
    if -signal.SIGKILL in codes:
        return (
            "A loader process was killed (signal 9), as the kernel does where memory runs out; set "
            "fewer `workers` in workflow/config/settings.yaml, or give the job more memory."
        )
    if codes:
        end = signal.Signals(-codes[0]).name if codes[0] < 0 else f"code {codes[0]}"
        return (
            f"A loader process ended with {end}; its last words are in the job's log. Started "
            "again, the job goes on; if it happens again, set `workers: 0` in "
            "workflow/config/settings.yaml to see the error itself."
        )
    return None


def _shared_memory() -> tuple[int, float]:
    """Its size and what is free, in bytes; on macOS, which shows none, free of limits."""
    try:
        usage = shutil.disk_usage(SHARED_MEMORY)
    except OSError:
        return 0, math.inf
    return usage.total, usage.free
