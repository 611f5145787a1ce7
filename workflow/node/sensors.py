"""What a processor tells of itself while it works: through /proc and, where they may be read, its
energy counters. What can't be seen is None.
"""

import contextlib
import os
import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

RAPL = Path("/sys/class/powercap")
CPUS = Path("/sys/devices/system/cpu")


@dataclass(frozen=True)
class Sample:
    """The device at one moment; None where it does not tell."""

    time: float
    clock_mhz: float | None = None
    power_w: float | None = None
    temperature_c: float | None = None
    throttled: tuple[str, ...] = ()
    power_over_s: float = 0.0  # the power is the mean of so many seconds before

    @property
    def began(self) -> float:
        return self.time - self.power_over_s


class Processor:
    """The CPU's package power from its energy counters (RAPL), and its clock, where they show."""

    def __init__(self, rapl: Path = RAPL, cpus: Path = CPUS):
        self.counters = sorted(rapl.glob("intel-rapl:[0-9]*/energy_uj"))
        self.counters = [path for path in self.counters if path.parent.name.count(":") == 1]
        self.clocks = [cpus / f"cpu{n}/cpufreq/scaling_cur_freq" for n in sorted(processors())]
        self.before: tuple[float, list[float]] | None = None

    def look(self) -> Sample | None:
        energies, clocks = _read(self.counters), _read(self.clocks)
        now, power, passed = time.time(), None, 0.0
        if energies and self.before:
            began, before = self.before
            joules = sum(b - a for a, b in zip(before, energies, strict=True)) / 1e6
            passed = now - began
            power = joules / passed if joules >= 0 else None  # the counters wrap around
        self.before = (now, energies) if energies else None
        clock = statistics.mean(clocks) / 1000 if clocks else None
        return Sample(now, clock, power, power_over_s=passed) if energies or clocks else None


def _read(paths: list[Path]) -> list[float]:
    """All of their numbers, or none where one can't be read."""
    try:
        return [float(path.read_text()) for path in paths]
    except (OSError, ValueError):
        return []


def processors() -> set[int]:
    """Those that this process may use: of all its threads together, for OpenMP's are bound."""
    found: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(ProcessLookupError):
            found |= os.sched_getaffinity(int(task.name))
    return found


def busy_s(cpus: Iterable[int], stat: Path = Path("/proc/stat")) -> float:
    """Seconds that the processors have worked, for anyone, other guests of the host included."""
    names = {f"cpu{number}" for number in cpus}
    total = 0.0
    for line in stat.read_text().splitlines():
        name, *numbers = line.split()
        if name in names:
            user, nice, system, _idle, _wait, irq, soft, steal = map(float, numbers[:8])
            total += user + nice + system + irq + soft + steal
    return total / os.sysconf("SC_CLK_TCK")
