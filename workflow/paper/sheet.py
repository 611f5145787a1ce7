"""A table for people with notes below it: as Markdown, as an HTML page, and as plain text for a terminal.

Snakemake's report shows pages; of a CSV it shows only a link.
"""

import html
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from tabulate import tabulate

from workflow.storage import files

WIDTH = 100  # columns of a terminal that a sheet must fit into
NARROWEST = 8  # column of a table, in characters
SHORT = 18  # characters of a cell that a page does not wrap
EMPTY = ("-", "")  # cells without a value
NUMBER = re.compile(r"[-+]?\d")  # what the cells of a column of numbers begin with
INTERVAL = re.compile(r"(\S+) (\([^()]*\))")  # a number with its interval in brackets
COUNTS = (
    "batch_size",
    "timed_batch_size",
    "resolution",
    "seeds",
    "paired_seeds",
    "val_images",
    "scenes",
    "patches",
)  # columns of whole numbers

STYLE = """
body { font: 13px/1.4 system-ui, sans-serif; color: #1e293b; margin: 1.2em; }
table { border-collapse: collapse; margin: .8em 0; }
th, td { border-bottom: 1px solid #e2e8f0; padding: .25em .4em; vertical-align: top; }
th { background: #f1f5f9; position: sticky; top: 0; }
td { font-variant-numeric: tabular-nums; max-width: 24em; overflow-wrap: break-word; }
tr:hover td { background: #f8fafc; }
.short, .interval { white-space: nowrap; }
.interval { color: #64748b; font-size: .92em; }
.long { display: inline-block; min-width: 14em; }
.confirmed { color: #047857; font-weight: 600; }
.refuted { color: #b91c1c; font-weight: 600; }
"""


@dataclass(frozen=True)
class Sheet:
    """A table of texts.

    Attributes:
        head, rows: the headings and the cells.
        left: how many of the first columns hold words, not numbers.
        lead: a sentence above the table.
        remarks, notes: a list and a numbered list below it.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: int = 0
    lead: str = ""
    remarks: Sequence[str] = ()
    notes: Sequence[str] = ()

    def _filled(self) -> list[int]:
        """Return the columns that say something: those of words, and of the others those with a value in some row."""
        return [
            column
            for column in range(len(self.head))
            if column < self.left or not self.rows or any(row[column] not in EMPTY for row in self.rows)
        ]

    def markdown(self) -> str:
        """Return the whole sheet as Markdown, without columns that are empty."""
        columns = self._filled()
        head = [self.head[column] for column in columns]
        rows = [[row[column] for column in columns] for row in self.rows]
        sides = ["left" if column < self.left else "right" for column in columns]
        parts = [self.lead, tabulate(rows, head, "pipe", disable_numparse=True, colalign=sides)]
        parts.append("\n".join(f"- {text}" for text in self.remarks))
        parts.append("\n".join(f"{number}. {text}" for number, text in enumerate(self.notes, 1)))
        return "\n\n".join(filter(None, parts)) + "\n"

    def terminal(self) -> str:
        """Return the whole sheet as plain text, without columns that are empty, and no line longer than WIDTH."""
        parts = [textwrap.fill(self.lead, WIDTH)]
        if self.rows:
            parts.append(self._narrow_table())
        remarks = [textwrap.fill(text, WIDTH, initial_indent="- ", subsequent_indent="  ") for text in self.remarks]
        notes = [
            textwrap.fill(text, WIDTH, initial_indent=f"{number}. ", subsequent_indent="   ")
            for number, text in enumerate(self.notes, 1)
        ]
        parts += ["\n".join(remarks), "\n".join(notes)]
        return "\n\n".join(filter(None, parts)) + "\n"

    def _narrow_table(self) -> str:
        """Return the table, its widest columns wrapped until no line is longer than WIDTH."""
        columns = [column for column in range(len(self.head)) if any(row[column] not in EMPTY for row in self.rows)]
        rows = [[row[column] for column in columns] for row in (self.head, *self.rows)]
        widths = []
        for head, *cells in zip(*rows, strict=True):
            words = [head] if len(head) <= NARROWEST else head.split()  # a longer heading may be wrapped
            widths.append(max(map(len, [*words, *cells])))
        while True:
            lines = self._plain(rows, columns, widths).splitlines()
            excess = max(map(len, lines)) - WIDTH
            widest = max(widths)
            if excess <= 0 or widest <= NARROWEST:
                break
            second = sorted([NARROWEST, *widths])[-2]
            widths[widths.index(widest)] = min(widest - 1, max(second, widest - excess))
        below_head = len(self._plain(rows[:1], columns, widths).splitlines())
        rule = "-" * max(map(len, lines))
        return "\n".join(line.rstrip() for line in (*lines[:below_head], rule, *lines[below_head:]))

    def _plain(self, rows: Sequence[Sequence[str]], columns: Sequence[int], widths: Sequence[int]) -> str:
        """Return rows, the headings first, in columns of these widths at most.

        tabulate would make each column two characters wider than a heading that is not a row.
        """
        sides = ["left" if column < self.left else "right" for column in columns]
        heights = ["bottom", *["top"] * (len(rows) - 1)]
        return tabulate(rows, (), "plain", disable_numparse=True, colalign=sides, rowalign=heights, maxcolwidths=widths)

    def page(self, title: str) -> str:
        """Return the whole sheet, without columns that are empty, as an HTML page that needs no other file."""
        columns = self._filled()
        head = [html.escape(self.head[column].replace("_", " ")) for column in columns]
        numbers = [self._has_numbers(column) for column in columns]
        rows = [
            [_marked(row[column], of_numbers) for column, of_numbers in zip(columns, numbers, strict=True)]
            for row in self.rows
        ]
        sides = ["right" if of_numbers else "left" for of_numbers in numbers]
        body = f"<p>{html.escape(self.lead)}</p>" if self.lead else ""
        body += tabulate(rows, head, "unsafehtml", disable_numparse=True, colalign=sides)
        for kind, texts in (("ul", self.remarks), ("ol", self.notes)):
            items = "".join(f"<li>{html.escape(text)}</li>" for text in texts)
            body += f"\n<{kind}>{items}</{kind}>" if items else ""
        top = f"<meta charset='utf-8'><title>{html.escape(title)}</title><style>{STYLE}</style>"
        return f"<!doctype html>\n<html lang='en'><head>{top}</head><body>{body}</body></html>\n"

    def _has_numbers(self, column: int) -> bool:
        """Return whether a column is one of numbers, which are aligned at the right."""
        return column >= self.left and any(NUMBER.match(row[column]) for row in self.rows)


def _marked(cell: str, of_numbers: bool) -> str:
    """Return the HTML of a cell: a verdict in its colour, an interval in one piece, no short cell in several lines, and
    room for long words.
    """
    text = html.escape(cell)
    if cell in ("confirmed", "refuted"):
        return f"<span class='{cell}'>{text}</span>"
    interval = INTERVAL.fullmatch(text)
    if interval:
        return f"{interval[1]} <span class='interval'>{interval[2]}</span>"
    if len(cell) <= SHORT:
        return f"<span class='short'>{text}</span>" if cell else ""
    text = text.replace("/", "/<wbr>")  # a path may be wrapped there
    return text if of_numbers or " " not in cell else f"<span class='long'>{text}</span>"


def read(path: Path) -> pd.DataFrame:
    """Return the frame of a CSV that `write` wrote; a word such as "None" is no missing value."""
    return with_counts(pd.read_csv(path, keep_default_na=False, na_values=[""]))


def with_counts(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the frame with whole numbers in COUNTS, also where some are missing."""
    return frame.astype({name: "Int64" for name in COUNTS if name in frame})


def write(path: Path, frame: pd.DataFrame, sheet: Sheet) -> None:
    """Write the frame as CSV, and the sheet as Markdown and HTML of the same name."""
    files.write(path, frame.to_csv(index=False))
    files.write(path.with_suffix(".md"), sheet.markdown())
    files.write(path.with_suffix(".html"), sheet.page(path.stem))
