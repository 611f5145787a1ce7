"""What a user sees of the report, one HTML file; its runs are made up (conftest.py)."""

import csv
import re
import time

from tests.integration.pages import DEMO, NEEDED, PATIENCE_S, click, show_picture, text_with

pytestmark = NEEDED
SHOWN = {"top1": 2, "top1_gain": 2, "top1_paper": 1, "top1_delta": 1, "throughput": 1,
         "speedup_pct": 1, "ceiling_macs_pct": 1, "ceiling_roofline_pct": 1, "macs_g": 2,
         "throughput_paper": 0, "speedup_pct_paper": 1, "speedup_delta": 1}  # fmt: skip  # digits


def show_result(browser) -> None:
    """The first result of a category's list, in the frame beside it."""
    deadline = time.monotonic() + PATIENCE_S
    while not browser.execute_script("""
        const eye = document.querySelector('tbody a');
        if (eye) eye.click();
        return document.querySelector('iframe') !== null;"""):
        assert time.monotonic() < deadline, "no result is shown"
        time.sleep(0.5)
    browser.switch_to.frame(browser.find_element("tag name", "iframe"))


def test_the_report_opens_and_its_table_has_the_csvs_numbers(project, browser):
    browser.get((project / DEMO / "report.html").as_uri())
    text_with(browser, "Evo-ViT, reproduced", "authors' code", picture="report")
    click(browser, "Tables")
    text_with(browser, "Table 1: token reduction on DeiT", picture="report-list")
    show_result(browser)
    with open(project / DEMO / "table1.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    text = text_with(browser, "printed (V100): images/s", picture="report-table1")
    lines = {tuple(line.split()[:3]): line.split() for line in text.splitlines()}
    assert sum(bool(row["run"]) for row in rows) == 6
    for row in rows:
        cells = lines[row["method"], row["backbone"], row["resolution"]]
        for column, digits in SHOWN.items():
            if row[column]:
                assert f"{float(row[column]):.{digits}f}" in cells, (column, cells)

    browser.get((project / DEMO / "report.html").as_uri())
    click(browser, "Claims")
    show_result(browser)
    text = text_with(browser, "On ImageNet: none judged", picture="report-claims")
    assert "confirmed" in text
    assert "throughput/deit_tiny" in text


def test_the_report_shows_a_figure(project, browser):
    browser.get((project / DEMO / "report.html").as_uri())
    click(browser, "Figures beyond the paper")
    text_with(browser, "Accuracy against images/s", picture="report-figures")
    browser.execute_script("document.querySelector('tbody a').click()")
    show_picture(browser, "report-pareto")


def test_the_report_names_command_and_runs(project, browser):
    browser.get((project / DEMO / "report.html").as_uri())
    click(browser, "Tables")
    text_with(browser, "Table 1: token reduction on DeiT", picture="report-tables")
    browser.execute_script("document.querySelectorAll('tbody a')[1].click()")
    text = text_with(browser, "Trained for it", picture="report-caption")
    assert "--profile demo results/demo/table1.csv" in text
    assert "Trained for it: deit_tiny, ps_deit_tiny" in text
    page = (project / DEMO / "report.html").read_text()
    assert not re.search(r'(src|href)="https?://', page)  # nothing is fetched from elsewhere
