"""What a user asks every morning, and what it will cost."""

import base64
import csv
import json
import os
import time
from dataclasses import replace

import pytest

from workflow.campaign import kinds, specs, targets
from workflow.launch import forecast, progress, status, submit
from workflow.launch.slurm import Queue
from workflow.storage import attempts, locks, records
from workflow.storage.journal import Journal

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
    begun = attempts.begin(kinds.job_folder(RECORD), spec)
    begun.note_job(launcher="slurm", job_id="7", submitted=NOW - 60, resources={"gpus": 2})
    return begun


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
    job = row(spec, "7|PENDING|Resources||2026-12-01T10:00:00")
    assert job.state == "queued"
    assert "Resources" in job.detail
    assert "2026-12-01T10:00:00" in job.detail


def test_running_says_epoch_time_left_and_node(attempt, spec):
    epochs(attempt, 3)
    job = row(spec, "7|RUNNING|None|node3|N/A")
    assert job.state == "running"
    total = spec["recipe"]["epochs"]
    assert f"epoch 3/{total}" in job.progress
    assert f"{(total - 3) * 36 / 60:.0f} min left" in job.progress
    assert "node3" in job.detail


def test_failed_says_why_and_where_the_log_is(attempt, spec):
    error = {"rank": 0, "sentence": None, "stopped": False, "traceback": "x\nValueError: bad\n"}
    (attempt.folder / "error-rank0.json").write_text(json.dumps(error))
    job = row(spec, "7|FAILED|NonZeroExitCode|node3|N/A")
    assert job.state == "failed"
    assert job.detail == "ValueError: bad"
    assert job.log == str(attempt.folder / "logs")


def test_killed_and_stopped_are_told_apart(attempt, spec):
    assert "ended as OUT_OF_MEMORY" in row(spec, "7|OUT_OF_MEMORY|OutOfMemory|node3|N/A").detail
    error = {"rank": 0, "sentence": "Asked to stop.", "stopped": True, "traceback": ""}
    (attempt.folder / "error-rank0.json").write_text(json.dumps(error))
    assert row(spec, "7|PREEMPTED|None|node3|N/A").state == "stopped"


def test_done_and_outdated(attempt, spec):
    record = {"spec": spec, "spec_hash": specs.spec_hash(spec), "results": {}}
    records.write_json(attempt.record, record)
    assert "publishes" in row(spec, "7|COMPLETED|None|node3|N/A").detail
    records.write_json(RECORD, record)
    assert row(spec).state == "done"
    records.write_json(RECORD, record | {"spec_hash": "0"})
    assert row({**spec, "seed": 5}).state == "outdated"


def test_a_deleted_record_is_made_anew_unless_snakemake_died_meanwhile(attempt, spec, place):
    """As the launcher decides it."""
    record = {"spec": spec, "spec_hash": specs.spec_hash(spec), "results": {}}
    records.write_json(attempt.record, record)
    attempt.published.touch()
    assert row(spec).state == "done"
    key = base64.b64encode(RECORD.encode(), altchars=b"-_").decode()
    (place / ".snakemake/metadata").mkdir(parents=True)
    (place / ".snakemake/metadata" / key).touch()
    job = row(spec)
    assert job.state == "not started"
    assert "the next start makes it anew" in job.detail


@pytest.fixture
def launcher(place, spec):
    """A function: what a launcher of the run says in its log."""
    folder = kinds.job_folder(RECORD)
    specs.write_spec(folder / "spec.json", spec)

    def say(text: str) -> None:
        with progress.Log(folder / "train.log", "x") as log:
            log.say(text)

    return say


def test_what_a_launcher_failed_of_is_a_failure_too(launcher, spec):
    """sbatch refused it, or its record was of another spec: no job says so."""
    attempts.begin(kinds.job_folder(RECORD), spec)
    launcher("ERROR: The job was not accepted: Invalid qos specification")
    job = row(spec)
    assert job.state == "failed"
    assert job.detail == "The job was not accepted: Invalid qos specification"
    assert job.log == "results/demo/runs/deit_tiny/train.log"
    specs.write_spec(kinds.job_folder(RECORD) / "spec.json", {**spec, "seed": 5})
    later = time.time() + 5
    os.utime(kinds.job_folder(RECORD) / "spec.json", (later, later))
    assert row({**spec, "seed": 5}).state == "not started"  # it was about another spec


def test_a_launcher_that_waits_for_slurm_is_no_job_that_was_not_started(launcher, spec, place):
    launcher("Slurm takes no job now (AssocGrpSubmitJobsLimit); trying again in 40 s.")
    assert row(spec).state == "not started"  # its launcher was killed
    with locks.exclusive(kinds.job_folder(RECORD) / submit.LOCK):
        job = row(spec)
    assert job.state == "queued"
    assert "at its launcher: Slurm takes no job now (AssocGrp" in job.detail


def test_a_dead_job_that_its_launcher_submits_again_has_not_failed(launcher, attempt, spec):
    launcher("Slurm job 7 ended as NODE_FAIL without a record; it is submitted again.")
    with locks.exclusive(kinds.job_folder(RECORD) / submit.LOCK):
        assert row(spec, "7|NODE_FAIL|None|node3|N/A").state == "queued"
    assert row(spec, "7|NODE_FAIL|None|node3|N/A").state == "failed"


def test_every_job_of_a_table_is_listed_what_is_needed_first_first(config):
    paths = list(targets.needed(config, "results/demo/table1.csv"))
    assert len(paths) == 10  # data, preflight, 6 trainings, a search, a throughput
    search = paths.index("results/demo/runs/ps_deit_tiny/search.json")
    assert paths.index(RECORD) < search
    assert search < paths.index("results/demo/runs/ps_deit_tiny/train.json")


@pytest.mark.parametrize("target", ["results/table9.csv", "results/runs/x/train.json", "elsewhere"])
def test_what_nothing_makes_is_refused(config, target):
    with pytest.raises(targets.TargetError, match=target):
        targets.needed(config, target)


def test_the_command_writes_a_csv_and_counts(place, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["status", "results/demo/table1.csv", "--csv", "s/status.csv"])
    status.main()
    output = capsys.readouterr().out
    assert "10 jobs: 10 not started" in output
    assert "No estimate for 6 training(s)" in output
    with open("s/status.csv") as stream:
        rows = list(csv.DictReader(stream))
    assert {row["state"] for row in rows} == {"not started"}
    assert len(rows) == 10


def test_the_images_are_those_of_the_split_that_is_trained_on(place, config):
    """Which tar files and the Hub's data name as they like."""
    data = config.settings["imagenet"]["data"] | {"train": "train.tar", "train_images": 7}
    changed = replace(config, settings={
        **config.settings, "imagenet": config.settings["imagenet"] | {"data": data},
    })  # fmt: skip
    for split, images in (("train.tar", 40), ("train", 7)):  # the other: counted before the change
        records.write_json("results/data.json", {"results": {"splits": {split: {"images": 40}}}})
        assert forecast.Forecast(changed, "results").images == images


def test_a_download_is_a_job_too(place, config):
    path = "results/weights/regnety_160.deit_in1k.json"
    spec = targets.spec_of(config, path)
    (job,) = status.rows_of({path: spec}, Queue(ask=lambda *command: ("", "")))
    assert job == status.Row(path, "not started")


def test_costs_follow_from_measured_epochs(attempt, spec, config):
    """Two GPUs, 36 s an epoch, of which 5 are done."""
    epochs(attempt, 5)
    (cost,) = forecast.of_jobs(config, {RECORD: spec})
    hours = (spec["recipe"]["epochs"] - 5) * 36 * 2 / 3600
    assert cost.hours == pytest.approx(hours)
    assert cost.device == "GPU"
    assert f"about {hours:.2f} GPU-hours" in forecast.by_target([cost], {})[0]


def test_a_method_costs_about_what_its_dense_model_took(place, uncommented):
    """Before the first step of the method: the host took 36 s an epoch."""
    config = replace(uncommented)
    config.classes["mydata"] = 3  # of images that are not there
    paths = [f"results/mydata/runs/{run}/train.json" for run in ("host", "host-tome", "host-continued")]
    specs_by_path = {path: targets.spec_of(config, path) for path in paths}
    epochs(attempts.begin(kinds.job_folder(paths[0]), specs_by_path[paths[0]]), 30)
    host, *others = forecast.of_jobs(config, specs_by_path)
    assert host.hours == 0
    assert [(cost.hours, cost.basis) for cost in others] == [(pytest.approx(30 * 36 / 3600), forecast.DENSE)] * 2


def test_each_table_has_its_own_estimate_and_shared_trainings_count_once_in_all():
    costs = [forecast.Cost(f"results/runs/{run}/train.json", 10.0, "GPU", "") for run in "abc"]
    paths = [cost.path for cost in costs]
    lines = forecast.by_target(costs, {"t1.csv": paths[:2], "t2.csv": paths[1:2], "t3.csv": []})
    assert [line.partition(" training")[0] for line in lines] == [
        "Estimate, t1.csv: 2",
        "Estimate, t2.csv: 1",
        "Estimate, other targets: 1",
        "Estimate, all together: 3",
    ]
    assert "about 30 GPU-hours" in lines[-1]
    assert len(forecast.by_target(costs, {"t1.csv": paths})) == 1


def test_why_there_is_no_estimate_is_said_as_it_is():
    costs = [
        forecast.Cost("results/cifar10/runs/a/train.json", None, "", forecast.UNCOUNTED),
        forecast.Cost("results/runs/b/train.json", None, "", forecast.NOTHING),
    ]
    steps, images = forecast.by_target(costs, {})
    assert "1 training(s) (b): no step was measured yet" in steps
    assert "1 training(s) (a): the images are not counted yet; the target data.json" in images


def test_costs_follow_from_measured_steps_of_the_row_or_by_macs_of_another(place, config):
    steps = {"batch_size": 10, "step_s_first": 1.2, "step_s_last": 0.9}
    methods = [{"run": "deit_tiny", "macs_g": 2.0, "sizes": [steps, {"batch_size": 99}]}]
    cost = {"spec": {"device": "cuda"}, "results": {"methods": methods}}
    speed = {"spec": {}, "results": {"methods": [{"run": "evo_deit_tiny", "macs_g": 1.0}]}}
    for root in ("results", "results/demo"):
        records.write_json(f"{root}/training/deit_tiny/cuda-paper-fp16.json", cost)
        records.write_json(f"{root}/throughput/deit_tiny/cuda-paper-fp32-b1.json", speed)
    paths = [f"results/runs/{run}/train.json" for run in ("deit_tiny", "evo_deit_tiny")]
    specs_by_path = {path: targets.spec_of(config, path) for path in paths}
    mine, scaled = forecast.of_jobs(config, specs_by_path)
    hours = 1.1 / 10 * 1_281_167 * 300 / 3600
    assert mine.hours == pytest.approx(hours)
    assert scaled.hours == pytest.approx(hours / 2)
    assert "scaled by MACs" in scaled.basis
    assert forecast.by_target([mine, scaled], {})[0].endswith(
        "(1 from measured steps; 1 from other rows' steps, scaled by MACs)."
    )
    # the demo's models are smaller than those that were measured
    (shrunk,) = forecast.of_jobs(config, {RECORD: targets.spec_of(config, RECORD)})
    assert shrunk.hours is None


def test_methods_off_the_shelf_cost_what_the_dense_model_takes_for_the_validation_images(place, config):
    path = "results/offtheshelf/deit_small.json"
    spec = targets.spec_of(config, path)
    (unknown,) = forecast.of_jobs(config, {path: spec})
    assert "No estimate for 1 evaluation(s) (deit_small): its dense model was not timed yet" in forecast.by_target(
        [unknown], {}
    )[0]  # fmt: skip
    timed = {
        "spec": {"device": "cuda"},
        "results": {"methods": [{"run": "deit_small", "images_per_s": 1000.0, "macs_g": 4.6}]},
    }
    slow = {
        "spec": {"device": "cpu"},
        "results": {"methods": [{"run": "deit_small", "images_per_s": 10.0, "macs_g": 4.6}]},
    }
    records.write_json("results/throughput/deit_small/cuda-paper-fp32-b256.json", timed)
    records.write_json("results/throughput/deit_small/cpu-fused-fp32-b32.json", slow)
    (uncounted,) = forecast.of_jobs(config, {path: spec})
    assert uncounted.basis == forecast.UNCOUNTED
    records.write_json("results/data.json", {"results": {"splits": {"val": {"images": 50_000}}}})
    (cost,) = forecast.of_jobs(config, {path: spec})
    models = 1 + 7 * 4  # the dense model, and seven methods at four strengths
    assert cost.hours == pytest.approx(models * 50_000 / 1000 / 3600)
    assert forecast.by_target([cost], {})[0].startswith(
        "Estimate, these targets: 1 evaluation(s), about 0.40 GPU-hours"
    )
