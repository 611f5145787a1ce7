"""The MLflow sync loses and doubles nothing: what it sends of every kind of attempt and table."""

import os
import shutil
from pathlib import Path

import pytest

from tests.tracking.conftest import expected, finish, shown, write_epochs, write_record
from workflow.campaign import benchmarks, specs
from workflow.storage import locks, records


def test_every_point_of_the_journal_stands_once(root, new_sync, attempt, config):
    folder = attempt("evo_deit_tiny")
    write_epochs(folder, 1, 3)
    write_epochs(folder, 3, 5, shift=0.5)  # resumed; its predecessor left epoch 3 unsaved
    first = new_sync()
    assert first.catch_up()
    write_epochs(folder, 5, 6, shift=0.25)
    assert first.catch_up()
    assert new_sync().catch_up()
    run, points = shown(root)["evo_deit_tiny", "1"]
    assert points == expected(folder)
    assert run.data.tags["done_twice"] == "3,5"  # of these the record counts the second
    assert run.info.status == "RUNNING"
    spec = specs.train_spec(config, "demo", "evo_deit_tiny")
    assert run.data.params["recipe.epochs"] == str(spec["recipe"]["epochs"])
    assert run.data.params["model.name"] == spec["model"]["name"]
    tags = {"kind": "train", "method": "Evo-ViT", "backbone": "DeiT-T", "table1": "yes", "table3": "yes",
            "seed": "0"}  # fmt: skip
    assert run.data.tags.items() >= tags.items()


def test_a_finished_run_has_its_numbers_and_files_and_is_left_alone(root, new_sync, attempt):
    folder = attempt("deit_tiny")
    write_epochs(folder, 1, 3)
    finish(folder)
    (folder.parent.parent / "train.log").write_text("done\n")
    assert new_sync().catch_up()
    before = shown(root)["deit_tiny", "1"]
    run, points = before
    assert run.info.status == "FINISHED"
    assert run.data.metrics["best_top1"] == 60.0
    assert run.data.metrics["total_train_s"] == 9.0
    assert points.items() >= expected(folder).items()
    assert run.data.tags["device"] == "a processor"
    held = Path(run.info.artifact_uri.removeprefix("file://"))
    assert {path.name for path in held.iterdir()} == {"spec.json", "record.json", "train.log"}
    again = new_sync()
    again._connect()
    again.client.log_batch = again.client.log_artifact = None  # any writing would fail
    assert again.catch_up()
    assert shown(root)["deit_tiny", "1"][1] == points


def test_a_measurement_shows_each_model(root, new_sync, config):
    configuration = {"device": "cpu", "mode": "fused", "precision": "fp32", "batch_size": 32}
    spec = benchmarks.throughput_spec(config, "demo", "deit_tiny", {**configuration, "threads": 2, "rounds": 5})
    folder = root / "results/demo/throughput/deit_tiny/cpu-fused-fp32-b32/attempts/1"
    specs.write_spec(folder / "spec.json", spec)
    method = {"images_per_s": 20.0, "speedup": 1.5, "macs_g": 0.7, "params_m": 5.9}
    method |= {"out_of_memory": False}
    write_record(folder, {"methods": [{"run": "evo_deit_tiny", **method}]})
    assert new_sync().catch_up()
    run, _ = shown(root)["deit_tiny/cpu-fused-fp32-b32", "1"]
    assert run.data.metrics["speedup_pct.evo_deit_tiny"] == 50.0
    assert run.data.metrics["images_per_s.evo_deit_tiny"] == 20.0
    assert run.data.params["batch_size"] == "32"
    assert run.data.tags.items() >= {"kind": "throughput", "backbone": "DeiT-T"}.items()


def test_failed_then_running_then_replaced(root, new_sync, attempt):
    folder = attempt("deit_tiny")
    dead = {"launcher": "local", "host": os.uname().nodename, "job_id": "999999", "started": "1"}
    records.write_json(folder / "job.json", dead)
    write_epochs(folder, 1, 1)
    current = new_sync()

    def status() -> str:
        assert current.catch_up()
        return shown(root)["deit_tiny", "1"][0].info.status

    assert status() == "RUNNING"  # killed, without an error: to be resumed
    (folder / "error-rank0.json").write_text("{}")
    with locks.exclusive(folder / "rank0.lock"):
        assert status() == "RUNNING"  # its first process still works
    assert status() == "FAILED"
    (folder / "error-rank0.json").unlink()
    assert status() == "RUNNING"
    write_epochs(attempt("deit_tiny", 2), 1, 2)
    assert status() == "KILLED"
    assert shown(root)["deit_tiny", "2"][0].info.status == "RUNNING"


def test_a_job_that_was_asked_to_stop_has_not_failed(root, new_sync, attempt):
    folder = attempt("deit_tiny")
    job = {"launcher": "local", "host": os.uname().nodename, "job_id": "999999", "started": "1"}
    records.write_json(folder / "job.json", job)
    write_epochs(folder, 1, 1)
    (folder / "error-rank0.json").write_text('{"stopped": true}')
    assert new_sync().catch_up()
    assert shown(root)["deit_tiny", "1"][0].info.status == "RUNNING"


def test_a_deleted_folder_made_anew_is_another_run(root, new_sync, attempt):
    folder = attempt("deit_tiny")
    write_epochs(folder, 1, 2)
    new_sync().catch_up()
    shutil.rmtree(folder)
    write_epochs(attempt("deit_tiny"), 1, 2, shift=7.0)
    new_sync().catch_up()
    with pytest.raises(AssertionError, match="twice"):
        shown(root)


def test_a_run_deleted_in_the_ui_stays_so_and_bars_no_other(root, new_sync, attempt, messages):
    folder = attempt("deit_tiny")
    write_epochs(folder, 1, 1)
    current = new_sync()
    current.catch_up()
    current.client.delete_run(shown(root)["deit_tiny", "1"][0].info.run_id)
    write_epochs(folder, 2, 2)
    write_epochs(attempt("evo_deit_tiny"), 1, 1)
    current.catch_up()
    assert current.catch_up(), messages
    assert set(shown(root)) == {("evo_deit_tiny", "1")}


def test_a_table_is_a_new_run_only_when_it_changes(root, new_sync):
    table = root / "results/demo/table1.partial.csv"
    table.parent.mkdir(parents=True)
    for content, count in (("a,b\n1,2\n", 1), ("a,b\n1,2\n", 1), ("a,b\n1,3\n", 2)):
        table.write_text(content)
        assert new_sync().catch_up()
        assert len(shown(root)) == count
    for (name, _), (run, _) in shown(root).items():
        assert (name, run.info.status) == ("table1.partial", "FINISHED")
        held = Path(run.info.artifact_uri.removeprefix("file://"))
        assert (held / "table1.partial.csv").read_text().startswith("a,b\n")
        assert run.data.tags["table1"] == "yes"


def test_a_damaged_attempt_bars_no_other(root, new_sync, attempt, messages):
    (attempt("deit_small") / "spec.json").write_text("{")
    write_epochs(attempt("evo_deit_tiny"), 1, 1)
    current = new_sync()
    assert not current.catch_up()
    assert not current.catch_up()
    assert set(shown(root)) == {("evo_deit_tiny", "1")}
    assert len(messages) == 1
    assert "deit_small/attempts/1 can't be read" in messages[0]


def test_an_answer_that_got_lost_makes_no_second_run(root, new_sync, attempt):
    """The server made the run, but the sync never heard of it."""
    write_epochs(attempt("deit_tiny"), 1, 2)
    current = new_sync()
    current._connect()
    make = current.client.create_run

    def lost(*arguments, **values):
        make(*arguments, **values)
        raise ConnectionError("reset by peer")

    current.client.create_run = lost
    assert not current.catch_up()
    assert current.catch_up()
    assert len(shown(root)) == 1
