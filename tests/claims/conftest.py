"""Records made up for the ledger of claims."""

import pytest

from tests.claims.ledger import timer
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
    def write(setting: str = "imagenet", **accuracies) -> None:
        for run, top1 in accuracies.items():
            spec = specs.train_spec(config, setting, run)
            place = config.settings[setting]["results"]
            results = {"top1": top1, "val_images": 50000}
            records.write_json(f"{place}/runs/{run}/train.json", records.make(spec, results, 0.0))

    return write
