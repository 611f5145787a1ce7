"""What a setting's tables and claims lack, and in which order it is made."""

import argparse
from pathlib import Path

import pytest

from workflow.campaign.config import ConfigError
from workflow.paper import __main__, missing
from workflow.paper.missing import Need

ROOT = "results/cifar10/runs"


def by_run(needed: list[Need]) -> dict[str, Need]:
    return {Path(need.target).parent.name: need for need in needed if "/runs/" in need.target}


def test_what_decides_most_in_an_hour_comes_first_and_after_what_it_starts_from():
    seeds = {"dense": 0, "cheap": 0, "dear": 0, "alone": 0, "untold": 0, "cheap-s1": 1}
    first = {
        "untold": ["untold"],
        "dear": ["dense", "dear"],
        "cheap": ["dense", "cheap"],
        "cheap-s1": ["cheap-s1"],
        "alone": ["alone"],
    }
    waiting = {
        "a": {"dense", "cheap"},
        "b": {"dense", "cheap"},
        "c": {"dense", "dear"},
        "d": {"alone"},
        "e": {"cheap-s1", "dense"},
    }
    hours = {"dense": 2.0, "cheap": 0.5, "dear": 3.0, "alone": 2.0, "untold": 0.1, "cheap-s1": 0.1}
    # two claims in 2.5 hours; then one in 2, one in 3; what no claim waits for; the second seed
    order = ["dense", "cheap", "alone", "dear", "untold", "cheap-s1"]
    assert missing.in_order(seeds, first, waiting, hours) == order
    unknown = dict.fromkeys(hours)  # counts as equally long
    assert missing.in_order(seeds, first, waiting, unknown) == ["dense", "cheap", "dear", "alone", "untold", "cheap-s1"]


def test_records_that_are_there_are_told_from_those_to_make(config, root, trained):
    trained("cifar10", **{"deit_tiny": 72.0, "deit_tiny-keep0.9": 60.0})
    needed = missing.needs(config, "cifar10", Path("results/cifar10"))
    assert len({need.target for need in needed}) == len(needed)
    runs = by_run(needed)
    assert (runs["deit_tiny"].place, runs["deit_tiny"].to_make) == ("results", False)
    assert (runs["deit_tiny-s1"].place, runs["deit_tiny-s1"].to_make) == (None, True)
    assert runs["deit_tiny-s1"].claims > 0
    assert "deit_tiny-keep0.9-s1" not in runs  # one seed is asked for
    assert runs["tome_deit_tiny-s2"].claims == 0  # a table shows it
    seeds = [need.target.partition("-s")[2][:1] for need in needed if need.to_make and "/runs/" in need.target]
    order = [seed for seed in seeds if seed in "12" and seed]
    assert order == sorted(order)
    claims = [need.claims for need in needed if need.to_make]
    assert claims[0] > 0


def test_a_run_that_starts_from_a_committed_record_needs_its_weights(config, root, trained, monkeypatch):
    trained("cifar10", deit_tiny=72.0)
    Path("results/measured").mkdir()
    Path("results/cifar10").rename("results/measured/cifar10")
    needed = missing.needs(config, "cifar10", Path("results/cifar10"), ["methods"])
    dense = by_run(needed)["deit_tiny"]
    assert (dense.place, dense.to_make) == ("measured", True)
    order = [need.target for need in needed if need.to_make]
    assert order.index(f"{ROOT}/deit_tiny/train.json") < order.index(f"{ROOT}/tome_deit_tiny/train.json")
    assert not [need for need in needed if "keep0.9" in need.target]  # no part of that table


def test_hours_follow_from_other_trainings(config, root, trained):
    trained("cifar10", deit_tiny=72.0)
    evidence = missing.Evidence(config, "cifar10", Path("results/cifar10"))
    path = f"{ROOT}/deit_tiny/train.json"
    _, record = evidence.find(missing.kinds.record(config, "train", "cifar10", run="deit_tiny"))
    record["results"]["history"] = [{"epoch_s": 60.0}, {"epoch_s": 60.0}]
    record["provenance"]["device"] = "the device of the results"
    durations = missing.Durations(evidence, {path: ("results", record)})
    assert by_hours(config, durations, "deit_tiny-s1") == pytest.approx(15 / 60)
    assert by_hours(config, durations, "evo_deit_tiny-common") == pytest.approx(3 / 60)
    assert by_hours(config, missing.Durations(evidence, {}), "deit_tiny-s1") is None
    of_another_device = missing.Durations(evidence, {path: ("measured", record)})
    assert by_hours(config, of_another_device, "deit_tiny-s1") is None


def test_hours_of_a_speed_follow_from_the_same_configuration_on_such_a_device(config, root, monkeypatch):
    speed, other = (missing.kinds.throughput_record(config, "cifar10", group) for group in ("deit_tiny", "levit_128s"))
    name = Path(speed.path).name
    monkeypatch.setattr(missing.provenance, "processor", lambda: "a processor")
    for machine, device, file, wall_s in (
        ("one", "a processor", name, 1800.0),
        ("two", "a processor", name, 5400.0),
        ("one", "a processor", "cpu-paper-fp32-b32.json", 10.0),
        ("three", "another", name, 10.0),
    ):
        record = missing.records.make(speed.spec, {}, 0.0, wall_s=wall_s, device=device)
        missing.records.write_json(f"results/measured/{machine}/throughput/deit_tiny/{file}", record)
    evidence = missing.Evidence(config, "cifar10", Path("results/cifar10"))
    durations = missing.Durations(evidence, {})
    assert durations.hours(speed) == pytest.approx(1.0)
    assert durations.hours(other) is None
    # of another group, but as the tables of this setting have it
    record["provenance"] |= {"device": "another", "wall_s": 7200.0}
    durations = missing.Durations(evidence, {speed.path: ("results", record)})
    assert durations.hours(other) == pytest.approx(2.0)
    assert durations.devices == {"a processor", "another"}


def by_hours(config, durations: missing.Durations, run: str) -> float | None:
    return durations.hours(missing.kinds.record(config, "train", "cifar10", run=run))


@pytest.mark.parametrize(
    ("hours", "sentence"),
    [
        ([0.25, None, 0.25, None, None], "Of the 5 jobs to run, 2 take about 0.5 hours; the hours of the other 3 are"),
        ([0.25, 0.25], "The 2 jobs to run take about 0.5 hours."),
        ([None, None], "The hours of the 2 jobs to run are unknown."),
        ([], ""),
    ],
)
def test_the_lead_says_of_how_many_jobs_the_hours_are(hours, sentence):
    needed = [Need("a.json", "train", None, True, value) for value in hours]
    lead = missing.sheet_of("demo", [*needed, Need("b.json", "train", "results")]).lead
    before = f"demo: {len(needed) + 1} records: 1 are in the results, 0 only in results/measured/demo, and "
    assert lead.startswith(f"{before}{len(needed)} are missing. {sentence}".rstrip())


def test_the_command_prints_lines_that_fit(config, root, trained, capsys):
    trained("cifar10", deit_tiny=72.0)
    arguments = argparse.Namespace(setting="cifar10", results=None, items=["table3"], kind=[])
    __main__.list_missing(arguments)
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 100
    assert shown.startswith("cifar10: ")
    assert f"{ROOT}/deit_tiny-naive_selection/train.json" in shown
    arguments.items = ["table33"]
    with pytest.raises(ConfigError, match="--items: cifar10 has no table33; did you mean 'table3'"):
        __main__.list_missing(arguments)
    arguments.items = ["table3"]
    arguments.kind = ["throughput"]
    __main__.list_missing(arguments)
    shown = capsys.readouterr().out
    assert shown.startswith("cifar10: 2 records")
    assert "/throughput/table3_deit_tiny/" in shown
    assert "/runs/" not in shown
    arguments.kind = ["trian"]
    with pytest.raises(ConfigError, match="--kind: no table shows records of a kind trian; did you mean 'train'"):
        __main__.list_missing(arguments)
