"""Files that a reader never sees half written."""

from pathlib import Path


def replace(path: Path, content: str) -> None:
    """Replace the file only when the content is written whole."""
    beside = path.with_name(f".{path.name}")
    beside.write_text(content, encoding="utf-8")
    beside.replace(path)
