"""What a user sees in MLflow's UI after a sync; its runs are made up (conftest.py)."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path

import pytest

from tests.integration.pages import (
    NEEDED,
    PATIENCE_S,
    RUNS,
    click,
    keep,
    show_picture,
    text_with,
)
from tests.integration.project import environment

pytestmark = NEEDED
CURVES = """
    return [...document.querySelectorAll('.js-plotly-plot .scatterlayer path.js-line')]
        .map(line => line.getAttribute('d'));"""


@pytest.fixture(scope="module")
def mlflow_ui(project):
    """`make ui`, on a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = environment(project) | {"MLFLOW_PORT": str(port), "MLFLOW_WORKERS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "workflow.tracking", "--ui"], cwd=project, env=given,
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


def open_artifact(browser, project, ui: str, name: str) -> None:
    """Click on a file of an item's run, whose other files are listed beside it."""
    experiment, found = held(project)
    item, _, suffix = name.partition(".")
    run = found[item].info.run_id
    browser.get(f"{ui}/#/experiments/{experiment}/runs/{run}/artifacts")
    beside = {"html": "md", "png": "svg"}[suffix]
    text_with(browser, f"{item}.csv", f"{item}.{beside}", picture=f"mlflow-{item}-artifacts")
    click(browser, name)


def test_a_table_is_an_artifact_that_can_be_looked_at(project, browser, mlflow_ui):
    open_artifact(browser, project, mlflow_ui, "table1.html")
    deadline = time.monotonic() + PATIENCE_S
    while not browser.find_elements("tag name", "iframe"):
        assert time.monotonic() < deadline, "the page is not shown"
        time.sleep(0.5)
    keep(browser, "mlflow-table")
    browser.switch_to.frame(browser.find_element("tag name", "iframe"))
    text_with(browser, "timed here: images/s", "Evo-ViT", picture="mlflow-table-itself")


def test_a_figure_is_an_artifact_that_can_be_looked_at(project, browser, mlflow_ui):
    open_artifact(browser, project, mlflow_ui, "pareto.png")
    show_picture(browser, "mlflow-figure")
