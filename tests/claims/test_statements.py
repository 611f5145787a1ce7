"""What claims.yaml says, as statements; and which records the ledger of them asks for."""

import copy
import dataclasses

import pytest

from tests.claims.ledger import changed, ledger
from workflow.campaign import statements, targets
from workflow.campaign.config import CLAIMS, ConfigError
from workflow.campaign.statements import Statement
from workflow.paper import claims
from workflow.paper.claims import CONFIRMED, NOT_RUN, REFUTED
from workflow.paper.columns import Records
from workflow.paper.evidence import Evidence, Printed
from workflow.paper.found import exactly


def test_lists_make_a_row_of_each_and_names_are_the_tables(config):
    compute = {"order": {"better": ["evo_levit_128s", "evo_levit_256_384px"], "than": "dense",
                         "by": ["throughput", "top1"]}}  # fmt: skip
    found = statements.every(changed(config, fast={"compute": compute}))
    assert [one.id for one in found] == [
        "fast.evo_levit_128s.throughput", "fast.evo_levit_128s.top1",
        "fast.evo_levit_256_384px.throughput", "fast.evo_levit_256_384px.top1",
    ]  # fmt: skip
    assert found[2].says == "Evo-LeViT-256 at 384 px beside LeViT-256 at 384 px"


def test_a_claim_may_speak_of_a_figures_rows(config, trained):
    """Of those after a point, none may be more accurate by more than the tolerance."""
    items = copy.deepcopy(config.items)
    names = ("deit_tiny", "evo_deit_tiny", "svite_deit_tiny")
    items["figures"]["ratios"] = {"rows": [{"run": run, "section": "deit_tiny"} for run in names]}
    config = dataclasses.replace(config, items=items)
    config = changed(
        config,
        flat={"compute": {"saturates": {"at": "deit_tiny", "of": "ratios"}}, "tolerance": 0.3},
        best={"compute": {"best": {"run": "evo_deit_tiny", "of": "ratios", "by": "top1"}}},
    )
    trained(deit_tiny=72.0, evo_deit_tiny=73.2, svite_deit_tiny=70.0)
    frame = ledger(config)
    assert list(frame["verdict"]) == [REFUTED, CONFIRMED]
    assert frame["ours"].tolist() == ["1.20", "1.20"]
    for top1, verdict in ((71.6, CONFIRMED), (72.2, NOT_RUN)):
        trained(evo_deit_tiny=top1)
        assert ledger(config).loc["flat", "verdict"] == verdict


@pytest.mark.parametrize(
    ("compute", "sentence"),
    [({"speedup": {"run": "deit_small"}}, "timed against no other model"),
     ({"order": {"better": "deit_small", "than": "levit_128", "by": "throughput"}},
      "no section of items.yaml times in turns"),
     ({"saturates": {"at": "deit_small", "of": ["deit_small"]}}, "with nothing")],
)  # fmt: skip
def test_what_can_not_be_compared_is_refused(config, compute, sentence):
    with pytest.raises(ConfigError, match=sentence):
        statements.every(changed(config, odd={"compute": compute}))


def test_printed_percentages_follow_from_the_printed_images_per_second(config):
    printed = Printed(config)  # 43.6 is printed
    assert printed.faster("ps_deit_small", "deit_small").value == pytest.approx(39.15, abs=0.01)
    assert printed.faster("evo_levit_256", "levit_256").value == pytest.approx(27.4, abs=0.01)
    assert printed.faster("ia_red2_deit_tiny", "deit_tiny") is None


def test_the_full_ledger_needs_what_tables_and_compared_figures_need_and_no_more(config):
    needed = set(targets.needed(config, "results/claims.csv"))
    figures = ["figure6", "figureS1a", "figureS1b", "figureS1c", "figureS1d"]
    assert sorted(statements.figures(config)) == figures
    looks = ["figure2", "figure4a", "figure4b"]
    asked = [f"{name}.csv" for name in [*config.items["tables"], *figures, *looks]]
    asked.append("analyses/selection.json")  # figure5 shows selection_stage, too
    items = (targets.needed(config, f"results/{name}") for name in asked)
    assert needed == {path for item in items for path in item}
    assert targets.spec_of(config, "results/claims.partial.csv") is None


@pytest.mark.parametrize("root", ["results", "results/cifar10", "results/demo"])
def test_the_full_ledgers_inputs_are_all_that_it_reads(config, monkeypatch, root):
    """Also where it looks on because a section says nothing."""
    read = set()
    monkeypatch.setattr(Records, "_read", lambda self, path, spec: read.add(str(path)))
    claims.make(config, root, partial=False)
    assert f"{root}/runs/deit_tiny-alpha0.9/train.json" in read
    assert read <= set(targets.item_records(config, root, CLAIMS))


def test_a_setting_may_time_a_section_for_the_claims_alone(config):
    for item, wanted in ((CLAIMS, True), ("table1", False)):
        asked = targets.item_records(config, "results/demo", item)
        assert any("/throughput/deit_base/" in path for path in asked) == wanted
    reader, _ = Evidence(config, "results/demo", partial=False)._records(
        "time", lambda row: row["section"] == "deit_base"
    )
    assert reader is not None


def test_every_order_of_accuracies_has_a_tolerance(config):
    orders = [one for one in statements.every(config) if one.kind in ("order", "best", "saturates")]
    accuracies = [one for one in orders if one.by in ("top1", "top1_gap")]
    assert accuracies
    assert [one.id for one in accuracies if not one.tolerance] == []


def test_the_partial_ledger_takes_a_figures_runs_where_they_are(config, trained):
    trained(**{"deit_tiny-keep0.9": 72.4, "deit_tiny": 72.2})
    row = ledger(config).loc["keeping_nine_tenths_beats_dense"]
    assert (row["ours"], row["printed"], row["verdict"]) == ("0.20", "0.2", NOT_RUN)
    assert row["note"] == claims.CLOSE


def test_a_picture_of_a_table_is_no_target(config):
    assert targets.spec_of(config, "results/pareto.png") is None
    for target in ("results/table1.png", "results/table1.svg", "results/tabel1.csv"):
        with pytest.raises(targets.TargetError):
            targets.spec_of(config, target)


def test_what_the_setting_does_not_measure_is_not_asked_for(config, root):
    assert Evidence(config, "results/demo", partial=False).accuracy("deit_base") is None


def test_a_statement_without_a_printed_number_has_no_verdict():
    one = Statement(id="x", where="", says="", kind="top1_gap", run="a", others=("b",))
    assert claims.judge(one, exactly(0.1), None) == (NOT_RUN, ["the paper prints no number"])
