"""Options of snakemake: each is decided on, and the refused ones say what to do instead."""

import pytest
from snakemake.cli import get_argument_parser

from tests.launch.test_startup import LOCAL, begin, here  # noqa: F401 (a fixture)
from workflow.launch import snakemake_options

WORKS = {
    # what is made
    *("targets", "force", "forceall", "forcerun", "prioritize", "until", "omit_from", "touch"),
    *("keep_going", "rerun_triggers", "rerun_incomplete", "ignore_incomplete", "keep_incomplete"),
    *("consider_ancient", "strict_dag_evaluation", "retries", "wait_for_files"),
    *("wait_for_files_file", "trust_io_cache", "max_inventory_time", "max_checksum_file_size"),
    # where and how many at once; --jobs means --cores
    *("profile", "workflow_profile", "cores", "jobs", "resources", "set_resources"),
    *("default_resources", "scheduler", "scheduler_greediness", "scheduler_subsample"),
    *("scheduler_solver_path", "scheduler_greedy_greediness", "scheduler_ilp_solver"),
    *("scheduler_greedy_omit_prioritize_by_temp_and_input", "scheduler_ilp_solver_path"),
    *("max_jobs_per_second", "max_jobs_per_timespan", "latency_wait", "nolock", "unlock"),
    # run no job
    *("help", "version", "dryrun", "lint", "summary", "detailed_summary", "list_rules"),
    *("list_target_rules", "list_changes", "list_input_changes", "list_params_changes"),
    *("list_untracked", "dag", "rulegraph", "filegraph", "d3dag", "print_compilation"),
    *("debug_dag", "printshellcmds", "quiet", "verbose", "nocolor", "show_failed_logs", "logger"),
    *("report", "report_after_run", "report_stylesheet", "report_metadata", "reporter"),
    *("report_html_path", "report_html_stylesheet_path", "runtime_profile"),
    # housekeeping
    *("snakefile", "directory", "cleanup_metadata", "drop_metadata", "delete_all_output"),
    *("delete_temp_output", "persistence_backend", "persistence_backend_db_url"),
    "runtime_source_cache_path",
}

# they change nothing here that anybody could miss
HARMLESS = {
    *("allow_ambiguity", "debug", "force_use_threads", "no_subworkflows", "notemp"),
    *("queue_input_wait_time", "skip_script_cleanup"),
}

PLAIN = ["results/demo/table1.csv", *LOCAL]


def test_every_option_of_snakemake_is_decided_on_once():
    refused = [name for names in snakemake_options.REFUSED.values() for name in names.split()]
    decided = [*refused, *WORKS, *HARMLESS]
    assert len(decided) == len(set(decided))
    assert {action.dest for action in get_argument_parser()._actions} <= set(decided)
    assert snakemake_options.RUN_NO_JOB <= WORKS


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
    ("arguments", "runs_jobs"),
    [
        ([], True),
        (["-n"], False),
        (["--touch"], False),
        (["--list-untracked"], False),
        (["--report", "x.html"], False),
        (["--report", "x.html", "--report-after-run"], True),
        (["--report", "x.html", "--report-after-run", "-n"], False),
    ],
)
def test_what_runs_jobs(arguments, runs_jobs):
    assert snakemake_options.runs_jobs(get_argument_parser().parse_args(arguments)) is runs_jobs
