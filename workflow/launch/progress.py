"""What a person reads while a job runs: its journal, on the terminal and in the rule's log."""

import contextlib
import sys
import time
from pathlib import Path

from workflow.storage import journal

TIME = "%Y-%m-%d %H:%M:%S "
STAMP = len("2026-01-01 00:00:00 ")
ERROR = "ERROR: "  # before the last line of a launcher that failed


class Log:
    """Says each line on the terminal, under the job's name, and in the rule's log.

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
    """Turns the journal's new events into lines."""

    def __init__(self, path: Path, spec: dict):
        self.path = path
        self.epochs = spec.get("recipe", {}).get("epochs")
        self.offset = 0
        self.epoch_s: float | None = None
        for _, self.offset in journal.read(path):
            pass  # what was said before a re-attachment is not said again

    def news(self) -> list[str]:
        lines = []
        for event, offset in journal.read(self.path, self.offset):
            self.offset = offset
            if line := self.line(event):
                lines.append(line)
        return lines

    def line(self, event: dict) -> str | None:
        """What a person should read of the event."""
        return getattr(self, f"_{event['event']}", lambda event: None)(event)

    def _left(self, epochs_to_go: float) -> str:
        seconds = round(epochs_to_go * (self.epoch_s or 0))
        if seconds < 120:
            return f"{seconds} s left"
        return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min left"

    def _start(self, event: dict) -> str | None:
        whole = {"epoch", "epochs", "step"} <= event.keys()
        if whole and (event["epoch"] or event["step"]):
            return f"resumed after epoch {event['epoch']} of {event['epochs']}, step {event['step']}"
        return None

    def _deviation(self, event: dict) -> str:
        return event["text"]

    def _progress(self, event: dict) -> str:
        done = event["epoch"] + event["step"] / event["steps"]
        left = f", {self._left(self.epochs - done)}" if self.epoch_s else ""
        return f"epoch {event['epoch'] + 1}/{self.epochs}, step {event['step']}/{event['steps']}{left}"

    def _epoch(self, event: dict) -> str | None:
        found, epoch = event["metrics"], event["epoch"]
        if event.get("restored"):  # a note says so
            return None
        if not {"epoch_s", "loss", "top1"} <= found.keys():  # a damaged line that is still JSON
            return None
        self.epoch_s = found["epoch_s"]
        left = self._left(self.epochs - epoch)
        return (
            f"epoch {epoch}/{self.epochs}  loss {found['loss']:.3f}  top-1 {found['top1']:.2f} %  "
            f"{self.epoch_s:.1f} s, {left}"
        )

    def _layer(self, event: dict) -> str | None:
        found = event["metrics"]
        if not {"patches", "error"} <= found.keys():
            return None
        return (
            f"layer {event['layer']} of {event['layers']} keeps {found['patches']} patches, error {found['error']:.4f}"
        )

    def _note(self, event: dict) -> str:
        return event["text"]
