"""What a long measurement has so far, on disk: killed and started again, it goes on from there."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from workflow import records, runs


class Parts:
    """One measurement's parts, as JSON in `folder` (None: nothing is kept); one of another spec or
    device is measured again."""

    def __init__(self, folder: Path | None, spec: dict, device: str):
        self.folder = folder and folder / "parts"
        self.of = {"spec_hash": runs.spec_hash(spec), "device": device}

    def get(self, name: str, measure: Callable[[], Any]) -> Any:
        """The part of that name: an earlier start's, or what `measure()` finds now."""
        path = self.folder and self.folder / f"{name}.json"
        if path and path.exists():
            try:
                kept = json.loads(path.read_text())
                if {key: kept[key] for key in self.of} == self.of:
                    return kept["part"]
            except (json.JSONDecodeError, KeyError, TypeError):
                pass  # damaged: as if it were not there
        part = measure()
        if path:
            records.write_json(path, {**self.of, "part": part})
        return part
