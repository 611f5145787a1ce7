"""Claims about the curves of analyses: one above another, or one layer above another."""

import pytest

from tests.claims.ledger import changed, ledger
from workflow.campaign import specs, statements, targets
from workflow.campaign.config import CLAIMS, ConfigError
from workflow.paper import claims
from workflow.paper.claims import CLOSE, CONFIRMED, NOT_RUN, REFUTED
from workflow.storage import records

ABOVE = {"of": "cka", "higher": "informative", "lower": "placeholder"}
RISES = {"of": "cka", "higher": ["all", 3], "lower": ["all", 1]}
CURVES = {"all": [0.1, 0.3, 0.9], "informative": [0.2, 0.4, 0.8], "placeholder": [0.3, 0.1, 0.4]}


@pytest.fixture
def looked(config, root):
    def write(setting: str = "imagenet", half_widths: dict | None = None, **curves) -> None:
        spec = specs.analysis_spec(config, setting, "cka")
        path = specs.analysis_path(config.settings[setting]["results"], "cka")
        results = {"images": 512, "curves": CURVES | curves}
        results["half_widths"] = half_widths or {name: [0.0] * 3 for name in CURVES}
        records.write_json(path, records.make(spec, results, 0.0))

    return write


def test_a_curve_lies_above_another_in_the_mean_and_a_layer_above_another(config, looked):
    looked()
    edited = changed(config, above={"compute": {"curves": ABOVE}},
                     rises={"compute": {"curves": RISES}})  # fmt: skip
    found = ledger(edited)
    assert list(found["ours"]) == ["0.200", "0.800"]
    assert set(found["verdict"]) == {CONFIRMED}
    assert set(found["n"]) == {"512 images"}
    assert set(found["runs"]) == {"analyses/cka"}
    assert (found["ours_low"] == found["ours_high"]).all()
    looked(informative=[0.1, 0.1, 0.1])
    assert ledger(edited).loc["above"]["verdict"] == REFUTED


def test_a_spread_over_the_images_makes_an_interval(config, looked):
    """Of the same images both ends are, so their half widths add up; of a mean it is their mean."""
    edited = changed(config, above={"compute": {"curves": ABOVE}},
                     rises={"compute": {"curves": RISES}})  # fmt: skip
    half = {"all": [0.1, 0.0, 0.2], "informative": [0.0, 0.3, 0.0], "placeholder": [0.3, 0.0, 0.0]}
    looked(half_widths=half)
    found = ledger(edited)
    assert found.loc["above", ["ours_low", "ours_high"]].tolist() == pytest.approx([0.0, 0.4])
    assert found.loc["rises", ["ours_low", "ours_high"]].tolist() == pytest.approx([0.5, 1.1])
    assert found["verdict"].tolist() == [NOT_RUN, CONFIRMED]
    assert found["note"].fillna("").tolist() == [CLOSE, ""]
    assert "0.800 (0.500 to 1.100)" in claims.readable(found.reset_index()).markdown()


def test_only_a_model_of_imagenet_decides(config, looked):
    looked("demo")
    edited = changed(config, above={"compute": {"curves": ABOVE}})
    row = ledger(edited, "results/demo").loc["above"]
    assert (row["ours"], row["verdict"]) == ("0.200", NOT_RUN)
    assert "trained on digits" in row["note"]


def test_a_curve_that_is_not_there_is_named(config, looked):
    looked()
    for curves, said in ((ABOVE | {"higher": "informativ"}, "informativ at point 1"),
                         (RISES | {"higher": ["all", 13]}, "all at point 13")):  # fmt: skip
        with pytest.raises(ConfigError, match=said):
            ledger(changed(config, odd={"compute": {"curves": curves}}))
    with pytest.raises(ConfigError, match="class_attention"):
        ledger(changed(config, odd={"compute": {"curves": ABOVE | {"of": "ckaa"}}}))


def test_the_full_ledger_asks_for_the_analyses_it_compares(config):
    asked = targets.item_records(config, "results", CLAIMS)
    looks = {path for path in asked if "/analyses/" in path}
    compared = ("class_attention", "cka", "query_correlation", "selection")
    assert looks == {f"results/analyses/{name}.json" for name in compared}


def test_a_picture_is_no_number_where_a_number_can_be_had(config):
    assert [one.id for one in statements.every(config) if one.kind == "seen"] == [
        "missed_tokens_are_retrieved",
        "selection_finds_objects",
    ]


@pytest.mark.parametrize("setting", ["imagenet", "cifar10", "demo"])
def test_claims_of_epochs_find_their_snapshots(config, setting):
    """So many points has a curve over the epochs: each snapshot beside the next, and the end."""
    (one,) = [one for one in statements.every(config) if one.id == "selection_settles"]
    analysis, (_, latest), _ = one.curves
    run = specs.analysis_spec(config, setting, analysis)["run"]
    assert len(specs.train_spec(config, setting, run)["snapshots"]) == latest
