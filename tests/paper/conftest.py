"""Records made up for tables, figures and the ledger of claims."""

import pytest

from tests.paper.ledger import timer
from workflow.campaign import specs
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
