"""A project to look at, and the browser to do it with."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import copy_project
from tests.integration.pages import CHROMIUM, DEMO, DRIVER, LEVITS, PATIENCE_S, RUNS
from tests.integration.project import environment, snakemake
from tests.tracking.conftest import write_epochs
from workflow.campaign import benchmarks, specs
from workflow.campaign.config import Config
from workflow.storage import records

EPOCHS = 12


def train(config: Config, root: Path, run: str, top1: float) -> None:
    spec = specs.train_spec(config, "demo", run)
    attempt = root / DEMO / "runs" / run / "attempts" / "1"
    specs.write_spec(attempt / "spec.json", spec)
    write_epochs(attempt, 1, EPOCHS)
    results = {"top1": top1, "epochs": EPOCHS, "val_images": 599, "train_s": 48.0}
    record = records.make(spec, results, time.time() - 200, device="a processor")
    for path in (attempt / "record.json", attempt.parent.parent / "train.json"):
        records.write_json(path, record)


def measure(config: Config, root: Path, section: str) -> None:
    point = benchmarks.throughput_configuration(config, "demo", section)
    spec = benchmarks.throughput_spec(config, "demo", section, point)
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
    path = root / benchmarks.throughput_path(DEMO, section, point)
    records.write_json(path, records.make(spec, results, 0.0))
    specs.write_spec(path.with_suffix("") / "spec.json", spec)


@pytest.fixture(scope="session")
def project(tmp_path_factory) -> Path:
    """A copy of the project with the demo's records, its table, figure, ledger and report."""
    root = tmp_path_factory.mktemp("browser")
    copy_project(root)
    config = Config.load()
    for place, run in enumerate((*RUNS, *LEVITS)):
        train(config, root, run, 91.25 + place)
    for section in ("deit_tiny", *config.request("demo", "table2")["time"]):
        measure(config, root, section)
    items = [f"{DEMO}/table1.csv", f"{DEMO}/pareto.png", f"{DEMO}/claims.partial.csv"]
    for item in items:
        command = [sys.executable, "-m", "workflow.paper", "make", item]
        subprocess.run(command, cwd=root, env=environment(root), check=True)
    snakemake(root, *items, "--report", f"{DEMO}/report.html")
    return root


@pytest.fixture(scope="session")
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
