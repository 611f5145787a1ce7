"""Dense prediction: the interval of a change over scenes, and the table."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from workflow.campaign import kinds, specs, targets
from workflow.paper import __main__, dense
from workflow.paper.results import Records
from workflow.storage import records

REASON = "no strength has Evo-ViT's 0.03 G MACs within 3 %; nearest is {'keep_ratio': 0.9} with 0.04"
RIGHT = {"dense": 90, "embedding": 40, "evo": 87, "evit": 80, "tome": 84}  # of 100 patches of a scene, 60 with an image


def method_of(run: str, scenes: int) -> dict:
    """A model that is right in fewer patches of every second scene."""
    kwargs = {"evo": {"keep_ratio": 0.5}, "evit": {"keep_ratio": 0.57}, "tome": {"r": [8] * 7 + [7] * 5}}.get(run, {})
    method = {"run": run, "method": run if kwargs else None, "kwargs": kwargs, "macs_g": 0.0306, "refused": None}
    right = [RIGHT[run] - number % 2 for number in range(scenes)]
    return method | {"right": right, "right_with_image": [count - 38 for count in right], "converged": run != "tome"}


def made_up(record: kinds.Record) -> dict:
    methods = [method_of(run, scenes=10) for run in RIGHT]
    methods.append({"run": "topk", "method": "topk", "kwargs": {}, "macs_g": None, "refused": REASON})
    methods[0]["macs_g"] = 0.0612
    values = {"scenes": 10, "train_scenes": 20, "val_images": 30, "train_images": 60, "classes": list("0123456789")}
    values |= {"resolution": 48, "patches": 100, "patches_with_image": 60, "methods": methods}
    return records.make(record.spec, values, 0.0)


@pytest.fixture
def measured(config, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    reader = Records(config, "results/demo", partial=False)
    monkeypatch.setattr(reader, "_read", made_up)
    return reader


# -- the paired interval ------------------------------------------------------------------------


def test_the_interval_is_a_jackknifes_over_scenes():
    generator = np.random.default_rng(0)
    before = generator.binomial(144, 0.8, size=60)
    after = before - generator.integers(-3, 12, size=60)
    change, low, high = dense.paired_change(before, after, patches=144)
    differences = 100 * (after - before) / 144
    assert change == pytest.approx(differences.mean())
    left_out = np.array([np.delete(differences, scene).mean() for scene in range(60)])
    error = np.sqrt(59 / 60 * np.square(left_out - left_out.mean()).sum())
    assert (low, high) == pytest.approx(
        (change - stats.t.ppf(0.975, 59) * error, change + stats.t.ppf(0.975, 59) * error)
    )


def test_it_agrees_with_a_bootstrap_over_scenes():
    generator = np.random.default_rng(1)
    before = generator.binomial(144, 0.8, size=200)
    after = before - generator.integers(-3, 12, size=200)
    _, low, high = dense.paired_change(before, after, patches=144)
    drawn = stats.bootstrap(
        (100 * (after - before) / 144,), np.mean, n_resamples=2000, method="percentile", rng=generator
    ).confidence_interval
    assert (low, high) == pytest.approx((drawn.low, drawn.high), abs=0.05)


def test_it_holds_the_true_change_as_often_as_it_says_though_a_scenes_patches_go_together():
    generator = np.random.default_rng(2)
    holds = 0
    for _ in range(1000):
        lost = generator.normal(8, 10, size=40).round()  # of a scene, of 144 patches
        _, low, high = dense.paired_change(np.full(40, 120), 120 - lost, patches=144)
        holds += low <= -100 * 8 / 144 <= high
    assert 0.93 <= holds / 1000 <= 0.97


# -- the table ----------------------------------------------------------------------------------


def test_it_shows_what_each_model_keeps_of_the_dense_ones_accuracy(measured):
    frame, _ = dense.dense(measured)
    assert list(frame["method"]) == ["dense", "patch embedding alone", "Evo-ViT", "EViT", "ToMe", "Top-K"]
    by_method = frame.set_index("method")
    first, evo = by_method.loc["dense"], by_method.loc["Evo-ViT"]
    assert first["accuracy"] == pytest.approx(89.5)
    assert first[["strength", "accuracy_change", "flags"]].isna().all()
    assert first["accuracy_kept_pct"] == pytest.approx(100)
    assert first["macs_vs_evo_pct"] == pytest.approx(100)
    assert evo["strength"] == "keep_ratio=0.5"
    assert evo["accuracy"] == pytest.approx(86.5)
    assert evo["accuracy_with_image"] == pytest.approx(100 * (86.5 - 38) / 60)
    assert evo["accuracy_background"] == pytest.approx(100 * 38 / 40)
    assert evo[["accuracy_change", "accuracy_change_low", "accuracy_change_high"]].tolist() == pytest.approx([-3] * 3)
    assert evo["accuracy_kept_pct"] == pytest.approx(100 * 86.5 / 89.5)
    assert (evo["scenes"], evo["patches"], evo["resolution"]) == (10, 100, 48)
    assert evo["source"] == "measured (a reduced model at 24 px, width 48 on digits, 30 validation images)"


def test_a_method_without_a_matching_strength_says_why(measured):
    frame, shown = dense.dense(measured)
    line = frame[frame["method"] == "Top-K"].iloc[0]
    assert line[["accuracy", "macs_g", "strength", "accuracy_change"]].isna().all()
    assert line["flags"] == f"not possible: {REASON}"
    assert f"not possible: {REASON}" in shown.notes


def test_people_read_the_strengths_the_scenes_and_a_probe_that_was_not_fitted(measured):
    _, shown = dense.dense(measured)
    text = shown.markdown()
    assert "r=8, in the last 5 blocks 7" in text
    assert "probes fitted to 20 scenes of training images and tested on 10 of validation images" in text
    assert "2 x 2 cells, 1 of them empty, 48 px and 100 patches" in text
    assert "the probe was not fitted to the end" in shown.notes
    assert all(len(row) == len(shown.head) for row in shown.rows)


def test_equal_merges_are_one_number():
    assert dense.describe({"r": [7, 7, 7]}) == "r=7"
    assert dense.describe({"r": [8, 7, 7]}) == "r=8, in the last 2 blocks 7"
    assert dense.describe({}) is None


def test_a_terminal_shows_every_model(measured, shown_on_a_terminal):
    frame, _ = dense.dense(measured)
    shown = shown_on_a_terminal("dense", frame)
    assert max(map(len, shown)) <= 100
    assert sum(line.startswith("deit_tiny ") for line in shown) == len(frame)


def test_without_records_a_partial_table_says_so(config, root):
    frame, shown = dense.dense(Records(config, root, partial=True))
    assert frame.empty
    assert shown.remarks == [dense.NOTHING]
    with pytest.raises(records.RecordError, match=r"results/dense_prediction/deit_tiny.json is missing"):
        dense.dense(Records(config, root, partial=False))


def test_it_is_made_by_its_name(measured, monkeypatch, tmp_path):
    monkeypatch.setattr(__main__, "Records", lambda *arguments, **options: measured)
    output = tmp_path / "results/demo/dense.csv"
    __main__.make(type("Arguments", (), {"output": output}))
    assert len(pd.read_csv(output)) == 6
    assert output.with_suffix(".md").read_text().startswith("| model")
    assert output.with_suffix(".html").exists()


def test_its_target_needs_the_settings_dense_models(config):
    needed = targets.needed(config, "results/demo/dense.csv")
    assert {"results/demo/runs/deit_tiny/train.json", "results/demo/dense_prediction/deit_tiny.json"} <= set(needed)
    needed = targets.needed(config, "results/dense.csv")
    assert "results/weights/deit_base_patch16_224.fb_in1k.json" in needed
    assert not [path for path in needed if "/runs/" in path]  # nothing is trained for it
    assert "dense.csv" in targets.whole(config, "demo")
    caption = targets.caption(config, "results/demo", "results/demo/dense.csv")
    assert caption.endswith("It is made of results/demo/dense_prediction/deit_tiny.json.")


def test_its_spec_says_what_is_composed_and_matched(config):
    spec = specs.dense_prediction_spec(config, "demo", "deit_tiny")
    assert spec["start"] == specs.reference(specs.train_spec(config, "demo", "deit_tiny"))
    assert spec["matched"] == ["evit", "topk", "tome"]
    assert spec["scenes"]["side"] == 2
    assert specs.dense_prediction_spec(config, "imagenet", "deit_small")["checkpoint"] == {
        "timm": "deit_small_patch16_224.fb_in1k"
    }
    with pytest.raises(KeyError):
        specs.dense_prediction_spec(config, "demo", "deit_small")
