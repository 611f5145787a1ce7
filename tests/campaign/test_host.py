"""A setting with images and a model of the user's own, as docs/your-data.md says: the template of settings.yaml."""

import copy
import shutil
from dataclasses import replace

import pytest

from workflow.campaign import benchmarks, kinds, schema, specs, targets
from workflow.campaign.config import Config, ConfigError

MODEL = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
METHODS = ("evo", "evit", "tome", "topk", "random", "ats", "dpcknn")
SHA256 = "0" * 64


@pytest.fixture
def load(uncommented, tmp_path):
    """A function that returns the configuration with values of the template changed, checked as a start does."""
    root = tmp_path / "images"
    for split in ("train", "val"):
        for label in ("cat", "dog", "emu"):
            (root / split / label).mkdir(parents=True)

    def load(change=lambda setting: None) -> Config:
        config = replace(uncommented, settings=copy.deepcopy(uncommented.settings))
        own = config.settings["mydata"]
        own["data"]["root"] = str(root)
        change(own)
        for file, sentence in schema.faults(config):
            raise ConfigError(f"{file}: {sentence}")
        return config

    return load


def test_the_setting_has_the_hosts_rows_and_items_and_no_others(load):
    config = load()
    runs = {names["run"] for names in kinds.KINDS["train"].jobs(config, "mydata")}
    assert {run for run in runs if "-s" not in run} == {"host", "host-continued", *(f"host-{m}" for m in METHODS)}
    assert targets.whole(config, "mydata") == [
        *("methods.csv", "offtheshelf.csv", "dense.csv", "methods_pareto.png", "offtheshelf_pareto.png"),
    ]
    rows = config.rows("methods", "mydata")
    assert {row["backbone"] for row in rows} == {MODEL}
    assert {row["run"] for row in rows} == {run for run in runs if "-s" not in run}
    for item in ("table1.csv", "figure2.png", "claims.csv", "published.csv"):
        with pytest.raises(targets.TargetError, match="is no target"):
            targets.spec_of(config, f"results/mydata/{item}")
    for other in ("results/demo/runs/host/train.json", "results/mydata/runs/deit_tiny/train.json"):
        with pytest.raises(targets.TargetError):
            targets.spec_of(config, other)
    with pytest.raises(targets.TargetError, match="has a host of its own, and no table1"):
        targets.spec_of(config, "results/mydata/table1.csv")


def test_other_settings_have_none_of_its_rows(load):
    config = load()
    for setting in ("imagenet", "cifar10", "demo"):
        assert not any(row["run"].startswith("host") for row in config.rows("methods", setting))
        assert not any("host" in str(names) for names in kinds.KINDS["train"].jobs(config, setting))
        assert "methods_host" not in config.sections(setting)
        assert "methods_host" not in config.request(setting, "methods")["train"]


def test_the_table_needs_the_fetched_weights_and_a_training_of_each_row(load):
    config = load()
    needed = targets.needed(config, "results/mydata/methods.csv")
    assert f"results/mydata/weights/{MODEL}.json" in needed
    trained = [path for path, spec in needed.items() if spec["kind"] == "train"]
    assert len(trained) == 2 + len(METHODS)
    shelf = targets.needed(config, "results/mydata/offtheshelf.csv")
    assert [path for path, spec in shelf.items() if spec["kind"] == "train"] == ["results/mydata/runs/host/train.json"]


def test_a_row_is_the_host_reduced_by_a_method(load):
    config = load(lambda setting: setting["host"].update(kwargs={"img_size": 384}))
    host = specs.train_spec(config, "mydata", "host")
    assert host["pretrained"] == {"timm": MODEL}
    kwargs = {"drop_path_rate": 0.1, "num_classes": 3, "img_size": 384}
    assert host["model"] == {"name": MODEL, "kwargs": kwargs}
    tome = specs.train_spec(config, "mydata", "host-tome")
    assert tome["model"] == {"name": MODEL, "kwargs": kwargs, "method": "tome", "options": {"r": 13}}
    assert tome["start"] == specs.reference(host)
    assert "pretrained" not in tome
    recipe = specs.recipe_of(config, "mydata", "host-evo")
    assert recipe == specs.recipe_of(config, "mydata", "host-continued")
    timed = kinds.throughput_record(config, "mydata", "methods_host").spec
    assert [model["run"] for model in timed["models"]][:3] == ["host-continued", "host", "host-evo"]
    ats = next(model for model in timed["models"] if model["run"] == "host-ats")
    assert ats["weights"]["run"] == "host-ats"  # how many patches ATS keeps depends on the weights
    built = specs.preflight_spec(config, "mydata")["models"]
    assert {model["name"] for model in built} == {MODEL}


def test_an_assumed_profile_is_an_option_of_the_method(load):
    config = load(lambda setting: setting["throughput"].update(weights="assumed"))
    spec = benchmarks.throughput_spec(config, "mydata", "methods_host", {})
    ats = next(model for model in spec["models"] if model["run"] == "host-ats")
    assert ats["options"] == config.items["profiles"]["host-ats"]
    assert "keep_profile" not in ats["kwargs"]


def test_a_file_may_give_the_weights_or_the_model_that_knows_the_classes(load):
    def own_file(setting):
        setting["host"] = {"model": "vit_tiny_patch16_224", "checkpoint": {"file": "mine.pth", "sha256": SHA256}}

    config = load(own_file)
    assert specs.train_spec(config, "mydata", "host")["pretrained"]["file"] == "mine.pth"
    assert not any("weights/" in path for path in targets.needed(config, "results/mydata/methods.csv"))

    def knows_the_classes(setting):
        setting["host"] = {"model": "vit_tiny_patch16_224"}
        setting["checkpoints"] = {"host": {"file": "mine.pth", "sha256": SHA256}}

    config = load(knows_the_classes)
    host = specs.train_spec(config, "mydata", "host")
    assert (host["kind"], host["checkpoint"]["file"]) == ("evaluate", "mine.pth")
    assert "pretrained" not in host
    shelf = targets.needed(config, "results/mydata/offtheshelf.csv")
    assert not any(spec["kind"] == "train" for spec in shelf.values())


FAULTS = {
    "a mistyped host": (
        lambda c: c["host"].update(model="vit_tny_patch16_224.augreg_in21k_ft_in1k"),
        r"mydata.host.model names 'vit_tny_patch16_224'; did you mean 'vit_tiny_patch16_224'\?",
    ),
    "no weights": (
        lambda c: c["host"].update(model="vit_tiny_patch16_224"),
        r"mydata.host.model is 'vit_tiny_patch16_224', which names no weights; add the tag",
    ),
    "an unknown key": (
        lambda c: c["host"].update(modl="x"),
        r"mydata.host has an unknown key 'modl'; did you mean 'model'\?",
    ),
    "a file without its sha256": (
        lambda c: c["host"].update(checkpoint={"file": "mine.pth"}),
        r"mydata.host.checkpoint lacks the key 'sha256'",
    ),
    "DeiT's sizes": (lambda c: c.update(shrink={"deit": {"embed_dim": 48}}), r"use host.kwargs"),
    "a row that only others have": (
        lambda c: c.update(checkpoints={"deit_tiny": {"file": "mine.pth", "sha256": SHA256}}),
        r"mydata.checkpoints names 'deit_tiny'; known are host, host-ats",
    ),
    "a method that takes no other model": (
        lambda c: c.update(models={"host-evo": {"model": "host", "family": "other", "method": "svite"}}),
        r"mydata.models.host-evo.method is 'svite'; did you mean 'evit'\?",
    ),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_mistake_is_named(case, load):
    change, sentence = FAULTS[case]
    with pytest.raises(ConfigError, match=sentence):
        load(change)


def test_a_folder_that_is_missing_or_empty_is_one_sentence(load, tmp_path):
    config = load()
    shutil.rmtree(tmp_path / "images/val")
    with pytest.raises(ConfigError, match=r"No folder .*/val .*mydata.data.root.*expected .*/{train,val}/<class>/<im"):
        specs.num_classes(config, "mydata")
    (tmp_path / "images/val").mkdir()
    with pytest.raises(ConfigError, match=r"images/val is empty .*; expected .* Put the images there, or set the fol"):
        specs.num_classes(config, "mydata")
    (tmp_path / "images/val/cat").mkdir()
    with pytest.raises(ConfigError, match=r"val lacks 'dog', which the other split has"):
        specs.num_classes(config, "mydata")
    # another setting's targets are not affected
    assert specs.num_classes(config, "demo") == 10
    assert targets.spec_of(config, "results/demo/runs/deit_tiny/train.json")


def test_the_captions_are_of_the_users_model(load):
    config = load()
    text = targets.caption(config, "results/mydata", "results/mydata/methods.csv")
    assert text.startswith("Methods of token reduction on your own model")
    assert "DynamicViT, SViTE, IA-RED2 and PS-ViT are missing" in text
    assert "snakemake --profile demo results/mydata/methods.csv" in text
    assert "fine-tuned on your images first" in targets.caption(
        config, "results/mydata", "results/mydata/offtheshelf.md"
    )
