"""Weights that others published: files with their key names are evaluated, and the table says which are missing."""

import argparse
import copy
import dataclasses
from pathlib import Path

import pandas as pd
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch.testing import assert_close

from baselines.levit import PlainLevit
from tests.golden import reference
from tests.models import families
from workflow.campaign import kinds, schema, specs, targets
from workflow.campaign.config import ConfigError
from workflow.paper import __main__, printed, published, results
from workflow.paper.results import Records
from workflow.storage import records
from workflow.train import checkpoints, evaluate, factory

EVO_DEIT, EVO_LEVIT = "evo_deit_custom_img64_stage", "evo_levit_custom_stage_learned"
DYNAMICVIT = "dynamicvit_custom_img112_p8"
OF_TIMM = ["deit_tiny", "deit_small", "deit_base", "deit_base_384"]
OF_TIMM += [f"levit_{size}" for size in ("128s", "128", "192", "256", "384")]


# -- files with the authors' key names ----------------------------------------------------------


def small_deit(about: dict) -> dict:
    return {key: about["ctor"][key] for key in ("img_size", "patch_size", "embed_dim", "num_heads", "num_classes")}


def small_levit(about: dict) -> dict:
    ctor = about["ctor"]
    sizes = {"img_size": ctor["img"], "embed_dim": ctor["C"], "key_dim": ctor["D"], "num_heads": ctor["Nh"]}
    return sizes | {"depth": ctor["X"], "keep_ratio": ctor["pr"][0], "num_classes": ctor["ncls"]}


@pytest.fixture
def evaluation(config, monkeypatch, tmp_path):
    """A function: the spec of an evaluation of weights in a file, of ImageNet on a CPU."""
    settings = copy.deepcopy(config.settings)
    scale = settings["imagenet"]
    scale["data"] |= {"num_classes": 10, "root": "images"}
    scale["recipe"] = {"amp": None, "batch_size": 8, "threads": 1}
    scale["evaluations"], scale["checkpoints"] = {}, {}
    edited = dataclasses.replace(config, settings=settings)
    monkeypatch.chdir(tmp_path)

    def make(name: str, content: dict, sizes: dict, suffix: str = ".pth") -> dict:
        path = tmp_path / f"{name}{suffix}"
        if suffix == ".safetensors":
            save_file(content, path)
        else:
            torch.save(content, path)
        entry = config.items["published"][name]
        checkpoint = {"file": str(path), "sha256": records.sha256(path)}
        kwargs = entry.get("kwargs", {}) | sizes
        scale["evaluations"][name] = {"run": entry["run"], "kwargs": kwargs, "checkpoint": checkpoint}
        return specs.evaluation_spec(edited, "imagenet", name)

    make.config = edited
    return make


def as_published(weights: dict) -> dict:
    """What a script of the DeiT family saves."""
    return {"model": weights, "epoch": 299, "args": argparse.Namespace(model="evo", lr=5e-4), "optimizer": {}}


def loaded(spec: dict) -> torch.nn.Module:
    model = factory.build_model(spec["model"])
    checkpoints.load_external(model, spec, {})
    return model.eval()


@pytest.mark.parametrize(
    ("name", "case", "sizes"),
    [
        ("authors_evo_deit_small", EVO_DEIT, small_deit),
        ("authors_evo_levit_128s", EVO_LEVIT, small_levit),
        ("authors_dynamic_deit_small", DYNAMICVIT, small_deit),
    ],
)
def test_a_file_with_the_authors_keys_gives_the_logits_of_their_code(evaluation, name, case, sizes):
    about, expected = reference.case(case)
    weights = reference.weights(about["shapes"], torch.float32)
    model = loaded(evaluation(name, as_published(weights), sizes(about)))
    logits = model(reference.images(about, torch.float32))
    assert_close(logits, torch.tensor(expected["logits"]).float(), rtol=0, atol=1e-4)


def test_timms_files_of_levits_hold_indices_that_are_left_out(evaluation):
    sizes = families.FAMILIES["plain_levit"].small
    dense = families.build("plain_levit")
    assert isinstance(dense, PlainLevit)
    weights = dict(dense.state_dict())
    for key in list(weights):
        if key.endswith("attention_biases"):
            weights[f"{key[:-2]}_idxs"] = torch.zeros(4, 4, dtype=torch.long)
    assert any(key.endswith("attention_bias_idxs") for key in weights)
    model = loaded(evaluation("timm_levit_128s", weights, sizes, ".bin"))
    assert model.state_dict().keys() == dense.state_dict().keys()
    assert all(torch.equal(value, dense.state_dict()[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(("name", "suffix"), [("timm_deit_tiny", ".safetensors"), ("authors_evit_deit_small", ".pth")])
def test_timms_and_evits_keys_are_those_of_a_deit(evaluation, name, suffix):
    sizes = families.DEIT
    dense = timm.create_model("deit_tiny_patch16_224", **sizes)
    weights = dense.state_dict()
    model = loaded(evaluation(name, weights if suffix == ".safetensors" else as_published(weights), sizes, suffix))
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())


def test_a_given_file_is_evaluated_and_shown_next_to_the_printed_accuracy(evaluation, site, tmp_path):
    about, _ = reference.case(EVO_DEIT)
    weights = reference.weights(about["shapes"], torch.float32)
    spec = evaluation("authors_evo_deit_small", as_published(weights), small_deit(about))
    record = evaluate.run(spec, site, tmp_path / "results/evaluations/authors_evo_deit_small/attempts/1")
    records.write_json(tmp_path / "results/evaluations/authors_evo_deit_small.json", record)
    frame, shown = published.published(Records(evaluation.config, "results", partial=False))
    frame = frame.set_index("evaluation")
    line = frame.loc["authors_evo_deit_small"]
    assert line["top1"] == record["results"]["top1"]
    assert (line["top1_paper"], line["printed_in"], line["val_images"]) == (79.4, "Table 1", 20)
    assert line["top1_delta"] == pytest.approx(line["top1"] - 79.4)
    assert line["weights"] == "authors_evo_deit_small.pth"
    assert line["source"].startswith("measured (top1: the model of evo_deit_small with variant=official, img_size=64")
    others = frame.drop("authors_evo_deit_small")
    assert others["top1"].isna().all()
    assert others["flags"].str.contains("no file is given").all()
    assert "| authors_evo_deit_small.pth" in shown.markdown()


# -- the table ----------------------------------------------------------------------------------


@pytest.fixture
def measured(config, monkeypatch, tmp_path):
    """ImageNet's records of timm's weights and of LeViT's teacher, made up."""
    monkeypatch.chdir(tmp_path)
    reader = Records(config, "results", partial=False)

    def read(record: kinds.Record) -> dict:
        return records.make(record.spec, {"top1": 75.5, "top5": 92.5, "val_images": 50000}, 0.0)

    monkeypatch.setattr(reader, "_read", read)
    return reader


def test_timms_weights_are_evaluated_as_they_are(config, measured):
    frame, shown = published.published(measured)
    frame = frame.set_index("evaluation")
    for run in OF_TIMM:
        line = frame.loc[f"timm_{run}"]
        entry = config.settings["imagenet"]["evaluations"][f"timm_{run}"]
        assert (line["run"], line["weights"], line["top1"]) == (run, entry["checkpoint"]["timm"], 75.5)
        assert timm.is_model_pretrained(line["weights"])
        assert line["top1_delta"] == pytest.approx(75.5 - line["top1_paper"])
        assert line["top1_delta_authors"] == pytest.approx(75.5 - line["top1_authors"])
        assert line["source"] == (
            f"measured (top1: the paper's model with the weights of {line['weights']} on imagenet, "
            "50000 validation images)"
        )
    assert frame.loc["timm_deit_tiny", "top1_paper"] == 72.2
    assert pd.isna(frame.loc["timm_deit_tiny", "flags"])
    assert "1,000 epochs" in frame.loc["timm_levit_256", "flags"]
    assert "evaluated on 50000 validation images of imagenet" in shown.markdown()
    assert all(len(row) == len(shown.head) for row in shown.rows)


def test_missing_files_say_where_they_are_which_keys_they_have_and_how_to_name_them(measured):
    frame, shown = published.published(measured)
    missing = frame[frame["top1"].isna()].set_index("evaluation")
    assert len(missing) == 14
    for name, line in missing.iterrows():
        assert line["flags"].count("no file is given: the README of github.com/") == 1
        assert "its keys are" in line["flags"]
        assert line["to_evaluate"].startswith(f"{name}: {{run: {line['run']}, ")
        assert f"`{line['to_evaluate']}`" in shown.remarks
        assert ("kwargs: {variant: official}" in line["to_evaluate"]) is line["run"].startswith("evo_")
    assert missing.loc["authors_evo_deit_tiny", "to_evaluate"] == (
        "authors_evo_deit_tiny: {run: evo_deit_tiny, kwargs: {variant: official}, "
        "checkpoint: {file: <path>, sha256: <what sha256sum says>}}"
    )
    assert missing.loc["authors_evo_deit_tiny", "source"] == "paper"
    assert len(shown.notes) < len(missing)  # a sentence for all files of one kind


def test_what_a_setting_names_in_addition_comes_last(measured, monkeypatch):
    frame, _ = published.published(measured)
    assert list(frame["evaluation"])[-1] == "checkpoints.levit_teacher"
    assert frame.iloc[-1]["weights"] == "regnety_160.deit_in1k"
    assert pd.isna(frame.iloc[-1]["top1_paper"])
    own = {"run": "evo_deit_tiny", "checkpoint": {"file": "runs/best.pt", "sha256": "0" * 64}}
    monkeypatch.setitem(measured.config.settings["imagenet"]["evaluations"], "own", own)
    frame, _ = published.published(measured)
    line = frame.set_index("evaluation").loc["own"]
    assert (line["model"], line["weights"], line["top1_paper"]) == ("Evo-ViT on DeiT-T", "best.pt", 72.0)
    assert pd.isna(line["published_by"])


def test_what_the_weights_authors_say_is_of_every_row(config, monkeypatch, tmp_path):
    assert set(published.said_by_authors(config)) == set(config.items["published"])
    known = printed.by_run(config)
    for name, entry in config.items["published"].items():
        if name.startswith("authors_evo_"):  # the authors' README repeats the paper's tables
            assert published.said_by_authors(config)[name] == known[entry["run"]]["top1"]
    (tmp_path / "published.csv").write_text("evaluation,top1,source\ntimm_deit_tny,72.2,README\n")
    monkeypatch.setattr(printed, "FOLDER", tmp_path)
    with pytest.raises(ConfigError, match=r"published.csv names 'timm_deit_tny', .* did you mean 'timm_deit_tiny'"):
        published.said_by_authors(config)


def test_records_that_are_not_there_are_needed_but_not_for_a_partial_table(config, root):
    with pytest.raises(records.RecordError, match=r"results/evaluations/timm_deit_tiny.json is missing"):
        published.published(Records(config, root, partial=False))
    frame, shown = published.published(Records(config, root, partial=True))
    assert frame["top1"].isna().all()
    assert (frame["flags"].str.contains("not evaluated yet").sum(), len(frame)) == (10, 24)
    assert shown.remarks[0].startswith("nothing of it was evaluated")


def test_a_terminal_shows_the_weights_that_were_evaluated(measured, shown_on_a_terminal):
    frame, _ = published.published(measured)
    shown = shown_on_a_terminal("published", frame)
    assert max(map(len, shown)) <= 100
    evaluated = int(frame["top1"].notna().sum())
    assert sum("75.50" in line for line in shown) == evaluated
    assert "- evaluated on 50000 validation images" in shown
    assert f"- rows without a measured number are left out: {len(frame) - evaluated}" in shown


def test_it_is_made_by_its_name(measured, monkeypatch, tmp_path):
    monkeypatch.setattr(__main__, "Records", lambda *arguments, **options: measured)
    output = tmp_path / "results/published.csv"
    __main__.make(argparse.Namespace(output=output))
    assert len(pd.read_csv(output)) == 24
    assert output.with_suffix(".md").exists()
    assert output.with_suffix(".html").exists()


# -- targets and the YAML -----------------------------------------------------------------------


def test_only_settings_with_imagenets_images_have_it(config):
    assert "published.csv" in targets.whole(config, "imagenet")
    for setting in ("demo", "cifar10"):
        assert "published.csv" not in targets.whole(config, setting)
        with pytest.raises(targets.TargetError, match=rf"only of imagenet, not of the images of {setting}\)"):
            targets.spec_of(config, f"results/{setting}/published.partial.csv")
    needed = targets.needed(config, "results/published.csv")
    assert not [path for path, spec in needed.items() if spec["kind"] == "train"]  # nothing is trained for it
    for run in OF_TIMM:
        entry = config.settings["imagenet"]["evaluations"][f"timm_{run}"]
        assert f"results/weights/{entry['checkpoint']['timm']}.json" in needed


def test_the_papers_claims_do_not_ask_for_it(config):
    assert not [path for path in targets.item_records(config, "results", "claims") if "/evaluations/" in path]


@pytest.mark.parametrize("change", [{"run": "evo_deit_tiny"}, {"kwargs": {}}])
def test_an_evaluation_of_its_name_must_be_of_its_model(config, change):
    entry = {"run": "evo_deit_small", "kwargs": {"variant": "official", "tile": 8}}
    entry["checkpoint"] = {"file": "evo.pth", "sha256": "0" * 64}
    settings = copy.deepcopy(config.settings)
    settings["imagenet"]["evaluations"]["authors_evo_deit_small"] = entry
    edited = dataclasses.replace(config, settings=settings)
    assert not list(schema.faults(edited))
    entry |= change
    file, sentence = next(schema.faults(edited))
    assert file == "settings"
    assert sentence.startswith("imagenet.evaluations.authors_evo_deit_small has {'run': 'evo_deit")
    assert "says {'run': 'evo_deit_small', 'kwargs': {'variant': 'official'}}" in sentence


def test_a_table_of_no_images_and_weights_of_no_run_are_refused(config):
    for key, entry, sentence in (
        ("only_of", {"publishd": "imagenet"}, "only_of names 'publishd'; did you mean 'published'?"),
        ("only_of", {"published": "imagnet"}, "only_of.published names 'imagnet'; did you mean 'imagenet'?"),
        ("published", {"x": {"run": "evo", "by": "", "file": ""}}, "published.x.run names 'evo'"),
    ):
        edited = dataclasses.replace(config, items=config.items | {key: entry})
        file, found = next(schema.faults(edited))
        assert file == "items"
        assert found.startswith(sentence)


def test_an_evaluation_says_what_it_adds_to_the_papers_model(config, evaluation):
    spec = evaluation("authors_evit_deit_small", {}, {"keep_ratio": 0.5})
    assert results.describe_size(spec, evaluation.config) == "the model of evit_deit_small with keep_ratio=0.5"
    assert Path(spec["checkpoint"]["file"]).exists()
