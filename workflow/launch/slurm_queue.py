"""What Slurm says about jobs: state, reason, node. Standard library only.

All launchers of a user share one answer of `squeue`, asked for every half minute by whichever needs
it first: the scheduler's load does not grow with the launchers. Accounting is asked only about a
job that the controller has forgotten, and may be absent; `scontrol` then knows no more than
`squeue --states=all` did, so the job's record is the only witness left.
"""

import json
import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from workflow import job_environment
from workflow.storage import files, locks, records

ALIVE = {"PENDING", "RUNNING", "CONFIGURING", "COMPLETING", "SUSPENDED", "REQUEUED", "SPECIAL_EXIT"}
ALIVE |= {"REQUEUE_HOLD", "REQUEUE_FED", "RESIZING", "SIGNALING", "STAGE_OUT", "STOPPED"}
UNKNOWN, UNANSWERED = "UNKNOWN", "UNANSWERED"
ASK_EVERY_S = 30.0
SETTLE_S = 5.0  # a job may be this much younger than an answer in which it does not stand yet
PATIENCE_S = 60  # of one question
ACCOUNTING_TRIES = 3  # at an accounting that is away; one each half minute
NO_ACCOUNTING = ("no sacct", "disabled")
FORMAT = "%i|%T|%r|%N|%S"


@dataclass(frozen=True)
class Status:
    """Slurm's word for a job's state, with why it waits or where it runs.

    UNKNOWN: nobody knows the job any more. UNANSWERED: the controller or the accounting was silent,
    which says nothing about the job, so it counts as alive.
    """

    state: str
    reason: str = ""
    node: str = ""
    start: str = ""
    note: str = ""

    @property
    def alive(self) -> bool:
        return self.state in ALIVE or self.state == UNANSWERED

    @property
    def words(self) -> str:
        """For a person: "queued (Resources)", "running on node3"."""
        if self.state == "PENDING":
            return f"queued ({self.reason})" if self.reason else "queued"
        if self.state == UNANSWERED:
            return "Slurm does not answer; the job is taken to go on"
        return f"{self.state.lower()}{f' on {self.node}' if self.node else ''}"


def ask(*command: str) -> tuple[str, str]:
    """(output, "") or ("", why there is none)."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=PATIENCE_S,
            env=job_environment.for_slurm_commands(),
        )  # fmt: skip
    except FileNotFoundError:
        return "", f"no {command[0]} here"
    except subprocess.TimeoutExpired:
        return "", f"{command[0]} did not answer within {PATIENCE_S} s"
    if done.returncode:
        return "", done.stderr.strip() or f"{command[0]} ended with {done.returncode}"
    return done.stdout, ""


def parse(answer: str) -> dict[str, Status]:
    """The jobs of a squeue answer, by id."""
    jobs = {}
    for line in answer.splitlines():
        if line.count("|") != 4:  # no job: a site's own words
            continue
        number, state, reason, node, start = line.strip().split("|")
        reason, start = ("" if text in ("None", "N/A") else text for text in (reason, start))
        if state != "PENDING":
            reason = start = ""
        jobs[number] = Status(state, reason, node, start)
    return jobs


class Queue:
    """The user's jobs, as one file that every launcher reads and any may renew.

    Args:
        folder: where the shared answer lies.
        max_age_s: how old the shared answer may be.
        ask: takes a command, -> (output, error); for tests.
        list_only: take a job that is not in the shared answer for gone, whatever ended it, and
            cause no question of its own; for who looks at many old jobs.
    """

    def __init__(
        self,
        folder: Path = Path(".snakemake"),
        ask: Callable = ask,
        max_age_s: float = ASK_EVERY_S,
        list_only: bool = False,
    ):
        self.path = folder / f"slurm-queue-{os.getuid()}-{os.uname().nodename}.json"
        self.lock = self.path.with_suffix(".lock")
        self.ask, self.max_age_s, self.list_only = ask, max_age_s, list_only
        self._alone: dict[str, tuple[float, Status]] = {}
        self._failures: dict[str, int] = {}
        self._kept = {"asked": 0.0, "answered": 0.0, "error": "", "jobs": {}}

    def status(self, job_id: str, submitted: float) -> Status:
        """The job's status; `submitted` (time.time()) tells a new job from a forgotten one."""
        answer = self._shared()
        if answer["error"].startswith("no squeue"):  # results that were copied to another machine
            return Status(UNKNOWN, note=answer["error"])
        if job_id in answer["jobs"]:
            return Status(*answer["jobs"][job_id])
        if answer["answered"] < submitted + SETTLE_S:
            # not in the list yet, or the controller is silent
            return Status(UNANSWERED if answer["error"] else "PENDING", "just submitted")
        return Status(UNKNOWN) if self.list_only else self._ask_alone(job_id)

    def _shared(self) -> dict:
        answer = self._read()
        if time.time() - answer["asked"] < self.max_age_s:
            return answer
        try:
            with locks.exclusive(self.lock):
                answer = self._read()
                if time.time() - answer["asked"] >= self.max_age_s:
                    answer = self._renew(answer)
        except locks.Held:  # someone asks just now; until then the last answer is good enough
            pass
        except files.NotWritable:  # a clone that this user only looks at: nothing is shared
            answer = self._kept = self._ask_for_all(answer)
        return answer

    def _read(self) -> dict:
        try:
            return json.loads(self.path.read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return self._kept

    def _renew(self, answer: dict) -> dict:
        answer = self._ask_for_all(answer)
        records.write_json(self.path, answer)
        return answer

    def _ask_for_all(self, answer: dict) -> dict:
        asked = time.time()
        command = ("squeue", "--me", "--states=all", "--noheader", f"--format={FORMAT}")
        shown, error = self.ask(*command)
        if error:
            return {**answer, "asked": asked, "error": error}
        jobs = {number: [s.state, s.reason, s.node, s.start]
                for number, s in parse(shown).items()}  # fmt: skip
        return {"asked": asked, "answered": asked, "error": "", "jobs": jobs}

    def _ask_alone(self, job_id: str) -> Status:
        """Of a job that is not in the shared answer: someone else's, or forgotten."""
        asked, status = self._alone.get(job_id, (-ASK_EVERY_S, None))
        if time.monotonic() - asked >= ASK_EVERY_S:
            command = ("squeue", f"--jobs={job_id}", "--states=all", "--noheader")
            shown, error = self.ask(*command, f"--format={FORMAT}")
            if "Invalid job id" in error or not (shown or error):
                status = self._ask_accounting(job_id)
            elif error:
                status = Status(UNANSWERED, error)
            else:
                status = parse(shown).get(job_id, Status(UNKNOWN))
            self._alone[job_id] = (time.monotonic(), status)
        return status

    def _ask_accounting(self, job_id: str) -> Status:
        columns = ("--noheader", "--parsable2", "--allocations", "--format=State,NodeList")
        shown, error = self.ask("sacct", f"--jobs={job_id}", *columns)
        if shown:
            state, _, node = shown.splitlines()[0].partition("|")
            return Status(state.split()[0].rstrip("+"), node=node)
        self._failures[job_id] = self._failures.get(job_id, 0) + 1
        away = error and not any(words in error for words in NO_ACCOUNTING)
        if away and self._failures[job_id] < ACCOUNTING_TRIES:
            return Status(UNANSWERED, error)
        why = error.splitlines()[-1] if error else "it has no such job"
        return Status(UNKNOWN, note=f"Slurm has forgotten the job, and sacct can't say ({why})")
