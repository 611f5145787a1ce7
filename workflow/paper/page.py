"""The Markdown of a table as an HTML page that stands alone: a report shows pages, of a CSV only a
link."""

import html
import re

STYLE = """
body { font: 13px/1.4 system-ui, sans-serif; color: #1e293b; margin: 1.2em; }
table { border-collapse: collapse; margin: .8em 0; }
th, td { border-bottom: 1px solid #e2e8f0; padding: .25em .55em; vertical-align: top; }
th, td { text-align: left; }
th { background: #f1f5f9; position: sticky; top: 0; }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
tr:hover td { background: #f8fafc; }
td.confirmed { color: #047857; font-weight: 600; }
td.refuted { color: #b91c1c; font-weight: 600; }
td.not { color: #64748b; }
"""
NUMBER = re.compile(r"-?[\d.]+( [/(].*)?|-")
VERDICTS = {"confirmed": "confirmed", "refuted": "refuted", "not run at this scale": "not"}
LISTS = {"ul": re.compile(r"- (.*)"), "ol": re.compile(r"\d+\. (.*)")}


def render(title: str, markdown: str) -> str:
    """Of the little Markdown that markdown.py and claims.py write: tables, lists, paragraphs."""
    blocks = "".join(map(_block, markdown.strip().split("\n\n")))
    head = f"<meta charset='utf-8'><title>{html.escape(title)}</title><style>{STYLE}</style>"
    return f"<!doctype html>\n<html lang='en'><head>{head}</head><body>{blocks}</body></html>\n"


def _block(block: str) -> str:
    lines = block.splitlines()
    if lines[0].startswith("|"):
        head, _, *rows = ([cell.strip() for cell in line[1:-1].split("|")] for line in lines)
        cells = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
        body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>\n" for row in rows)
        return f"<table><thead><tr>{cells}</tr></thead>\n<tbody>{body}</tbody></table>\n"
    found = []
    for line in lines:
        kind = next((kind for kind, mark in LISTS.items() if mark.fullmatch(line)), "p")
        text = LISTS[kind].fullmatch(line)[1] if kind in LISTS else line
        if not found or found[-1][0] != kind:
            found.append((kind, []))
        found[-1][1].append(html.escape(text))
    return "".join(_lines(kind, texts) for kind, texts in found)


def _lines(kind: str, texts: list[str]) -> str:
    if kind == "p":
        return f"<p>{' '.join(texts)}</p>\n"
    items = "".join(f"<li>{text}</li>" for text in texts)
    return f"<{kind}>{items}</{kind}>\n"


def _cell(cell: str) -> str:
    known = VERDICTS.get(cell, "number" if NUMBER.fullmatch(cell) else "")
    opened = f"<td class='{known}'>" if known else "<td>"
    return f"{opened}{html.escape(cell)}</td>"
