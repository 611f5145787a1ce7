"""A table for people, as Markdown and as a page: the same cells, and none is taken for HTML."""

import re
from dataclasses import replace

import pytest

from workflow.paper.sheet import WIDTH, Sheet


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
    assert "1.50 <span class='interval'>(1 to 2)</span>" in page
    to_the_right = ["right" in style for style in re.findall("<td([^>]*)>", page)]
    assert to_the_right == [False, True, False] * 2  # of the name, the number and the verdict
    assert "<ul><li>seen on a &lt; b</li></ul>" in page
    assert "<ol><li>first</li><li>second</li></ol>" in page
    assert "http" not in page  # nothing is fetched from elsewhere


def test_a_page_and_markdown_have_no_empty_columns(sheet):
    rows = [[*row, "-", ""] for row in sheet.rows]
    wider = replace(sheet, head=[*sheet.head, "nothing", "notes"], rows=rows)
    assert wider.markdown() == sheet.markdown()
    assert wider.page("claims") == sheet.page("claims")
    assert "nothing" in replace(wider, rows=[]).markdown()


def test_a_page_wraps_long_cells_and_no_short_ones():
    page = Sheet(["batch_size", "claim"], [["64", "a claim in many more words"]], left=0).page("claims")
    assert "<span class='short'>64</span>" in page
    assert "<span class='long'>a claim in many more words</span>" in page
    assert "batch size" in page


def test_a_terminal_has_it_without_empty_columns(sheet):
    rows = [[*row, "-"] for row in sheet.rows]
    shown = replace(sheet, head=[*sheet.head, "nothing"], rows=rows).terminal()
    assert [" ".join(line.split()) for line in shown.splitlines() if not line.startswith("---")] == [
        "2 claims.", "", "name n verdict", "<b> 1.50 (1 to 2) refuted", "c 2 confirmed", "",
        "- seen on a < b", "", "1. first", "2. second",
    ]  # fmt: skip


def test_a_terminal_shows_all_words_in_lines_that_fit():
    claims = ["a claim in many words " * 10, "another that is short"]
    rows = [["confirmed", claim, "12.5", "13.1 (12 to 14)"] for claim in claims]
    head = ["verdict", "claim", "the printed number", "ours"]
    shown = Sheet(head, rows, left=2, lead="words " * 30, remarks=["a remark " * 30], notes=["a note " * 30]).terminal()
    assert WIDTH - 10 < max(map(len, shown.splitlines())) <= WIDTH
    assert shown.count("confirmed") == shown.count("13.1 (12 to 14)") == 2
    for word, number in (("words", 40), ("remark", 30), ("note", 30)):
        assert len(re.findall(rf"\b{word}\b", shown)) == number


def test_a_terminal_shows_a_sheet_without_rows():
    assert Sheet(["a"], [], remarks=["nothing was measured"]).terminal() == "- nothing was measured\n"
