"""Options of snakemake that are refused here, since Snakemake would ignore them or fail in the middle.

tests/launch/test_snakemake_options.py lists those that work, and checks that every option of the installed Snakemake is
in exactly one list.
"""

REFUSED = {  # the sentence, and the options that it refuses
    (
        "every job runs in the environment that snakemake runs in; make that by `make setup` or `conda env create -f "
        "environment.yml`, and load modules in a file that the profile's `setup` names"
    ): (
        "software_deployment_method use_conda use_apptainer use_envmodules conda_base_path conda_prefix "
        "conda_frontend conda_cleanup_envs conda_cleanup_pkgs conda_create_envs_only list_conda_envs "
        "conda_not_block_search_path_envvars apptainer_prefix apptainer_args container_image container_cleanup_images "
        "containerize"
    ),
    "this workflow reads workflow/config/*.yaml and nothing else; edit those files": (
        "config configfile replace_workflow_config"
    ),
    "jobs inherit the environment of the shell; export the variable before the start": "envvars",
    (
        "this workflow has launchers of its own; say --profile slurm or --profile demo, and change what a job asks "
        "for in workflow/profiles/slurm/config.yaml"
    ): (
        "executor jobscript jobname immediate_submit job_deploy_sources precommand preemptible_rules "
        "preemptible_retries groups group_components local_groupid local_cores max_status_checks_per_second "
        "seconds_between_status_checks"
    ),
    (
        "a job has the threads that `threads` in workflow/config/*.yaml says, on Slurm on the processors of "
        "--set-resources <rule>:cpus_per_task=<number>; change those"
    ): "set_threads max_threads",
    "resources are counted over all jobs together; change that sum, by --resources <name>=<number>": (
        "set_resource_scopes"
    ),
    (
        "it would leave out the check of what Slurm can run, and the results in MLflow; leave it out, and set "
        "MLFLOW_TRACKING_URI if results are to go elsewhere"
    ): "no_hooks",
    "it is for jobs that Snakemake submits by itself, and here it submits none; leave it out": (
        "mode target_jobs deploy_sources attempt"
    ),
    "no rule here works in batches; name fewer targets instead": "batch",
    (
        "it would take outdated records for current; say --until <rule>, or name a partial table such as "
        "results/table1.partial.csv, which takes what is there"
    ): "allowed_rules",
    "it would delete each result after its use; leave it out": "all_temp",
    "a record is made once and then kept under results/; leave it out": "cache",
    "the order of the jobs rests on these flags; leave it out": "omit_flags",
    "this workflow has no rules that it could concern; leave it out": (
        "draft_notebook edit_notebook notebook_listen wrapper_prefix set_scatter shadow_prefix cleanup_shadow "
        "unneeded_temp_files benchmark_extended"
    ),
    "targets are named from the clone's folder, as results/table1.csv; leave it out": (
        "target_files_omit_workdir_adjustment"
    ),
    (
        "results are in results/, on a file system that all nodes share; leave it out, and link results/ to where "
        "there is space"
    ): (
        "default_storage_provider default_storage_prefix local_storage_prefix remote_job_local_storage_prefix "
        "shared_fs_usage not_retrieve_storage keep_storage_local_copies wait_for_free_local_storage"
    ),
    (
        "the archive would lack code and environment; say `git archive HEAD` for the code, and copy results/ for what "
        "it made"
    ): "archive",
    "Snakemake writes no CWL any more and would start the jobs; leave it out": "export_cwl",
    "the tests of this workflow are in tests/; say `make test`": "generate_unit_tests",
}
SENTENCES = {name: sentence for sentence, names in REFUSED.items() for name in names.split()}

LOCAL = (None, "local")  # executors

# with one of these no job runs, so neither a profile nor data are needed
RUN_NO_JOB = {
    *("dryrun", "touch", "lint", "unlock", "summary", "detailed_summary", "report", "list_rules"),
    *("list_target_rules", "list_changes", "list_input_changes", "list_params_changes"),
    *("list_untracked", "dag", "rulegraph", "filegraph", "d3dag", "cleanup_metadata"),
    *("print_compilation", "delete_all_output", "delete_temp_output", "reporter"),
}


def refusal(set_options: dict[str, str], options) -> str | None:
    """Return the sentence for the first refused option, else None; `set_options` holds options and their spellings."""
    for name, option in set_options.items():
        if name in SENTENCES and not (name == "executor" and options.executor in LOCAL):
            return f"{option} is refused (on the command line or in a profile): {SENTENCES[name]}."
    return None


def runs_jobs(options) -> bool:
    """Return whether this invocation runs jobs; one that prints a plan, a report and the like does not."""
    if options.report_after_run:
        return not (options.dryrun or options.touch)
    return all(getattr(options, name, None) in (None, False) for name in RUN_NO_JOB)
