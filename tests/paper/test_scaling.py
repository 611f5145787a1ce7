"""The figure of larger images: one point for each size, from the measurement of its own group."""

import pytest
from matplotlib import pyplot as plt

from workflow.campaign import benchmarks, specs
from workflow.paper.results import Records
from workflow.paper.scaling import scaling
from workflow.storage import records

SIZES = {224: 40.0, 384: 60.0, 512: 80.0, 768: 110.0}  # px: speed-up in %


@pytest.fixture
def measured(config, monkeypatch):
    """The demo's records with made-up speeds."""
    reader = Records(config, "results/demo", partial=False)

    def read(record) -> dict:
        pixels = int(record.spec["section"].removeprefix("scaling_"))
        speedup = 1 + SIZES[pixels] / 100
        methods = []
        for model, ratio in zip(record.spec["models"], (1.0, speedup), strict=True):
            method = {"run": model["run"], "resolution": pixels, "weights": "random", "warnings": []}
            method |= {"images_per_s": 10.0, "macs_g": 1.0, "params_m": 5.7, "out_of_memory": False}
            method |= {"speedup": ratio, "speedup_interval": [ratio - 0.1, ratio + 0.1]}
            methods.append(method | {"ceilings": {"macs": ratio + 0.2, "roofline": ratio + 0.1}})
        return records.make(record.spec, {"device": "a CPU", "methods": methods, "warnings": []}, 0.0)

    monkeypatch.setattr(reader, "_read", read)
    yield reader
    plt.close("all")


def test_each_size_has_its_own_measurement(measured):
    figure, frame = scaling(measured)
    assert dict(zip(frame["resolution"], frame["speedup_pct"].round(6), strict=True)) == SIZES
    assert list(frame["ceiling_macs_pct"].round(6)) == [value + 20 for value in SIZES.values()]
    (panel,) = figure.axes
    assert list(panel.get_xticks()) == list(SIZES)


def test_one_batch_size_and_models_of_each_size(config):
    for setting in config.settings:
        groups = [row["section"] for row in config.items["figures"]["scaling"]["rows"]]
        sizes = {benchmarks.throughput_configuration(config, setting, group)["batch_size"] for group in groups}
        assert len(sizes) == 1, setting
    for row in config.items["figures"]["scaling"]["rows"]:
        dense, evo = config.items["sections"][row["section"]]
        for run in (dense, evo):
            assert specs.model_of(config, run)["kwargs"].get("img_size", 224) == row["x"]
