"""Measurements that were made elsewhere become the workflow's.

    python -m workflow.bench.import_records measured [--root results]

takes in measured/throughput/<section>/<point>.json and measured/training/... (node/survey.py and
node/fresh.py make them). A record is taken only if it is of what workflow/config/ asks for there;
snakemake then finds the target made.
"""

import sys
from pathlib import Path

from workflow import command_line
from workflow.campaign import kinds, schema, specs, targets
from workflow.campaign.config import Config, ConfigError
from workflow.storage import attempts, records

KINDS = ("throughput", "training")


def difference(found: dict, wanted: dict, place: str = "") -> str:
    """Where two specs first differ, for a person."""
    for key in sorted({*found, *wanted}):
        one, other = found.get(key), wanted.get(key)
        if one == other:
            continue
        here = f"{place}{key}"
        if isinstance(one, dict) and isinstance(other, dict):
            return difference(one, other, f"{here}.")
        if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
            numbered = ({str(i): v for i, v in enumerate(values)} for values in (one, other))
            return difference(*numbered, f"{here}.")
        return f"{here} is {one!r}, wanted is {other!r}"
    return "nothing"


def take(config: Config, path: Path, target: str) -> str:
    """Publish the record at `path` as the target; -> what was done or why not."""
    record = records.read(path)
    wanted = targets.spec_of(config, target)
    if record["spec"] != wanted:
        return f"left: {difference(record['spec'], wanted)} (workflow/config/)"
    try:
        records.read(target, specs.spec_hash(wanted))
    except records.RecordError:
        pass
    else:
        return "left: there already"
    specs.write_spec(kinds.job_folder(target) / "spec.json", wanted)
    attempts.import_record(kinds.job_folder(target), wanted, record)
    records.write_json(target, record)
    return "taken in"


def main() -> None:
    parser = command_line.parser(__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--root", default="results", help="the setting's results folder")
    arguments = parser.parse_args()
    try:
        config = schema.load()
        config.setting_of(arguments.root)
    except ConfigError as error:
        sys.exit(f"ERROR: {error}")
    paths = sorted(p for kind in KINDS for p in arguments.folder.glob(f"{kind}/*/*.json"))
    if not paths:
        sys.exit(f"ERROR: {arguments.folder} holds no throughput/<section>/<point>.json.")
    done = []
    for path in paths:
        target = f"{arguments.root}/{path.relative_to(arguments.folder)}"
        try:
            done.append(take(config, path, target))
        except (records.RecordError, targets.TargetError) as error:
            done.append(f"left: {error}")
        print(f"{target}: {done[-1]}")
    sys.exit(any(said.startswith("left: ") and "already" not in said for said in done))


if __name__ == "__main__":
    command_line.run(main, in_clone=True)
