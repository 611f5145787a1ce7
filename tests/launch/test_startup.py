"""What snakemake may start, and what it is told otherwise."""

import errno
import fcntl
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from snakemake.cli import get_argument_parser
from snakemake.resources import Resources

from workflow.campaign import kinds
from workflow.campaign.rule_inputs import Plan
from workflow.launch import forecast, startup
from workflow.storage import locks, records


@pytest.fixture
def here(tmp_path, monkeypatch, config):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(startup.schema, "load", lambda: config)  # read once for all tests


RULES = ("all", "prepare_data", "preflight", "train", "search", "table")
LOCAL = ["--default-resources", "launcher=local"]


def begin(argv, stack=None):
    """What the Snakefile does, with rules of no content; -> Snakemake's workflow."""
    settings = SimpleNamespace(nodes=None, cores=2)
    rules = [
        SimpleNamespace(
            name=name,
            has_wildcards=lambda name=name: name != "all",
            is_producer=lambda path, name=name: path.endswith(f"{name}.json"),
        )
        for name in RULES
    ]
    workflow = SimpleNamespace(resource_settings=settings, global_resources=Resources(), rules=rules, _build_dag=None)
    plan, command_line = startup.begin(workflow, argv)
    startup.start(workflow, plan, command_line, stack or ExitStack())
    return workflow


@pytest.mark.parametrize(
    "argv",
    [
        ["-n"],
        ["--dry-run"],
        ["-np"],
        ["--lint"],
        ["--unlock"],
        ["--summary"],
        ["--report", "r.html"],
    ],
)
def test_looking_needs_no_profile_and_no_data(here, argv):
    assert begin([*argv, "--", "results/table1.csv"] if argv != ["--lint"] else argv)


@pytest.mark.parametrize("resources", [[], ["--default-resources", "runtime=1"]])
def test_running_without_a_profile_names_the_profiles(here, resources):
    with pytest.raises(SystemExit, match=r"--profile slurm.*--profile demo"):
        begin(["results/table1.csv", *resources])


def test_missing_data_stop_before_any_job_with_key_and_layout(here):
    with pytest.raises(SystemExit, match=r"settings.yaml, imagenet.data.root: .*expected"):
        begin(["results/table1.csv", *LOCAL])


def test_a_dry_run_says_that_data_are_missing_and_goes_on(here, capsys):
    begin(["results/table1.csv", *LOCAL, "-n"])
    assert "A start would end at once: " in capsys.readouterr().err
    begin(["results/demo/table1.csv", *LOCAL, "-n"])
    assert "A start would end" not in capsys.readouterr().err


@pytest.mark.parametrize("part", ["checkpoints", "hosts"])
def test_weights_that_are_named_must_be_there_before_any_job(here, config, part):
    given = {"data": {"name": "digits", "root": "digits"}, part: {"deit_tiny": {"file": "none.pth"}}}
    said = startup.missing_data("demo", given)
    assert said.startswith(f"No file none.pth (workflow/config/settings.yaml, demo.{part}.deit_tiny)")
    assert startup.missing_data("demo", config.settings["demo"]) is None  # whose host is trained


def test_only_the_requested_settings_data_must_exist(here):
    assert begin(["results/demo/table1.csv", *LOCAL])


def test_a_second_snakemake_in_the_folder_is_told_of_the_first(here):
    with locks.exclusive(startup.LOCK), pytest.raises(SystemExit, match="Another snakemake"):
        begin(["results/demo/table1.csv", *LOCAL])


def test_the_lock_is_let_go_before_python_takes_its_modules_apart(here, monkeypatch):
    """Else snakemake's last words may be a traceback of this lock."""
    at_exit = []
    monkeypatch.setattr(startup.atexit, "register", at_exit.append)
    stack = ExitStack()
    begin(["results/demo/table1.csv", *LOCAL], stack)
    at_exit[0]()
    assert not locks.is_held(startup.LOCK)


def test_a_folder_without_locks_stops_before_any_job(here, monkeypatch):
    def refuse(descriptor, how):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(SystemExit, match="no file locks"):
        begin(["results/demo/table1.csv", *LOCAL])


def test_the_lock_is_held_until_the_end(here):
    with ExitStack() as stack:
        begin(["results/demo/table1.csv", *LOCAL], stack)
        assert locks.is_held(startup.LOCK)
    assert not locks.is_held(startup.LOCK)


def training(launcher: str):
    """One of Snakemake's jobs."""
    return SimpleNamespace(
        rule=SimpleNamespace(name="train", resources=Resources(), workflow=SimpleNamespace(async_run=None)),
        wildcards=SimpleNamespace(root="results/demo"),
        input=[],
        attempt=2,
        output=["results/demo/runs/deit_tiny/train.json"],
        resources={"launcher": launcher, "runtime": 60},
        params={"resources": "{}"},
    )


def test_a_forecast_that_is_none_is_said_on_a_cluster_alone(here, config, capsys):
    startup.announce(Plan(config), [training("local")])
    assert capsys.readouterr().err == ""
    startup.announce(Plan(config), [training("slurm")])
    assert "No estimate for 1 training(s) (deit_tiny)" in capsys.readouterr().err


def test_the_forecast_names_the_table(here, config, capsys, monkeypatch):
    path = "results/demo/runs/deit_tiny/train.json"
    other = "results/demo/runs/deit_small/train.json"
    costs = [forecast.Cost(word, 20.0, "GPU", "") for word in (path, other)]
    monkeypatch.setattr(forecast, "of_jobs", lambda config, specs: costs)
    items = [
        SimpleNamespace(rule=SimpleNamespace(name=rule), output=[f"results/demo/{output}"])
        for rule, output in (("table", "table1.csv"), ("figure", "figureS1a.png"),
                             ("whole", "whole"), ("partial_table", "table1.partial.csv"))
    ]  # fmt: skip
    startup.announce(Plan(config), iter([training("slurm"), *items]))
    message = capsys.readouterr().err
    for item in ("table1.csv", "figureS1a.png"):
        assert f"Estimate, results/demo/{item}: 1 training(s), about 20 GPU-hours" in message
    assert "Estimate, results/demo/whole: 2 training(s), about 40 GPU-hours" in message
    assert "partial" not in message
    assert "Estimate, all together: 2 training(s), about 40 GPU-hours" in message


def test_what_slurm_can_never_run_ends_snakemake_once_for_all_its_jobs():
    asked = []

    def ask(*command):
        asked.append(command)
        return "", "allocation failure: Invalid feature specification"

    startup.check_requests([training("local")], ask)
    good = training("slurm")
    with pytest.raises(SystemExit, match="Invalid feature"):
        startup.check_requests([good], ask)
    asked.clear()
    startup.check_requests([good] * 50, lambda *command: asked.append(command) or ("", ""))
    assert len(asked) == 2


@pytest.mark.parametrize("launcher", ["local", "slurm"])
@pytest.mark.parametrize(
    ("resource", "message"),
    [
        ({"launcher": "slrum"}, "Rule train has launcher: 'slrum' .*; it is local or slurm"),
        (
            {"other_code": "refused"},
            "Rule train has other_code: 'refused' .*; it is warn or refuse",
        ),
        ({"other_code": True}, "it is warn or refuse"),
        ({"on_interrupt": "cancle"}, "it is cancel or leave"),
    ],
)
def test_a_profiles_mistake_is_refused_wherever_jobs_run(launcher, resource, message):
    job = training(launcher)
    job.resources |= resource
    with pytest.raises(SystemExit, match=message):
        startup.check_requests([job], lambda *command: ("", ""))


@pytest.mark.parametrize("launcher", ["local", "slurm"])
@pytest.mark.parametrize("policy", ["warn", "refuse"])
def test_both_answers_to_other_code_are_taken(launcher, policy):
    job = training(launcher)
    job.resources |= {"other_code": policy}
    startup.check_requests([job], lambda *command: ("", ""))


def test_a_job_that_snakemake_would_give_less_than_it_asks_for_ends_it():
    """A training would run on 4 GPUs instead of 8, without a word."""
    most = partial(Resources.parse, allow_expressions=False)
    for gpus in ("8", "4 * attempt if wildcards.root else 0"):
        job = training("local")
        job.rule.resources = Resources.parse([f"gpus={gpus}", "slurm_partition=gpu"],
                                             allow_expressions=True)  # fmt: skip
        startup.check_caps(job, most(["gpus=8", "device_share=100"]))
        with pytest.raises(SystemExit, match="Rule train asks for gpus: 8, but all jobs together"):
            startup.check_caps(job, most(["gpus=4"]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["results/demo/table9.csv"], "results/demo/table9.csv is no target; did you mean 'results/demo/table"),
        (["results/demo/table1.csv", "results/demo/tabel1.csv"], "results/demo/tabel1.csv is no"),
        (["train"], "train is a rule that makes many files; .* such as results/.*train.json"),
        (["prepare_dat"], "no target or rule 'prepare_dat'; did you mean 'prepare_data'"),
        (["results/demo/table1.csv", "--forcerun", "tabel"], "did you mean 'table'"),
        (["table3"], "a target has its folder: results/table3.csv or results/cifar10/table3.csv"),
        (["results/demo/table1.csv", "--omit-from", "results/demo/dat.json"], "demo/data.json"),
        (["results/demo/table1.csv", "--until", "serch"], "did you mean 'search'"),
        (["results/demo/table1.csv", "--prioritize", "results/demo/x"], "is no target"),
        (["{here}/results/demo/table1.csv"], "clone's folder; say results/demo/table1.csv there"),
        (["--forcerun", "results/demo/data.json", "results/demo/table1.csv"],
         "No target is named, as --forcerun takes .*snakemake <targets> --forcerun results/demo/"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("look", [["-n"], LOCAL])
def test_a_name_that_no_rule_makes_is_refused(here, tmp_path, arguments, message, look):
    with pytest.raises(SystemExit, match=message) as error:
        begin([*(word.format(here=tmp_path) for word in arguments), *look])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["all"],
        ["./results/demo//table1.csv", "results/demo/table1.md"],
        ["results/demo/table1.csv", "--forcerun", "table", "results/demo/data.json"],
        ["--forcerun", "results/runs/deit_tiny/train.json"],
    ],
)
def test_names_that_rules_make_pass(here, arguments):
    assert begin([*arguments, "-n"])


@pytest.mark.parametrize("arguments", [[], ["all"], ["results/demo/table1.csv", "--forcerun", "results/data.json"]])
def test_the_data_of_all_that_is_made_must_be_there(here, arguments):
    with pytest.raises(SystemExit, match=r"imagenet\.data\.root"):
        begin([*arguments, *LOCAL])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set-resources", "trian:gpus=1"], "no rule 'trian'; did you mean 'train'"),
        (["--set-resources", "train:gpu=1"], "of train: no job .* 'gpu'; did you mean 'gpus'"),
        (["--resources", "gpu=1"], "^resources: no job .* 'gpu'; did you mean 'gpus'"),
        (["--default-resources", "gpsu=1"], "^default-resources: no job .* 'gpsu'; did you mean 'gpus'"),
        (["--set-resources", "train:other_cod=refuse"], "did you mean 'other_code'"),
        (["--default-resources", "slurm_partion=x"], "did you mean 'slurm_partition'"),
        (["--default-resources", "stage=/scratch"], "leave `stage` out; the `setup:` lines in docs/cluster.md"),
        (["--consider-ancient", "tabel=x"], "no rule 'tabel'; did you mean 'table'"),
    ],
)
def test_a_rule_or_resource_that_nothing_has_is_refused(here, arguments, message):
    with pytest.raises(SystemExit, match=message):
        begin(["results/demo/table1.csv", "-n", *arguments])


def jobs_of(*names: str):
    """Return Snakemake's jobs of rules with these names; none needs to run."""
    jobs = [SimpleNamespace(rule=SimpleNamespace(name=name), output=[f"results/{name}"])
            for name in names]  # fmt: skip
    return SimpleNamespace(jobs=jobs, needrun_jobs=lambda: [])


@pytest.mark.parametrize("option", ["--forcerun", "--until"])
def test_what_is_forced_must_be_part_of_what_is_made(config, option):
    for name in ("train", "results/train", "./results/train"):
        given = get_argument_parser().parse_args(["x", "-n", option, name])
        startup.check_jobs(Plan(config), jobs_of("train", "table"), given, {})
        with pytest.raises(SystemExit, match=f"{option} {name} would do nothing"):
            startup.check_jobs(Plan(config), jobs_of("table"), given, {})


def test_a_dry_run_says_what_would_be_asked_of_slurm():
    job = training("slurm")
    job.resources = {"launcher": "slurm", "runtime": 60, "gpus": 8, "nodes": 2, "_cores": 1}
    (line,) = startup.requests([job, job, training("local")])
    assert line.startswith("Request of rule train, 2 job(s): sbatch --time=60 --nodes=2 ")
    assert "--gpus-per-node=4" in line
    job.resources["gpus"] = 7
    with pytest.raises(SystemExit, match="can't be shared equally"):
        list(startup.requests([job]))


def test_touch_does_not_pass_an_outdated_record_off_as_current(here, config):
    record, plan = kinds.record(config, "train", "demo", run="deit_tiny"), Plan(config)
    job = SimpleNamespace(output=[record.path])
    startup.check_touch(plan, job)  # there is nothing to touch
    records.write_json(record.path, records.make(record.spec, {}, 0.0))
    startup.check_touch(plan, job)
    records.write_json(record.path, records.make({**record.spec, "seed": 7}, {}, 0.0))
    with pytest.raises(SystemExit, match=r"--touch would pass .*train\.json"):
        startup.check_touch(plan, job)


@pytest.mark.parametrize("argv", [["-n"], LOCAL])
def test_the_device_of_auto_is_kept_by_a_start(here, argv):
    begin(["results/demo/table1.csv", *argv])
    assert Path("results/demo/device.json").exists() == (argv == LOCAL)
    assert not Path("results/cifar10").exists()


def test_a_damaged_note_of_the_device_ends_snakemake(here):
    Path("results/demo").mkdir(parents=True)
    Path("results/demo/device.json").write_text("{}")
    with pytest.raises(SystemExit, match=r"results/demo/device\.json names no device"):
        begin(["results/demo/table1.csv", "-n"])


def test_a_job_that_only_reads_records_asks_for_nothing():
    job = training("slrum")
    del job.params["resources"]
    startup.check_requests([job])


def test_forcing_nothing_is_refused(here):
    with pytest.raises(SystemExit, match="--forcerun names nothing"):
        begin(["results/demo/table1.csv", "-n", "--forcerun"])
