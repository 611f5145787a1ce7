"""What Snakemake is told that items are made of."""

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from workflow.campaign import rule_inputs
from workflow.storage import records

ITEM = SimpleNamespace(root="results/demo", table="table1", figure="pareto")
KINDS = ["table", "figure", "claims", "partial"]


@pytest.mark.parametrize("kind", KINDS)
def test_an_item_follows_the_code_that_makes_it_and_what_the_paper_prints(config, kind):
    found = getattr(rule_inputs.Plan(config), f"{kind}_inputs")(ITEM)
    for pattern, least in (("workflow/paper/*.py", 10), ("results/paper/*.csv", 6)):
        files = {str(path.relative_to(records.ROOT)) for path in records.ROOT.glob(pattern)}
        assert len(files) >= least
        assert files <= set(found)


def test_runs_whose_weights_are_given_are_told_from_those_that_train(config):
    given = re.compile(rf"(?P<root>{rule_inputs.Plan(config).roots_given})/runs/(?P<run>[^/]+)/train.json")
    assert given.fullmatch("results/runs/levit_teacher/train.json")["root"] == "results"
    for trained in ("results/runs/levit_256", "results/demo/runs/levit_teacher"):
        assert not given.fullmatch(f"{trained}/train.json")
    nothing = {name: {"results": "results"} for name in config.settings}
    none = rule_inputs.Plan(replace(config, settings=nothing)).roots_given
    assert not re.match(none, "results/runs/levit_teacher/train.json")


def test_a_training_does_not(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    wildcards = SimpleNamespace(root="results/demo", run="deit_tiny")
    found = rule_inputs.Plan(config).train_inputs(wildcards)
    assert not [path for path in (found["spec"], *found["first"]) if Path(path).suffix == ".py"]
