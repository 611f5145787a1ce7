"""Observe the device while models are timed: other processes, clocks, power, heat.

A GPU is asked through nvidia-smi, which is there wherever the driver is, unlike NVML's bindings; its output is parsed
here and nowhere else. Of a processor psutil tells how much others used it. What can't be observed is None in the
record.
"""

import contextlib
import os
import statistics
import subprocess
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from workflow.storage.warnings import Warning

try:
    import psutil
except ImportError:  # on a machine with only torch and timm, the work of other processes is unknown
    psutil = None

EVERY_S = 0.5  # between two samples
BUSY = 0.05  # share of the used processors' time that others may take without a warning
THROTTLED = 0.05  # share of the samples that may be throttled without a warning


@dataclass(frozen=True)
class Sample:
    """The device at one moment; None where it does not tell."""

    time: float
    clock_mhz: float | None = None
    power_w: float | None = None
    temperature_c: float | None = None
    throttled: tuple[str, ...] = ()
    power_over_s: float = 0.0  # the power is the mean over this time before

    @property
    def began(self) -> float:
        return self.time - self.power_over_s


# -- a GPU, by nvidia-smi -----------------------------------------------------------------------

FIELDS = ("clocks.sm", "temperature.gpu")
MEAN_S = 1.0  # power.draw is the mean over this time on GPUs newer than the A100, and instant on older ones
A100 = (8, 0)  # compute capability
REASONS = ("clocks_event_reasons.active", "clocks_throttle_reasons.active")  # newer drivers, older
# bits of the reasons that slow a clock down; idle and a set clock are none
SLOWDOWNS = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x10: "sync boost",
    0x20: "heat",
    0x40: "heat, by hardware",
    0x80: "power brake",
}
PATIENCE_S = 10


def ask_nvidia_smi(*arguments: str) -> list[str] | None:
    """Return the lines of nvidia-smi's answer, or None if it has none."""
    command = ["nvidia-smi", "--format=csv,noheader,nounits", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.splitlines() if done.returncode == 0 else None


def number(text: str | None) -> float | None:
    """Return a value of nvidia-smi, or None for what the GPU does not tell ("[N/A]")."""
    try:
        return float(text)
    except (TypeError, ValueError):
        return None


def throttle_reasons(mask: str) -> tuple[str, ...]:
    """Return the reasons in a mask such as "0x0000000000000004" that slow a clock down."""
    try:
        bits = int(mask, 16)
    except ValueError:
        return ()
    return tuple(name for bit, name in SLOWDOWNS.items() if bits & bit)


class Gpu:
    """A GPU by its UUID ("GPU-..." or without the prefix, as torch has it) and compute capability."""

    def __init__(self, uuid: str, capability: tuple[int, int]):
        self.uuid = uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"
        self.reasons = next((field for field in REASONS if self._query(field)), None)
        self.power = "power.draw"
        self.mean_s = MEAN_S if capability > A100 else 0.0
        instant = self._query("power.draw.instant")
        if instant and number(instant[0]) is not None:
            self.power = "power.draw.instant"
            self.mean_s = 0.0

    def _query(self, *fields: str) -> list[str] | None:
        lines = ask_nvidia_smi(f"--id={self.uuid}", f"--query-gpu={','.join(fields)}")
        return [value.strip() for value in lines[0].split(",")] if lines else None

    def facts(self) -> dict:
        """Return driver, limits, and the number of other processes that compute on it now."""
        fields = ("driver_version", "clocks.max.sm", "clocks.max.memory", "power.limit")
        driver, clock, memory_clock, power = self._query(*fields) or [None] * len(fields)
        lines = ask_nvidia_smi(f"--id={self.uuid}", "--query-compute-apps=pid")
        # this process is one of them, under another number in a container; an empty list tells nothing
        processes = [line for line in lines or () if line.strip()]
        return {
            "driver": driver,
            "clock_limit_mhz": number(clock),
            "memory_clock_limit_mhz": number(memory_clock),
            "power_limit_w": number(power),
            "other_processes": len(processes) - 1 if processes else None,
        }

    def sample(self) -> Sample | None:
        """Return a sample of the GPU now, or None if there is no nvidia-smi."""
        fields = [*FIELDS, self.power]
        if self.reasons:
            fields.append(self.reasons)
        asked = time.time()
        values = self._query(*fields)
        if values is None:
            return None
        now = time.time()  # it was read at some time since `asked`
        clock, heat, power, *reasons = values
        throttled = throttle_reasons(reasons[0]) if reasons else ()
        power_over_s = self.mean_s + now - asked
        return Sample(now, number(clock), number(power), number(heat), throttled, power_over_s)


# -- processors, by psutil ----------------------------------------------------------------------

CPUS = Path("/sys/devices/system/cpu")
WORKING = ("user", "nice", "system", "irq", "softirq", "steal")


def processors() -> set[int]:
    """Return the processors that any thread of this process may use (OpenMP's are bound)."""
    if psutil is None:
        return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count()))
    process = psutil.Process()
    if not hasattr(process, "cpu_affinity"):  # macOS binds no process to processors
        return set(range(psutil.cpu_count()))
    allowed: set[int] = set()
    for thread in process.threads():
        with contextlib.suppress(psutil.NoSuchProcess):
            allowed |= set(psutil.Process(thread.id).cpu_affinity())
    return allowed


def busy_s(numbers: Iterable[int]) -> float | None:
    """Return the seconds that the processors have worked, for anyone, other guests included."""
    if psutil is None:
        return None
    times = dict(zip(online(), psutil.cpu_times(percpu=True), strict=False))
    used = [times[number] for number in numbers if number in times]
    return sum(getattr(processor, name, 0.0) for processor in used for name in WORKING)


def online(cpus: Path = CPUS) -> list[int]:
    """Return the numbers of the processors that are online; where the system does not tell, from 0 on."""
    try:
        spans = [span.split("-") for span in (cpus / "online").read_text().strip().split(",")]
        return [number for span in spans for number in range(int(span[0]), int(span[-1]) + 1)]
    except (OSError, ValueError):
        return list(range(psutil.cpu_count()))


# -- a device while models are timed ------------------------------------------------------------


class Monitor:
    """Samples a GPU (None: there is none) and asks for the work of all processes while the block runs."""

    def __init__(self, gpu: Gpu | None = None):
        self.gpu = gpu
        self.facts = self._facts()
        self.samples: list[Sample] = []
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def _facts(self) -> dict:
        return self.gpu.facts() if self.gpu else {}

    def _follow(self) -> None:
        while self.gpu and not self._end.is_set():
            sample = self.gpu.sample()
            if sample is not None:
                self.samples.append(sample)
            self._end.wait(EVERY_S)

    def __enter__(self) -> "Monitor":
        self.processors = processors()
        self._began = self._work()
        self._thread.start()
        return self

    def __exit__(self, *error) -> None:
        self._end.set()
        self._thread.join(2 * PATIENCE_S)  # while a driver hangs, nvidia-smi can't be killed
        last = {} if self._thread.is_alive() else self._facts()  # which would hang, too
        counts = [facts.get("other_processes") for facts in (self.facts, last)]
        if any(counts):  # also a process that came while models were timed
            self.facts["other_processes"] = max(filter(None, counts))
        then, busy_before, own_before = self._began
        now, busy, own = self._work()
        self.others_share = None
        if busy is not None:
            of_others = (busy - busy_before) - (own - own_before)
            self.others_share = max(0.0, of_others) / ((now - then) * len(self.processors))

    def _work(self) -> tuple[float, float | None, float]:
        """Return seconds: the time, the work of this process's processors, and its own work."""
        return time.monotonic(), busy_s(self.processors), time.process_time()

    def power_w(self, spans: Iterable[tuple[float, float]]) -> float | None:
        """Return the mean power of the samples that are within one span from end to end.

        It is None where each power is the mean over a time in which another model was timed, too.
        """
        spans = list(spans)
        within = [s for s in self.samples if any(a <= s.began and s.time <= b for a, b in spans)]
        powers = [s.power_w for s in within if s.power_w is not None]
        return statistics.mean(powers) if powers else None

    def summary(self, spans: Iterable[tuple[float, float]]) -> dict:
        """Return for the record what was observed during the spans (time.time()) of the timing."""
        spans = list(spans)
        samples = [s for s in self.samples if any(a <= s.time <= b for a, b in spans)]
        reasons = sorted({reason for sample in samples for reason in sample.throttled})
        return {
            **self.facts,
            "samples": len(samples),
            "clock_mhz": value_range([s.clock_mhz for s in samples]),
            "clock_drift_mhz": medians_at_ends([s.clock_mhz for s in samples if s.clock_mhz is not None]),
            "power_w": value_range([s.power_w for s in samples]),
            "temperature_c": value_range([s.temperature_c for s in samples]),
            "throttled": {r: sum(r in sample.throttled for sample in samples) / len(samples) for r in reasons},
            "cpu_taken_by_others": self.others_share,
        }


def start_monitor(device: torch.device) -> Monitor:
    """Return a monitor of the device, to be entered."""
    if device.type == "cuda":
        uuid = str(torch.cuda.get_device_properties(device).uuid)
        return Monitor(Gpu(uuid, torch.cuda.get_device_capability(device)))
    return Monitor()


def value_range(values: list[float | None]) -> dict | None:
    """Return least, median and most of the values that are known."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    return {"least": min(known), "median": statistics.median(known), "most": max(known)}


def medians_at_ends(values: list[float]) -> tuple[float, float] | None:
    """Return the medians of the first and of the last third."""
    if not values:
        return None
    third = max(1, len(values) // 3)
    return statistics.median(values[:third]), statistics.median(values[-third:])


def find_warnings(summary: dict, device: torch.device) -> list[Warning]:
    """Return the warnings that follow from a monitor's summary; mostly there are none."""
    warnings = []
    if summary.get("other_processes"):
        text = f"{summary['other_processes']} other process(es) on the GPU"
        warnings.append(Warning("other_processes", text))
    others = summary["cpu_taken_by_others"]
    if device.type == "cpu" and others is not None and others > BUSY:
        text = f"others took {100 * others:.0f} % of the processors"
        warnings.append(Warning("other_processes", text))
    for reason, share in summary["throttled"].items():
        if share > THROTTLED:
            text = f"throttled ({reason}) in {100 * share:.0f} % of the time"
            warnings.append(Warning("throttled", text))
    return warnings
