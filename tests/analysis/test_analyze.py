"""Analyses of trained models, from the weights of a real training to the arrays of a figure."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import evovit
from tests.analysis.small import SMALL
from workflow.analysis import analyze
from workflow.campaign import specs
from workflow.data.layout import DataError
from workflow.storage import records
from workflow.train import factory, trainer
from workflow.train.factory import SpecError


@pytest.fixture
def analyse(config, site, tiny_spec):
    """A function: the record and the arrays of an analysis, its run trained for an epoch or so."""

    def make(name: str, epochs: int = 1, **changes) -> tuple[dict, dict]:
        spec = specs.analysis_spec(config, "demo", name) | changes
        training = tiny_spec(spec["run"], epochs=epochs)
        folder = Path(site["root"]) / "runs" / spec["run"]
        if not (folder / "train.json").exists():
            record = trainer.run(training, site, folder / "attempts" / "1")
            records.write_json(folder / "train.json", record)
        spec |= {"model": training["model"], "start": specs.reference(training)}
        record = analyze.run(spec, site, Path(site["root"]) / "analyses" / name / "attempts" / "1")
        named = record["results"].get("arrays")
        if named is None:
            return record, {}
        path = Path(site["root"]) / "analyses" / named["path"]
        assert records.sha256(path) == named["sha256"]
        return record, dict(np.load(path))

    return make


def test_cka_is_over_as_many_images_as_there_are_and_ends_high(analyse):
    record, arrays = analyse("cka")
    assert not arrays  # the figure and the claims are of the record's curves
    assert record["results"]["images"] == 20  # of 512 that were asked for
    assert record["results"]["keep_ratio"] == 0.5
    wide = record["results"]["half_widths"]
    assert all(0 < half < 1 for half in wide["placeholder"])
    assert set(record["results"]["curves"]) == {"all", "informative", "placeholder"}
    for curve in record["results"]["curves"].values():
        assert len(curve) == 12
        assert all(0 <= value <= 1 + 1e-9 for value in curve)


def test_queries_correlate_and_vary(analyse):
    record, arrays = analyse("query_correlation")
    assert not arrays
    assert record["spec"]["run"] == "deit_small"
    mean, variance = (record["results"]["curves"][name] for name in ("mean", "variance"))
    assert len(mean) == len(variance) == 12
    assert all(abs(value) <= 1 for value in mean)
    assert all(value >= 0 for value in variance)
    half_widths = record["results"]["half_widths"]
    assert all(0 < half < 1 for name in ("mean", "variance") for half in half_widths[name])


def test_class_attention_and_relevance_are_those_of_every_patch(analyse):
    record, arrays = analyse("class_attention")
    assert arrays["class_attention"].shape == arrays["global_attention"].shape == (12, 6, 16)
    assert arrays["relevance"].shape == (6, 16)
    assert arrays["images"].shape == (6, 224, 224, 3)
    assert "Captum" in record["results"]["interpretability"]
    assert record["results"]["names"][4:] == ["china.jpg", "flower.jpg"]
    assert record["results"]["sha256"][:4] == [None] * 4
    assert record["results"]["images"] == 20  # of validation; photographs show no class
    curves = record["results"]["curves"]
    names = {"class", "class_others", "global", "global_others", "evenness"}
    assert set(curves) == set(record["results"]["half_widths"]) == names
    assert all(len(curve) == 12 and max(map(abs, curve)) <= 1 for curve in curves.values())
    assert curves["class"][0] == pytest.approx(curves["global"][0])  # where Eq. 4 begins


def test_selection_is_shown_at_the_epochs_that_were_kept_and_at_the_end(analyse):
    record, arrays = analyse("selection", epochs=3)
    assert arrays["epochs"].tolist() == record["results"]["at_epochs"] == [1, 3]
    assert arrays["layers"].tolist() == [5, 6, 7, 8, 9, 10, 11, 12]
    assert arrays["kept"].shape == (2, 8, 6, 16)
    assert (arrays["kept"].sum(axis=-1) == 8).all()
    assert (arrays["kept"][0] != arrays["kept"][1]).any()
    curves = record["results"]["curves"]
    assert [len(curves[name]) for name in ("by_last", "by_chance", "by_next_epoch")] == [7, 7, 1]
    assert curves["by_chance"] == [0.5] * 7
    assert record["results"]["half_widths"]["by_chance"] == [0] * 7
    assert record["results"]["images"] == 20


def test_a_model_that_selects_nothing_is_refused(analyse):
    with pytest.raises(SpecError, match=r"deit_tiny is a PlainVisionTransformer, which selects no"):
        analyse("cka", computes="selection")


def test_groups_of_tokens_are_the_higher_and_the_lower_half():
    patches, scores = torch.randn(2, 5, 3), torch.rand(2, 5)
    means = analyze.average_tokens(patches, scores)
    for image in range(2):
        order = scores[image].argsort(descending=True)
        for name, chosen in (
            ("informative", order[:2]),
            ("placeholder", order[2:]),
            ("all", order),
        ):
            expected = patches[image, chosen].mean(dim=0)
            torch.testing.assert_close(means[name][image], expected)


@pytest.mark.parametrize("schedule", ["layer", "stage"])
def test_kept_patches_are_those_of_the_trace(schedule):
    images = torch.randn(3, 3, 16, 16)
    model = timm.create_model("evo_deit_tiny_patch16_224", schedule=schedule, **SMALL).eval()
    layers, masks = analyze.kept(model, [images[:2], images[2:]])
    trace = evovit.trace(model, images)
    assert layers == ([5, 6, 7, 8, 9, 10, 11, 12] if schedule == "layer" else [5, 9])
    for mask, kept in zip(masks, trace.kept, strict=True):
        for image in range(3):
            assert mask[image].nonzero().flatten().tolist() == kept[image].tolist()


class TestPictures:
    @pytest.fixture
    def gathered(self, config, site):
        """A function: the pictures with photographs from this folder."""

        def make(photographs: str) -> analyze.Pictures:
            spec = specs.analysis_spec(config, "demo", "class_attention")
            spec["images"] = {"shown": 2, "photographs": photographs}
            cfg = {"input_size": (3, 16, 16), "mean": (0.5,) * 3, "std": (0.25,) * 3}
            model = SimpleNamespace(patch_embed=SimpleNamespace(grid_size=(4, 4)))
            return analyze.gather(analyze.Subject(spec, site, model, cfg, torch.device("cpu")))

        return make

    def test_a_folder_of_photographs_is_shown_as_the_model_sees_it(self, gathered, tmp_path):
        (tmp_path / "mine").mkdir()
        for name, colour in (("b.PNG", (255, 0, 0)), ("a.jpg", (0, 0, 255))):
            Image.new("RGB", (40, 30), colour).save(tmp_path / "mine" / name, quality=100)
        (tmp_path / "mine" / "notes.txt").touch()
        pictures = gathered(str(tmp_path / "mine"))
        assert pictures.names[2:] == ["a.jpg", "b.PNG"]
        assert pictures.shown[3][0, 0].tolist() == [255, 0, 0]
        assert pictures.inputs.shape == (4, 3, 16, 16)
        assert pictures.inputs[3, :, 0, 0].tolist() == [2, -2, -2]  # (1 - 0.5) / 0.25
        assert len(set(pictures.sha256[2:])) == 2

    def test_a_folder_without_photographs_or_with_a_broken_one_is_named(self, gathered, tmp_path):
        with pytest.raises(DataError, match=r"nowhere .*demo.photographs\) holds no .jpg"):
            gathered(str(tmp_path / "nowhere"))
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "a.png").write_bytes(b"none")
        with pytest.raises(DataError, match=r"a.png .*can't be decoded .*; replace or delete it"):
            gathered(str(tmp_path / "mine"))


def test_models_of_the_analyses_are_built_before_any_training(config):
    for setting in config.settings:
        built = specs.preflight_spec(config, setting)["models"]
        for name in config.items["analyses"]:
            assert specs.analysis_spec(config, setting, name)["model"] in built


def test_weights_of_another_spec_are_refused(analyse, site):
    analyse("cka")
    with pytest.raises(factory.checkpoints.WeightsError, match="now says"):
        analyse("cka", epochs=2)
