"""React to preemption: signals that ask a job to stop set a flag, which the training checks between two steps."""

import signal
import threading
import time
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGUSR2)  # the end of a job, and submitit's notice of a time limit
WAIT_FOR_FIRST_RANK_S = 300


class Stopped(RuntimeError):
    """The job was asked to stop, saved a checkpoint and ended; started again, it goes on from there."""


class StopFlag:
    """Record the signals while the context is entered, instead of handling them.

    Outside the main thread Python can set no handler, so nothing is recorded there.

    Attributes:
        received: number of the last signal, None before the first.
    """

    def __init__(self):
        self.received: int | None = None
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> "StopFlag":
        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, self._record) for number in SIGNALS}
        return self

    def __exit__(self, *exception) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _record(self, number: int, frame: Any) -> None:
        self.received = number

    def end_job(self, is_first: bool) -> None:
        """Do what the signal asked for, now that a checkpoint is saved.

        The first rank calls the handler that the signal had before (submitit's requeues the job). The other ranks wait
        until that ends them, too. Raises Stopped if nothing ends the process.
        """
        self.__exit__()
        # another rank may have received the signal, and this one none
        number = self.received or signal.SIGUSR2
        handler = self._handlers.get(number)
        if not is_first:
            time.sleep(WAIT_FOR_FIRST_RANK_S)
        elif callable(handler):
            handler(number, None)
        raise Stopped("The job was asked to stop; its checkpoint is saved. Started again, it goes on.")
