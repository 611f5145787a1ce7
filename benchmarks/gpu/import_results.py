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
from workflow.campaign.config import MEASURED, Config
from workflow.paper.committed import README_OF_A_SETTING, Import
from workflow.storage import journal, records

SMOKED = "it was made with --smoke, whose numbers mean nothing"
README = """# One {device}

Measured by `python -m benchmarks.gpu.speed` (benchmarks/gpu/README.md): `gpu/speed.csv` has a row for each model, and
`gpu/` a record of each measurement, which names its commit and the versions of torch and timm.
"""


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
        importing.describe(setting, README_OF_A_SETTING.format(setting=setting))


def main() -> None:
    """Import the archives of a folder."""
    parser = command_line.parser(__doc__)
    parser.add_argument("folder", type=Path, help=f"with {speed.ARCHIVE}, {train.ARCHIVE}, or both")
    parser.add_argument("--root", type=Path, default=Path(MEASURED), help=f"folder to import to ({MEASURED})")
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
