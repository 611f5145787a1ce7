"""Claims about the curves of analyses: one above another, or one layer above another."""

import pytest

from tests.claims.ledger import changed, ledger
from workflow import records, runs
from workflow.campaign import CLAIMS, ConfigError
from workflow.login import targets
from workflow.paper.claims import CONFIRMED, NOT_RUN, REFUTED

ABOVE = {"of": "cka", "higher": "informative", "lower": "placeholder"}
RISES = {"of": "cka", "higher": ["all", 3], "lower": ["all", 1]}
CURVES = {"all": [0.1, 0.3, 0.9], "informative": [0.2, 0.4, 0.8], "placeholder": [0.3, 0.1, 0.4]}


@pytest.fixture
def looked(config, root):
    def write(setting: str = "imagenet", **curves) -> None:
        spec = runs.analysis_spec(config, setting, "cka")
        path = runs.analysis_path(config.settings[setting]["results"], "cka")
        record = records.make(spec, {"images": 512, "curves": CURVES | curves}, 0.0)
        records.write_json(path, record)

    return write


def test_a_curve_lies_above_another_in_the_mean_and_a_layer_above_another(config, looked):
    looked()
    edited = changed(config, above={"compute": {"curves": ABOVE}},
                     rises={"compute": {"curves": RISES}})  # fmt: skip
    found = ledger(edited)
    assert list(found["ours"]) == ["0.20", "0.80"]
    assert set(found["verdict"]) == {CONFIRMED}
    assert set(found["n"]) == {"512 images"}
    assert set(found["runs"]) == {"analyses/cka"}
    looked(informative=[0.1, 0.1, 0.1])
    assert ledger(edited).loc["above"]["verdict"] == REFUTED


def test_only_a_model_of_imagenet_decides(config, looked):
    looked("demo")
    edited = changed(config, above={"compute": {"curves": ABOVE}})
    row = ledger(edited, "results/demo").loc["above"]
    assert (row["ours"], row["verdict"]) == ("0.20", NOT_RUN)
    assert "trained on digits" in row["note"]


def test_a_curve_that_is_not_there_is_named(config, looked):
    looked()
    for curves, said in ((ABOVE | {"higher": "informativ"}, "informativ at layer 1"),
                         (RISES | {"higher": ["all", 13]}, "all at layer 13")):  # fmt: skip
        with pytest.raises(ConfigError, match=said):
            ledger(changed(config, odd={"compute": {"curves": curves}}))
    with pytest.raises(ConfigError, match="class_attention"):
        ledger(changed(config, odd={"compute": {"curves": ABOVE | {"of": "ckaa"}}}))


def test_the_full_ledger_asks_for_the_analyses_it_compares(config):
    asked = targets.item_records(config, "results", CLAIMS)
    assert {"results/analyses/cka.json", "results/analyses/query_correlation.json"} <= set(asked)
    assert "results/analyses/selection.json" not in asked
