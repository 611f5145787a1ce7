"""How far a campaign is: every job that a target needs, and what became of it.

    python -m workflow.launch.status results/table1.csv [--csv results/status.csv]

Reads only, and writes nothing but the CSV; a running snakemake is not disturbed.
"""

import csv
import sys
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from workflow import command_line
from workflow.campaign import kinds, schema, specs, targets
from workflow.campaign.config import Config, ConfigError
from workflow.launch import follow, forecast, progress
from workflow.launch.progress import ERROR, STAMP
from workflow.launch.slurm import Queue, Status
from workflow.launch.submit import LOCK
from workflow.storage import attempts, files, journal, locks
from workflow.storage.attempts import Attempt

STATES = ("failed", "running", "queued", "stopped", "not started", "outdated", "done")
PROGRESS = ("epoch", "progress", "layer")  # events of a journal


@dataclass(frozen=True)
class Row:
    """One job: its state and progress, in words; `log` is what to read about it."""

    job: str
    state: str
    progress: str = ""
    detail: str = ""
    log: str = ""


def show(target: str, rows: list[Row]) -> None:
    """Print the rows of a target's jobs, with their number by state."""
    counts = {state: sum(row.state == state for row in rows) for state in STATES}
    summary = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    print(f"{target}: {len(rows)} jobs: {summary}.")
    width = max((len(row.job) for row in rows), default=0)
    for row in rows:
        print(f"  {row.state:<12}{row.job:<{width}}  {row.progress}".rstrip())
        if row.detail:
            print(f"{'':<14}{row.detail}")
        if row.state == "failed":
            print(f"{'':<14}{row.log}")


def rows_of(records: dict[str, dict], queue: Queue) -> list[Row]:
    """Return the rows of the records' jobs, those first that need somebody's attention."""
    rows = [row_of(path, spec, queue) for path, spec in records.items()]
    return sorted(rows, key=lambda row: STATES.index(row.state))


def row_of(path: str, spec: dict, queue: Queue) -> Row:
    """Return the row of one record's job."""
    if files.read_json(Path(path)).get("spec_hash") == specs.spec_hash(spec):
        return Row(path, "done")
    attempt = attempts.newest(kinds.job_folder(path))
    if attempt is None or attempt.spec != spec or attempt.job() is None:
        return unstarted(path)
    job = attempt.job()
    reached = last_progress(attempt)
    logs = str(attempt.folder / "logs")
    name = f"{job['launcher']} job {job['job_id']}"
    if attempt.record.exists():
        if attempts.is_over(Path(path), attempt):
            return unstarted(path, f"its record is gone from {path}: the next start makes it anew")
        return Row(path, "done", reached, "the next start of snakemake publishes it", logs)
    status = follow.status(job, attempt.folder, queue)
    if status.state == "PENDING":
        expected = f", expected start {status.start}" if status.start else ""
        return Row(path, "queued", reached, f"{name}: {status.reason or 'new'}{expected}", logs)
    if status.alive:
        return Row(path, "running", reached, f"{name}: {status.words}", logs)
    return at_its_launcher(path, reached) or ended(path, attempt, status, reached)


def unstarted(path: str, detail: str = "") -> Row:
    """Return the row of a job that Slurm does not have: its launcher may still submit it, or have failed."""
    row = at_its_launcher(path)
    if row:
        return row
    log, last = last_words(path)
    if last.startswith(ERROR):
        return Row(path, "failed", "", last.removeprefix(ERROR), str(log))
    return Row(path, "outdated" if Path(path).exists() else "not started", "", detail)


def at_its_launcher(path: str, reached: str = "") -> Row | None:
    """Return the row of a job that its launcher is submitting, or waits to submit; None without a launcher."""
    if not locks.is_held(kinds.job_folder(path) / LOCK):
        return None
    log, last = last_words(path)
    return Row(path, "queued", reached, f"at its launcher: {last or 'just started'}", str(log or ""))


def last_words(path: str) -> tuple[Path | None, str]:
    """Return the launcher's log and its last line, unless that was about another spec."""
    folder = kinds.job_folder(path)
    logs = sorted(folder.glob("*.log"))
    spec = folder / "spec.json"
    if not logs or not spec.exists() or logs[0].stat().st_mtime < spec.stat().st_mtime:
        return None, ""
    lines = logs[0].read_text(errors="replace").splitlines()
    return logs[0], lines[-1][STAMP:] if lines else ""


def ended(path: str, attempt: Attempt, status: Status, reached: str) -> Row:
    """Return the row of a job that is gone without a record."""
    logs, errors = str(attempt.folder / "logs"), attempt.errors()
    if errors and not errors[0]["stopped"]:
        reason = errors[0]["sentence"] or errors[0]["traceback"].strip().splitlines()[-1]
        return Row(path, "failed", reached, reason, logs)
    if errors:
        return Row(path, "stopped", reached, "the next start of snakemake resumes it", logs)
    if attempts.was_copied(attempt.job(), attempt.folder):
        return Row(path, "stopped", reached, f"{status.note}; the next start resumes it", logs)
    reason = status.note or f"ended as {status.state} without a record"
    return Row(path, "failed", reached, f"{reason}; the next start resumes it", logs)


def last_progress(attempt: Attempt) -> str:
    """Return the last line about the job's progress in its journal."""
    follower = progress.Follower(attempt.journal, attempt.spec)
    last = ""
    for event, _ in journal.read(attempt.journal):
        if event["event"] in PROGRESS:
            last = follower.line(event) or last
    return last


def report(config: Config, names: list[str]) -> list[Row]:
    """Print the jobs of all targets and what is left to compute; return the rows, each once."""
    queue = Queue()
    rows: list[Row] = []
    open_specs: dict[str, dict] = {}
    open_paths: dict[str, list[str]] = {}
    for target in names:
        records = targets.needed(config, target)
        rows_of_target = rows_of(records, queue)
        show(target, rows_of_target)
        rows += [row for row in rows_of_target if row not in rows]
        is_open = {row.job: row.state != "done" for row in rows_of_target}
        open_paths[target] = [path for path in records if is_open[path]]
        open_specs |= {path: records[path] for path in open_paths[target]}
    for line in forecast.by_target(forecast.of_jobs(config, open_specs), open_paths):
        print(line)
    return rows


def main() -> None:
    parser = command_line.parser(__doc__)
    parser.add_argument("targets", nargs="*", default=[targets.DEFAULT], metavar="TARGET")
    parser.add_argument("--csv", type=Path, help="write the rows there, too")
    arguments = parser.parse_args()
    try:
        rows = report(schema.load(), arguments.targets)
    except (ConfigError, targets.TargetError) as error:
        sys.exit(str(error))
    if arguments.csv:
        arguments.csv.parent.mkdir(parents=True, exist_ok=True)
        with open(arguments.csv, "w", newline="") as stream:
            writer = csv.DictWriter(stream, [field.name for field in fields(Row)])
            writer.writeheader()
            writer.writerows(map(asdict, rows))


if __name__ == "__main__":
    command_line.run(main, in_clone=True)
