"""What nvidia-smi tells of one GPU. It is there wherever the driver is, unlike NVML's bindings."""

import subprocess
import time

from workflow.bench.sensors import Sample

FIELDS = ("clocks.sm", "temperature.gpu")
POWERS = ("power.draw.instant", "power.draw")
MEAN_S = 1.0  # what the latter is a mean over on GPUs newer than the A100; before, it is instant
A100 = (8, 0)  # compute capability
REASONS = ("clocks_event_reasons.active", "clocks_throttle_reasons.active")  # newer drivers, older
NAMES = {  # bits of the reasons that slow a clock down; idle and a set clock are none
    0x04: "power cap", 0x08: "hardware slowdown", 0x10: "sync boost", 0x20: "heat",
    0x40: "heat, by hardware", 0x80: "power brake",
}  # fmt: skip
PATIENCE_S = 10


def ask(*arguments: str) -> list[str] | None:
    """The lines of nvidia-smi's answer; None if it has none."""
    command = ["nvidia-smi", "--format=csv,noheader,nounits", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.splitlines() if done.returncode == 0 else None


class Gpu:
    """One GPU by its UUID ("GPU-..." or without the prefix, as torch has it) and its compute
    capability."""

    def __init__(self, uuid: str, capability: tuple[int, int]):
        self.uuid = uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"
        self.reasons = next((field for field in REASONS if self._query(field)), None)
        known = (field for field in POWERS if number((self._query(field) or [None])[0]) is not None)
        self.power = next(known, "power.draw")
        self.mean_s = MEAN_S if self.power == "power.draw" and capability > A100 else 0.0

    def _query(self, *fields: str) -> list[str] | None:
        lines = ask(f"--id={self.uuid}", f"--query-gpu={','.join(fields)}")
        return [value.strip() for value in lines[0].split(",")] if lines else None

    def fixed(self) -> dict:
        """Driver, limits, and how many processes beside this one compute on it now."""
        fields = ("driver_version", "clocks.max.sm", "clocks.max.memory", "power.limit")
        found = self._query(*fields) or [None] * len(fields)
        apps = ask(f"--id={self.uuid}", "--query-compute-apps=pid")
        # this process is one of them, by another number in a container; without any, none is seen
        seen = [line for line in apps or () if line.strip()]
        others = len(seen) - 1 if seen else None
        return {
            "driver": found[0],
            "clock_limit_mhz": number(found[1]),
            "memory_clock_limit_mhz": number(found[2]),
            "power_limit_w": number(found[3]),
            "other_processes": others,
        }

    def look(self) -> Sample | None:
        """A sample of the GPU now; None if nvidia-smi is not there."""
        fields = (*FIELDS, self.power, *([self.reasons] if self.reasons else []))
        asked = time.time()
        found = self._query(*fields)
        if found is None:
            return None
        clock, heat, power, *reasons = found
        slowed = throttles(reasons[0]) if reasons else ()
        seen = (number(clock), number(power), number(heat), slowed)
        now = time.time()  # it was read at some time since `asked`
        return Sample(now, *seen, power_over_s=self.mean_s + now - asked)


def number(text: str | None) -> float | None:
    """A value; None for what the GPU does not tell ("[N/A]")."""
    try:
        return float(text)
    except (TypeError, ValueError):
        return None


def throttles(mask: str) -> tuple[str, ...]:
    """The reasons in "0x0000000000000004" that slow a clock down."""
    try:
        bits = int(mask, 16)
    except ValueError:
        return ()
    return tuple(name for bit, name in NAMES.items() if bits & bit)
