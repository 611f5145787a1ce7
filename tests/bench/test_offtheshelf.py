"""Methods on a trained dense model as it is: evaluated on all images, compared image by image, and timed."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.bench.timed import shorten
from workflow.bench import offtheshelf
from workflow.bench.process import MeasurementError
from workflow.campaign import benchmarks, specs
from workflow.storage import records
from workflow.train import factory, trainer

MODELS = ("dense", "evo-0.5", "tome-16", "topk-0.7", "topk-0.3", "random-0.5", "ats-0.7")


@pytest.fixture(autouse=True)
def short_rounds(monkeypatch):
    shorten(monkeypatch)
    monkeypatch.setattr(offtheshelf, "TIMING_S", 0.01)


@pytest.fixture
def spec(config, site, tiny_spec) -> dict:
    """Some of the methods on the demo's dense model, after an epoch of training: 16 patches."""
    training = tiny_spec("deit_tiny", epochs=1)
    folder = Path(site["root"]) / "runs" / "deit_tiny"
    records.write_json(folder / "train.json", trainer.run(training, site, folder / "attempts" / "1"))
    spec = benchmarks.offtheshelf_spec(config, "demo", "deit_tiny")
    models = [model for model in spec["models"] if model["run"] in MODELS]
    spec |= {"model": training["model"], "start": specs.reference(training), "models": models}
    return spec | {"device": "cpu", "threads": 1, "batch_size": 32}


@pytest.fixture
def folder(site) -> Path:
    return Path(site["root"]) / "offtheshelf" / "deit_tiny" / "attempts" / "1"


def predictions_of(results: dict, site: dict) -> dict[str, np.ndarray]:
    path = Path(site["root"]) / "offtheshelf" / results["predictions"]["path"]
    assert records.sha256(path) == results["predictions"]["sha256"]
    return dict(np.load(path))


def test_each_method_is_compared_with_the_dense_model_image_by_image(spec, site, folder):
    results = offtheshelf.measure(spec, site, folder)
    trained = records.read(Path(site["root"]) / "runs/deit_tiny/train.json")
    dense, *others = results["methods"]
    assert [method["run"] for method in results["methods"]] == list(MODELS)
    assert results["val_images"] == 20
    assert dense["top1"] == pytest.approx(trained["results"]["top1"])
    assert (dense["changed"], dense["worse"], dense["better"]) == (0, 0, 0)
    kept = predictions_of(results, site)
    assert set(kept) == {"labels", *MODELS} - {"topk-0.3"}
    for method in others:
        if method["refused"]:
            continue
        classes = kept[method["run"]]
        assert method["top1"] == pytest.approx(100 * (classes == kept["labels"]).mean())
        assert method["changed"] == (classes != kept["dense"]).sum()
        assert method["top1"] - dense["top1"] == pytest.approx(100 * (method["better"] - method["worse"]) / 20)
        assert method["images_per_s"] > 0
        assert method["speedup_interval"][0] <= method["speedup"] <= method["speedup_interval"][1]
        assert method["macs_g"] < dense["macs_g"]
        assert method["weights"] == "trained"
    assert results["warnings"] is not None


def test_a_strength_that_the_model_is_too_small_for_is_noted(spec, site, folder):
    refused = next(m for m in offtheshelf.measure(spec, site, folder)["methods"] if m["run"] == "topk-0.3")
    assert "keeps none in the last stage" in refused["refused"]
    assert "top1" not in refused
    assert "images_per_s" not in refused


@pytest.mark.parametrize(
    ("method", "kwargs", "patches", "expected"),
    [
        ("tome", {"r": 13}, 196, {"r": 13}),
        ("tome", {"r": 13}, 36, {"r": 2}),
        ("tome", {"r": 4}, 16, {"r": 1}),
        ("tome", {"r": 16}, 576, {"r": 47}),
        ("evo", {"keep_ratio": 0.5}, 36, {"keep_ratio": 0.5}),
        ("ats", {"keep_ratio": 0.5}, 36, {"keep_profile": [0.5, 0.25, 0.125]}),
    ],
)
def test_a_strength_is_what_it_means_on_the_host(method, kwargs, patches, expected):
    assert factory.at_strength(method, kwargs, patches) == expected


def test_started_again_it_does_not_evaluate_again(spec, site, folder, monkeypatch):
    first = offtheshelf.measure(spec, site, folder)
    monkeypatch.setattr(offtheshelf, "predict", None)
    again = offtheshelf.measure(spec, site, folder)
    assert again["kept_parts"] == 3
    assert again["methods"] == first["methods"]


def test_predictions_depend_on_no_other_model(spec, site, folder):
    together = offtheshelf.measure(spec, site, folder)
    others = [model for model in spec["models"] if model["run"] in ("dense", "random-0.5")]
    alone = offtheshelf.measure(spec | {"models": others}, site, folder.with_name("2"))
    both = (predictions_of(results, site)["random-0.5"] for results in (together, alone))
    assert np.array_equal(*both)


def test_the_host_stays_as_it_is(spec, site):
    host = factory.build_host(spec, site).eval()
    before = {key: value.clone() for key, value in host.state_dict().items()}
    _, modules = offtheshelf.make_models(host, spec)
    assert modules["evo-0.5"].blocks[0].attn.qkv.weight is host.blocks[0].attn.qkv.weight
    images = torch.randn(2, 3, 16, 16)
    for module in modules.values():
        module(images)
    assert all(torch.equal(value, before[key]) for key, value in host.state_dict().items())


def test_a_model_that_no_method_takes_is_an_error(spec, site):
    host = torch.nn.Identity()
    host.patch_embed = torch.nn.Identity()
    host.patch_embed.num_patches = 16
    with pytest.raises(MeasurementError, match=r"No method takes deit_tiny of demo: .*not a model of timm"):
        offtheshelf.make_models(host, spec)


@pytest.mark.integration  # of all of a measurement's time and rounds
def test_the_job_measures_in_a_process_of_its_own(spec, site, folder):
    folder.mkdir(parents=True)
    spec["models"] = spec["models"][:3]
    record = offtheshelf.run(spec, site, folder)
    assert record["results"]["environment"]["allocator"]
    assert "manifest" in record["provenance"]
    assert [method["run"] for method in record["results"]["methods"]] == ["dense", "evo-0.5", "tome-16"]
