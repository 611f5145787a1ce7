"""Warnings about a result. Code decides by the code; people read the text.

Measurements warn of three things, and all else that they observe is data in their records:

- ``other_processes``: somebody else used the device or its processors;
- ``throttled``: the device slowed its clock down;
- ``wide_interval``: the interval of a speed-up is wider than 10 % of it (about 5 % to each side).

Older records hold sentences (`suspect`), which are read as ``unclassified``.

Standard library only: jobs write warnings, launchers and tables read them.
"""

from typing import NamedTuple


class Warning(NamedTuple):
    """One warning: a code from the list above and a sentence for people."""

    code: str
    text: str


def read(result: dict) -> list[Warning]:
    """Return the warnings of a result (a record's results, or one of its methods).

    Sentences of older records become warnings with the code ``unclassified``.
    """
    warnings = [Warning(entry["code"], entry["text"]) for entry in result.get("warnings", [])]
    return warnings + [Warning("unclassified", sentence) for sentence in result.get("suspect", [])]


def to_json(warnings: list[Warning]) -> list[dict]:
    """Return warnings as a record holds them: a list of {"code", "text"}."""
    return [warning._asdict() for warning in warnings]
