"""What a person sees while snakemake runs: lines that are drawn on a terminal, plain lines elsewhere."""

import io
import logging
import os
import re
from types import SimpleNamespace

import pytest
from snakemake.logging import ColorizingTextHandler, DefaultFilter, DefaultFormatter, LogEvent
from snakemake.settings.enums import Quietness

from workflow.launch import display, progress
from workflow.launch.display import Display, Job

QUIET = {Quietness.RULES, Quietness.HOST}  # as the profiles have it
STAMP = "2026-01-01 00:00:00 "


class Pipe(io.StringIO):
    pass


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def own_handler(stream: io.StringIO) -> ColorizingTextHandler:
    """Snakemake's own handler, as it makes it."""
    filters = DefaultFilter(QUIET, debug_dag=False, verbose=False, dryrun=False, printshellcmds=False)
    return ColorizingTextHandler(nocolor=True, stream=stream, formatter=DefaultFormatter(QUIET), filter=filters)


@pytest.fixture
def logs(tmp_path):
    """Two trainings and a table, with empty logs."""
    jobs = {
        1: Job("train", "results/demo/runs/deit_tiny", tmp_path / "deit_tiny.log"),
        2: Job("train", "results/demo/runs/evo_deit_tiny", tmp_path / "evo_deit_tiny.log"),
        3: Job("table", "results/demo/table1.csv", tmp_path / "table1.log"),
    }
    for job in jobs.values():
        job.log.write_text("")
    return jobs


@pytest.fixture(params=[Pipe, Terminal])
def screen(request, logs, monkeypatch):
    """A display of the three jobs, on a terminal and elsewhere; it draws only when something happens."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv(progress.DISPLAY, raising=False)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("LINES", "40")
    monkeypatch.setattr(display, "REDRAWN_S", 3600.0)
    screen = Display(own_handler(request.param()))
    screen.begin(logs)
    yield screen
    if not screen.stopped.is_set():
        screen.end()


def tell(screen: Display, event: LogEvent | None = None, text: str | None = None, level=logging.INFO, **fields) -> None:
    record = logging.LogRecord("snakemake.logging", level, "", 0, text, (), None)
    if event is not None:
        fields["event"] = event
    vars(record).update(fields)
    screen.handle(record)


def shown(screen: Display) -> str:
    return screen.own.stream.getvalue()


def lines(screen: Display) -> list[str]:
    """Every line that stood on the screen at some time, without what moves the cursor."""
    return [line.strip() for line in re.split(r"[\n\r]|\x1b\[A", shown(screen)) if line.strip()]


def test_each_job_and_the_whole_have_a_line(screen, logs):
    assert lines(screen)[0] == "3 jobs: 2 train, 1 table"
    tell(screen, LogEvent.JOB_STARTED, "Execute 2 jobs...", jobs=[1, 2])
    logs[1].log.write_text(f"{STAMP}Attempt 1: local job 7\n{STAMP}epoch 3/18  loss 0.1\n")
    tell(screen, LogEvent.JOB_FINISHED, "Finished jobid: 2", job_id=2)
    tell(screen, LogEvent.JOB_FINISHED, "Finished jobid: 1", job_id=1)
    tell(screen, LogEvent.JOB_STARTED, "Execute 1 jobs...", jobs=[3])
    tell(screen, LogEvent.JOB_FINISHED, "Finished jobid: 3", job_id=3)
    screen.end()
    seen = lines(screen)
    assert seen[-1] == "3 of 3 jobs are done, in 0 s."
    done = [line for line in seen if ": done in 0 s" in line]
    assert [line.partition(":")[0] for line in done] == [logs[number].name for number in (2, 1, 3)]
    if screen.draws:
        assert "results/demo/runs/deit_tiny  epoch 3/18  loss 0.1" in seen
        assert any(re.match(r"1 of 3 jobs \|.*\| 00:00", line) for line in seen)
        assert max(map(len, seen)) <= 100
    else:
        assert "\x1b" not in shown(screen)
        assert done[0].endswith("; 1 of 3 jobs")
        assert len(seen) == 5


def test_the_line_of_a_job_that_is_done_leaves_no_gap(screen):
    tell(screen, LogEvent.JOB_STARTED, jobs=[1, 2])
    tell(screen, LogEvent.JOB_FINISHED, job_id=1)
    tell(screen, LogEvent.JOB_STARTED, jobs=[3])
    assert {jobid: line.pos for jobid, line in screen.lines.items()} == ({2: 1, 3: 2} if screen.draws else {})


def test_launchers_print_nothing_while_their_logs_are_drawn(screen, tmp_path, capsys):
    with progress.Log(tmp_path / "x.log", "x") as log:
        log.say("drawn")
        assert capsys.readouterr().err == ("" if screen.draws else "[x] drawn\n")
        screen.end()
        log.say("printed")
    assert capsys.readouterr().err == "[x] printed\n"
    assert [line[len(STAMP) :] for line in (tmp_path / "x.log").read_text().splitlines()] == ["drawn", "printed"]


def test_a_job_that_failed_is_named_with_its_reason_and_its_log_at_once_and_at_the_end(screen, logs):
    tell(screen, LogEvent.JOB_STARTED, jobs=[1, 2])
    logs[1].log.write_text(
        f"{STAMP}epoch 3/18\n{STAMP}  Traceback (most recent call last):\n{STAMP}  ValueError: x\n{STAMP}ERROR: no.\n"
    )
    message = (
        "RuleException:\nCalledProcessError in file jobs.smk, line 9:\nCommand '...' returned non-zero exit status 1."
    )
    tell(screen, LogEvent.ERROR, message, logging.ERROR, exception="RuleException")
    for _ in range(2):  # Snakemake may repeat it
        tell(screen, LogEvent.JOB_ERROR, "Error in rule train", logging.ERROR, jobid=1)
    before = lines(screen)
    assert f"{logs[1].name} failed; its log: {logs[1].log}" in before
    assert sum("failed; its log" in line for line in before) == 1
    if screen.draws:  # elsewhere the launcher has printed it
        start = before.index("Traceback (most recent call last):")
        assert before[start : start + 3] == [
            "Traceback (most recent call last):", "ValueError: x", f"{logs[1].name}: no.",
        ]  # fmt: skip
        assert any(line.endswith("00:00, 1 failed") for line in before)
    screen.end()
    assert lines(screen)[-3:] == [
        "0 of 3 jobs are done, in 0 s.", f"{logs[1].name}: no.", f"its log: {logs[1].log}",
    ]  # fmt: skip
    assert "CalledProcessError" not in shown(screen)


def test_snakemakes_own_work_is_left_out_and_its_warnings_stay(screen):
    for text in ("Building DAG of jobs...", "Using shell: /usr/bin/bash", "Select jobs to execute..."):
        tell(screen, text=text)
    tell(screen, LogEvent.PROGRESS, done=1, total=3)
    tell(screen, LogEvent.RESOURCES_INFO, "Provided cores: 2")
    tell(screen, LogEvent.JOB_INFO, " Rule: train, Jobid: 1", jobid=1)
    assert len([line for line in lines(screen) if " jobs |" not in line]) == 1
    kept = ["Nothing to be done.", "Will exit after finishing currently running jobs (scheduler)."]
    for text in kept:
        tell(screen, text=text)
    tell(screen, text="A file is missing", level=logging.WARNING)
    tell(screen, LogEvent.ERROR, "MissingOutputException: x", logging.ERROR, exception="MissingOutputException")
    for text in (*kept, "A file is missing", "MissingOutputException: x"):
        assert text in lines(screen)


def test_a_terminal_that_is_gone_ends_nothing(screen, logs, monkeypatch):
    def write(text):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(screen.own.stream, "write", write)
    monkeypatch.setattr(screen, "handleError", lambda record: pytest.fail("an error in the display"))
    tell(screen, LogEvent.JOB_STARTED, jobs=[1])
    tell(screen, LogEvent.JOB_FINISHED, job_id=1)
    tell(screen, LogEvent.JOB_ERROR, level=logging.ERROR, jobid=2)
    tell(screen, text="A file is missing", level=logging.WARNING)
    screen.end()
    assert screen.done == 1


def test_the_time_left_is_that_of_jobs_of_the_same_rule(logs, monkeypatch):
    screen = Display(own_handler(io.StringIO()))
    screen.begin(logs)
    screen.begun = 0.0
    assert screen.time_left(10.0) is None
    screen.started = {2: 0.0}
    screen.durations["train"] = [60.0]
    # of the second training 60 - 20 s, of the table as of all that is known; two at once until now
    screen.begun = -20.0
    assert screen.time_left(20.0) == pytest.approx((40 + 60) / (80 / 40))
    screen.durations["train"].append(60.0)
    screen.started = {3: 20.0}
    assert screen.time_left(100.0) == 0.0  # late
    screen.end()


@pytest.mark.parametrize(("seconds", "said"), [(None, ""), (0.0, ""), (90.0, ", about 90 s left")])
def test_the_time_left_is_said_once_it_is_known(screen, monkeypatch, seconds, said):
    monkeypatch.setattr(screen, "time_left", lambda now: seconds)
    tell(screen, LogEvent.JOB_STARTED, jobs=[1])
    tell(screen, LogEvent.JOB_FINISHED, job_id=1)
    assert any(line.endswith(f"00:00{said}" if screen.draws else f"1 of 3 jobs{said}") for line in lines(screen))


def options(**changed) -> SimpleNamespace:
    given = {"quiet": QUIET, "verbose": False, "debug_dag": False, "printshellcmds": False}
    return SimpleNamespace(**(given | changed))


@pytest.mark.parametrize(
    ("runs_jobs", "changed", "installed"),
    [
        (True, {}, True),
        (True, {"quiet": None}, True),
        (False, {}, False),  # a dry run
        (True, {"verbose": True}, False),
        (True, {"printshellcmds": True}, False),
        (True, {"quiet": {Quietness.ALL}}, False),
        (True, {"quiet": {Quietness.PROGRESS, Quietness.RULES}}, False),
    ],
)
def test_who_asks_for_snakemakes_messages_or_for_none_gets_them(monkeypatch, runs_jobs, changed, installed):
    own, replaced = own_handler(io.StringIO()), []
    monkeypatch.setattr(display.compat, "stream_handler", lambda: own)
    monkeypatch.setattr(display.compat, "replace_handler", lambda *handlers: replaced.append(handlers))
    screen = display.install(runs_jobs, options(**changed))
    assert replaced == ([(own, screen)] if installed else [])
    if not installed:
        screen.begin({})  # both do nothing
        screen.end()
    assert own.stream.getvalue() == ""


def test_a_log_that_is_not_there_yet_has_no_lines(tmp_path):
    assert display.last_lines(tmp_path / "none.log") == []
    (tmp_path / "long.log").write_text("x\n" * 10000 + f"{STAMP}the last\n")
    assert display.last_lines(tmp_path / "long.log")[-1] == "the last"


def test_jobs_are_called_by_their_folders_and_items_by_their_files():
    def job(rule, output, log):
        return SimpleNamespace(rule=SimpleNamespace(name=rule), output=output, log=log)

    trained = job("train", ["results/demo/runs/deit_tiny/train.json"], ["results/demo/runs/deit_tiny/train.log"])
    checked = job("prepare_data", ["results/demo/data.json"], ["results/demo/data/data.log"])
    table = job("table", ["results/demo/table1.csv", "results/demo/table1.md"], ["results/demo/logs/table1.log"])
    whole = job("all", [], [])
    jobs = [trained, checked, table, whole]
    dag = SimpleNamespace(needrun_jobs=lambda: jobs, jobid=jobs.index)
    names = {number: job.name for number, job in display.jobs_of(dag).items()}
    assert names == {0: "results/demo/runs/deit_tiny", 1: "results/demo/data", 2: "results/demo/table1.csv", 3: "all"}
    assert str(display.jobs_of(dag)[3].log) == os.devnull


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (119.4, "119 s"), (120, "2 min"), (3599, "59 min"), (7500, "2 h 05 min")]
)
def test_durations_are_in_the_units_that_people_would_use(seconds, words):
    assert progress.duration(seconds) == words


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([], "it failed, and its log is empty"),
        (["epoch 1/2", "ERROR: no space."], "no space."),
        (["epoch 1/2", "Interrupted: job 7 is ended"], "Interrupted: job 7 is ended"),
        (["epoch 1/2"], "it failed; the last line of its log: epoch 1/2"),  # the launcher was killed
    ],
)
def test_the_reason_of_a_failure_is_a_launchers_last_sentence(lines, said):
    assert display.reason(lines) == said
