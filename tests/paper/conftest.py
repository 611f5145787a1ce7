"""Records made up for tables, figures and the ledger of claims."""

import argparse
from pathlib import Path

import pandas as pd
import pytest

from tests.paper.ledger import timer
from workflow.campaign import specs
from workflow.paper import __main__
from workflow.storage import records


@pytest.fixture
def root(tmp_path, monkeypatch) -> str:
    monkeypatch.chdir(tmp_path)
    return "results"


@pytest.fixture
def timed(config, root):
    return timer(config)


@pytest.fixture
def trained(config, root):
    """Return a function that writes trainings' records: run -> top-1."""

    def write(setting: str = "imagenet", **accuracies) -> None:
        for run, top1 in accuracies.items():
            spec = specs.train_spec(config, setting, run)
            results = {"top1": top1, "val_images": 50000}
            path = f"{config.settings[setting]['results']}/runs/{run}/train.json"
            records.write_json(path, records.make(spec, results, 0.0))

    return write


@pytest.fixture
def shown_on_a_terminal(tmp_path, monkeypatch, capsys):
    """Return a function that writes an item's CSV and returns the lines that `python -m workflow.paper print` shows."""
    monkeypatch.chdir(tmp_path)

    def show(item: str, frame: pd.DataFrame) -> list[str]:
        path = Path(f"results/demo/{item}.csv")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(frame.round(3).to_csv(index=False))
        __main__.print_table(argparse.Namespace(table=path))
        return capsys.readouterr().out.splitlines()

    return show
