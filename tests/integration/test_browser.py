"""What a user sees in a browser: MLflow's UI on the mirror's database, and the report as a file.

The runs are made up, as the mirror's tests make them; the pages are Debian's Chromium's. With
EVOVIT_SCREENSHOTS=<folder> each page is kept there as a picture.
"""

import contextlib
import csv
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path

import pytest

from tests.conftest import copy_project
from tests.integration.project import environment, snakemake
from tests.mirror.conftest import write_epochs
from workflow import records, runs
from workflow.campaign import Config

CHROMIUM, DRIVER = (shutil.which(name) for name in ("chromium", "chromedriver"))
pytestmark = [
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
EPOCHS = 12
PATIENCE_S = 180
SHOWN = {"top1": 2, "top1_gain": 2, "top1_paper": 1, "top1_delta": 1, "throughput": 1,
         "speedup_pct": 1, "ceiling_macs_pct": 1, "ceiling_roofline_pct": 1, "macs_g": 2,
         "throughput_paper": 0, "speedup_pct_paper": 1, "speedup_delta": 1}  # fmt: skip  # digits
CURVES = """
    return [...document.querySelectorAll('.js-plotly-plot .scatterlayer path.js-line')]
        .map(line => line.getAttribute('d'));"""


def train(config: Config, root: Path, run: str, top1: float) -> None:
    spec = runs.train_spec(config, "demo", run)
    attempt = root / DEMO / "runs" / run / "attempts" / "1"
    runs.write_spec(attempt / "spec.json", spec)
    write_epochs(attempt, 1, EPOCHS)
    results = {"top1": top1, "epochs": EPOCHS, "val_images": 599, "train_s": 48.0}
    record = records.make(spec, results, time.time() - 200, device="a processor")
    for path in (attempt / "record.json", attempt.parent.parent / "train.json"):
        records.write_json(path, record)


def measure(config: Config, root: Path, section: str) -> None:
    point = runs.throughput_point(config, "demo", section)
    spec = runs.throughput_spec(config, "demo", section, point)
    methods = []
    for place, model in enumerate(spec["models"]):
        ratio = 1 + place / 10
        method = {"run": model["run"], "images_per_s": 80.25 * ratio, "speedup": ratio}
        method |= {"speedup_interval": [ratio, ratio], "rounds": [80.25 * ratio] * 5}
        size = model["kwargs"].get("img_size", 224)
        method |= {"macs_g": 1.25 / ratio, "params_m": 5.7, "resolution": size, "suspect": []}
        method |= {"ceilings": {"macs": 1.5, "roofline": 1.6}, "weights": "random"}
        methods.append(method | {"profile": model.get("profile"), "out_of_memory": False})
    results = {"device": "a processor", "methods": methods, "suspect": []}
    path = root / runs.throughput_path(DEMO, section, point)
    records.write_json(path, records.make(spec, results, 0.0))
    runs.write_spec(path.with_suffix("") / "spec.json", spec)


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A copy of the project with the demo's records, its table, figure, ledger and report."""
    root = tmp_path_factory.mktemp("browser")
    copy_project(root)
    config = Config.load()
    for place, run in enumerate((*RUNS, *LEVITS)):
        train(config, root, run, 91.25 + place)
    for section in ("deit_tiny", *config.wanted("demo", "table2")["time"]):
        measure(config, root, section)
    items = {f"{DEMO}/table1.csv": "tables", f"{DEMO}/pareto.png": "figures",
             f"{DEMO}/claims.partial.csv": "claims"}  # fmt: skip
    for item, module in items.items():
        command = [sys.executable, "-m", f"workflow.paper.{module}", "--root", DEMO]
        subprocess.run([*command, "--output", item], cwd=root, env=environment(root), check=True)
    snakemake(root, *items, "--report", f"{DEMO}/report.html")
    return root


@pytest.fixture(scope="module")
def browser():
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                 "--window-size=1500,1100"):  # fmt: skip
        options.add_argument(flag)
    # nothing beyond this machine is to be reached
    options.add_argument("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_page_load_timeout(PATIENCE_S)
    yield driver
    driver.quit()


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


def show_picture(browser, picture: str) -> None:
    """Wait until a figure is drawn in all its pixels."""
    deadline = time.monotonic() + PATIENCE_S
    while not browser.execute_script("""
        return [...document.images].some(one => one.complete && one.naturalWidth > 2000);"""):
        assert time.monotonic() < deadline, "no figure is shown"
        time.sleep(0.5)
    keep(browser, picture)


def test_the_report_opens_and_its_table_has_the_csvs_numbers(project, browser):
    browser.get((project / DEMO / "report.html").as_uri())
    text_with(browser, "Evo-ViT, reproduced", "authors' code", picture="report")
    click(browser, "Tables")
    text_with(browser, "table1", picture="report-list")
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
    text = text_with(browser, "not run at this scale", picture="report-claims")
    assert "confirmed" in text
    assert "throughput/deit_tiny" in text


def test_the_report_shows_a_figure(project, browser):
    browser.get((project / DEMO / "report.html").as_uri())
    click(browser, "Figures")
    text_with(browser, "pareto", picture="report-figures")
    browser.execute_script("document.querySelector('tbody a').click()")
    show_picture(browser, "report-pareto")


def test_the_report_names_command_and_runs(project, browser):
    browser.get((project / DEMO / "report.html").as_uri())
    click(browser, "Tables")
    text_with(browser, "table1", picture="report-tables")
    browser.execute_script("document.querySelectorAll('tbody a')[1].click()")
    text = text_with(browser, "Trained for it", picture="report-caption")
    assert "--profile demo results/demo/table1.csv" in text
    assert "Trained for it: deit_tiny, ps_deit_tiny" in text
    page = (project / DEMO / "report.html").read_text()
    assert not re.search(r'(src|href)="https?://', page)  # nothing is fetched from elsewhere


@pytest.fixture(scope="module")
def mlflow_ui(project):
    """`make ui`, on a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = environment(project) | {"MLFLOW_PORT": str(port), "MLFLOW_WORKERS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "workflow.login.ui"], cwd=project, env=given,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + PATIENCE_S
        while not answers(f"{address}/health"):
            assert process.poll() is None, "the UI ended"
            assert time.monotonic() < deadline, "the UI does not start"
            time.sleep(0.5)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


def held(project: Path) -> tuple[str, dict]:
    """The demo's experiment, and its runs by name."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{project}/mlflow.db")
    experiment = client.get_experiment_by_name("demo").experiment_id
    return experiment, {run.info.run_name: run for run in client.search_runs([experiment])}


def test_every_run_is_listed_and_opens_with_its_curve(project, browser, mlflow_ui):
    experiment, found = held(project)
    browser.get(f"{mlflow_ui}/#/experiments/{experiment}?workflowType=machine_learning")
    text_with(browser, *RUNS, "table1", "pareto", picture="mlflow-runs")
    evo = found["evo_deit_tiny"].info.run_id
    page = f"{mlflow_ui}/#/experiments/{experiment}/runs/{evo}"
    browser.get(page)
    text = text_with(browser, "Training in the setting", "Again:", "top1", picture="mlflow-run")
    assert "snakemake results/demo/runs/evo_deit_tiny/train.json" in text
    browser.get(f"{page}/model-metrics")
    text_with(browser, "top1", picture="mlflow-metrics")
    deadline = time.monotonic() + PATIENCE_S
    # charts come one by one; of points in a straight line Plotly draws a single segment
    while not any("L" in path for path in browser.execute_script(CURVES)):
        assert time.monotonic() < deadline, "no curve is drawn"
        time.sleep(0.5)
    keep(browser, "mlflow-curves")


def test_runs_are_found_by_their_tags(project, browser, mlflow_ui):
    experiment, _ = held(project)
    wanted = urllib.parse.quote("tags.backbone = 'DeiT-T' and tags.kind = 'train'")
    browser.get(f"{mlflow_ui}/#/experiments/{experiment}/runs?searchFilter={wanted}")
    text = text_with(browser, *RUNS, "6 matching runs", picture="mlflow-found")
    assert "claims.partial" not in text


def test_two_runs_are_compared(project, browser, mlflow_ui):
    experiment, found = held(project)
    chosen = [found[name].info.run_id for name in ("deit_tiny", "evo_deit_tiny")]
    query = {"runs": json.dumps(chosen), "experiments": json.dumps([experiment])}
    browser.get(f"{mlflow_ui}/#/compare-runs?{urllib.parse.urlencode(query)}")
    compared = ("Comparing 2 Runs", "deit_tiny", "evo_deit_tiny", "top1", "model.kwargs", "96.25")
    text_with(browser, *compared, picture="mlflow-compared")


def test_a_table_is_an_artifact_that_can_be_looked_at(project, browser, mlflow_ui):
    experiment, found = held(project)
    table = found["table1"].info.run_id
    browser.get(f"{mlflow_ui}/#/experiments/{experiment}/runs/{table}/artifacts")
    text_with(browser, "table1.csv", "table1.md", picture="mlflow-artifacts")
    click(browser, "table1.html")
    deadline = time.monotonic() + PATIENCE_S
    while not browser.find_elements("tag name", "iframe"):
        assert time.monotonic() < deadline, "the page is not shown"
        time.sleep(0.5)
    keep(browser, "mlflow-table")
    browser.switch_to.frame(browser.find_element("tag name", "iframe"))
    text_with(browser, "timed here: images/s", "Evo-ViT", picture="mlflow-table-itself")


def test_a_figure_is_an_artifact_that_can_be_looked_at(project, browser, mlflow_ui):
    experiment, found = held(project)
    figure = found["pareto"].info.run_id
    browser.get(f"{mlflow_ui}/#/experiments/{experiment}/runs/{figure}/artifacts")
    text_with(browser, "pareto.svg", "pareto.csv", picture="mlflow-figure-artifacts")
    click(browser, "pareto.png")
    show_picture(browser, "mlflow-figure")
