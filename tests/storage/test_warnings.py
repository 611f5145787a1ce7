"""Warnings about a result, as records hold them."""

from workflow.storage import warnings
from workflow.storage.warnings import Warning

HEAT = Warning("throttled", "throttled (heat) in 20 % of the time")


def test_a_record_gives_back_the_warnings_that_it_was_given():
    result = {"warnings": warnings.to_json([HEAT])}
    assert result == {"warnings": [{"code": "throttled", "text": HEAT.text}]}
    assert warnings.read(result) == [HEAT]


def test_a_result_without_warnings_has_none():
    assert warnings.read({}) == warnings.read({"warnings": []}) == []


def test_sentences_of_older_records_are_unclassified():
    assert warnings.read({"suspect": ["it drifted"]}) == [Warning("unclassified", "it drifted")]
