"""Figures of trained models: what a target needs, what is refused, and that each is drawn."""

import base64
from pathlib import Path

import numpy as np
import pytest
from matplotlib import pyplot as plt

from workflow.campaign import kinds, specs, targets
from workflow.paper import __main__, figure5, image_grid, style
from workflow.paper.image_grid import Group
from workflow.paper.results import Records
from workflow.storage import records
from workflow.storage.records import RecordError

ROOT = "results/demo"
IMAGES = np.full((2, 8, 8, 3), 128, np.uint8)
SELECTED = {"images": IMAGES, "grid": np.array([4, 4])}
LAYERS = np.arange(5, 13)
CURVES = {
    "cka": {name: np.linspace(0.1, 1, 12) for name in ("all", "informative", "placeholder")},
    "query_correlation": {"mean": np.linspace(0.2, 0.9, 12), "variance": np.linspace(0.1, 0, 12)},
}
ARRAYS = {
    "class_attention": {
        "class_attention": np.random.default_rng(0).random((12, 2, 16)),
        "global_attention": np.random.default_rng(1).random((12, 2, 16)),
        "relevance": np.random.default_rng(2).random((2, 16)),
        **SELECTED,
    },
    "selection": {"kept": np.ones((3, 8, 2, 16), bool), "layers": LAYERS,
                  "epochs": np.array([1, 8, 25]), **SELECTED},
    "selection_stage": {"kept": np.ones((1, 2, 2, 16), bool), "layers": np.array([5, 9]),
                        "epochs": np.array([25]), **SELECTED},
}  # fmt: skip


@pytest.fixture
def demo(tmp_path, monkeypatch, config):
    """A function that writes the demo's records of these analyses into an empty tree."""
    monkeypatch.chdir(tmp_path)

    def write(*names: str, **results_of) -> Records:
        for name in names:
            spec = specs.analysis_spec(config, "demo", name)
            results = {"images": 2, "names": ["0/a.png", "1/b.png"], **results_of.get(name, {})}
            if name in CURVES:
                results["curves"] = {key: values.tolist() for key, values in CURVES[name].items()}
                results["half_widths"] = {key: [0.01] * 12 for key in CURVES[name]}
            else:
                path = Path(ROOT) / "analyses" / name / "arrays.npz"
                path.parent.mkdir(parents=True)
                np.savez(path, **ARRAYS[name])
                sha256 = records.sha256(path)
                results["arrays"] = {"path": f"{name}/arrays.npz", "sha256": sha256}
            record = records.make(spec, results, 0.0)
            records.write_json(f"{ROOT}/analyses/{name}.json", record)
        return Records(config, ROOT, partial=False)

    return write


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["figure2", "figure4a", "figure4b", "figure5"])
def test_it_is_drawn_with_what_it_shows_in_words(name, demo, config, tmp_path):
    found = demo(*config.analyses(name))
    style.apply()
    figure, numbers = __main__.function_of(config, name)(found)
    assert not numbers.empty
    style.save(figure, tmp_path / f"{name}.png")
    width, height = figure.get_size_inches()
    assert width <= style.PAGE
    drawn = figure.get_tightbbox()  # inches
    assert drawn.x0 >= -0.01
    assert drawn.y0 >= -0.01
    assert drawn.x1 <= width + 0.01
    assert drawn.y1 <= height + 0.01
    assert all(text.get_fontsize() >= 6 for text in figure.findobj(plt.Text) if text.get_text())
    said = " ".join(text.get_text() for text in figure.findobj(plt.Text))
    assert "a reduced model at 24 px, width 48" in said
    assert "trained on digits" in said
    if name in ("figure4a", "figure4b"):
        assert "2 validation images" in said
    plt.close(figure)


def test_figure5_says_where_a_training_never_became_stage_wise(demo, monkeypatch):
    """One of two epochs is layer-wise to its end; as many columns as of the layer-wise one."""
    monkeypatch.setitem(ARRAYS, "selection_stage", ARRAYS["selection"])
    found = demo("selection", "selection_stage", selection_stage={"schedule": "layer"})
    style.apply()
    figure, numbers = figure5.figure5(found)
    shown = " ".join(text.get_text() for text in figure.findobj(plt.Text))
    assert "No layer-to-stage here: the training of evo_deit_tiny was too short" in shown
    assert "from layer" not in shown
    selections = numbers[numbers["group"] == "still layer-wise"]["selection"]
    assert list(selections.unique()) == ["layer 5", "layer 8", "layer 12"]
    plt.close(figure)


def test_overlaps_are_of_what_each_group_keeps_last():
    first, last = np.zeros((1, 4), bool), np.zeros((1, 4), bool)
    first[0, :2] = last[0, 1:3] = True
    groups = [Group("by layers", ["5", "6"]), Group("by stages", ["5"])]
    rows = figure5.overlaps(["a.png"], groups, [first, last, first])
    assert [row["kept"] for row in rows] == [2, 2, 2]
    assert [row["in_the_last"] for row in rows] == [0.5, 1, 1]
    assert [row["selection"] for row in rows] == ["5", "6", "5"]


def test_arrays_that_were_tampered_with_or_are_gone_are_refused(demo):
    name = "selection"
    found = demo(name)
    path = Path(ROOT) / f"analyses/{name}/arrays.npz"
    assert found.analysis(name)[1]["kept"].all()
    np.savez(path, **ARRAYS[name] | {"kept": np.zeros((3, 8, 2, 16), bool)})
    sentence = rf"arrays.npz is missing or not the file that .*{name}.json names; .* --forcerun .*{name}"
    with pytest.raises(RecordError, match=sentence):
        found.analysis(name)
    path.unlink()
    with pytest.raises(RecordError, match=sentence):
        found.analysis(name)


def test_a_record_of_an_old_spec_is_refused(demo):
    found = demo("cka")
    path = f"{ROOT}/analyses/cka.json"
    record = records.read(path)
    spec = record["spec"] | {"computes": "more"}
    records.write_json(path, record | {"spec": spec, "spec_hash": specs.spec_hash(spec)})
    with pytest.raises(RecordError, match="now says"):
        found.curves("cka")


@pytest.mark.parametrize("setting", ["imagenet", "cifar10", "demo"])
def test_a_figure_needs_its_analyses_and_their_trainings(setting, config):
    root = config.settings[setting]["results"]
    needed = list(targets.needed(config, f"{root}/figure5.png"))
    assert set(needed) == {
        f"{root}/{name}.json"
        for name in ("data", "preflight", "analyses/selection", "analyses/selection_stage",
                     "runs/deit_tiny-fast_updating/train", "runs/evo_deit_tiny/train")
    }  # fmt: skip
    assert needed.index(f"{root}/runs/evo_deit_tiny/train.json") < needed.index(f"{root}/analyses/selection_stage.json")
    assert kinds.job_folder(f"{root}/analyses/cka.json") == Path(f"{root}/analyses/cka")
    with pytest.raises(targets.TargetError, match="is no target"):
        targets.spec_of(config, f"{root}/analyses/cak.json")


def test_a_changed_training_changes_the_analysis(config):
    spec = specs.analysis_spec(config, "demo", "cka")
    training = specs.train_spec(config, "demo", "deit_tiny")
    assert spec["start"]["spec_hash"] == specs.spec_hash(training)
    assert specs.needed_records(spec) == ["runs/deit_tiny/train.json"]
    assert "photographs" not in spec["images"]


def test_faded_patches_are_those_that_are_not_kept():
    kept = np.zeros(16, bool)
    kept[6] = True  # the second row's third
    for value in (0, 255):  # black and white, which digits are made of, both go towards grey
        image = np.full((8, 8, 3), value, np.uint8)
        shown = figure5.faded(image, kept, SELECTED["grid"])
        grey = abs(shown - 0.5).max(axis=2) < 0.2
        assert (shown[2:4, 4:6] == value / 255).all()
        assert grey.sum() == 64 - 4
    spread = image_grid.enlarged(np.arange(16), SELECTED["grid"], 8)
    assert (spread[2:4, 4:6] == 6).all()


def test_mlflow_shows_the_curves_over_the_layers(config, tmp_path):
    from workflow.tracking.sync import Results

    spec = specs.analysis_spec(config, "demo", "cka")
    attempt = tmp_path / ROOT / "analyses/cka/attempts/1"
    specs.write_spec(attempt / "spec.json", spec)
    results = {"images": 20, "at_epochs": [1, 3], "curves": {"all": [0.25, 0.5]}}
    records.write_json(attempt / "record.json", records.make(spec, results, 0.0))
    (attempt / "arrays.npz").write_bytes(base64.b64decode("UEsFBg=="))
    shown = Results(tmp_path)
    (source,) = shown.attempts()
    content = shown.describe(source)
    assert content.name == "analyses/cka"
    assert content.tags["kind"] == "analysis"
    assert content.tags["figure4a"] == "yes"
    assert content.params["images.validation"] == "512"
    points = {(metric.key, metric.step): metric.value for metric in content.metrics}
    assert (points["all", 1], points["all", 2], points["images", 0]) == (0.25, 0.5, 20)
    assert "arrays.npz" in {path.name for path in content.artifacts}
    assert all(isinstance(metric.step, int) for metric in content.metrics)
