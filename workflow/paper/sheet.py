"""A table for people with notes below it: as Markdown that also reads well as plain text, and as an HTML page.

Snakemake's report shows pages; of a CSV it shows only a link.
"""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from tabulate import tabulate

from workflow.storage import files

STYLE = """
body { font: 13px/1.4 system-ui, sans-serif; color: #1e293b; margin: 1.2em; }
table { border-collapse: collapse; margin: .8em 0; }
th, td { border-bottom: 1px solid #e2e8f0; padding: .25em .55em; vertical-align: top; }
th { background: #f1f5f9; position: sticky; top: 0; }
td { font-variant-numeric: tabular-nums; max-width: 24em; overflow-wrap: break-word; }
tr:hover td { background: #f8fafc; }
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

    def _table(self, kind: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
        sides = ["left" if column < self.left else "right" for column in range(len(head))]
        return tabulate(rows, head, kind, disable_numparse=True, colalign=sides)

    def markdown(self) -> str:
        """Return the whole sheet as Markdown."""
        parts = [self.lead, self._table("pipe", self.head, self.rows)]
        parts.append("\n".join(f"- {text}" for text in self.remarks))
        parts.append("\n".join(f"{number}. {text}" for number, text in enumerate(self.notes, 1)))
        return "\n\n".join(filter(None, parts)) + "\n"

    def page(self, title: str) -> str:
        """Return the whole sheet as an HTML page that needs no other file."""
        head = [html.escape(text) for text in self.head]
        rows = [[_marked(html.escape(cell)) for cell in row] for row in self.rows]
        body = f"<p>{html.escape(self.lead)}</p>" if self.lead else ""
        body += self._table("unsafehtml", head, rows)
        for kind, texts in (("ul", self.remarks), ("ol", self.notes)):
            items = "".join(f"<li>{html.escape(text)}</li>" for text in texts)
            body += f"\n<{kind}>{items}</{kind}>" if items else ""
        top = f"<meta charset='utf-8'><title>{html.escape(title)}</title><style>{STYLE}</style>"
        return f"<!doctype html>\n<html lang='en'><head>{top}</head><body>{body}</body></html>\n"


def _marked(cell: str) -> str:
    """Return a cell's HTML, a verdict in its colour."""
    return f"<span class='{cell}'>{cell}</span>" if cell in ("confirmed", "refuted") else cell


def write(path: Path, frame: pd.DataFrame, sheet: Sheet) -> None:
    """Write the frame as CSV, and the sheet as Markdown and HTML of the same name."""
    files.write(path, frame.to_csv(index=False))
    files.write(path.with_suffix(".md"), sheet.markdown())
    files.write(path.with_suffix(".html"), sheet.page(path.stem))
