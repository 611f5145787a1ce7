"""Import what benchmarks.gpu.speed and benchmarks.gpu.train brought back into results/measured/.

    python -m benchmarks.gpu.import_results DIR [--root results/measured]

DIR is an --output of these commands. Speeds go to <root>/<machine>/gpu/, a record of each measurement and speed.csv;
trainings go to <root>/<setting>/runs/<run>/train.json, if their spec is the one that workflow/config/ asks for now.
Records name commit and machine: where the commands ran in a copy without commits, the commit is that of this clone, if
it has the same sources. Nothing that is there is overwritten, and nothing of --smoke is imported. Weights stay where
they were trained.
"""

import argparse
import json
import re
import sys
import tempfile
from pathlib import Path

from benchmarks.gpu import speed, train, transport
from workflow import command_line
from workflow.bench import import_records
from workflow.campaign import specs
from workflow.campaign.config import Config
from workflow.storage import files, journal, provenance, records

ROOT = Path("results/measured")
SMOKED = "it was made with --smoke, whose numbers mean nothing"
README = """# One {device}

Measured by `python -m benchmarks.gpu.speed` (benchmarks/gpu/README.md): `gpu/speed.csv` has a row for each model, and
`gpu/` a record of each measurement, which names its commit and the versions of torch and timm.
"""
README_OF_RUNS = """# Trainings of {setting}

Trained by `python -m benchmarks.gpu.train` (benchmarks/gpu/README.md) or by the workflow: a record of each run, which
names its commit and its machine; weights are not kept.
"""


class Import:
    """Write records below the root, and count those that were left.

    Attributes:
        imported: records that are new.
        left: records that were not imported, though they are not there.
    """

    def __init__(self, root: Path):
        self.root = root
        self.imported = 0
        self.left = 0

    def take(self, path: Path, record: dict) -> None:
        """Write a record to a path below the root, unless there is one."""
        target = self.root / path
        if not target.exists():
            records.write_json(target, with_commit(record))
            self.imported += 1
            print(f"{target}: imported")
            return
        present = records.read(target)
        if present["spec"] == record["spec"] and present["results"] == record["results"]:
            print(f"{target}: there already")
        else:
            self.leave(target, "another record is there; delete it, or give another --root")

    def leave(self, target: Path, reason: str) -> None:
        """Say why a record is not imported."""
        self.left += 1
        print(f"{target}: left: {reason}")

    def describe(self, folder: str, text: str) -> None:
        """Write a README into a folder below the root that has none."""
        path = self.root / folder / "README.md"
        if path.parent.exists() and not path.exists():
            files.write(path, text)
            print(f"{path}: written; complete it")


def with_commit(record: dict) -> dict:
    """Return a record that a copy without commits made, with the commit of this clone if it has the same sources."""
    known = record["provenance"]
    here = provenance.running()
    same = all(version["source_hash"] == here["source_hash"] for version in known["code"])
    if known["commit"] is None and same and here["dirty"] is False:
        return record | {"provenance": known | {"commit": here["commit"], "dirty": False, "reason": None}}
    return record


def machine_name(device: str) -> str:
    """Return a folder's name for a device: "NVIDIA H200" -> "nvidia-h200"."""
    return "-".join(re.findall(r"[a-z0-9]+", device.lower()))


def import_speeds(folder: Path, importing: Import) -> None:
    """Import the records of speed.tar.gz that were unpacked into the folder, and write the table of each machine."""
    devices = {}
    for path in sorted(folder.glob("*.json")):
        record = records.read(path)
        device = record["results"]["device"]
        if record["spec"].get("smoke"):
            importing.leave(Path(path.name), SMOKED)
            continue
        devices[machine_name(device)] = device
        importing.take(Path(machine_name(device), "gpu", path.name), record)
    for fault in sorted(folder.glob("*.fault")):
        print(f"{fault.stem}: was not measured: {fault.read_text().strip()}")
    for machine, device in devices.items():
        speed.write_table(importing.root / machine / "gpu")
        importing.describe(machine, README.format(device=device))


def import_trainings(folder: Path, importing: Import) -> None:
    """Import the records of trainings.tar.gz that were unpacked into the folder, and say which runs are unfinished."""
    config = Config.load()
    settings = set()
    for spec_path in sorted(folder.glob("runs/*/spec.json")):
        run = spec_path.parent.name
        path = spec_path.with_name("train.json")
        if not path.exists():
            trained = journal.epochs(spec_path.parent / "attempts/1/journal.jsonl")
            epochs = json.loads(spec_path.read_text())["recipe"]["epochs"]
            print(f"{run}: unfinished, {len(trained)} of {epochs} epochs")
            continue
        record = records.read(path)
        spec = record["spec"]
        target = Path(spec["setting"], "runs", run, "train.json")
        if spec.get("smoke"):
            importing.leave(importing.root / target, SMOKED)
            continue
        try:
            requested = specs.train_spec(config, spec["setting"], run)
        except KeyError:
            importing.leave(importing.root / target, "workflow/config/ has no such setting or run any more")
            continue
        if spec != requested:
            difference = import_records.difference(spec, requested)
            importing.leave(importing.root / target, f"{difference} (workflow/config/)")
            continue
        settings.add(spec["setting"])
        importing.take(target, record)
    for setting in settings:
        importing.describe(setting, README_OF_RUNS.format(setting=setting))


def main() -> None:
    """Import the archives of a folder."""
    parser = command_line.parser(__doc__)
    parser.add_argument("folder", type=Path, help=f"with {speed.ARCHIVE}, {train.ARCHIVE}, or both")
    parser.add_argument("--root", type=Path, default=ROOT, help=f"folder of committed measurements ({ROOT})")
    arguments: argparse.Namespace = parser.parse_args()
    importing = Import(arguments.root)
    archives = {speed.ARCHIVE: import_speeds, train.ARCHIVE: import_trainings}
    present = [name for name in archives if (arguments.folder / name).exists()]
    if not present:
        names = " nor ".join(archives)
        sys.exit(f"ERROR: {arguments.folder} holds neither {names}; name an --output of these commands.")
    for name in present:
        with tempfile.TemporaryDirectory() as temporary:
            try:
                transport.unpack(arguments.folder / name, Path(temporary))
                archives[name](Path(temporary), importing)
            except (transport.ArchiveError, records.RecordError) as error:
                sys.exit(f"ERROR: {error}")
    print(f"{importing.imported} imported, {importing.left} left")
    sys.exit(importing.left > 0)


if __name__ == "__main__":
    command_line.run(main, in_clone=True)
