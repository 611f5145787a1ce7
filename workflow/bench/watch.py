"""What else happens on the device while models are timed: other processes, clocks, power, heat.

What can't be seen is None in the record.
"""

import statistics
import threading
import time
from collections.abc import Callable, Iterable

import torch

from workflow.bench import nvidia
from workflow.bench.sensors import Processor, Sample, busy_s, processors
from workflow.storage.warnings import Warning

EVERY_S = 0.5
BUSY = 0.05  # share of the used processors' time that others may take without a warning
THROTTLED = 0.05  # share of the samples that may be throttled without a warning


class Watch:
    """Samples the device in the background while the block runs."""

    def __init__(self, look: Callable[[], Sample | None], tell: Callable[[], dict]):
        self.look, self.tell, self.fixed = look, tell, tell()
        self.samples: list[Sample] = []
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def _follow(self) -> None:
        while not self._end.is_set():
            if (sample := self.look()) is not None:
                self.samples.append(sample)
            self._end.wait(EVERY_S)

    def __enter__(self) -> "Watch":
        self.processors = processors()
        self._began = self._work()
        self._thread.start()
        return self

    def __exit__(self, *error) -> None:
        self._end.set()
        self._thread.join(2 * nvidia.PATIENCE_S)  # a driver that hangs lets nobody kill nvidia-smi
        last = {} if self._thread.is_alive() else self.tell()  # it would hang there, too
        counts = [told.get("other_processes") for told in (self.fixed, last)]
        if any(counts):  # also one that came while models were timed
            self.fixed["other_processes"] = max(filter(None, counts))
        passed, busy, own = (now - then for now, then in zip(self._work(), self._began, strict=True))
        self.others_share = max(0.0, busy - own) / (passed * len(self.processors))

    def _work(self) -> tuple[float, float, float]:
        """Seconds: the time, what this process's processors have worked, and what of it for it."""
        return time.monotonic(), busy_s(self.processors), time.process_time()

    def during(self, spans: Iterable[tuple[float, float]]) -> list[Sample]:
        """The samples that fall into the spans (time.time())."""
        spans = list(spans)
        return [s for s in self.samples if any(a <= s.time <= b for a, b in spans)]

    def power_w(self, spans: Iterable[tuple[float, float]]) -> float | None:
        """Mean power of the samples that lie in one span from end to end; None where each power is
        the mean of a time in which another model had a turn."""
        spans = list(spans)
        within = [s for s in self.samples if any(a <= s.began and s.time <= b for a, b in spans)]
        seen = [s.power_w for s in within if s.power_w is not None]
        return statistics.mean(seen) if seen else None

    def summary(self, spans: Iterable[tuple[float, float]]) -> dict:
        """For the record: what was seen during the spans in which models were timed."""
        seen = self.during(spans)
        reasons = sorted({reason for sample in seen for reason in sample.throttled})
        shares = {r: sum(r in sample.throttled for sample in seen) / len(seen) for r in reasons}
        return {
            **self.fixed,
            "samples": len(seen),
            "clock_mhz": _range([s.clock_mhz for s in seen]),
            "clock_drift_mhz": ends([s.clock_mhz for s in seen if s.clock_mhz is not None]),
            "power_w": _range([s.power_w for s in seen]),
            "temperature_c": _range([s.temperature_c for s in seen]),
            "throttled": shares,
            "cpu_taken_by_others": self.others_share,
        }


def _range(values: list[float | None]) -> dict | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    return {"least": min(known), "median": statistics.median(known), "most": max(known)}


def ends(values: list[float]) -> tuple[float, float] | None:
    """Medians of the first and of the last third."""
    if not values:
        return None
    third = max(1, len(values) // 3)
    return statistics.median(values[:third]), statistics.median(values[-third:])


def worst(summaries: list[dict]) -> dict:
    """One summary for several of the same work that came after one another: of each the worst, and
    the clock's way from the first to the last."""
    reasons = {reason for seen in summaries for reason in seen["throttled"]}
    clocks = [seen["clock_mhz"]["median"] for seen in summaries if seen["clock_mhz"]]
    ranges = {
        name: _range([end for seen in summaries for end in (seen[name] or {}).values()])
        for name in ("clock_mhz", "power_w", "temperature_c")
    }
    counts = [seen.get("other_processes") for seen in summaries]
    return {
        **summaries[-1],
        **ranges,
        "other_processes": max((one for one in counts if one is not None), default=None),
        "samples": sum(seen["samples"] for seen in summaries),
        "clock_drift_mhz": (clocks[0], clocks[-1]) if clocks else None,
        "throttled": {r: max(seen["throttled"].get(r, 0) for seen in summaries) for r in reasons},
        "cpu_taken_by_others": max(seen["cpu_taken_by_others"] for seen in summaries),
    }


def find_warnings(seen: dict, where: torch.device) -> list[Warning]:
    """Return the warnings that follow from a watch's summary; mostly there are none."""
    warnings = []
    if seen.get("other_processes"):
        text = f"{seen['other_processes']} other process(es) on the GPU"
        warnings.append(Warning("other_processes", text))
    others = seen["cpu_taken_by_others"]
    if where.type == "cpu" and others is not None and others > BUSY:
        text = f"others took {100 * others:.0f} % of the processors"
        warnings.append(Warning("other_processes", text))
    for reason, share in seen["throttled"].items():
        if share > THROTTLED:
            text = f"throttled ({reason}) in {100 * share:.0f} % of the time"
            warnings.append(Warning("throttled", text))
    return warnings


def watch(where: torch.device) -> Watch:
    """The watch for a device."""
    if where.type == "cuda":
        uuid = str(torch.cuda.get_device_properties(where).uuid)
        gpu = nvidia.Gpu(uuid, torch.cuda.get_device_capability(where))
        return Watch(gpu.look, gpu.fixed)
    return Watch(Processor().look, dict)
