"""Methods on trained dense models as they are: the paired interval, the table and the figure."""

import math

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt

from workflow.campaign import kinds, schema, targets
from workflow.paper import __main__, offtheshelf, offtheshelf_pareto, results, style
from workflow.paper.results import Records
from workflow.storage import records

METHODS = ["Evo-ViT", "EViT", "ToMe", "Top-K", "random", "ATS", "DPC-KNN"]
REFUSED = "topk-0.3"
REASON = "keep_ratio 0.027 of 36 patches keeps none in the last stage: use more patches or a higher keep_ratio"


def made_up(record: kinds.Record) -> dict:
    """A record in which each strength loses more images than the one before, and is faster."""
    methods = []
    for number, model in enumerate(record.spec["models"]):
        method = {"run": model["run"], "method": model["method"], "kwargs": model["kwargs"], "refused": None}
        methods.append(method | {"out_of_memory": False})
        if model["run"] == REFUSED:
            methods[-1]["refused"] = REASON
            continue
        speedup = 1 + number / 20
        if "r" in model["kwargs"]:
            methods[-1]["kwargs"] = {"r": 1}
        methods[-1] |= {"top1": 95.0 - number, "changed": 2 * number, "worse": 8 * number, "better": 2 * number}
        methods[-1] |= {"weights": "trained", "resolution": 24, "params_m": 0.3, "macs_g": 0.0123, "warnings": []}
        methods[-1] |= {"images_per_s": 1000 * speedup, "speedup": speedup}
        methods[-1] |= {"speedup_interval": [speedup - 0.02, speedup + 0.02]}
        methods[-1] |= {"ceilings": {"macs": 1.5, "roofline": 1.6}}
    values = {"device": "a CPU", "methods": methods, "warnings": [], "val_images": 600}
    return records.make(record.spec, values, 0.0)


@pytest.fixture
def measured(config, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    reader = Records(config, "results/demo", partial=False)
    monkeypatch.setattr(reader, "_read", made_up)
    return reader


# -- the paired interval ------------------------------------------------------------------------


def test_the_change_counts_only_images_on_which_the_models_differ():
    change, low, high = results.paired_change(worse=40, better=10, images=1000)
    assert change == pytest.approx(-3.0)
    assert low < change < high
    assert results.paired_change(worse=10, better=40, images=1000) == pytest.approx((3.0, -high, -low))
    assert results.paired_change(0, 0, 599)[0] == 0
    assert results.paired_change(0, 0, 599)[1] < 0 < results.paired_change(0, 0, 599)[2]


def test_it_agrees_with_a_paired_bootstrap_and_is_narrower_than_that_of_other_images():
    generator = np.random.default_rng(0)
    worse, better, images = 60, 25, 2000
    share = np.array([worse, better, images - worse - better]) / images
    drawn = generator.multinomial(images, share, size=20000)  # resampled images, by what they say
    ends = np.percentile(100 * (drawn[:, 1] - drawn[:, 0]) / images, [2.5, 97.5])
    _, low, high = results.paired_change(worse, better, images)
    assert [low, high] == pytest.approx(ends, abs=0.1)
    one_low, one_high = results.interval([80.0], images)
    assert high - low < 0.5 * math.sqrt(2) * (one_high - one_low)


@pytest.mark.parametrize(("images", "worse", "better"), [(599, 0.004, 0.002), (599, 0.05, 0.01), (5000, 0.02, 0.02)])
def test_it_holds_the_true_change_in_at_least_95_of_100_samples(images, worse, better):
    generator = np.random.default_rng(1)
    drawn = generator.multinomial(images, [worse, better, 1 - worse - better], size=4000)
    holds = 0
    for lost, won, _ in drawn.tolist():
        _, low, high = results.paired_change(lost, won, images)
        holds += low <= 100 * (better - worse) <= high
    assert 0.94 <= holds / len(drawn) <= 0.99  # too often rather than too seldom where few images change


# -- the table ----------------------------------------------------------------------------------


def test_it_shows_every_method_at_every_strength_below_its_dense_model(measured):
    frame, _ = offtheshelf.offtheshelf(measured)
    dense, others = frame.iloc[0], frame.iloc[1:]
    assert dense["method"] == "dense"
    assert dense[["strength", "top1_change", "speedup_pct", "changed_pct"]].isna().all()
    assert list(others["method"].unique()) == METHODS
    assert (others.groupby("method").size() == 4).all()
    assert set(others["strength"][others["method"] == "ToMe"]) == {"r=4", "r=8", "r=13", "r=16"}
    second = others.iloc[1]
    assert (second["strength"], second["top1"], second["val_images"]) == ("keep_ratio=0.7", 93.0, 600)
    assert second["top1_change"] == pytest.approx(100 * (4 - 16) / 600)
    assert second["top1_change_low"] < second["top1_change"] < second["top1_change_high"]
    assert second["changed_pct"] == pytest.approx(100 * 4 / 600)
    assert second["speedup_pct"] == pytest.approx(10)
    assert second["source"] == "measured (a reduced model at 24 px, width 48 on digits, 600 validation images)"


def test_a_terminal_shows_every_strength(measured, shown_on_a_terminal):
    frame, _ = offtheshelf.offtheshelf(measured)
    shown = shown_on_a_terminal("offtheshelf", frame)
    assert max(map(len, shown)) <= 100
    lines = [line.split() for line in shown if line.startswith("deit_tiny ")]
    assert len(lines) == len(frame)
    assert [line[1:3] for line in lines if "*" in line[1]] == [["Top-K*", "keep_ratio=0.3"]]
    assert ["deit_tiny", "Evo-ViT", "keep_ratio=0.7", "93.0"] in [line[:4] for line in lines]
    assert "- timed on a CPU: mode fused, fp32, batch 256" in shown


def test_a_strength_that_is_not_possible_says_why(measured):
    frame, shown = offtheshelf.offtheshelf(measured)
    line = frame[(frame["method"] == "Top-K") & (frame["strength"] == "keep_ratio=0.3")].iloc[0]
    assert line[["top1", "throughput", "macs_g"]].isna().all()
    assert line["flags"] == f"not possible: {REASON}"
    assert shown.notes == [f"not possible: {REASON}"]


def test_people_read_how_r_was_scaled_and_how_it_was_timed(measured):
    _, shown = offtheshelf.offtheshelf(measured)
    text = shown.markdown()
    assert "r=13, here r=1" in text
    assert "timed on a CPU: mode fused, fp32, batch 256" in text
    assert "-2.00 (-3." in text
    assert all(len(row) == len(shown.head) for row in shown.rows)


def test_weights_that_were_given_are_named(config, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    reader = Records(config, "results", partial=False)
    monkeypatch.setattr(reader, "_read", made_up)
    frame, _ = offtheshelf.offtheshelf(reader)
    assert list(frame["host"].unique()) == ["deit_tiny", "deit_small", "deit_base"]
    assert frame["source"][0] == (
        "measured (the paper's model with the weights of deit_tiny_patch16_224.fb_in1k on imagenet, "
        "600 validation images)"
    )


def test_without_records_a_partial_table_says_so(config, root):
    frame, shown = offtheshelf.offtheshelf(Records(config, root, partial=True))
    assert frame.empty
    assert shown.remarks == [offtheshelf.NOTHING]
    with pytest.raises(records.RecordError, match=r"results/offtheshelf/deit_tiny.json is missing"):
        offtheshelf.offtheshelf(Records(config, root, partial=False))


def test_it_is_made_by_its_name(config, measured, monkeypatch, tmp_path):
    monkeypatch.setattr(__main__, "Records", lambda *arguments, **options: measured)
    output = tmp_path / "results/demo/offtheshelf.csv"
    __main__.make(type("Arguments", (), {"output": output}))
    assert len(pd.read_csv(output)) == 29
    assert output.with_suffix(".md").read_text().startswith("| model")
    assert output.with_suffix(".html").exists()


def test_its_target_needs_a_record_for_each_of_the_settings_dense_models(config):
    assert targets.item_records(config, "results/demo", "offtheshelf") == ["results/demo/offtheshelf/deit_tiny.json"]
    assert targets.item_records(config, "results", "offtheshelf_pareto") == [
        f"results/offtheshelf/deit_{size}.json" for size in ("tiny", "small", "base")
    ]
    needed = targets.needed(config, "results/offtheshelf.csv")
    assert "results/weights/deit_base_patch16_224.fb_in1k.json" in needed
    assert not [path for path in needed if "/runs/" in path]  # nothing is trained for it
    assert "results/demo/runs/deit_tiny/train.json" in targets.needed(config, "results/demo/offtheshelf.csv")
    assert {"offtheshelf.csv", "offtheshelf_pareto.png"} <= set(targets.whole(config, "demo"))
    caption = targets.caption(config, "results/demo", "results/demo/offtheshelf.csv")
    assert caption.endswith("It is made of results/demo/offtheshelf/deit_tiny.json.")


def test_a_table_of_no_kind_of_job_is_refused(config, monkeypatch):
    monkeypatch.setitem(config.items["compiled"], "offtheshelf", "offthshelf")
    assert next(schema.faults(config)) == (
        "items",
        "compiled.offtheshelf names 'offthshelf'; did you mean 'offtheshelf'?",
    )


# -- the figure ---------------------------------------------------------------------------------


def test_the_figure_has_a_curve_for_each_method(measured):
    style.apply()
    figure, frame = offtheshelf_pareto.offtheshelf_pareto(measured)
    (panel,) = figure.axes
    curves = {line.get_label(): line for line in panel.lines if line.get_label() in METHODS}
    assert list(curves) == METHODS
    assert len(curves["Evo-ViT"].get_xdata()) == 4
    assert len(curves["Top-K"].get_xdata()) == 3  # one is not possible
    assert panel.get_title() == "deit_tiny"
    assert len(frame) == 29
    plt.close(figure)


def test_a_figure_of_nothing_says_so(config, root):
    style.apply()
    figure, _ = offtheshelf_pareto.offtheshelf_pareto(Records(config, root, partial=True))
    assert [text.get_text() for text in figure.axes[0].texts] == ["no method both evaluated and timed"]
    plt.close(figure)
