"""The identity of every result: a change of code must not make a finished training another one.

After a deliberate change of a recipe, model or setting, write the file anew, in that change's own
commit: ``python -m tests.workflow.test_spec_hashes``.
"""

import json
from pathlib import Path

from workflow import runs
from workflow.campaign import Config
from workflow.login import targets

HASHES = Path(__file__).with_suffix(".json")


def spec_hashes() -> dict[str, str]:
    """Return the hash of every record that any setting's ``whole`` needs, by the record's path."""
    config = Config.load()
    specs = {}
    for setting in config.settings.values():
        specs |= targets.needed(config, f"{setting['results']}/whole")
    return {path: runs.spec_hash(spec) for path, spec in sorted(specs.items())}


def test_no_spec_has_changed():
    assert spec_hashes() == json.loads(HASHES.read_text())


if __name__ == "__main__":
    HASHES.write_text(json.dumps(spec_hashes(), indent=1) + "\n")
