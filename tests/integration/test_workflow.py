"""The user's commands on a copy of the tree: what is made again, what is not, and what is kept."""

import contextlib
import json
import os
import resource
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from tests.integration.project import command, edit, environment, leave_out_mlflow, snakemake
from workflow.campaign import kinds
from workflow.campaign.config import FILES, Config
from workflow.campaign.specs import write_spec
from workflow.storage import records

pytestmark = pytest.mark.integration
RUNS = ("deit_tiny", "ps_deit_tiny", "dynamic_deit_tiny", "svite_deit_tiny", "ia_red2_deit_tiny",
        "evo_deit_tiny")  # fmt: skip
TABLE = "results/demo/table1.csv"
DEMO = ("--profile", "demo")


def times(root: Path) -> dict[str, int]:
    """When each record and the table were made."""
    paths = [*root.glob("results/demo/**/*.json"), *root.glob("results/demo/*.csv")]
    made = [p for p in paths if "attempts" not in p.parts and p.name != "spec.json" and p.is_file()]
    return {str(path.relative_to(root)): path.stat().st_mtime_ns for path in made}


def changed(before: dict, after: dict) -> set[str]:
    return {name for name, made in after.items() if before.get(name) != made}


def record(run: str) -> str:
    return f"results/demo/runs/{run}/train.json"


def test_1_killed_anywhere_and_started_again_it_ends_and_loses_no_finished_run(tree):
    """kill -9 of snakemake and of whatever runs, at moments spread over the workflow."""
    finished: dict = {}
    for moment in range(3):
        process = subprocess.Popen(
            command(*DEMO, TABLE), cwd=tree, env=environment(tree),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        deadline = time.monotonic() + 10 + 8 * moment
        while time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.2)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # snakemake and its launchers
        process.wait()
        for note in tree.glob("results/demo/**/job.json"):
            if moment % 2 and not note.with_name("record.json").exists():  # the jobs too
                with_session = json.loads(note.read_text())["session"]
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(with_session, signal.SIGKILL)
        now = times(tree)
        assert all(now.get(name) == made for name, made in finished.items())
        finished = {name: made for name, made in now.items() if name.endswith("train.json")}
    snakemake(tree, *DEMO, TABLE)
    now = times(tree)
    assert TABLE in now
    assert all(now[name] == made for name, made in finished.items())


def test_2_a_second_start_does_nothing(tree):
    assert {path.parent.name for path in tree.glob("results/demo/runs/*/README.md")} == set(RUNS)  # model cards
    before = times(tree)
    assert "Nothing to be done" in snakemake(tree, *DEMO, TABLE)
    assert times(tree) == before


def test_3_every_run_and_the_table_are_in_mlflow(tree):
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{tree}/mlflow.db")
    experiment = client.get_experiment_by_name("demo")
    found = client.search_runs([experiment.experiment_id])
    by_kind = {kind: [r for r in found if r.data.tags["kind"] == kind] for kind in ("train", "table")}
    assert {run.info.run_name for run in by_kind["train"]} == set(RUNS)
    assert [run.info.run_name for run in by_kind["table"]] == ["table1"]
    for run in by_kind["train"]:
        measured = records.read(tree / record(run.info.run_name))["results"]["top1"]
        assert run.data.metrics["top1"] == pytest.approx(measured)
    leave_out_mlflow(tree)  # the tests below do not look at it


def test_4_touching_code_makes_nothing_again(tree):
    before = times(tree)
    for path in [*(tree / "workflow").rglob("*.py"), *(tree / "evovit").rglob("*.py")]:
        path.touch()
    (tree / "Snakefile").touch()
    assert "Nothing to be done" in snakemake(tree, *DEMO, TABLE)
    assert times(tree) == before


def test_4_changing_what_makes_tables_makes_the_table_again_alone(tree):
    before = times(tree)
    with open(tree / "workflow/paper/sheet.py", "a") as code:
        code.write("# changed\n")
    snakemake(tree, *DEMO, TABLE)
    assert changed(before, times(tree)) == {TABLE}


def test_5_a_deleted_record_and_its_table_are_made_again_alone(tree):
    before = times(tree)
    (tree / record("evo_deit_tiny")).unlink()
    snakemake(tree, *DEMO, record("evo_deit_tiny"), TABLE)
    assert changed(before, times(tree)) == {record("evo_deit_tiny"), TABLE}
    attempts = tree / "results/demo/runs/evo_deit_tiny/attempts"
    assert (attempts / "2/record.json").exists()  # a new attempt; the old one is history
    assert (attempts / "1/record.json").exists()


def test_6_a_forced_record_and_its_table_are_made_again_alone(tree):
    before = times(tree)
    snakemake(tree, TABLE, *DEMO, "--forcerun", record("evo_deit_tiny"))
    assert changed(before, times(tree)) == {record("evo_deit_tiny"), TABLE}


def test_6_a_forced_check_does_not_hide_what_else_is_asked_for(tree):
    data, before = "results/demo/data.json", times(tree)
    (tree / TABLE).unlink()
    snakemake(tree, TABLE, *DEMO, "--forcerun", data)
    assert changed(before, times(tree)) == {data, TABLE}


def test_7_changing_a_runs_epochs_makes_it_and_what_starts_from_it_again(tree):
    before = times(tree)
    edit(tree, "runs", lambda c: c["deit_tiny"].update(overrides={"epochs": 3}))
    snakemake(tree, *DEMO, TABLE)
    started = ("deit_tiny", "ps_deit_tiny", "dynamic_deit_tiny", "ia_red2_deit_tiny")
    expected = {*map(record, started), "results/demo/runs/ps_deit_tiny/search.json", TABLE}
    assert changed(before, times(tree)) == expected
    assert records.read(tree / record("deit_tiny"))["results"]["epochs"] == 3


def test_8_a_record_of_the_wrong_spec_is_never_published(tree):
    """runs.yaml is edited while the run's job works, and a start on another machine, which does not share this one's
    locks, writes the new spec."""
    edit(tree, "runs", lambda c: c["evo_deit_tiny"].update(overrides={"epochs": 5}))
    process = subprocess.Popen(
        command(*DEMO, record("evo_deit_tiny")), cwd=tree, env=environment(tree),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    attempts = tree / "results/demo/runs/evo_deit_tiny/attempts"

    def begun() -> Path | None:
        for journal in attempts.glob("*/journal.jsonl"):
            spec = json.loads((journal.parent / "spec.json").read_text())
            if spec["recipe"]["epochs"] == 5 and "epoch" in journal.read_text():
                return journal.parent
        return None

    while (attempt := begun()) is None:
        assert process.poll() is None
        time.sleep(0.1)
    session = json.loads((attempt / "job.json").read_text())["session"]
    os.killpg(session, signal.SIGSTOP)  # until the other start has read the YAML
    try:
        edit(tree, "runs", lambda c: c["evo_deit_tiny"].update(overrides={"epochs": 2}))
        yaml_files = {name: tree / "workflow/config" / path.name for name, path in FILES.items()}
        asked = kinds.record(Config.load(yaml_files), "train", "demo", run="evo_deit_tiny")
        write_spec(tree / kinds.job_folder(asked.path) / "spec.json", asked.spec)
    finally:
        os.killpg(session, signal.SIGCONT)
    said, _ = process.communicate(timeout=300)
    assert process.returncode != 0
    assert "nothing is published" in said
    assert not (tree / record("evo_deit_tiny")).exists()
    # by name: the table is newer than all it was made from, so it alone would not ask for it
    snakemake(tree, *DEMO, record("evo_deit_tiny"), TABLE)
    assert records.read(tree / record("evo_deit_tiny"))["results"]["epochs"] == 2


def test_9_without_a_profile_only_looking_works(tree):
    said = snakemake(tree, "results/table1.csv", code=1)
    assert "--profile slurm" in said
    assert "--profile demo" in said
    for look in (["-n"], ["--summary"], ["--unlock"], ["--report", "report.html"]):
        snakemake(tree, TABLE, *look)
    snakemake(tree, "--lint")
    assert (tree / "report.html").exists()


def test_weights_that_are_given_are_evaluated_by_a_rule_of_their_own(tree):
    said = snakemake(tree, "-n", "results/runs/levit_teacher/train.json")
    assert "rule evaluate_given:" in said
    assert "rule train:" not in said
    rules = set(snakemake(tree, "--list-rules").split())
    profile = yaml.safe_load((tree / "workflow/profiles/slurm/config.yaml").read_text())
    assert set(profile["set-resources"]) <= rules
    assert profile["set-resources"]["evaluate_given"] == {"gpus": 1}


def test_a_dry_run_of_the_whole_is_quick_next_to_importing_snakemake(tree):
    """Ours may not add more than snakemake itself takes to start, twice over."""
    (tree / "empty.smk").write_text("rule all:\n    shell: 'true'\n")

    def seconds(*arguments: str) -> float:
        """Of processor time: others may compute beside."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        snakemake(tree, "-n", *arguments)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    whole_paper = (TABLE, "results/table1.csv", "results/cifar10/table1.csv")
    pairs = [(seconds("-s", "empty.smk"), seconds(*whole_paper)) for _ in range(3)]
    empty, whole = map(min, zip(*pairs, strict=True))
    assert whole < 3 * empty
