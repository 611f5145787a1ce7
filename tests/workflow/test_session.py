"""What snakemake may start, and what it is told otherwise."""

import errno
import fcntl
from contextlib import ExitStack
from functools import partial
from types import SimpleNamespace

import pytest
from snakemake.resources import Resources

from workflow import locks
from workflow.login import forecast, session
from workflow.login.plan import Plan


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def begin(argv, resources=None, stack=None):
    settings = SimpleNamespace(default_resources=resources, overwrite_resources={})
    workflow = SimpleNamespace(resource_settings=settings, is_main_process=True)
    return session.begin(workflow, stack or ExitStack(), argv)


LOCAL = {"launcher": "local"}


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


@pytest.mark.parametrize("resources", [None, {"foo": 1}])
def test_running_without_a_profile_names_the_profiles(here, resources):
    with pytest.raises(SystemExit, match=r"--profile slurm.*--profile demo"):
        begin(["results/table1.csv"], resources)


def test_missing_data_stop_before_any_job_with_key_and_layout(here):
    with pytest.raises(SystemExit, match=r"settings.yaml, imagenet.data.root: .*expected"):
        begin(["results/table1.csv"], LOCAL)


def test_only_the_requested_settings_data_must_exist(here):
    assert begin(["results/demo/table1.csv"], LOCAL)


def test_a_second_snakemake_in_the_folder_is_told_of_the_first(here):
    with locks.exclusive(session.LOCK), pytest.raises(SystemExit, match="Another snakemake"):
        begin(["results/demo/table1.csv"], LOCAL)


def test_the_lock_is_let_go_before_python_takes_its_modules_apart(here, monkeypatch):
    """Else snakemake's last words may be a traceback of this lock."""
    at_exit = []
    monkeypatch.setattr(session.atexit, "register", at_exit.append)
    stack = ExitStack()
    begin(["results/demo/table1.csv"], LOCAL, stack)
    at_exit[0]()
    assert not locks.is_held(session.LOCK)


def test_a_folder_without_locks_stops_before_any_job(here, monkeypatch):
    def refuse(descriptor, how):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(SystemExit, match="no file locks"):
        begin(["results/demo/table1.csv"], LOCAL)


def test_the_lock_is_held_until_the_end(here):
    with ExitStack() as stack:
        begin(["results/demo/table1.csv"], LOCAL, stack)
        assert locks.is_held(session.LOCK)
    assert not locks.is_held(session.LOCK)


@pytest.mark.parametrize(
    ("targets", "settings"),
    [
        ([], ["imagenet"]),
        (["results/table1.csv"], ["imagenet"]),
        (["results/demo/table1.csv", "results/cifar10/table1.csv"], ["cifar10", "demo"]),
        (["results/runs/deit_tiny/train.json"], ["imagenet"]),
    ],
)
def test_the_path_alone_chooses_the_setting(config, targets, settings):
    assert Plan(config).settings_asked_for(targets) == settings


def test_a_resource_on_the_command_line_leaves_the_profiles_others(tmp_path):
    """Snakemake alone would drop a training's GPUs when its time limit is changed."""
    (tmp_path / "config.yaml").write_text(
        "set-resources: {train: {gpus: 8, runtime: 60}, search: {gpus: 1}}\n"
    )
    arguments = ["x", "--profile", str(tmp_path), "--set-resources", "train:runtime=600"]
    options = session.arguments(arguments)
    given = dict(options.set_resources)
    session.keep_profile_resources(given, options)
    found = {rule: {k: v.value for k, v in ones.items()} for rule, ones in given.items()}
    assert found == {"train": {"gpus": 8, "runtime": 600}, "search": {"gpus": 1}}


def training(launcher: str):
    """One of Snakemake's jobs."""
    return SimpleNamespace(
        rule=SimpleNamespace(name="train", resources=Resources()),
        output=["results/demo/runs/deit_tiny/train.json"],
        resources={"launcher": launcher, "runtime": 60},
        params={"resources": "{}"},
    )


def test_a_forecast_that_is_none_is_said_on_a_cluster_alone(here, config, capsys):
    session.announce(Plan(config), [training("local")])
    assert capsys.readouterr().err == ""
    session.announce(Plan(config), [training("slurm")])
    assert "No estimate for 1 training(s) (deit_tiny)" in capsys.readouterr().err


def test_the_forecast_names_the_table(here, config, capsys, monkeypatch):
    path = "results/demo/runs/deit_tiny/train.json"
    other = "results/demo/runs/deit_small/train.json"
    costs = [forecast.Cost(one, 20.0, "GPU", "") for one in (path, other)]
    monkeypatch.setattr(forecast, "of_trainings", lambda config, specs: costs)
    items = [
        SimpleNamespace(rule=SimpleNamespace(name=rule), output=[f"results/demo/{output}"])
        for rule, output in (("table", "table1.csv"), ("figure", "figureS1a.png"),
                             ("whole", "whole"), ("partial_table", "table1.partial.csv"))
    ]  # fmt: skip
    session.announce(Plan(config), iter([training("slurm"), *items]))
    said = capsys.readouterr().err
    for item in ("table1.csv", "figureS1a.png"):
        assert f"Estimate, results/demo/{item}: 1 training(s), about 20 GPU-hours" in said
    assert "Estimate, results/demo/whole: 2 training(s), about 40 GPU-hours" in said
    assert "partial" not in said
    assert "Estimate, all together: 2 training(s), about 40 GPU-hours" in said


def test_what_slurm_can_never_run_ends_snakemake_once_for_all_its_jobs():
    asked = []

    def ask(*command):
        asked.append(command)
        return "", "allocation failure: Invalid feature specification"

    session.check_requests([training("local")], {}, ask)
    good = training("slurm")
    with pytest.raises(SystemExit, match="Invalid feature"):
        session.check_requests([good], {}, ask)
    asked.clear()
    session.check_requests([good] * 50, {}, lambda *command: asked.append(command) or ("", ""))
    assert len(asked) == 2


@pytest.mark.parametrize("launcher", ["local", "slurm"])
@pytest.mark.parametrize(
    ("resource", "said"),
    [
        ({"gpsu": 1}, "unknown resource 'gpsu' .*did you mean 'gpus'"),
        ({"other_cod": "refuse"}, "did you mean 'other_code'"),
        (
            {"other_code": "refused"},
            "Rule train has other_code: 'refused' .*; it is warn or refuse",
        ),
        ({"other_code": True}, "it is warn or refuse"),
        ({"on_interrupt": "cancle"}, "it is cancel or leave"),
    ],
)
def test_a_profiles_mistake_is_refused_wherever_jobs_run(launcher, resource, said):
    job = training(launcher)
    job.resources |= resource
    with pytest.raises(SystemExit, match=said):
        session.check_requests([job], {}, lambda *command: ("", ""))


@pytest.mark.parametrize("launcher", ["local", "slurm"])
@pytest.mark.parametrize("policy", ["warn", "refuse"])
def test_both_answers_to_other_code_are_taken(launcher, policy):
    job = training(launcher)
    job.resources |= {"other_code": policy}
    session.check_requests([job], {}, lambda *command: ("", ""))


def test_a_job_that_snakemake_would_give_less_than_it_asks_for_ends_it():
    """A training would run on 4 GPUs instead of 8, without a word."""
    job = training("local")
    job.rule.resources = Resources.parse(["gpus=8", "slurm_partition=gpu"], allow_expressions=True)
    most = partial(Resources.parse, allow_expressions=False)
    session.check_requests([job], most(["gpus=8", "device_share=100"]))
    with pytest.raises(SystemExit, match="Rule train asks for gpus: 8, but all jobs together may "):
        session.check_requests([job], most(["gpus=4"]))
