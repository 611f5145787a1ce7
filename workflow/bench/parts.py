"""What a long measurement has so far, on disk: killed and started again, it goes on from there."""

import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

from workflow.campaign import specs
from workflow.storage import provenance, records

FOLDER = "parts"


def code_hash() -> str:
    """Of the code that measures and is measured: a commit does not tell of uncommitted changes."""
    return provenance.running()["source_hash"]


class Parts:
    """One measurement's parts, as JSON in `folder` (None: nothing is kept); one of another spec,
    device, host, code or torch is measured again. `kept`: how many an earlier start had."""

    def __init__(self, folder: Path | None, spec: dict, device: str):
        self.folder, self.kept = folder and folder / FOLDER, 0
        self.of = {
            "spec_hash": specs.spec_hash(spec),
            "device": device,
            "host": platform.node(),
            "code": code_hash(),
            "versions": records.versions(),
        }

    def get(self, name: str, measure: Callable[[], Any]) -> Any:
        """The part of that name: an earlier start's, or what `measure()` finds now."""
        path = self.folder and self.folder / f"{name}.json"
        if path and path.exists():
            try:
                kept = json.loads(path.read_text())
                if {key: kept[key] for key in self.of} == self.of:
                    self.kept += 1
                    return kept["part"]
            except (ValueError, KeyError, TypeError):
                pass  # damaged: as if it were not there
        part = measure()
        if path:
            records.write_json(path, {**self.of, "part": part})
        return part
