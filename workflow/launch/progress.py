"""What a person reads while a job runs: its journal as lines, on the terminal and in the rule's log."""

import contextlib
import sys
import time
from pathlib import Path

from workflow.storage import journal

TIME = "%Y-%m-%d %H:%M:%S "
STAMP = len("2026-01-01 00:00:00 ")
ERROR = "ERROR: "  # begins the last line of a launcher that failed


class Log:
    """Writes each line to the terminal, with the job's name, and to the rule's log.

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
            line = self.line(event)
            if line:
                lines.append(line)
        return lines

    def line(self, event: dict) -> str | None:
        """Return what a person should read of the event; None for nothing."""
        lines = {
            "start": self._start,
            "progress": self._progress,
            "epoch": self._epoch,
            "layer": self._layer,
            "note": self._text,
            "deviation": self._text,
        }
        return lines[event["event"]](event) if event["event"] in lines else None

    def _start(self, event: dict) -> str | None:
        whole = {"epoch", "epochs", "step"} <= event.keys()
        if whole and (event["epoch"] or event["step"]):
            return f"resumed after epoch {event['epoch']} of {event['epochs']}, step {event['step']}"
        return None

    def _progress(self, event: dict) -> str:
        done = event["epoch"] + event["step"] / event["steps"]
        left = f", {self._time_left(self.epochs - done)}" if self.epoch_s else ""
        return f"epoch {event['epoch'] + 1}/{self.epochs}, step {event['step']}/{event['steps']}{left}"

    def _epoch(self, event: dict) -> str | None:
        metrics, epoch = event["metrics"], event["epoch"]
        if event.get("restored"):  # a note says so
            return None
        if not {"epoch_s", "loss", "top1"} <= metrics.keys():  # a damaged line that is still JSON
            return None
        self.epoch_s = metrics["epoch_s"]
        return (
            f"epoch {epoch}/{self.epochs}  loss {metrics['loss']:.3f}  top-1 {metrics['top1']:.2f} %  "
            f"{self.epoch_s:.1f} s, {self._time_left(self.epochs - epoch)}"
        )

    def _layer(self, event: dict) -> str | None:
        metrics = event["metrics"]
        if not {"patches", "error"} <= metrics.keys():
            return None
        return (
            f"layer {event['layer']} of {event['layers']} keeps {metrics['patches']} patches, "
            f"error {metrics['error']:.4f}"
        )

    def _text(self, event: dict) -> str:
        return event["text"]

    def _time_left(self, epochs: float) -> str:
        seconds = round(epochs * (self.epoch_s or 0))
        if seconds < 120:
            return f"{seconds} s left"
        return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min left"
