"""Import measurements that were made on another machine.

`python -m workflow.bench import measured [--root results]` imports measured/throughput/<group>/<configuration>.json,
which suite.py makes, and measured/training/... A record is imported only if its spec is the one that workflow/config/
asks for; snakemake then takes the target as made.
"""

import sys
from pathlib import Path

from workflow.campaign import kinds, schema, specs, targets
from workflow.campaign.config import Config, ConfigError
from workflow.storage import attempts, records

FOLDERS = ("throughput", "training")
EXISTS = "left: there already"


def main(folder: Path, root: str) -> None:
    """Import every record of the folder, and print of each what was done.

    Ends with code 1 if a record was left, unless its target exists.
    """
    try:
        config = schema.load()
        config.setting_of(root)
    except ConfigError as error:
        sys.exit(f"ERROR: {error}")
    paths = sorted(path for name in FOLDERS for path in folder.glob(f"{name}/*/*.json"))
    if not paths:
        sys.exit(f"ERROR: {folder} holds no throughput/<group>/<configuration>.json.")
    failed = False
    for path in paths:
        target = f"{root}/{path.relative_to(folder)}"
        try:
            outcome = import_record(config, path, target)
        except (records.RecordError, targets.TargetError) as error:
            outcome = f"left: {error}"
        print(f"{target}: {outcome}")
        failed = failed or (outcome.startswith("left: ") and outcome != EXISTS)
    sys.exit(failed)


def import_record(config: Config, path: Path, target: str) -> str:
    """Publish the record at `path` as the target, and return what was done or why not."""
    record = records.read(path)
    requested = targets.spec_of(config, target)
    if record["spec"] != requested:
        return f"left: {difference(record['spec'], requested)} (workflow/config/)"
    try:
        records.read(target, specs.spec_hash(requested))
    except records.RecordError:
        pass
    else:
        return EXISTS
    folder = kinds.job_folder(target)
    specs.write_spec(folder / "spec.json", requested)
    attempts.import_record(folder, requested, record)
    records.write_json(target, record)
    return "imported"


def difference(spec: dict, requested: dict, path: str = "") -> str:
    """Return for people where two specs first differ."""
    for key in sorted({*spec, *requested}):
        value = spec.get(key)
        other = requested.get(key)
        if value == other:
            continue
        key = f"{path}{key}"
        if isinstance(value, list) and isinstance(other, list) and len(value) == len(other):
            value = dict(zip(map(str, range(len(value))), value, strict=True))
            other = dict(zip(map(str, range(len(other))), other, strict=True))
        if isinstance(value, dict) and isinstance(other, dict):
            return difference(value, other, f"{key}.")
        return f"{key} is {value!r}, but {other!r} is asked for"
    return "nothing"
