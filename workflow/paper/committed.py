"""Records that are committed under results/measured/: imported once, and never replaced."""

from pathlib import Path

from workflow.campaign import targets
from workflow.campaign.config import MEASURED, Config
from workflow.storage import files, provenance, records

README_OF_A_SETTING = """# Records of {setting}

Imported by `python -m workflow.paper import` or, from a lent GPU, by `python -m benchmarks.gpu.import_results`: what
tables and claims are made of, without weights. Each record names its commit and its machine (`provenance`).

    python -m workflow.paper make results/measured/{setting}/claims.csv     # also tables and figures
    python -m workflow.paper missing --setting {setting}                    # what is not there yet
"""


class Import:
    """Write records below the root, and count those that were left.

    Attributes:
        imported: records that are new.
        left: records that were not imported, though they are not there.
    """

    def __init__(self, root: Path = Path(MEASURED)):
        self.root = root
        self.imported = 0
        self.left = 0

    def take(self, path: Path, record: dict) -> None:
        """Write a record to a path below the root, unless there is one."""
        target = self.root / path
        if target.exists():
            present = records.read(target)
            if present["spec"] == record["spec"] and present["results"] == record["results"]:
                print(f"{target}: there already")
            else:
                self.leave(target, "another record is there; delete it, or give another --root")
            return
        record = with_commit(record)
        records.write_json(target, record)
        self.imported += 1
        print("; ".join([f"{target}: imported", *provenance.flags(record)]))

    def take_results(self, config: Config, setting: str, folder: Path) -> None:
        """Write the records of a setting's results folder that its tables, figures and claims need.

        A record of another spec than workflow/config/ asks for is left. Raises RecordError where there is none at all.
        """
        results = config.settings[setting]["results"]
        items = [name.partition(".")[0] for name in targets.whole(config, setting)]
        needed = [path for item in items for path in targets.item_records(config, results, item)]
        present = [path for path in dict.fromkeys(needed) if (folder / Path(path).relative_to(results)).exists()]
        if not present:
            raise records.RecordError(f"{folder} holds no record that tables or claims of {setting} need.")
        for path in present:
            relative = Path(path).relative_to(results)
            try:
                targets.spec_of(config, path)
                record = records.read(folder / relative, config.records[path].hash)
            except records.RecordError as error:
                self.leave(self.root / setting / relative, str(error))
                continue
            self.take(Path(setting, relative), record)
        self.describe(setting, README_OF_A_SETTING.format(setting=setting))

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
