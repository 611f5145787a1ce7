"""The search as a job: resumed to the same bits, and what the training makes of it."""

import json
from pathlib import Path

import pytest
import torch

from baselines.psvit import TopDownSearch
from workflow.campaign import specs
from workflow.storage import journal, provenance, records
from workflow.train import factory, search, trainer
from workflow.train.factory import SpecError

RUN = "ps_deit_tiny"


@pytest.fixture
def small_specs(config, tiny_spec, site) -> dict:
    """The search's and the training's small specs, the dense model trained."""
    dense = tiny_spec("deit_tiny", epochs=1)
    folder = Path(site["root"]) / "runs" / "deit_tiny" / "attempts" / "1"
    records.write_json(folder.parent.parent / "train.json", trainer.run(dense, site, folder))
    model = dense["model"] | {"name": "ps_deit_tiny_patch16_224"}
    searched = specs.search_spec(config, "demo", RUN) | {"model": model}
    searched["start"] = specs.reference(dense)
    searched["recipe"] |= {"images": 12, "threads": 1}
    searched["recipe"]["task_args"] = {"epsilon": 1e-5, "granularity": 5, "steps": 2, "lr": 1e-3}
    trained = tiny_spec(RUN, epochs=1) | {"model": model, "start": specs.reference(searched)}
    return {"search": searched, "train": trained}


def folder(site, number=1):
    return Path(site["root"]) / "runs" / RUN / "search" / "attempts" / str(number)


def publish(record, site):
    records.write_json(Path(site["root"]) / "runs" / RUN / "search.json", record)
    return record


def test_a_search_killed_in_the_middle_ends_the_same(small_specs, site, monkeypatch):
    whole = search.run(small_specs["search"], site, folder(site, 1))

    class Killed(Exception):
        pass

    next_layer = TopDownSearch.next_layer

    def killed_after_three(self):
        if len(self.layers) == 3:
            raise Killed
        return next_layer(self)

    monkeypatch.setattr(TopDownSearch, "next_layer", killed_after_three)
    with pytest.raises(Killed):
        search.run(small_specs["search"], site, folder(site, 2))
    monkeypatch.setattr(TopDownSearch, "next_layer", next_layer)
    other = provenance.running() | {"commit": "b" * 40, "source_hash": "b" * 16}
    monkeypatch.setattr(provenance, "running", lambda: other)
    with pytest.raises(provenance.CodeError, match=r"of ps_deit_tiny was.*search:other_code=warn"):
        search.run(small_specs["search"], site | {"other_code": "refuse"}, folder(site, 2))
    resumed = search.run(small_specs["search"], site, folder(site, 2))
    assert resumed["provenance"]["commit"] == "mixed"
    assert [code["from_layer"] for code in resumed["provenance"]["code"]] == [0, 3]
    for key in whole["results"].keys() - {"weights"}:
        assert whole["results"][key] == resumed["results"][key]
    assert whole["results"]["weights"]["sha256"]
    first, second = (torch.load(folder(site, n) / "weights.pt") for n in (1, 2))
    assert all(torch.equal(first[key], second[key]) for key in first)
    events = [event for event, _ in journal.read(folder(site, 2) / "journal.jsonl")]
    assert [e["layer"] for e in events if e["event"] == "layer"] == list(range(11, 0, -1))


def test_the_training_starts_from_what_was_found(small_specs, site):
    searched = publish(search.run(small_specs["search"], site, folder(site)), site)
    assert searched["results"]["weights"]["path"] == "search/attempts/1/weights.pt"
    assert len(json.dumps(searched)) < 20_000
    task = factory.build_task(small_specs["train"], site, torch.device("cpu"))
    assert task.get_trainable_module().patches == searched["results"]["patches"]
    attempt = Path(site["root"]) / "runs" / RUN / "attempts" / "1"
    record = trainer.run(small_specs["train"], site, attempt)
    assert record["results"]["top1"] >= 0
    kept = torch.load(attempt / "weights.pt")["kept"]
    assert kept.sum(1).tolist() == searched["results"]["counts"]


def test_images_are_a_sample_of_the_training_split(small_specs, site):
    first = search.begin(small_specs["search"], site, torch.device("cpu")).images
    again = search.begin(small_specs["search"], site, torch.device("cpu")).images
    other = search.begin(small_specs["search"] | {"seed": 1}, site, torch.device("cpu")).images
    assert first.shape == (12, 3, 16, 16)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_model_without_sets_is_answered_with_a_sentence(small_specs, site):
    spec = small_specs["search"]
    spec["model"] = spec["start"]["model"]
    with pytest.raises(SpecError, match=r"ps_deit_tiny, recipe psvit .* has no patch sets"):
        search.begin(spec, site, torch.device("cpu"))


def test_an_unknown_option_is_answered_with_a_sentence(small_specs, site):
    small_specs["search"]["recipe"]["task_args"]["epsylon"] = 1
    with pytest.raises(SpecError, match="unexpected keyword argument 'epsylon'"):
        search.begin(small_specs["search"], site, torch.device("cpu"))
