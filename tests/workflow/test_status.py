"""What a user asks every morning, and what it will cost."""

import csv
import json
import time

import pytest

from workflow import records, runs
from workflow.journal import Journal
from workflow.login import attempts, forecast, status, targets
from workflow.login.slurm_queue import Queue

RECORD = "results/demo/runs/deit_tiny/train.json"
NOW = time.time()


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def spec(config):
    return targets.spec_of(config, RECORD)


@pytest.fixture
def attempt(place, spec):
    one = attempts.begin(targets.job_folder(RECORD), spec)
    one.note_job(launcher="slurm", job_id="7", submitted=NOW - 60, resources={"gpus": 2})
    return one


def row(spec, squeue: str = "") -> status.Row:
    def ask(*command):
        return (squeue, "") if squeue else ("", "Invalid job id specified")

    return status.row_of(RECORD, spec, Queue(ask=ask))


def epochs(attempt, count: int) -> None:
    journal = Journal(attempt.journal)
    for epoch in range(1, count + 1):
        metrics = {"loss": 1.0, "top1": 50.0, "epoch_s": 36.0}
        journal.write("epoch", epoch=epoch, metrics=metrics)


def test_not_started(place, spec):
    assert row(spec).state == "not started"


def test_queued_says_why(attempt, spec):
    found = row(spec, "7|PENDING|Resources||2026-12-01T10:00:00")
    assert found.state == "queued"
    assert "Resources" in found.detail
    assert "2026-12-01T10:00:00" in found.detail


def test_running_says_epoch_time_left_and_node(attempt, spec):
    epochs(attempt, 3)
    found = row(spec, "7|RUNNING|None|node3|N/A")
    assert found.state == "running"
    assert "epoch 3/25" in found.progress
    assert "13 min left" in found.progress
    assert "node3" in found.detail


def test_failed_says_why_and_where_the_log_is(attempt, spec):
    error = {"rank": 0, "sentence": None, "stopped": False, "traceback": "x\nValueError: bad\n"}
    (attempt.folder / "error-rank0.json").write_text(json.dumps(error))
    found = row(spec, "7|FAILED|NonZeroExitCode|node3|N/A")
    assert found.state == "failed"
    assert found.detail == "ValueError: bad"
    assert found.log == str(attempt.folder / "logs")


def test_killed_and_stopped_are_told_apart(attempt, spec):
    assert "ended as OUT_OF_MEMORY" in row(spec, "7|OUT_OF_MEMORY|OutOfMemory|node3|N/A").detail
    error = {"rank": 0, "sentence": "Asked to stop.", "stopped": True, "traceback": ""}
    (attempt.folder / "error-rank0.json").write_text(json.dumps(error))
    assert row(spec, "7|PREEMPTED|None|node3|N/A").state == "stopped"


def test_done_and_outdated(attempt, spec):
    record = {"spec": spec, "spec_hash": runs.spec_hash(spec), "results": {}}
    records.write_json(attempt.record, record)
    assert "publishes" in row(spec, "7|COMPLETED|None|node3|N/A").detail
    records.write_json(RECORD, record)
    assert row(spec).state == "done"
    records.write_json(RECORD, record | {"spec_hash": "0"})
    assert row({**spec, "seed": 5}).state == "outdated"


def test_every_job_of_a_table_is_listed_what_is_needed_first_first(config):
    found = list(targets.needed(config, "results/demo/table1.csv"))
    assert len(found) == 10  # data, preflight, 6 trainings, a search, a throughput
    search = found.index("results/demo/runs/ps_deit_tiny/search.json")
    assert found.index(RECORD) < search
    assert search < found.index("results/demo/runs/ps_deit_tiny/train.json")


@pytest.mark.parametrize("target", ["results/table9.csv", "results/runs/x/train.json", "elsewhere"])
def test_what_nothing_makes_is_refused(config, target):
    with pytest.raises(targets.TargetError, match=target):
        targets.needed(config, target)


def test_the_command_writes_a_csv_and_counts(place, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["status", "results/demo/table1.csv", "--csv", "s/status.csv"])
    status.main()
    said = capsys.readouterr().out
    assert "10 jobs: 10 not started" in said
    assert "No estimate for 6 training(s)" in said
    with open("s/status.csv") as stream:
        rows = list(csv.DictReader(stream))
    assert {row["state"] for row in rows} == {"not started"}
    assert len(rows) == 10


def test_costs_follow_from_measured_epochs(attempt, spec, config):
    """Two GPUs, 36 s an epoch, 25 epochs of which 5 are done."""
    epochs(attempt, 5)
    (cost,) = forecast.of_trainings(config, {RECORD: spec})
    assert cost.hours == pytest.approx(20 * 36 * 2 / 3600)
    assert cost.device == "GPU"
    assert "about 0.40 GPU-hours" in forecast.summary([cost])[0]


def test_costs_follow_from_measured_steps_of_the_row_or_by_macs_of_another(place, config):
    steps = {"batch_size": 10, "step_s_first": 1.2, "step_s_last": 0.9}
    methods = [{"run": "deit_tiny", "macs_g": 2.0, "sizes": [steps, {"batch_size": 99}]}]
    cost = {"spec": {"device": "cuda"}, "results": {"methods": methods}}
    speed = {"spec": {}, "results": {"methods": [{"run": "evo_deit_tiny", "macs_g": 1.0}]}}
    for root in ("results", "results/demo"):
        records.write_json(f"{root}/training/deit_tiny/cuda-paper-fp16.json", cost)
        records.write_json(f"{root}/throughput/deit_tiny/cuda-paper-fp32-b1.json", speed)
    paths = [f"results/runs/{run}/train.json" for run in ("deit_tiny", "evo_deit_tiny")]
    specs = {path: targets.spec_of(config, path) for path in paths}
    mine, scaled = forecast.of_trainings(config, specs)
    hours = 1.1 / 10 * 1_281_167 * 300 / 3600
    assert mine.hours == pytest.approx(hours)
    assert scaled.hours == pytest.approx(hours / 2)
    assert "scaled by MACs" in scaled.basis
    # the demo's models are smaller than those that were measured
    (shrunk,) = forecast.of_trainings(config, {RECORD: targets.spec_of(config, RECORD)})
    assert shrunk.hours is None
