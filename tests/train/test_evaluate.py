"""Weights from a file in a training's place: evaluated, and started from."""

import copy
import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from timm.task import ClassificationEvaluator

from baselines.levit import PlainLevit
from tests.models import families
from workflow.campaign import specs
from workflow.data import loaders
from workflow.paper.results import right_images
from workflow.storage import records
from workflow.train import checkpoints, evaluate, factory, trainer
from workflow.train.checkpoints import WeightsError


def attempt(site, number=1) -> Path:
    return Path(site["root"]) / "runs" / "deit_tiny" / "attempts" / str(number)


@pytest.fixture
def trained(tiny_spec, site) -> dict:
    """The record of a training whose weights the tests hand on as a file."""
    return trainer.run(tiny_spec("deit_tiny", epochs=1), site, attempt(site))


@pytest.fixture
def given(config, trained, site, tmp_path):
    """A function: the spec of the evaluation of those weights, in a file as it is published."""

    def make(name="deit.pth", **changes) -> dict:
        weights = torch.load(attempt(site) / "weights.pt")
        path = tmp_path / name
        if path.suffix == ".safetensors":
            save_file(weights, path)
        else:
            torch.save({"model": weights}, path)
        checkpoint = {"file": str(path), "sha256": records.sha256(path), **changes}
        spec = specs.evaluate_spec(config, "demo", "deit_tiny", checkpoint)
        return spec | {"model": trained["spec"]["model"]}

    return make


@pytest.mark.parametrize("name", ["deit.pth", "deit.safetensors"])
def test_given_weights_have_the_accuracy_they_were_trained_to(given, trained, site, name):
    record = evaluate.run(given(name), site, attempt(site, 2))
    for key in ("top1", "top5", "val_images", "val_listing", "right"):
        assert record["results"][key] == trained["results"][key]
    assert record["results"]["val_loss"] == pytest.approx(trained["results"]["val_loss"])


def test_the_record_says_of_each_image_whether_it_is_right(site, tiny_spec):
    """Also by the averaged weights, and in the order of the split, whatever the batches."""
    spec = tiny_spec("deit_tiny", epochs=6, ema=0.5, lr=3e-3)
    record = trainer.run(spec, site, attempt(site))
    results = record["results"]
    model = factory.build_model(spec["model"]).eval()
    config = factory.data_config(model)
    dataset = loaders.ImageSource(spec["data"], site, spec["recipe"], config, None).evaluation_set("val")
    checkpoint = torch.load(max((attempt(site) / "checkpoints").glob("step-*.pt")))
    mean, std = (torch.tensor(config[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    for key, top1, weights in (("right", "top1", "state_dict"), ("ema_right", "ema_top1", "state_dict_ema")):
        model.load_state_dict(checkpoint[weights])
        expected = []
        for image, label in dataset:
            pixels = (image[None] / 255 - mean) / std
            expected.append(int(model(pixels).argmax() == label))
        right = right_images(results | {"right": results[key]})
        assert right.tolist() == expected
        assert results[top1] == pytest.approx(5 * sum(expected))  # of 20 images
        assert 0 < sum(expected) < 20


def test_of_equal_outputs_it_counts_the_one_that_the_evaluator_counts():
    output, target = torch.zeros(10, 10), torch.arange(10)
    evaluator = ClassificationEvaluator()
    evaluator.update(output, target)
    assert evaluate.is_right(output, target).sum() == evaluator.counts[1] == 1


def test_another_run_starts_from_given_weights(given, site, tiny_spec):
    spec = given()
    folder = attempt(site)
    records.write_json(folder.parent.parent / "train.json", evaluate.run(spec, site, folder))
    student = tiny_spec("ia_red2_deit_tiny") | {"start": specs.reference(spec)}
    model = factory.build_started(student, site)
    expected = torch.load(spec["checkpoint"]["file"])["model"]
    assert torch.equal(model.state_dict()["head.weight"], expected["head.weight"])


def test_a_setting_that_gives_weights_trains_nothing_of_that_run(config):
    settings = copy.deepcopy(config.settings)
    settings["demo"]["checkpoints"] = {"deit_tiny": {"file": "a.pth", "sha256": "0" * 64}}
    edited = dataclasses.replace(config, settings=settings)
    spec = specs.train_spec(edited, "demo", "deit_tiny")
    assert spec["kind"] == "evaluate"
    assert "epochs" not in spec["recipe"]
    student = specs.train_spec(edited, "demo", "dynamic_deit_tiny")
    assert student["start"]["spec_hash"] == specs.spec_hash(spec)
    assert specs.needed_records(student) == ["runs/deit_tiny/train.json"]


def test_a_missing_or_wrong_file_is_an_error(given, site):
    for spec, sentence in (
        (
            given(file="nowhere.pth"),
            r"nowhere.pth \(settings.yaml, demo.checkpoints.deit_tiny\) is",
        ),
        (given(sha256="0" * 64), r"deit.pth has the sha256 [0-9a-f]{64}, but .* says 0000"),
    ):
        with pytest.raises(WeightsError, match=sentence):
            evaluate.run(spec, site, attempt(site, 2))
    assert not (attempt(site, 2) / "weights.pt").exists()


def test_weights_of_another_model_are_an_error(given, site):
    spec = given()
    kwargs = spec["model"]["kwargs"] | {"embed_dim": 48}
    with pytest.raises(WeightsError, match=r"does not fit plain_deit_tiny.*cls_token is"):
        evaluate.run(spec | {"model": spec["model"] | {"kwargs": kwargs}}, site, attempt(site))


def test_a_damaged_file_is_an_error(given, site):
    spec = given()
    path = Path(spec["checkpoint"]["file"])
    path.write_bytes(path.read_bytes()[:999])
    spec["checkpoint"]["sha256"] = records.sha256(path)
    with pytest.raises(WeightsError, match=r"deit.pth .* does not fit"):
        evaluate.run(spec, site, attempt(site))


def test_the_authors_keys_are_understood(tmp_path):
    model = families.build("plain_levit")
    theirs = {}
    for key, value in model.state_dict().items():
        theirs[key.replace(".linear.", ".c.") if key.startswith("stem") else key] = value
    torch.save({"model": theirs}, tmp_path / "levit.pth")
    other = families.build("plain_levit")
    torch.nn.init.zeros_(other.stem.conv1.linear.weight)
    checkpoint = {"file": str(tmp_path / "levit.pth")}
    checkpoint["sha256"] = records.sha256(tmp_path / "levit.pth")
    spec = {"setting": "demo", "run": "levit", "model": {"name": "levit"}, "checkpoint": checkpoint}
    checkpoints.load_external(other, spec, {})
    assert isinstance(other, PlainLevit)
    assert torch.equal(other.stem.conv1.linear.weight, model.stem.conv1.linear.weight)
