"""A table's Markdown as a page: the same cells, and nothing that a cell says is taken for HTML."""

import re

from workflow.paper import page

TABLE = """2 claims.

| name |            n | verdict |
| ---: | -----------: | ------: |
|  <b> | 1.5 (1 to 2) | refuted |
"""


def test_cells_numbers_and_verdicts():
    found = page.render("claims", TABLE)
    assert re.findall("<th>(.*?)</th>", found) == ["name", "n", "verdict"]
    assert "<td>&lt;b&gt;</td>" in found
    assert "<td class='number'>1.5 (1 to 2)</td>" in found
    assert "<td class='refuted'>refuted</td>" in found
    assert "<p>2 claims.</p>" in found


def test_lists_keep_their_order_and_kind():
    found = page.render("x", "- one\n- two\n\n1. first\n2. second\n")
    assert "<ul><li>one</li><li>two</li></ul>" in found
    assert "<ol><li>first</li><li>second</li></ol>" in found


def test_nothing_is_fetched_from_elsewhere():
    assert "http" not in page.render("x", TABLE)
