"""From YAML to specs."""

import copy

import pytest

from workflow.campaign import specs
from workflow.campaign.config import FILES, Config


def changed(config: Config, part: str, name: str, **values) -> Config:
    parts = {key: copy.deepcopy(getattr(config, key)) for key in FILES}
    parts[part][name] |= values
    return Config(**parts)


def test_overrides_apply_from_recipe_over_setting_to_row(config):
    edited = changed(config, "runs", "deit_tiny", overrides={"epochs": 7})
    recipe = specs.recipe_of(edited, "demo", "deit_tiny")
    assert recipe["epochs"] == 7  # the row
    assert recipe["batch_size"] == config.settings["demo"]["recipe"]["batch_size"]  # the setting
    assert recipe["weight_decay"] == config.recipes["deit"]["weight_decay"]  # the recipe
    assert recipe["name"] == "deit"


def test_extends_takes_the_parents_values_first(config):
    recipe = specs.recipe_of(config, "imagenet", "evo_deit_tiny")
    assert recipe["batch_size"] == 2048  # evo_deit_2048
    assert recipe["task"] == config.recipes["evo_deit"]["task"]
    assert recipe["lr"] == config.recipes["deit"]["lr"]


SHRINKING = {"shrink_start": 10, "shrink_epochs": 100}
AUTHORS = [  # of a method: its drop path, and what its recipe says
    ("deit_tiny", 0.1, dict(epochs=300, batch_size=1024)),
    ("deit_tiny-matched", None, dict(epochs=300, batch_size=2048, task="classification")),
    ("deit_tiny-convolution", None, dict(epochs=300, batch_size=2048, task="classification")),
    ("deit_tiny-global_attention", None, dict(epochs=300, batch_size=2048, task="assisted_tokens")),
    ("dynamic_deit_small", None, dict(epochs=30, task_args={"freeze_epochs": 5})),
    ("dynamic_deit_base", 0.2, dict(epochs=30, task_args={"freeze_epochs": 5, "ratio_weight": 5.0})),
    ("svite_deit_tiny", 0.1, dict(epochs=300, batch_size=512, task_args={"updates": 40})),
    ("svite_deit_base", 0.1, dict(epochs=300, batch_size=1024, task_args={"updates": 40})),
    ("svite_deit_small-600epochs", 0.1, dict(epochs=600, batch_size=512, task_args={"updates": 80})),
    ("svite_deit_base-600epochs", 0.1, dict(epochs=600, batch_size=1024, task_args={"updates": 80})),
    ("ia_red2_deit_small", None, dict(epochs=30, mixup=0.8, cutmix=1.0, task_args={"tau": 1.0})),
    ("ia_red2_deit_small-90epochs", None, dict(epochs=90, mixup=0.8, cutmix=1.0, task_args={"tau": 1.0})),
    ("levit_256_384px", None, dict(batch_size=1024, clip_mode="agc")),
    ("evo_levit_384_384px", 0.1, dict(batch_size=1024, clip_mode="agc")),
    ("evit_deit_small", 0.1, dict(epochs=300, batch_size=2048, warmup_epochs=5, task_args=SHRINKING)),
    ("evit_deit_small-finetuned", 0.1,
     dict(epochs=30, batch_size=2048, lr=2e-5, lr_base_batch=512, min_lr=2e-6, weight_decay=1e-6, warmup_epochs=0)),
    ("tome_deit_tiny", 0.1,
     dict(epochs=30, batch_size=1024, lr=1e-3, lr_base_batch=1024, min_lr=1e-5, weight_decay=0.05, warmup_epochs=20)),
]  # fmt: skip


@pytest.mark.parametrize(("run", "drop_path", "values"), AUTHORS)
def test_a_method_is_trained_as_its_authors_do(config, run, drop_path, values):
    spec = specs.train_spec(config, "imagenet", run)
    assert spec["model"]["kwargs"].get("drop_path_rate") == drop_path
    assert {name: spec["recipe"][name] for name in values} == values


@pytest.mark.parametrize(("run", "epsilon"), [("ps_deit_small", 0.01), ("ps_deit_small-published", 0.02)])
def test_ps_vit_is_searched_at_both_of_its_authors_tolerances(config, run, epsilon):
    assert specs.recipe_of(config, "imagenet", run)["search"]["task_args"]["epsilon"] == epsilon


def test_imagenet_keeps_the_papers_size_and_the_demo_shrinks_it(config):
    full = specs.train_spec(config, "imagenet", "deit_tiny")["model"]["kwargs"]
    small = specs.train_spec(config, "demo", "deit_tiny")["model"]["kwargs"]
    assert full == {"num_classes": 1000, "drop_path_rate": 0.1}
    assert small["embed_dim"] == config.settings["demo"]["shrink"]["deit"]["embed_dim"]
    assert "depth" not in small  # selection starts at the fifth of twelve layers


def test_every_row_resolves_in_every_setting(config):
    for setting in config.settings:
        for row in filter(lambda row: config.has_row(row, setting), config.runs):
            spec = specs.train_spec(config, setting, row)
            given = row in config.settings[setting].get("checkpoints", {})
            assert spec["kind"] == ("evaluate" if given else "train")
            assert given or spec["recipe"]["epochs"] > 0


def test_a_spec_says_nothing_of_where(config):
    text = str(specs.train_spec(config, "imagenet", "deit_tiny"))
    assert config.settings["imagenet"]["data"]["root"] not in text
    assert "workers" not in text


def test_changing_a_teacher_changes_its_students_spec(config):
    before = specs.spec_hash(specs.train_spec(config, "demo", "dynamic_deit_tiny"))
    same = specs.spec_hash(specs.train_spec(config, "demo", "evo_deit_tiny"))
    edited = changed(config, "runs", "deit_tiny", overrides={"epochs": 7})
    assert specs.spec_hash(specs.train_spec(edited, "demo", "dynamic_deit_tiny")) != before
    assert specs.spec_hash(specs.train_spec(edited, "demo", "evo_deit_tiny")) == same


def test_a_search_stands_between_the_dense_model_and_the_training(config):
    trained = specs.train_spec(config, "demo", "ps_deit_tiny")
    searched = specs.search_spec(config, "demo", "ps_deit_tiny")
    assert specs.needed_records(trained) == ["runs/ps_deit_tiny/search.json"]
    assert specs.needed_records(searched) == ["runs/deit_tiny/train.json"]
    assert searched["recipe"]["task_args"]["epsilon"] == 0.01
    # longer fine-tuning needs no new search; another search does need new fine-tuning
    edited = changed(config, "runs", "ps_deit_tiny", overrides={"epochs": 7})
    assert specs.search_spec(edited, "demo", "ps_deit_tiny") == searched
    edited = changed(config, "runs", "ps_deit_tiny", overrides={"search": {
        "task": "ps_vit_search", "images": 9, "task_args": {}}})  # fmt: skip
    assert specs.train_spec(edited, "demo", "ps_deit_tiny")["start"] != trained["start"]
    with pytest.raises(KeyError):
        specs.search_spec(config, "demo", "deit_tiny")


def test_seeds_make_runs_of_their_own(config):
    edited = changed(config, "runs", "deit_tiny", seeds=[0, 1])
    edited = changed(edited, "runs", "dynamic_deit_tiny", seeds=[0, 1, 2])
    assert edited.split_run("deit_tiny-s1") == ("deit_tiny", 1)
    assert specs.train_spec(edited, "demo", "deit_tiny-s1")["seed"] == 1
    # a seed starts from the same seed's teacher, or from the first where there is none
    for run, needed in (("s1", "deit_tiny-s1"), ("s2", "deit_tiny")):
        spec = specs.train_spec(edited, "demo", f"dynamic_deit_tiny-{run}")
        assert specs.needed_records(spec) == [f"runs/{needed}/train.json"]
    with pytest.raises(KeyError):
        edited.split_run("deit_tiny-s7")


def test_a_spec_is_rewritten_only_when_it_changes(config, tmp_path):
    spec = specs.train_spec(config, "demo", "deit_tiny")
    path = specs.write_spec(tmp_path / "a" / "spec.json", spec)
    first = (tmp_path / "a" / "spec.json").stat()
    specs.write_spec(path, copy.deepcopy(spec))
    assert (tmp_path / "a" / "spec.json").stat().st_mtime_ns == first.st_mtime_ns
    specs.write_spec(path, spec | {"seed": 5})
    assert (tmp_path / "a" / "spec.json").stat().st_ino != first.st_ino
