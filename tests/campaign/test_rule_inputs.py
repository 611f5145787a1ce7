"""What Snakemake is told of jobs and items."""

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from workflow.campaign import kinds
from workflow.campaign.kinds import KINDS
from workflow.campaign.rule_inputs import Plan, log, output
from workflow.storage import records

ITEMS = [{"table": "table1"}, {"figure": "pareto"}, {}]
RUN = SimpleNamespace(root="results/demo", run="deit_tiny")
RECORD = "results/demo/runs/deit_tiny/train.json"
SPEC = Path("results/demo/runs/deit_tiny/spec.json")


@pytest.mark.parametrize("rule", ["item", "partial"])
@pytest.mark.parametrize("names", ITEMS)
def test_an_item_follows_the_code_that_makes_it_and_what_the_paper_prints(config, rule, names):
    inputs = getattr(Plan(config), f"{rule}_inputs")(SimpleNamespace(root="results/demo", **names))
    for pattern, least in (("workflow/paper/*.py", 10), ("results/paper/*.csv", 6)):
        files = {str(path.relative_to(records.ROOT)) for path in records.ROOT.glob(pattern)}
        assert len(files) >= least
        assert files <= set(inputs)


def test_runs_whose_weights_are_given_are_told_from_those_that_train(config):
    given = re.compile(rf"(?P<root>{Plan(config).roots_given()})/runs/(?P<run>[^/]+)/train.json")
    assert given.fullmatch("results/runs/levit_teacher/train.json")["root"] == "results"
    for trained in ("results/runs/levit_256", "results/demo/runs/levit_teacher"):
        assert not given.fullmatch(f"{trained}/train.json")
    nothing = {name: {"results": "results"} for name in config.settings}
    none = Plan(replace(config, settings=nothing)).roots_given()
    assert not re.match(none, "results/runs/levit_teacher/train.json")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty clone."""
    monkeypatch.chdir(tmp_path)


def test_a_training_follows_no_code(config, here):
    inputs = Plan(config).inputs(KINDS["train"])(RUN)
    assert inputs["spec"] == [str(SPEC)]
    assert not [path for path in (*inputs["spec"], *inputs["first"]) if path.endswith(".py")]


def test_a_start_writes_the_spec_and_a_dry_run_nothing(config, here, tmp_path):
    plan = Plan(config, runs_jobs=False)
    assert plan.inputs(KINDS["train"])(RUN)["spec"] == []
    assert plan.changed == set()  # the missing record is reason enough
    assert not list(tmp_path.iterdir())
    Plan(config).inputs(KINDS["train"])(RUN)
    assert SPEC.exists()
    plan = Plan(config, runs_jobs=False)
    assert plan.inputs(KINDS["train"])(RUN)["spec"] == [str(SPEC)]
    assert plan.changed == set()


@pytest.mark.parametrize("content", ['{"kind": "train"}', "{", ""])
def test_a_dry_run_tells_snakemake_of_a_changed_spec_and_leaves_its_file(config, here, content):
    SPEC.parent.mkdir(parents=True)
    SPEC.write_text(content)
    Path(RECORD).touch()
    plan = Plan(config, runs_jobs=False)
    assert plan.inputs(KINDS["train"])(RUN)["spec"] == [str(SPEC)]
    assert plan.changed == {RECORD}
    assert SPEC.read_text() == content


def test_a_current_records_inputs_are_for_order_alone(config, here):
    record = kinds.record(config, "train", "demo", run="deit_tiny")
    inputs = Plan(config).inputs(KINDS["train"])
    assert not any(getattr(path, "flags", {}) for path in inputs(RUN)["first"])
    records.write_json(record.path, records.make(record.spec, {}, 0.0))
    assert all(path.flags["ancient"] for path in inputs(RUN)["first"])


def test_snakemake_is_told_where_records_and_logs_are():
    assert output(KINDS["train"]) == "{root}/runs/{run}/train.json"
    assert log(KINDS["train"]) == "{root}/runs/{run}/train.log"
    assert log(KINDS["search"]) == "{root}/runs/{run}/search/search.log"
    assert log(KINDS["throughput"]) == "{root}/throughput/{group}/{configuration}/throughput.log"
