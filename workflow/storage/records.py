"""A record: the JSON of numbers that a job leaves, with its spec, hash and provenance.

Standard library and yaml only: written on the node, verified and published by the launcher, read
by tables and figures.
"""

import hashlib
import json
import os
import platform
import time
from pathlib import Path

from workflow.campaign import specs
from workflow.storage import files, provenance

ROOT = provenance.ROOT


class RecordError(RuntimeError):
    """A record is missing, damaged or of another spec; the message names file and remedy."""


def write_json(path: str | Path, content: dict) -> None:
    """Write whole and flush, so that a reader never sees half a file."""
    with files.replacing(Path(path)) as beside, open(beside, "w", encoding="utf-8") as stream:
        json.dump(content, stream, indent=1)
        stream.write("\n")
        stream.flush()
        os.fsync(stream.fileno())


def read(path: str | Path, expected_hash: str | None = None) -> dict:
    """Read a record and check that it is whole and, where given, of the expected spec.

    Raises RecordError for a missing or damaged file and for another spec.
    """
    try:
        record = json.loads(Path(path).read_text())
        found = record["spec_hash"]
        whole = specs.spec_hash(record["spec"]) == found and "results" in record
    except FileNotFoundError:
        raise RecordError(f"{path} is missing; ask snakemake for it by that name.") from None
    except (json.JSONDecodeError, KeyError, TypeError):
        whole = False
    if not whole:
        raise RecordError(f"{path} is damaged; delete it and ask snakemake for it again.")
    if expected_hash not in (None, found):
        raise RecordError(
            f"{path} is of spec {found}, but workflow/config/ now says {expected_hash}; ask snakemake for it again."
        )
    return record


def make(spec: dict, results: dict, started: float, code: list[dict] | None = None, **facts) -> dict:
    """A record of `results` for `spec`.

    Args:
        started: the job's first time.time().
        code: the versions of the code that made the results, in their order, if there may be
            several (workflow.storage.provenance); mostly this process's alone.
        facts: what else its provenance says.
    """
    return {
        "kind": spec["kind"],
        "spec_hash": specs.spec_hash(spec),
        "spec": spec,
        "results": results,
        "provenance": {
            **provenance.summary(code or [provenance.running()]),
            "versions": versions(),
            "python": platform.python_version(),
            "host": platform.node(),
            "started": started,
            "wall_s": time.time() - started,
            **facts,
        },
    }


def versions() -> dict[str, str]:
    """The versions of the packages that this process computes with."""
    return provenance.running()["versions"]


def sha256(path: str | Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
