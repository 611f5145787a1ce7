"""On a process's PYTHONPATH: hides what only Linux has, for all code but psutil's, and starts
processes as macOS does."""

import builtins
import io
import multiprocessing
import os
import sys

import psutil

LINUX = ("/proc", "/sys")


def asked_by_psutil() -> bool:
    frame = sys._getframe()
    while frame is not None:
        if frame.f_globals.get("__name__", "").startswith("psutil"):
            return True
        frame = frame.f_back
    return False


def hidden(function):
    def looking(path, *arguments, **options):
        if str(path).startswith(LINUX) and not asked_by_psutil():
            raise FileNotFoundError(2, "hidden by the test", str(path))
        return function(path, *arguments, **options)

    return looking


builtins.open = io.open = hidden(io.open)
for name in ("stat", "listdir", "scandir"):
    setattr(os, name, hidden(getattr(os, name)))
for name in [name for name in dir(os) if name.startswith("sched_")]:
    delattr(os, name)
del psutil.Process.cpu_affinity
multiprocessing.set_start_method("spawn", force=True)
