"""The identity of every result: a change of code must not make a finished training another one.

After a deliberate change of a recipe, model or setting, write the file anew, in that change's own
commit: ``python -m tests.workflow.test_spec_hashes``.
"""

import json
from pathlib import Path

from workflow.campaign import kinds, specs, targets
from workflow.campaign.config import Config

HASHES = Path(__file__).with_suffix(".json")


def spec_hashes() -> dict[str, str]:
    """Return the hash of every record that any setting's ``whole`` needs, by the record's path."""
    config, specs_by_path = Config.load(), {}
    for name, setting in config.settings.items():
        root = setting["results"]
        pending = [path for item in targets.whole(config, name) for path in records_of(config, root, item)]
        while pending:
            path = pending.pop()
            if path not in specs_by_path:
                specs_by_path[path] = targets.spec_of(config, path)
                pending += [f"{root}/{name}" for name in kinds.first_records(specs_by_path[path])]
    return {path: specs.spec_hash(spec) for path, spec in sorted(specs_by_path.items())}


def records_of(config: Config, root: str, item: str) -> list[str]:
    """Return the paths of the records that an item, named by its file, is made of."""
    return targets.item_records(config, root, item.partition(".")[0])


def test_no_spec_has_changed():
    assert spec_hashes() == json.loads(HASHES.read_text())


if __name__ == "__main__":
    HASHES.write_text(json.dumps(spec_hashes(), indent=1) + "\n")
