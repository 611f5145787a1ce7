"""Options of snakemake: each is decided on, and the refused ones say what to do instead."""

import pytest
from snakemake.cli import get_argument_parser

from tests.launch.test_startup import LOCAL, begin, here  # noqa: F401 (a fixture)
from workflow.launch import snakemake_options

PLAIN = ["results/demo/table1.csv", *LOCAL]


def test_every_option_of_snakemake_is_decided_on_once():
    refused = [name for _, names in snakemake_options.REFUSED for name in names]
    decided = [*refused, *snakemake_options.WORKS, *snakemake_options.HARMLESS]
    assert len(decided) == len(set(decided))
    assert {action.dest for action in get_argument_parser()._actions} <= set(decided)
    assert snakemake_options.LOOKS <= snakemake_options.WORKS


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sdm", "conda"], "make setup"),
        (["--use-conda"], "make setup"),
        (["--use-apptainer"], "make setup"),
        (["--conda-create-envs-only"], "make setup"),
        (["--containerize"], "make setup"),
        (["--config", "epochs=1"], "workflow/config/.*edit those files"),
        (["--configfile", "x.yaml"], "workflow/config/.*edit those files"),
        (["--archive", "x.tar.gz"], "git archive HEAD"),
        (["--executor", "dryrun"], "--profile slurm"),
        (["--groups", "train=a"], "--profile slurm"),
        (["--batch", "table=1/2"], "name fewer targets"),
        (["--shadow-prefix", "x"], "no rules that it could concern"),
        (["--edit-notebook", "x"], "no rules that it could concern"),
        (["--all-temp"], "delete each result"),
        (["--no-hooks"], "what Slurm can run"),
        (["--cache", "train"], "is made once"),
        (["--allowed-rules", "table"], "--until"),
        (["--set-threads", "train=8"], "cpus_per_task"),
        (["--set-resource-scopes", "gpus=local"], "--resources"),
        (["--default-storage-prefix", "x"], "results are in results/"),
        (["--export-cwl", "x"], "writes no CWL"),
        (["--mode", "subprocess"], "leave it out"),
        (["--envvars", "HOME"], "export the variable"),
    ],
)
def test_what_can_not_work_is_refused_before_anything_else(here, arguments, message):  # noqa: F811
    spelling = arguments[0].replace("--sdm", "--software-deployment-method")
    with pytest.raises(SystemExit, match=f"^{spelling} is refused .*: .*{message}"):
        begin([*PLAIN, *arguments])


@pytest.mark.parametrize("content", ["sdm: [conda]", "archive: x.tar.gz", "config: {epochs: 1}"])
def test_a_profile_may_not_say_it_either(here, tmp_path, content):  # noqa: F811
    (tmp_path / "profile.yaml").write_text(content)
    with pytest.raises(SystemExit, match="is refused"):
        begin([*PLAIN, "--profile", "profile.yaml"])


@pytest.mark.parametrize("arguments", [[], ["--executor", "local"], ["--notemp"], ["--debug-dag"]])
def test_others_pass(here, arguments):  # noqa: F811
    assert begin([*PLAIN, *arguments])


@pytest.mark.parametrize(
    ("arguments", "looks"),
    [
        ([], False),
        (["-n"], True),
        (["--touch"], True),
        (["--list-untracked"], True),
        (["--report", "x.html"], True),
        (["--report", "x.html", "--report-after-run"], False),
        (["--report", "x.html", "--report-after-run", "-n"], True),
    ],
)
def test_what_only_looks(arguments, looks):
    assert snakemake_options.only_looks(get_argument_parser().parse_args(arguments)) is looks
