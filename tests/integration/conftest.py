import shutil
from pathlib import Path

import pytest

from tests.integration.project import edit
from workflow import records

TRACKED = ("Snakefile", "environment.yml", "pyproject.toml", "workflow", "evovit", "baselines")


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """A copy of the project whose demo takes seconds: two epochs, one small thing timed."""
    root = tmp_path_factory.mktemp("tree")
    for name in TRACKED:
        source = records.ROOT / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, root / name)
    shutil.copytree(records.ROOT / "results/paper", root / "results/paper")
    for name in ("demo", "slurm"):
        (root / name).symlink_to(f"workflow/profiles/{name}")
    edit(root, "settings", lambda c: c["demo"]["recipe"].update(epochs=2, warmup_epochs=1))
    edit(root, "settings", lambda c: c["demo"]["recipes"]["dynamicvit"].update(epochs=2))
    edit(root, "settings", lambda c: c["demo"]["recipes"]["ia_red2"].update(epochs=2))
    edit(root, "settings", lambda c: c["demo"]["recipes"]["psvit"].update(epochs=2))
    edit(root, "settings", lambda c: c["demo"]["throughput"].update(batch_size=1, rounds=5))
    edit(root, "settings", lambda c: c["demo"]["shrink"]["deit"].update(img_size=16))
    return root
