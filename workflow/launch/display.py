"""What a person sees while snakemake runs jobs, in the place of Snakemake's own messages on each job.

On a terminal: one line for the whole, with the jobs that are done and the time that is left, and one for each running
job, with the last line of its log. Elsewhere: what the launchers print, and a line when a job ends. A job that failed
is named with its reason and its log, at once and again at the end. Snakemake's warnings and errors stay.
"""

import contextlib
import logging
import os
import statistics
import threading
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from workflow.campaign import kinds
from workflow.launch import progress
from workflow.launch import snakemake_compat as compat

REDRAWN_S = 1.0
WHOLE = "{n_fmt} of {total_fmt} jobs |{bar:24}| {elapsed}{postfix}"
OPTIONS = ("verbose", "debug_dag", "printshellcmds")  # who says one of them wants to see Snakemake's messages
TAIL_BYTES = 8192  # of a log that are read for its last line


class Job(NamedTuple):
    """A job that is to run: its rule, what it is called, and its log."""

    rule: str
    name: str
    log: Path


def jobs_of(dag) -> dict[int, Job]:
    """Return the jobs that Snakemake will run, by its own numbers; those with a launcher are called by their folder."""
    jobs = {}
    for job in dag.needrun_jobs():
        output = str(next(iter(job.output), job.rule.name))
        is_record = output.endswith(".json")
        name = str(kinds.job_folder(output)) if is_record else output
        jobs[dag.jobid(job)] = Job(job.rule.name, name, Path(str(next(iter(job.log), os.devnull))))
    return jobs


def install(runs_jobs: bool, options) -> "Display":
    """Put a display in the place of Snakemake's own handler of messages.

    It does nothing where no job runs, where the options ask for more of Snakemake's messages or for none of them, and
    where a logger plugin prints them.
    """
    own = compat.stream_handler()
    quiet = {choice.name for choice in options.quiet or ()}  # the profiles say RULES and HOST
    wants_others = any(getattr(options, name) for name in OPTIONS) or quiet & {"ALL", "PROGRESS"}
    if not runs_jobs or wants_others or own is None:
        return Display(None)
    display = Display(own)
    compat.replace_handler(own, display)
    return display


class Display(logging.Handler):
    """Prints what Snakemake's messages say of jobs; `own` is the handler that it replaces, None for no display."""

    def __init__(self, own: compat.ColorizingTextHandler | None):
        super().__init__()
        self.own = own
        self.draws = own is not None and own.stream.isatty() and os.environ.get("TERM") != "dumb"
        self.jobs: dict[int, Job] = {}
        self.begun = time.monotonic()
        self.started: dict[int, float] = {}  # running jobs
        self.durations: dict[str, list[float]] = defaultdict(list)  # of finished jobs, by rule
        self.failures: dict[int, str] = {}
        self.whole: tqdm | None = None
        self.lines: dict[int, tqdm] = {}
        self.stopped = threading.Event()

    # -- begin and end ------------------------------------------------------------------------

    def begin(self, jobs: dict[int, Job]) -> None:
        """Say what is to be done, before the first job."""
        if self.own is None:
            return
        self.jobs, self.begun = jobs, time.monotonic()
        counts = Counter(job.rule for job in jobs.values())
        self.say(f"{len(jobs)} jobs: {', '.join(f'{count} {rule}' for rule, count in counts.items())}")
        if self.draws:
            os.environ[progress.DISPLAY] = "1"
            self.whole = tqdm(total=len(jobs), bar_format=WHOLE, file=self.own.stream, dynamic_ncols=True, leave=False)
            threading.Thread(target=self._keep_drawing, daemon=True).start()

    def end(self) -> None:
        """Say what became of the jobs, after the last one."""
        if self.own is None:
            return
        self.stopped.set()
        os.environ.pop(progress.DISPLAY, None)
        with self.lock, contextlib.suppress(OSError):
            for line in self.lines.values():
                line.close()
            self.lines.clear()
            if self.whole is not None:
                self.whole.close()
            self.whole = None
        duration = progress.duration(time.monotonic() - self.begun)
        self.say(f"{self.done} of {len(self.jobs)} jobs are done, in {duration}.")
        for jobid, reason in self.failures.items():
            self.say(f"{self.jobs[jobid].name}: {reason}\n  its log: {self.jobs[jobid].log}")

    @property
    def done(self) -> int:
        return sum(map(len, self.durations.values()))

    # -- Snakemake's messages -----------------------------------------------------------------

    def emit(self, record: logging.LogRecord) -> None:
        """Note what the message says of jobs, and print it if it is something else that a person should read."""
        told = vars(record)
        event = told.get("event")
        try:
            if event == compat.LogEvent.JOB_STARTED:
                for jobid in told["jobs"]:
                    self.start(jobid)
            elif event == compat.LogEvent.JOB_FINISHED:
                self.finish(told["job_id"])
            elif event == compat.LogEvent.JOB_ERROR:
                self.fail(told["jobid"])
            elif not compat.is_chatter(record) and self.own.filter(record):
                self.say(self.own.decorate(record, self.own.format(record)))
        except OSError:  # the terminal is gone
            pass
        except Exception:
            self.handleError(record)

    def start(self, jobid: int) -> None:
        """Give a job a line, on a terminal."""
        if jobid not in self.jobs:
            return
        self.started[jobid] = time.monotonic()
        if self.whole is not None:
            self.lines[jobid] = tqdm(bar_format="{desc}", file=self.own.stream, dynamic_ncols=True, leave=False)
            self._draw()

    def finish(self, jobid: int) -> None:
        """Count a job that is done."""
        if jobid not in self.jobs:
            return
        duration = self._stop(jobid)
        job = self.jobs[jobid]
        self.durations[job.rule].append(duration)
        text = f"{job.name}: done in {progress.duration(duration)}"
        self.say(text if self.draws else f"{text}; {self.done} of {len(self.jobs)} jobs{self._left()}")
        self._draw()

    def fail(self, jobid: int) -> None:
        """Say why a job failed; elsewhere than on a terminal, its launcher has printed more than the last line."""
        if jobid not in self.jobs or jobid in self.failures:
            return
        self._stop(jobid)
        job = self.jobs[jobid]
        lines = last_lines(job.log)
        self.failures[jobid] = reason(lines)
        if self.draws:
            indented: list[str] = []  # of a traceback, or of the log of a process
            for line in reversed(lines[:-1]):
                if not line.startswith("  "):
                    break
                indented.insert(0, line)
            self.say("\n".join([*indented, f"{job.name}: {self.failures[jobid]}"]))
        self.say(f"{job.name} failed; its log: {job.log}")
        self._draw()

    def _stop(self, jobid: int) -> float:
        """Take a job's line away, move up those below it, and return for how long the job ran."""
        line = self.lines.pop(jobid, None)
        if line is not None:
            line.close()
        for position, below in enumerate(self.lines.values(), 1):
            if below.pos != position:
                below.clear()
                below.pos = position
        now = time.monotonic()
        return now - self.started.pop(jobid, now)

    # -- what is shown ------------------------------------------------------------------------

    def say(self, text: str) -> None:
        """Print lines, above those that are drawn. A terminal that is gone ends nothing."""
        with contextlib.suppress(OSError):
            if self.whole is not None:
                tqdm.write(text, file=self.own.stream)
            else:
                print(text, file=self.own.stream, flush=True)

    def _keep_drawing(self) -> None:
        while not self.stopped.wait(REDRAWN_S):
            with self.lock, contextlib.suppress(OSError):
                self._draw()

    def _draw(self) -> None:
        """Bring the lines of the running jobs and of the whole up to date."""
        if self.whole is None:
            return
        width = max((len(self.jobs[jobid].name) for jobid in self.lines), default=0)
        for jobid, line in self.lines.items():
            job = self.jobs[jobid]
            words = last_lines(job.log)[-1:]
            line.set_description_str("  ".join([f"{job.name:<{width}}", *words]), refresh=False)
            line.refresh()
        self.whole.n = self.done
        failed = f", {len(self.failures)} failed" if self.failures else ""
        self.whole.set_postfix_str(f"{failed}{self._left()}".removeprefix(", "), refresh=False)
        self.whole.refresh()

    def _left(self) -> str:
        """Return how long the other jobs will take, as the end of a sentence.

        It is empty before a job is done, and where the others run longer than those before them.
        """
        seconds = self.time_left(time.monotonic())
        return f", about {progress.duration(seconds)} left" if seconds and seconds >= 1 else ""

    def time_left(self, now: float) -> float | None:
        """Estimate how long the other jobs will take: as those of their rule did, or else as all did.

        As many run at once as did until now.
        """
        known = [seconds for durations in self.durations.values() for seconds in durations]
        if not known:
            return None
        spent = sum(known)
        remaining = 0.0
        finished = {rule: len(durations) for rule, durations in self.durations.items()}
        for rule, count in Counter(job.rule for job in self.jobs.values()).items():
            expected = statistics.mean(self.durations.get(rule) or known)
            running = [now - began for jobid, began in self.started.items() if self.jobs[jobid].rule == rule]
            failed = sum(self.jobs[jobid].rule == rule for jobid in self.failures)
            waiting = count - finished.get(rule, 0) - failed - len(running)
            remaining += waiting * expected + sum(max(0.0, expected - elapsed) for elapsed in running)
            spent += sum(running)
        at_once = max(1.0, spent / max(now - self.begun, 1e-9))
        return remaining / at_once


def reason(lines: list[str]) -> str:
    """Return why a job failed, by the last lines of its log; a program that broke has written no sentence on that."""
    if not lines:
        return "it failed, and its log is empty"
    if lines[-1].startswith((progress.ERROR, progress.INTERRUPTED)):
        return lines[-1].removeprefix(progress.ERROR)
    return f"it failed; the last line of its log: {lines[-1]}"


def last_lines(log: Path) -> list[str]:
    """Return the last lines of a log without their times, or nothing."""
    try:
        with open(log, "rb") as stream:
            stream.seek(0, os.SEEK_END)
            stream.seek(max(0, stream.tell() - TAIL_BYTES))
            text = stream.read().decode(errors="replace")
    except OSError:
        return []
    return [progress.without_time(line) for line in text.splitlines()]
