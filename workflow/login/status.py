"""How far a campaign is: every job that a target needs, and what becomes of it.

    python -m workflow.login.status results/table1.csv [--csv results/status.csv]

Looks and writes nothing but the CSV; a running snakemake is not disturbed.
"""

import argparse
import csv
import sys
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from workflow import journal
from workflow.campaign import Config, ConfigError
from workflow.login import attempts, executors, forecast, progress, schema, targets
from workflow.login.slurm_queue import Queue, Status

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
    attempt = attempts.newest(targets.job_folder(path))
    if attempt is None or attempt.spec != spec or (job := attempt.job()) is None:
        return Row(path, "outdated" if Path(path).exists() else "not started")
    stands = standing(attempt)
    logs = str(attempt.folder / "logs")
    where = f"{job['launcher']} job {job['job_id']}"
    if attempt.record.exists():
        return Row(path, "done", stands, "the next start of snakemake publishes it", logs)
    status = executors.status(job, attempt.folder, queue)
    if status.state == "PENDING":
        expected = f", expected start {status.start}" if status.start else ""
        return Row(path, "queued", stands, f"{where}: {status.reason or 'new'}{expected}", logs)
    if status.alive:
        return Row(path, "running", stands, f"{where}: {status.words}", logs)
    return ended(path, attempt, status, stands)


def ended(path: str, attempt: attempts.Attempt, status: Status, stands: str) -> Row:
    """The row of a job that is gone without a record."""
    logs, errors = str(attempt.folder / "logs"), attempt.errors()
    if errors and not errors[0]["stopped"]:
        last = errors[0]["sentence"] or errors[0]["traceback"].strip().splitlines()[-1]
        return Row(path, "failed", stands, last, logs)
    if errors:
        return Row(path, "stopped", stands, "the next start of snakemake resumes it", logs)
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
    rows = [row_of(path, spec, queue) for path, spec in records.items() if spec["kind"] != "fetch"]
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
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("targets", nargs="*", default=["results/table1.csv"], metavar="TARGET")
    parser.add_argument("--csv", type=Path, help="write the rows there, too")
    arguments = parser.parse_args()
    queue, rows, left = Queue(), [], {}
    try:
        config = schema.load()
        for target in arguments.targets:
            records = targets.needed(config, target)
            found = rows_of(config, records, queue)
            show(target, found)
            rows += [row for row in found if row not in rows]
            open_ = {row.job for row in found if row.state != "done"}
            left |= {path: spec for path, spec in records.items() if path in open_}
    except (ConfigError, targets.TargetError) as error:
        sys.exit(str(error))
    print("\n".join(forecast.summary(forecast.of_trainings(config, left))))
    if arguments.csv:
        arguments.csv.parent.mkdir(parents=True, exist_ok=True)
        with open(arguments.csv, "w", newline="") as stream:
            writer = csv.DictWriter(stream, [field.name for field in fields(Row)])
            writer.writeheader()
            writer.writerows(map(asdict, rows))


if __name__ == "__main__":
    main()
