"""Looking at pages in Debian's Chromium: waiting for what is to be there, clicking, keeping.

With EVOVIT_SCREENSHOTS=<folder> each page is kept there as a picture.
"""

import contextlib
import os
import shutil
import time
from pathlib import Path

import pytest

CHROMIUM, DRIVER = (shutil.which(name) for name in ("chromium", "chromedriver"))
NEEDED = [
    pytest.mark.integration,
    pytest.mark.skipif(
        not (CHROMIUM and DRIVER) and "BROWSER_IS_HERE" not in os.environ,
        reason="no browser: apt-get install chromium chromium-driver",
    ),
]
RUNS = ("deit_tiny", "ps_deit_tiny", "dynamic_deit_tiny", "svite_deit_tiny", "ia_red2_deit_tiny",
        "evo_deit_tiny")  # fmt: skip
LEVITS = ("levit_128s", "evo_levit_128s")  # the demo's figure of Tables 1 and 2 has them, too
DEMO = "results/demo"
PATIENCE_S = 180


def text_with(browser, *wanted: str, picture: str) -> str:
    """The page's text, once all of it is there."""
    deadline, text = time.monotonic() + PATIENCE_S, ""
    while time.monotonic() < deadline:
        with contextlib.suppress(Exception):  # the page is being built anew
            text = browser.execute_script("return document.body.innerText")
        if all(one in text for one in wanted):
            break
        time.sleep(0.5)
    keep(browser, picture)
    missing = [one for one in wanted if one not in text]
    assert not missing, f"{missing} not in {browser.current_url}: {text[:3000]}"
    return text


def keep(browser, name: str) -> None:
    if folder := os.environ.get("EVOVIT_SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        time.sleep(1)  # what is drawn after the text
        browser.save_screenshot(f"{folder}/{name}.png")


def click(browser, text: str) -> None:
    """The innermost element with this text."""
    script = """
        const found = [...document.querySelectorAll('a, button, td, span, div, li')]
            .filter(one => one.innerText && one.innerText.trim() === arguments[0]);
        if (found.length) found[found.length - 1].click();
        return found.length;"""
    deadline = time.monotonic() + PATIENCE_S
    while not browser.execute_script(script, text):
        assert time.monotonic() < deadline, f"nothing says {text}"
        time.sleep(0.5)


def show_picture(browser, picture: str) -> None:
    """Wait until a figure is drawn in all its pixels."""
    deadline = time.monotonic() + PATIENCE_S
    while not browser.execute_script("""
        return [...document.images].some(one => one.complete && one.naturalWidth > 2000);"""):
        assert time.monotonic() < deadline, "no figure is shown"
        time.sleep(0.5)
    keep(browser, picture)
