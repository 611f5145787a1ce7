"""A record: the JSON of numbers that a job leaves, with its spec, hash and provenance.

The node writes it, the launcher verifies and publishes it, tables and figures read it. Standard library and yaml only.
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
    """Write the whole file and flush it, so that a reader never sees half of it."""
    with files.replacing(Path(path)) as temporary, open(temporary, "w", encoding="utf-8") as stream:
        json.dump(content, stream, indent=1)
        stream.write("\n")
        stream.flush()
        os.fsync(stream.fileno())


def read(path: str | Path, expected_hash: str | None = None) -> dict:
    """Return a record, after a check that it is whole and, if `expected_hash` is given, of that spec.

    Raises RecordError for a missing or damaged file and for another spec.
    """
    try:
        record = json.loads(Path(path).read_text())
        spec_hash = record["spec_hash"]
        whole = specs.spec_hash(record["spec"]) == spec_hash and "results" in record
    except FileNotFoundError:
        raise RecordError(f"{path} is missing; ask snakemake for it by that name.") from None
    except (json.JSONDecodeError, KeyError, TypeError):
        whole = False
    if not whole:
        raise RecordError(f"{path} is damaged; delete it and ask snakemake for it again.")
    if expected_hash not in (None, spec_hash):
        raise RecordError(
            f"{path} is of spec {spec_hash}, but workflow/config/ now says {expected_hash}; ask snakemake for it again."
        )
    return record


def make(spec: dict, results: dict, started: float, code: list[dict] | None = None, **facts) -> dict:
    """Return a record of `results` for `spec`.

    Args:
        started: the job's first time.time().
        code: the versions of the code that made the results, in their order, if there may be
            several (workflow.storage.provenance); by default only this process's.
        facts: what else its provenance says.
    """
    return {
        "kind": spec["kind"],
        "spec_hash": specs.spec_hash(spec),
        "spec": spec,
        "results": results,
        "provenance": {
            **provenance.summary(code or [provenance.running()]),
            "versions": provenance.running()["versions"],
            "python": platform.python_version(),
            "host": platform.node(),
            "started": started,
            "wall_s": time.time() - started,
            **facts,
        },
    }


def sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file's content, as hexadecimal digits."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
