"""Signals that ask a job to stop become a flag, which the training obeys between two steps."""

import signal
import threading
import time
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGUSR2)  # an end, and submitit's notice of a time limit
LEFT_TO_FIRST_S = 300


class Stopped(RuntimeError):
    """The job was asked to stop, saved what it had and ended; started again, it goes on."""


class StopFlag:
    """While entered, the signals are noted instead of handled; only the main thread can do so."""

    def __init__(self):
        self.received: int | None = None
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> "StopFlag":
        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *exception) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: Any) -> None:
        self.received = number

    def hand_on(self, first: bool) -> None:
        """After the checkpoint: what would have been done at once (submitit requeues the job).

        The first rank does so; the others wait for the end that this brings them. Raises Stopped
        where nothing ends the job.
        """
        self.__exit__()
        # the other ranks may have been told, and we may not
        handler = self._handlers.get(self.received or signal.SIGUSR2)
        if not first:
            time.sleep(LEFT_TO_FIRST_S)
        elif callable(handler):
            handler(self.received or signal.SIGUSR2, None)
        raise Stopped("The job was asked to stop; its checkpoint is saved. Started again, it goes on.")
