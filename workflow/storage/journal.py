"""A run's append-only journal: one JSON object a line, written by the job, read by everyone else.

    {"event": "start", "time": ..., "epochs": 20, "epoch": 3, "code": {"commit": ..., ...}}
                                                                    (again after each resumption)
    {"event": "epoch", "time": ..., "epoch": 4, "metrics": {"loss": 1.2, "top1": 80.1}}
    {"event": "note", "time": ..., "text": "..."}
    {"event": "end", "time": ...}

`epoch` counts completed epochs, from 1. A job that died between an epoch's line and its checkpoint writes that epoch
again; the last line counts. Where a crash left NUL bytes or half a line, readers go on with the next whole line. A
training writes lost epochs again from its checkpoint (`"restored": true`).
"""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

# what readers use of an event; without it a line is damaged
KEYS: dict[str, dict[str, type]] = {
    "epoch": {"epoch": int, "metrics": dict},
    "layer": {"layer": int, "layers": int, "metrics": dict},
    "progress": {"epoch": int, "step": int, "steps": int},
    "deviation": {"update": int, "text": str},
    "note": {"text": str},
}


class Journal:
    """A journal to append events to. A line that a killed predecessor cut short is removed first."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._stream = open(self.path, "a+b")  # noqa: SIM115 (open for as long as the job runs)
        self._stream.seek(0)
        content = self._stream.read()
        if content and not content.endswith(b"\n"):
            self._stream.truncate(content.rfind(b"\n") + 1)

    def write(self, event: str, **values) -> None:
        """Append an event, and wait until it is on the disk."""
        line = json.dumps({"event": event, "time": time.time(), **values}) + "\n"
        self._stream.write(line.encode())
        self._stream.flush()
        os.fsync(self._stream.fileno())

    def close(self) -> None:
        self._stream.close()


def read(path: str | Path, offset: int = 0) -> Iterator[tuple[dict, int]]:
    """Yield (event, offset behind it) for every whole line from `offset`.

    A last line without its end may still be written, so it is left for later. Damaged lines are skipped.
    """
    if not os.path.exists(path):
        return
    with open(path, "rb") as stream:
        stream.seek(offset)
        for line in stream:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            event = parse(line)
            if event is not None:
                yield event, offset


def parse(line: bytes) -> dict | None:
    """Return the event in a line; None if the line is damaged."""
    try:
        event = json.loads(line.strip(b"\0\n"))
        keys = {"event": str, "time": float, **KEYS.get(event["event"], {})}
        whole = all(isinstance(event[key], kind) for key, kind in keys.items())
    except (ValueError, KeyError, TypeError):
        return None
    return event if whole else None


def epochs(path: str | Path) -> list[dict]:
    """Return the metrics of each completed epoch in order, each with its `epoch`."""
    by_epoch = {}
    for event, _ in read(path):
        if event["event"] == "epoch":
            by_epoch[event["epoch"]] = {"epoch": event["epoch"], **event["metrics"]}
    return [by_epoch[epoch] for epoch in sorted(by_epoch)]


def restored(path: str | Path) -> list[int]:
    """Return the epochs whose lines were lost, and written again from a checkpoint."""
    events = (event for event, _ in read(path) if event["event"] == "epoch")
    return sorted({event["epoch"] for event in events if event.get("restored")})


def deviations(path: str | Path) -> list[dict]:
    """Return where a training deviated from its recipe, each deviation once: update, time and why."""
    by_update = {}
    for event, _ in read(path):
        if event["event"] == "deviation":
            by_update[event["update"]] = {key: event[key] for key in ("update", "time", "text")}
    return [by_update[update] for update in sorted(by_update)]
