"""What a person reads while a job runs: its journal as lines, on the terminal and in the rule's log."""

import contextlib
import os
import re
import sys
import time
from pathlib import Path

from workflow.storage import journal

TIME = "%Y-%m-%d %H:%M:%S "
STAMP = len("2026-01-01 00:00:00 ")
DISPLAY = "EVOVIT_DISPLAY"  # set where display.py draws the last line of each log, so that launchers print nothing
ERROR = "ERROR: "  # begins the last line of a launcher that failed
INTERRUPTED = "Interrupted"  # begins that of one that Ctrl-C ended


class Log:
    """Writes each line to the rule's log and, with the job's name, to the terminal unless snakemake draws there.

    A terminal that is gone (a lost connection, `snakemake 2>&1 | head`) stops no job.
    """

    def __init__(self, path: Path, name: str):
        self.path, self.name = path, name

    def __enter__(self) -> "Log":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._stream = open(self.path, "a", encoding="utf-8")
        return self

    def __exit__(self, *exception) -> None:
        self._stream.close()

    def say(self, text: str) -> None:
        for line in text.splitlines():
            if not os.environ.get(DISPLAY):
                with contextlib.suppress(OSError):
                    print(f"[{self.name}] {line}", file=sys.stderr, flush=True)
            print(time.strftime(TIME) + line, file=self._stream, flush=True)


class Follower:
    """Turns the journal's new events into lines. Events from before a re-attachment are not repeated."""

    def __init__(self, path: Path, spec: dict):
        self.path = path
        self.epochs = spec.get("recipe", {}).get("epochs")
        self.epoch_s: float | None = None
        self.offset = 0
        for _, self.offset in journal.read(path):
            pass

    def news(self) -> list[str]:
        """Return the lines of the events since the last call."""
        lines = []
        for event, offset in journal.read(self.path, self.offset):
            self.offset = offset
            lines.append(self.line(event))
        return [line for line in lines if line]

    def line(self, event: dict) -> str | None:
        """Return what a person should read of the event; None for nothing, as for a damaged line that is still JSON."""
        match event["event"]:
            case "start" if {"epoch", "epochs", "step"} <= event.keys() and (event["epoch"] or event["step"]):
                return f"resumed after epoch {event['epoch']} of {event['epochs']}, step {event['step']}"
            case "progress":
                done = event["epoch"] + event["step"] / event["steps"]
                left = f", {self._time_left(done)}" if self.epoch_s else ""
                return f"epoch {event['epoch'] + 1}/{self.epochs}, step {event['step']}/{event['steps']}{left}"
            case "epoch" if {"epoch_s", "loss", "top1"} <= event["metrics"].keys() and not event.get("restored"):
                epoch, metrics = event["epoch"], event["metrics"]
                self.epoch_s = metrics["epoch_s"]
                return (
                    f"epoch {epoch}/{self.epochs}  loss {metrics['loss']:.3f}  top-1 {metrics['top1']:.2f} %  "
                    f"{self.epoch_s:.1f} s, {self._time_left(epoch)}"
                )
            case "layer" if {"patches", "error"} <= event["metrics"].keys():
                kept, error = event["metrics"]["patches"], event["metrics"]["error"]
                return f"layer {event['layer']} of {event['layers']} keeps {kept} patches, error {error:.4f}"
            case "note" | "deviation":
                return event["text"]
        return None

    def _time_left(self, done: float) -> str:
        """Return how long the epochs after the `done` ones will take."""
        return f"{duration((self.epochs - done) * (self.epoch_s or 0))} left"


def duration(seconds: float) -> str:
    """Return a duration in words: "90 s", "12 min", "2 h 05 min"."""
    seconds = round(seconds)
    if seconds < 120:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"


def without_time(line: str) -> str:
    """Return a line of a rule's log without the time that Log wrote in front of it."""
    return line[STAMP:] if re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", line) else line
