"""The table of methods, which the paper does not have: two protocols, and no printed number."""

import pandas as pd
import pytest
import timm
import torch
from matplotlib import pyplot as plt

import baselines  # noqa: F401 (registers its models)
import evovit  # noqa: F401
from tests.paper.ledger import compile_table
from workflow.campaign import kinds, schema, specs, targets
from workflow.paper import methods_pareto, printed, results, style, tables
from workflow.paper.results import Records
from workflow.storage import records

METHODS = {"Evo-ViT", "DynamicViT", "SViTE", "IA-RED2", "PS-ViT", "EViT", "ToMe", "Top-K", "random", "ATS", "DPC-KNN"}
OWN_TASK = {"common_evo", "common_dynamicvit", "common_svite", "common_ia_red2", "common_psvit"}


@pytest.fixture
def measured(config, monkeypatch, tmp_path):
    """The demo's records with made-up trainings, and speeds of the group methods_tiny."""
    monkeypatch.chdir(tmp_path)
    reader = Records(config, "results/demo", partial=False)

    def read(record: kinds.Record) -> dict:
        if record.spec["kind"] == "train":
            values = {"top1": 90.0, "best_top1": 91.0, "val_images": 599}
            return records.make(record.spec, values, 0.0)
        methods = []
        for number, model in enumerate(record.spec["models"]):
            speedup = 1 + number / 20
            method = {"run": model["run"], "weights": "random", "resolution": 224, "warnings": []}
            method |= {"images_per_s": 100 * speedup, "speedup": speedup, "out_of_memory": False}
            method |= {"speedup_interval": [speedup - 0.02, speedup + 0.02], "macs_g": 1.2, "params_m": 5.7}
            methods.append(method | {"ceilings": {"macs": 1.5, "roofline": 1.6}})
        return records.make(record.spec, {"device": "a CPU", "methods": methods, "warnings": []}, 0.0)

    monkeypatch.setattr(reader, "_read", read)
    return reader


def test_it_shows_every_method_by_the_common_protocol(config, measured):
    frame = compile_table("methods", measured)
    assert set(frame["protocol"]) == {"common", "common (keeps all)"}
    assert set(frame["method"]) == METHODS | {"Baseline"}
    assert set(frame["recipe"]) == {"common"} | OWN_TASK
    assert set(frame["epochs"]) == {"18+6"}
    assert set(frame["best_top1"]) == {91.0}
    assert not [column for column in frame if "paper" in column or column.endswith("_delta")]
    sheet = tables.sheet_of("methods", tables.rows_of("methods", measured), frame, config)
    wanted = ["method", "backbone", "protocol", "reduction", "needs_training", "recipe", "epochs", "G MACs"]
    assert set(wanted) <= set(sheet.head)
    assert not [heading for heading in sheet.head if "printed" in heading]


def test_both_sizes_have_every_method_by_both_protocols(config):
    rows = pd.DataFrame(config.rows("methods"))
    for _, of_size in rows.groupby("backbone"):
        common = of_size[of_size["protocol"] == "common"]
        own = of_size[of_size["protocol"] == "own"]
        assert set(common["method"]) == METHODS | {"Baseline"}
        assert set(own["method"]) == {"Baseline", "Evo-ViT", "DynamicViT", "SViTE", "IA-RED2", "PS-ViT", "EViT"}


def test_who_needs_training_has_other_parts_or_predicts_from_other_tokens_than_a_dense_model(config):
    rows = config.rows("methods")
    needed = {row["method"]: row["needs_training"] for row in rows}
    assert all(row["needs_training"] == needed[row["method"]] for row in rows)
    for row in rows:
        if row["backbone"] == "DeiT-T" and row["protocol"] == "common":
            with torch.device("meta"):
                model = timm.create_model(config.runs[row["run"]]["model"])
            as_it_is = model.global_pool == "token" and not getattr(model, "fresh_keys", ())
            assert (row["needs_training"] == "no") is as_it_is, row["run"]


def test_the_common_protocol_differs_only_in_the_task(config):
    common = specs.recipe_of(config, None, "deit_tiny-continued")
    expected = {"epochs": 30, "lr": 1e-3, "lr_base_batch": 1024, "batch_size": 1024, "warmup_epochs": 20}
    expected |= {"min_lr": 1e-5, "weight_decay": 0.05, "mixup": 0.8, "auto_augment": "rand-m9-mstd0.5-inc1"}
    assert common.items() >= expected.items()
    for row in config.rows("methods"):
        if row["protocol"] != "common":
            continue
        recipe, run = specs.recipe_of(config, None, row["run"]), config.runs[row["run"]]
        changed = {key for key in recipe if recipe[key] != common.get(key)}
        assert changed <= {"name", "task", "task_args", "search"}, row["run"]
        assert run["start"] in ("deit_tiny", "deit_small")
        assert "teacher" not in run
        assert run["kwargs"] == {"drop_path_rate": 0.1}


def test_epochs_are_counted_from_the_first_weights(config, monkeypatch):
    assert results.count_epochs("evo_deit_small", "imagenet", config) == "300"
    assert results.count_epochs("dynamic_deit_small", "imagenet", config) == "300+30"
    assert results.count_epochs("tome_deit_small-s1", "imagenet", config) == "300+30"
    monkeypatch.setitem(config.runs["evo_deit_small"], "authors_epochs", 600)
    assert results.count_epochs("evo_deit_small", "imagenet", config) == "300 of 600"
    assert results.count_epochs("evo_deit_small", "demo", config) == "18"  # the setting's own number
    monkeypatch.setitem(config.settings["imagenet"]["checkpoints"], "deit_small", {"timm": "deit_small.fb_in1k"})
    assert results.count_epochs("dynamic_deit_small", "imagenet", config) == "given weights+30"


def test_the_papers_claims_do_not_ask_for_it(config):
    needed = targets.item_records(config, "results", "claims")
    assert not [path for path in needed if "methods_" in path or "-common" in path or "tome" in path]


def test_a_table_that_the_paper_lacks_must_be_a_table(config, monkeypatch):
    monkeypatch.setitem(config.items, "ours", ["metods"])
    file, sentence = next(schema.faults(config))
    assert file == "items"
    assert sentence == "ours names 'metods'; did you mean 'methods'?"


def test_a_run_is_called_by_its_protocol(config):
    assert printed.label(config, "evit_deit_tiny-common") == "EViT on DeiT-T (common recipe)"
    assert printed.label(config, "evo_deit_tiny") == "Evo-ViT on DeiT-T"
    assert "methods" not in printed.by_run(config)["deit_tiny"]["source"]


def test_the_figure_has_a_mark_for_each_method(measured):
    style.apply()
    figure, frame = methods_pareto.methods_pareto(measured)
    (panel,) = figure.axes
    (legend,) = figure.legends
    assert {text.get_text() for text in legend.get_texts()} == METHODS | {"dense"}
    assert len({style.METHODS[method] for method in METHODS}) == len(METHODS)
    assert set(frame["method"]) == METHODS | {"Baseline"}
    assert panel.get_title() == "DeiT-T"
    plt.close(figure)
