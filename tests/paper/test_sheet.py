"""A table for people, as Markdown and as a page: the same cells, and none is taken for HTML."""

import re

import pytest

from workflow.paper.sheet import Sheet


@pytest.fixture
def sheet() -> Sheet:
    return Sheet(
        ["name", "n", "verdict"], [["<b>", "1.50 (1 to 2)", "refuted"], ["c", "2", "confirmed"]],
        left=1, lead="2 claims.", remarks=["seen on a < b"], notes=["first", "second"],
    )  # fmt: skip


def test_markdown_is_aligned_and_has_all_of_it(sheet):
    assert sheet.markdown() == (
        "2 claims.\n\n"
        "| name   |             n |   verdict |\n"
        "|:-------|--------------:|----------:|\n"
        "| <b>    | 1.50 (1 to 2) |   refuted |\n"
        "| c      |             2 | confirmed |\n\n"
        "- seen on a < b\n\n1. first\n2. second\n"
    )


def test_a_page_has_the_same_cells_as_text(sheet):
    page = sheet.page("claims")
    cells = re.findall("<t[hd][^>]*>(.*?)</t[hd]>", page)
    assert [re.sub("<.*?>", "", cell).strip() for cell in cells] == [
        "name", "n", "verdict", "&lt;b&gt;", "1.50 (1 to 2)", "refuted", "c", "2", "confirmed",
    ]  # fmt: skip
    assert "<span class='refuted'>refuted</span>" in page
    assert "<ul><li>seen on a &lt; b</li></ul>" in page
    assert "<ol><li>first</li><li>second</li></ol>" in page
    assert "http" not in page  # nothing is fetched from elsewhere
