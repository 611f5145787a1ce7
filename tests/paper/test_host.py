"""Tables and figures of a setting with a model of the user's own."""

import copy
from dataclasses import replace

import pytest
from matplotlib import pyplot as plt

from tests.paper.ledger import compile_table
from tests.paper.test_offtheshelf import made_up
from workflow.campaign import kinds
from workflow.paper import methods_pareto, offtheshelf, offtheshelf_pareto, style
from workflow.paper.results import Records
from workflow.storage import records

MODEL = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
METHODS = {"Evo-ViT", "EViT", "ToMe", "Top-K", "random", "ATS", "DPC-KNN"}


def of_kind(record: kinds.Record) -> dict:
    """A made-up record of a training, a measurement or of methods off the shelf."""
    if record.spec["kind"] == "offtheshelf":
        return made_up(record)
    if record.spec["kind"] in ("train", "evaluate"):
        return records.make(record.spec, {"top1": 90.0, "best_top1": 91.0, "val_images": 599}, 0.0)
    methods = []
    for number, model in enumerate(record.spec["models"]):
        speedup = 1 + number / 20
        method = {"run": model["run"], "weights": "random", "resolution": 224, "warnings": []}
        method |= {"images_per_s": 100 * speedup, "speedup": speedup, "out_of_memory": False}
        method |= {"speedup_interval": [speedup - 0.02, speedup + 0.02], "macs_g": 1.2, "params_m": 5.7}
        methods.append(method | {"ceilings": {"macs": 1.5, "roofline": 1.6}})
    return records.make(record.spec, {"device": "a CPU", "methods": methods, "warnings": []}, 0.0)


@pytest.fixture
def reader(uncommented, monkeypatch, tmp_path) -> Records:
    monkeypatch.chdir(tmp_path)
    config = replace(uncommented, settings=copy.deepcopy(uncommented.settings))
    config.settings["mydata"]["data"]["num_classes"] = 3
    reader = Records(config, "results/mydata", partial=False)
    monkeypatch.setattr(reader, "_read", of_kind)
    return reader


def test_the_table_of_methods_is_of_the_model_and_its_methods_alone(reader):
    frame = compile_table("methods", reader)
    assert set(frame["backbone"]) == {MODEL}
    assert set(frame["method"]) == METHODS | {"Baseline"}
    assert list(frame["protocol"]) == ["fine-tuned"] + ["common"] * (1 + len(METHODS))
    assert list(frame["epochs"]) == ["30"] + ["30+30"] * (1 + len(METHODS))
    host, control = frame.iloc[0], frame.iloc[1]
    assert f"{MODEL}, fine-tuned from {MODEL} without any reduction, on mydata" in host["source"]
    assert "fine-tuned" not in control["source"]
    assert f"params_m: {MODEL}, random weights, 224 px" in control["source"]


def test_methods_off_the_shelf_say_whether_the_model_was_fine_tuned(reader):
    frame, shown = offtheshelf.offtheshelf(reader)
    assert set(frame["host"]) == {MODEL}
    text = shown.markdown()
    assert "no method was trained for it" in text
    assert f"fine-tuned from {MODEL} without any reduction" in text
    reader.config.settings["mydata"]["checkpoints"] = {"host": {"file": "mine.pth", "sha256": "0" * 64}}
    reader.config.records.clear()
    assert "fine-tuned" not in offtheshelf.offtheshelf(reader)[1].markdown()


def test_the_figures_name_the_model(reader):
    style.apply()
    for draw in (methods_pareto.methods_pareto, offtheshelf_pareto.offtheshelf_pareto):
        figure, _ = draw(reader)
        (panel,) = figure.axes
        assert panel.get_title() == MODEL
        assert "nothing trained" not in figure.get_suptitle()
        plt.close(figure)
