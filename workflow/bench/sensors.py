"""What a processor tells of itself while it works: through psutil and, where they may be read, its
energy counters. What can't be seen is None.
"""

import contextlib
import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

RAPL = Path("/sys/class/powercap")
CPUS = Path("/sys/devices/system/cpu")
WORKING = ("user", "nice", "system", "irq", "softirq", "steal")


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
    process = psutil.Process()
    if not hasattr(process, "cpu_affinity"):  # macOS binds no process to processors
        return set(range(psutil.cpu_count()))
    allowed: set[int] = set()
    for thread in process.threads():
        with contextlib.suppress(psutil.NoSuchProcess):
            allowed |= set(psutil.Process(thread.id).cpu_affinity())
    return allowed


def busy_s(cpus: Iterable[int]) -> float:
    """Seconds that the processors have worked, for anyone, other guests of the host included."""
    times = dict(zip(online(), psutil.cpu_times(percpu=True), strict=False))
    return sum(sum(getattr(times[number], name, 0.0) for name in WORKING) for number in cpus if number in times)


def online(cpus: Path = CPUS) -> list[int]:
    """The numbers of the processors that work; where the system does not tell, from 0 on."""
    try:
        spans = [span.split("-") for span in (cpus / "online").read_text().strip().split(",")]
        return [number for span in spans for number in range(int(span[0]), int(span[-1]) + 1)]
    except (OSError, ValueError):
        return list(range(psutil.cpu_count()))
