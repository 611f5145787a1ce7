"""Model cards: what they say of a training, that their code loads its weights, and when they are written."""

import os
import re
import time

import pytest
import torch

from workflow.campaign import kinds, specs
from workflow.paper import cards, results
from workflow.storage import records
from workflow.train import factory

ROOT = "results/demo"
RESULTS = {
    "top1": 90.0, "top5": 99.0, "best_top1": 91.0, "best_epoch": 7, "ema_top1": None, "val_images": 599,
    "macs_g": 0.0094, "train_s": 3725.0, "weights": {"path": "attempts/1/weights.pt", "sha256": "0" * 64},
}  # fmt: skip


@pytest.fixture
def trained(tmp_path, monkeypatch, config):
    """A function that writes the record of a training of the demo, and returns its path."""
    monkeypatch.chdir(tmp_path)

    def write(run: str, setting: str = "demo", **changed):
        spec = specs.train_spec(config, setting, run)
        record = records.make(spec, RESULTS | changed, time.time() - 7300, device="a CPU", world_size=1)
        path = tmp_path / config.settings[setting]["results"] / "runs" / run / "train.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        records.write_json(path, record)
        return path

    return write


def card_of(config, path, setting: str = "demo") -> str:
    assert cards.write(config, setting, path)
    return path.with_name("README.md").read_text()


def test_a_card_says_what_how_and_how_well(config, trained):
    text = card_of(config, trained("dynamic_deit_tiny"))
    assert text.startswith("# dynamic_deit_tiny: DynamicViT on DeiT-T\n")
    assert "DynamicViT (Rao et al., NeurIPS 2021) drops" in text
    assert "a reduced model at 24 px, width 48, a classifier of 10 classes, trained on digits" in text
    assert "From the weights of `deit_tiny`, with `deit_tiny` as its teacher." in text
    assert re.search(r"\d+ epochs in batches of 32 images; loss: .* \(task `dynamicvit`\); optimizer adamw", text)
    assert "Made on a CPU (1 process)" in text
    assert "From the weights of `deit_tiny`, after a search on it" in card_of(config, trained("ps_deit_tiny"))
    assert "in 2 h 1 min, of it 1 h 2 min in training steps" in text
    assert records.make({"kind": "train"}, {}, 0.0)["provenance"]["versions"]["timm"] in text
    low, high = results.interval([90.0], 599)
    assert f"| top-1 | 90.00 % ({low:.2f} to {high:.2f}) | 599 validation images;" in text
    assert "speed-up" not in text


def test_the_recipes_words_follow_its_values(config):
    recipe = specs.recipe_of(config, "imagenet", "evo_deit_small")
    text = cards.describe_recipe(recipe)
    assert "300 epochs in batches of 1024 images" in text
    assert "the learning rate rises to 0.001 in 5 epochs and falls to 1e-05 along a cosine" in text
    assert "fp16; weights are averaged with a decay of 0.99996" in text
    text = cards.describe_augmentation(recipe)
    assert "random crops of 8 to 100 % of the image" in text
    assert "mixup (0.8), CutMix (1)" in text
    assert "each image drawn 3 times an epoch" in text


def test_every_task_has_its_loss_in_words(config):
    assert {recipe["task"] for recipe in config.recipes.values() if "task" in recipe} == set(cards.LOSSES)


def test_every_row_of_this_repositorys_models_has_a_method(config):
    for name, row in config.runs.items():
        model = {"name": row["model"], "kwargs": {}} | {key: row[key] for key in ("method",) if key in row}
        of_others = row["model"].startswith(("host", "regnety", "pvt", "coat", "pit", "swin")) and "method" not in row
        assert (cards.method_of(model) is None) == of_others, name


@pytest.mark.parametrize("run", ["evo_deit_tiny", "ps_deit_tiny"])
def test_the_lines_that_load_a_model_load_it(run, config, trained):
    path = trained(run)
    spec = records.read(path)["spec"]
    folder = path.parent / "attempts/1"
    folder.mkdir(parents=True)
    model = factory.build_model(spec["model"])
    torch.save(model.state_dict(), folder / "weights.pt")
    (code,) = re.findall(r"```python\n(.*?)```", card_of(config, path), re.DOTALL)
    assert len(code.strip().splitlines()) == 3
    names: dict = {}
    exec(code, names)
    assert type(names["model"]) is type(model)
    for key, value in model.state_dict().items():
        assert torch.equal(names["model"].state_dict()[key], value)


def test_a_speed_that_was_measured_is_in_the_card(config, trained):
    path = trained("evo_deit_tiny")
    measured = kinds.throughput_record(config, "demo", "deit_tiny")
    methods = [
        {"run": model["run"], "images_per_s": 10.0, "speedup": 1.5, "speedup_interval": [1.4, 1.6], "macs_g": 1.0,
         "params_m": 5.7, "resolution": 224, "weights": "random", "ceilings": {}, "warnings": [],
         "out_of_memory": False}
        for model in measured.spec["models"]
    ]  # fmt: skip
    content = {"device": "a CPU", "methods": methods, "warnings": []}
    records.write_json(measured.path, records.make(measured.spec, content, 0.0))
    text = card_of(config, path)
    speed = "| speed-up over `deit_tiny` | 50.0 % (40 to 60) | the paper's model at full size, in the group `deit_tiny`"
    assert f"{speed}: a CPU, fused" in text


def test_cards_are_written_where_they_are_missing_or_old(config, trained, capsys):
    path = trained("evo_deit_tiny")
    card = path.with_name("README.md")
    damaged = trained("deit_tiny")
    damaged.write_text("{")
    before = path.read_bytes()
    assert [path.resolve() for path in cards.update(config)] == [card]
    named = f"No model card for {ROOT}/runs/deit_tiny/train.json: {ROOT}/runs/deit_tiny/train.json is damaged"
    messages = capsys.readouterr().err
    assert f"{ROOT}/runs/<run>/README.md" in messages
    assert named in messages
    assert cards.update(config) == []
    messages = capsys.readouterr().err
    assert messages.startswith(named)
    assert messages.count("\n") == 1
    os.utime(path, (time.time() + 5, time.time() + 5))
    assert [path.resolve() for path in cards.update(config)] == [card]
    assert path.read_bytes() == before


def test_weights_that_were_given_have_no_card(config, trained, monkeypatch):
    given = {"file": "w.pt", "sha256": "0" * 64}
    monkeypatch.setitem(config.settings["demo"], "checkpoints", {"evo_deit_tiny": given})
    config.records.clear()
    path = trained("evo_deit_tiny")
    assert not cards.write(config, "demo", path)
    assert cards.update(config) == []
