"""The template of a setting of the user's own, at the end of settings.yaml."""

import shutil
from pathlib import Path

from workflow.campaign.config import FILES, Config


def uncomment(path: Path) -> None:
    """Do what docs/your-data.md says: take the "# " from the beginnings of the last lines."""
    before, template = path.read_text().split("\n# mydata:\n")
    lines = [line.removeprefix("# ") for line in template.splitlines()]
    path.write_text("\n".join([before, "mydata:", *lines]) + "\n")


def with_template(folder: Path) -> Config:
    """Return the configuration with the template uncommented, in files that are copied into the folder."""
    copies = {name: folder / path.name for name, path in FILES.items()}
    for name, path in FILES.items():
        shutil.copy(path, copies[name])
    uncomment(copies["settings"])
    return Config.load(copies)
