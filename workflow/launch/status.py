"""How far a campaign is: every job that a target needs, and what becomes of it.

    python -m workflow.launch.status results/table1.csv [--csv results/status.csv]

Looks and writes nothing but the CSV; a running snakemake is not disturbed.
"""

import csv
import sys
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from workflow import command_line
from workflow.campaign import kinds, schema, targets
from workflow.campaign.config import Config, ConfigError
from workflow.launch import executors, forecast, progress
from workflow.launch.progress import ERROR, STAMP
from workflow.launch.slurm_queue import Queue, Status
from workflow.launch.submission import LOCK
from workflow.storage import attempts, journal, locks

STATES = ("failed", "running", "queued", "stopped", "not started", "outdated", "done")


@dataclass(frozen=True)
class Row:
    """One job: where it stands, in words; `log` is what to read about it."""

    job: str
    state: str
    progress: str = ""
    detail: str = ""
    log: str = ""


def row_of(path: str, spec: dict, queue: Queue) -> Row:
    """The row of one record's job."""
    if forecast.is_current(path, spec):
        return Row(path, "done")
    attempt = attempts.newest(kinds.job_folder(path))
    if attempt is None or attempt.spec != spec or (job := attempt.job()) is None:
        return unstarted(path)
    stands = standing(attempt)
    logs = str(attempt.folder / "logs")
    where = f"{job['launcher']} job {job['job_id']}"
    if attempt.record.exists():
        if attempts.is_over(Path(path), attempt):
            gone = f"its record is gone from {path}: the next start makes it anew"
            return unstarted(path, gone)
        return Row(path, "done", stands, "the next start of snakemake publishes it", logs)
    status = executors.status(job, attempt.folder, queue)
    if status.state == "PENDING":
        expected = f", expected start {status.start}" if status.start else ""
        return Row(path, "queued", stands, f"{where}: {status.reason or 'new'}{expected}", logs)
    if status.alive:
        return Row(path, "running", stands, f"{where}: {status.words}", logs)
    return at_its_launcher(path, stands) or ended(path, attempt, status, stands)


def unstarted(path: str, detail: str = "") -> Row:
    """The row of a job that Slurm does not have: its launcher may be about it, or have failed."""
    if row := at_its_launcher(path):
        return row
    log, last = last_words(path)
    if last.startswith(ERROR):
        return Row(path, "failed", "", last.removeprefix(ERROR), str(log))
    return Row(path, "outdated" if Path(path).exists() else "not started", "", detail)


def at_its_launcher(path: str, stands: str = "") -> Row | None:
    """The row of a job that its launcher is just submitting, or waits to; None if none works."""
    if not locks.is_held(kinds.job_folder(path) / LOCK):
        return None
    log, last = last_words(path)
    return Row(path, "queued", stands, f"at its launcher: {last or 'just started'}", str(log or ""))


def last_words(path: str) -> tuple[Path | None, str]:
    """The launcher's log and what it said last, unless that was about another spec."""
    folder = kinds.job_folder(path)
    logs = sorted(folder.glob("*.log"))
    spec = folder / "spec.json"
    if not logs or not spec.exists() or logs[0].stat().st_mtime < spec.stat().st_mtime:
        return None, ""
    lines = logs[0].read_text(errors="replace").splitlines()
    return logs[0], lines[-1][STAMP:] if lines else ""


def ended(path: str, attempt: attempts.Attempt, status: Status, stands: str) -> Row:
    """The row of a job that is gone without a record."""
    logs, errors = str(attempt.folder / "logs"), attempt.errors()
    if errors and not errors[0]["stopped"]:
        last = errors[0]["sentence"] or errors[0]["traceback"].strip().splitlines()[-1]
        return Row(path, "failed", stands, last, logs)
    if errors:
        return Row(path, "stopped", stands, "the next start of snakemake resumes it", logs)
    if attempts.was_copied(attempt.job(), attempt.folder):
        return Row(path, "stopped", stands, f"{status.note}; the next start resumes it", logs)
    state = status.note or f"ended as {status.state} without a record"
    return Row(path, "failed", stands, f"{state}; the next start resumes it", logs)


def standing(attempt: attempts.Attempt) -> str:
    """The last thing that the journal says of its progress."""
    follower = progress.Follower(attempt.journal, attempt.spec)
    lines = [line for event, _ in journal.read(attempt.journal)
             if event["event"] in ("epoch", "progress", "layer")
             for line in [follower.line(event)] if line]  # fmt: skip
    return lines[-1] if lines else ""


def rows_of(config: Config, records: dict[str, dict], queue: Queue) -> list[Row]:
    rows = [row_of(path, spec, queue) for path, spec in records.items()]
    return sorted(rows, key=lambda row: STATES.index(row.state))


def show(target: str, rows: list[Row]) -> None:
    counts = {state: sum(row.state == state for row in rows) for state in STATES}
    said = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    print(f"{target}: {len(rows)} jobs: {said}.")
    width = max((len(row.job) for row in rows), default=0)
    for row in rows:
        print(f"  {row.state:<12}{row.job:<{width}}  {row.progress}".rstrip())
        if row.detail:
            print(f"{'':<14}{row.detail}")
        if row.state == "failed":
            print(f"{'':<14}{row.log}")


def main() -> None:
    parser = command_line.parser(__doc__)
    parser.add_argument("targets", nargs="*", default=[targets.DEFAULT], metavar="TARGET")
    parser.add_argument("--csv", type=Path, help="write the rows there, too")
    arguments = parser.parse_args()
    queue, rows, left, wanted = Queue(), [], {}, {}
    try:
        config = schema.load()
        for target in arguments.targets:
            records = targets.needed(config, target)
            found = rows_of(config, records, queue)
            show(target, found)
            rows += [row for row in found if row not in rows]
            open_ = {row.job for row in found if row.state != "done"}
            left |= {path: spec for path, spec in records.items() if path in open_}
            wanted[target] = [path for path in records if path in open_]
    except (ConfigError, targets.TargetError) as error:
        sys.exit(str(error))
    for line in forecast.by_target(forecast.of_trainings(config, left), wanted):
        print(line)
    if arguments.csv:
        arguments.csv.parent.mkdir(parents=True, exist_ok=True)
        with open(arguments.csv, "w", newline="") as stream:
            writer = csv.DictWriter(stream, [field.name for field in fields(Row)])
            writer.writeheader()
            writer.writerows(map(asdict, rows))


if __name__ == "__main__":
    command_line.run(main, in_clone=True)
