"""What of Snakemake's inner parts this workflow leans on."""

import logging

import pytest
from snakemake.logging import ColorizingTextHandler, LoggerManager
from snakemake.resources import Resources
from snakemake.settings.enums import Quietness
from snakemake.settings.types import OutputSettings

from tests.launch.test_startup import begin, here  # noqa: F401 (a fixture)
from workflow.launch import snakemake_compat

PROFILE = """
cores: 64
resources: {gpus: 64, device_share: 100}
default-resources: {launcher: slurm, gpus: 0, mem_mb: 64000}
set-resources: {train: {gpus: 8, runtime: 60}, search: {gpus: 1}}
"""
TARGET = "results/demo/table1.csv"


def values(resources: Resources) -> dict:
    """Numbers as they are, words as they were written."""
    return {name: resource.raw if resource.is_evaluable() else resource.value for name, resource in resources.items()}


def read(*arguments: str) -> snakemake_compat.CommandLine:
    return snakemake_compat.read_command_line([TARGET, "-n", *arguments])


@pytest.fixture(params=["config.yaml", "profile.yaml", "profile.v9+.yaml"])
def profile(request, here, tmp_path):  # noqa: F811
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm" / request.param).write_text(PROFILE)


@pytest.mark.parametrize(
    ("arguments", "variable"),
    [
        (["--profile", "slurm"], None),
        (["--workflow-profile", "slurm"], None),
        (["--profile", "other", "--workflow-profile", "slurm"], None),
        (["--profile", "slurm", "--profile", "other"], None),
        ([], "slurm"),
    ],
)
def test_a_value_on_the_command_line_leaves_the_profiles_others(profile, tmp_path, monkeypatch, arguments, variable):
    """Snakemake alone would drop a training's GPUs when its time limit is changed."""
    (tmp_path / "other").mkdir()
    (tmp_path / "other/config.yaml").write_text("set-resources: {search: {runtime: 5}}")
    if variable:
        monkeypatch.setenv("SNAKEMAKE_PROFILE", variable)
    line = read(
        *arguments, "--set-resources", "train:runtime=600", "--resources", "gpus=16",
        "--default-resources", "runtime=7", "mem=3GB", "--set-resources", "evaluate:gpus=1",
    )  # fmt: skip
    rules = {rule: values(resources) for rule, resources in line.set_resources.items()}
    assert rules["train"] == {"gpus": 8, "runtime": 600}
    assert rules["search"]["gpus"] == 1
    assert rules["search"].get("runtime") == (5 if "other" in arguments else None)
    assert rules["evaluate"] == {"gpus": 1}
    assert values(line.resources) == {"gpus": 16, "device_share": 100}
    defaults = values(line.default_resources)
    expected = {"launcher": "slurm", "gpus": 0, "runtime": 7, "mem_mb": 3000}
    assert defaults | expected == defaults


def test_without_profile_and_option_there_are_no_defaults(here):  # noqa: F811
    assert read().default_resources is None


@pytest.mark.parametrize(
    ("arguments", "cores"),
    [([], 64), (["-j", "2"], 2), (["--jobs", "128"], 128), (["-j", "8", "-c", "4"], 4)],
)
def test_jobs_mean_cores(profile, arguments, cores):
    """Beside a profile's `cores`, Snakemake would lift the limit that they are."""
    line = read("--profile", "slurm", *arguments)
    settings = line.options
    workflow = type("Workflow", (), {})()
    workflow.resource_settings = type("Settings", (), {"nodes": settings.jobs, "cores": settings.cores})()
    workflow.global_resources = Resources.from_mapping({"_cores": 64, "_nodes": settings.jobs})
    snakemake_compat.apply_resources(workflow, line)
    assert values(workflow.global_resources) == {
        "_cores": cores if arguments else 64, "_nodes": None, "gpus": 64, "device_share": 100,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("set-resource: {train: {gpus: 8}}", "Snakemake reads no mapping called 'set-resource'"),
        ("resources: {gpus: 8}\nresources: {device_share: 1}", "resources"),
    ],
)
def test_what_snakemake_would_drop_from_a_profile_is_refused(here, tmp_path, content, message):  # noqa: F811
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(SystemExit, match=f"config.yaml.*{message}"):
        read("--profile", "config.yaml")


@pytest.mark.parametrize("option", ["--forcerun", "--until", "--omit-from", "--prioritize"])
def test_an_option_that_snakemake_would_take_once_may_stand_once(here, option):  # noqa: F811
    with pytest.raises(SystemExit, match=f"{option} is given twice.* after one {option}"):
        begin([TARGET, "-n", option, "results/demo/data.json", option, TARGET])


def test_jobs_below_an_ancient_input_are_looked_at():
    class File(str):
        is_ancient = False

    ancient = File("record")
    ancient.is_ancient = True
    edges = {
        "data": {"train": {ancient}, "table": {ancient, File("data.json")}},
        "train": {"table": {File("record")}},
        "table": {"whole": {File("table")}},
        "whole": {},
    }
    search = snakemake_compat._search_past_no_ancient_input
    assert list(search(None, edges, "data")) == ["data", "table", "whole"]
    assert list(search(None, edges, "train")) == ["train", "table", "whole"]
    assert list(search(None, edges, "train", stop=lambda job: job == "table")) == ["train"]


def test_snakemakes_handler_of_messages_can_be_replaced():
    logger = logging.getLogger("snakemake.logging")
    before = list(logger.handlers)
    settings = OutputSettings(quiet={Quietness.RULES})
    try:
        LoggerManager(logger, settings)
        own = snakemake_compat.stream_handler()
        assert isinstance(own, ColorizingTextHandler)
        new = logging.NullHandler()
        snakemake_compat.replace_handler(own, new)
        assert logger.handlers == [new]
        assert snakemake_compat.stream_handler() is None
    finally:
        logger.handlers[:] = before
