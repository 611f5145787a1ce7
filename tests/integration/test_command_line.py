"""What `snakemake -n` plans for a user's command line, where every record of a table is there."""

import re
import subprocess
import time
from pathlib import Path

import pytest

from tests.conftest import copy_project
from tests.integration.project import command, edit, environment, snakemake
from workflow.campaign import kinds, specs, targets
from workflow.campaign.config import Config
from workflow.storage import records

pytestmark = pytest.mark.integration
TABLE, DATA = "results/demo/table1.csv", "results/demo/data.json"
EVO = "results/demo/runs/evo_deit_tiny/train.json"
DEMO = ("--profile", "demo")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A copy of the project with the records of the demo's Table 1, as if they were made."""
    root = tmp_path_factory.mktemp("made")
    copy_project(root)
    needed = targets.needed(Config.load(), TABLE)
    for path, spec in needed.items():
        specs.write_spec(root / kinds.job_folder(path) / "spec.json", spec)
    for path, spec in needed.items():
        records.write_json(root / path, records.make(spec, {}, time.time()))
    for end in ("csv", "md", "html"):
        (root / TABLE).with_suffix(f".{end}").write_text("made\n")
    return root


def planned(root: Path, *arguments: str) -> dict[str, int]:
    """How many jobs of each rule a dry run shows."""
    counts = re.findall(r"^(\w+) +(\d+)$", snakemake(root, *arguments, "-n"), re.MULTILINE)
    return {rule: int(count) for rule, count in counts if rule != "total"}


def test_all_that_is_forced_runs_and_all_that_is_asked_for_is_made(made):
    """Below a job that runs Snakemake alone forgets what else must, if the input is ancient."""
    assert planned(made, TABLE, *DEMO) == {}
    both = {"prepare_data": 1, "table": 1}
    assert planned(made, TABLE, "--forcerun", DATA, TABLE, *DEMO) == both
    assert planned(made, TABLE, "--forcerun", "prepare_data", "table", *DEMO) == both
    assert planned(made, TABLE, EVO, *DEMO, "-f") == {"train": 1, "table": 1}
    assert planned(made, TABLE, "-R", DATA, EVO, *DEMO) == {**both, "train": 1}
    assert planned(made, TABLE, "-R", DATA, "--until", DATA, *DEMO) == {"prepare_data": 1}
    assert planned(made, TABLE, "-R", DATA, "-O", "table", *DEMO) == {"prepare_data": 1}


def test_a_check_that_runs_again_does_not_hide_a_table_that_is_missing(made, tmp_path):
    """Another run in runs.yaml asks for another preflight, above all trainings."""
    config = (made / "workflow/config/runs.yaml").read_text()
    (made / TABLE).rename(tmp_path / "table")
    edit(
        made,
        "runs",
        lambda c: c.update(mine={**c["evo_deit_tiny"], "kwargs": {"keep_ratio": 0.55}}),
    )
    try:
        assert planned(made, TABLE, *DEMO) == {"preflight": 1, "table": 1}
    finally:
        (tmp_path / "table").rename(made / TABLE)
        (made / "workflow/config/runs.yaml").write_text(config)


def files_of(root: Path) -> dict[str, int]:
    """When each file was written, but for Snakemake's own."""
    paths = (path for path in root.rglob("*") if path.is_file() and not {".snakemake", "__pycache__"} & {*path.parts})
    return {str(path.relative_to(root)): path.stat().st_mtime_ns for path in paths}


def test_a_dry_run_writes_nothing_and_shows_what_a_start_would_make(made):
    """Neither of what is missing nor of what is asked for otherwise by now."""
    config = (made / "workflow/config/runs.yaml").read_text()
    edit(made, "runs", lambda c: c["evo_deit_tiny"].update(overrides={"epochs": 3}))
    try:
        before = files_of(made)
        assert planned(made, TABLE, *DEMO) == {"train": 1, "table": 1}
        assert planned(made, "results/table1.csv", *DEMO)["train"] == 24
        assert files_of(made) == before
    finally:
        (made / "workflow/config/runs.yaml").write_text(config)


@pytest.mark.parametrize("option", ["--profile", "--workflow-profile"])
def test_a_dry_run_shows_the_request_that_a_start_submits(made, option):
    said = snakemake(
        made, "results/runs/deit_tiny/train.json", "-n", option, "workflow/profiles/slurm",
        "--quiet", "host", "--set-resources", "train:runtime=600", "--default-resources", "nodes=1",
    )  # fmt: skip
    shown = [line for line in said.splitlines() if "resources: " in line and "gpus=8" in line]
    assert len(shown) == 1
    assert "runtime=600" in shown[0]
    assert "mem_mb=400000" in shown[0]
    (request,) = [line for line in said.splitlines() if line.startswith("Request of rule train")]
    assert "--time=600" in request
    assert "--gpus-per-node=8" in request


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((TABLE, "--sdm", "conda", *DEMO), "--software-deployment-method is refused"),
        (("results/demo/table9.csv", *DEMO), "table9.csv is no target; did you mean"),
        ((TABLE, *DEMO, "--forcerun", "fetch"), "--forcerun fetch would do nothing"),
        (("results/runs/deit_tiny/train.json", "-n", "--profile", "slurm", "--set-resources",
          "train:gpus=128 if attempt else 8"), "Rule train asks for gpus: 128"),
    ],
)  # fmt: skip
def test_a_refusal_is_one_sentence_before_any_job(made, arguments, said):
    done = subprocess.run(
        command(*arguments), cwd=made, env=environment(made), capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    usual = (
        "Using profile",
        "Assuming unrestricted",
        "Building DAG",
        "A start would end at once: No folder data/imagenet",
    )
    assert all(line.startswith(usual) for line in done.stdout.splitlines())
    (sentence,) = [line for line in done.stderr.splitlines() if not line.startswith(usual)]
    assert said in sentence


@pytest.mark.parametrize("use", ["module evo:\n    snakefile: {!r}\n\nuse rule * from evo\n", "include: {!r}\n"])
def test_use_by_another_workflow_is_refused(made, tmp_path, use):
    (tmp_path / "Snakefile").write_text(use.format(str(made / "Snakefile")))
    said = snakemake(tmp_path, "-n", code=1)
    assert "can't be a module or an include of another workflow: clone the repository" in said
    assert "Traceback" not in said
