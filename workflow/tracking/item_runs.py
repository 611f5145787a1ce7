"""Tables, figures and the ledger of claims, as MLflow should show them. Standard library only."""

import csv
import hashlib
import time
from pathlib import Path

from workflow.campaign.config import Config
from workflow.tracking import run_page
from workflow.tracking.content import Content, Source


def describe(root: Path, source: Source, config: Config) -> Content:
    """A CSV also as a table that MLflow can show; what lies beside it under its name, too."""
    content = source.path.read_bytes()
    name = source.path.name.removesuffix(source.path.suffix)
    item, now = name.partition(".")[0], round(1000 * time.time())
    tags = {"kind": kind_of(item)}
    if tags["kind"] != "claims":
        tags[tags["kind"]] = item.removeprefix(tags["kind"])
    path = source.path.relative_to(root)
    tags[run_page.NOTE] = run_page.of_item(config, source.setting, path)
    beside = {".csv": (".md", ".html"), ".png": (".svg", ".csv")}[source.path.suffix]
    files = [source.path, *(source.path.with_name(f"{name}{suffix}") for suffix in beside)]
    return Content(
        identity={
            "file": str(source.path.resolve()),
            "sha256": hashlib.sha256(content).hexdigest(),
        },
        experiment=source.setting,
        name=name,
        started_ms=now,  # the newest run of a name is the one that counts
        tags=tags,
        artifacts=[file for file in files if file.exists()],
        table=rows(content) if source.path.suffix == ".csv" else None,
        status="FINISHED",
        ended_ms=now,
    )


def kind_of(item: str) -> str:
    if item == "claims":
        return "claims"
    return "table" if item.startswith("table") else "figure"


def rows(content: bytes) -> dict:
    columns, *data = list(csv.reader(content.decode().splitlines())) or [[]]
    return {"columns": columns, "data": data}
