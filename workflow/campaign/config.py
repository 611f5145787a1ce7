"""The campaign's YAML (workflow/config/), as read: settings, recipes, runs and items.

Standard library and yaml only: launchers import this.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from workflow.command_line import nearest

CONFIG = Path(__file__).parent.parent / "config"
SEEDS = [0, 1, 2]  # of a row that names none
CLAIMS = "claims"  # the ledger, by which it is called among tables and figures
MEASURED = "results/measured"  # records that are committed; those of a setting in a folder of its name
HOST = "host"  # a setting's own model: its key in the setting, the model of the rows that are of it, and the first row
OF_HOST = {"hosts": {HOST: "trained"}, "shrink": {}, "measure": {}}  # what such a setting need not say
FILES = {name: CONFIG / f"{name}.yaml" for name in ("settings", "recipes", "runs", "items")}


class ConfigError(ValueError):
    """A mistake in the YAML; the message names file, key, value and remedy."""


# libyaml's, where PyYAML was built with it: these files are read at each start
_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _UniqueKeyLoader(_SafeLoader):
    """A loader that refuses a key given twice: YAML says keys are unique, PyYAML silently takes the last."""

    def construct_mapping(self, node, deep=False):
        names = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":  # `<<: *other`
                continue
            key = self.construct_object(key_node, deep=True)
            line = f"{key_node.start_mark.name}, line {key_node.start_mark.line + 1}"
            if not isinstance(key, str):
                raise ConfigError(f"{line}: put the key {key} in quotes.")
            if key in names:
                raise ConfigError(f"{line}: the name {key!r} is given twice; rename one.")
            names.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict:
    """Return a file's YAML mapping. Raises ConfigError for bad syntax, a missing file or a name given twice."""
    try:
        with open(path, encoding="utf-8") as stream:
            content = yaml.load(stream, _UniqueKeyLoader)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; restore it from git.") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is no valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected a mapping of names, got {content!r}.")
    return content


@dataclass(frozen=True)
class Config:
    """The content of workflow/config/, as read; `records` and `classes` keep what kinds.py and specs.py derived."""

    settings: dict
    recipes: dict
    runs: dict
    items: dict
    records: dict = field(default_factory=dict, init=False, repr=False, compare=False)
    classes: dict = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def load(cls, files: dict[str, Path] = FILES) -> "Config":
        """Return the files' content; schema.load also checks it. Raises ConfigError."""
        content = {name: read_yaml(path) for name, path in files.items()}
        for name, setting in content["settings"].items():
            if isinstance(setting, dict) and HOST in setting:
                content["settings"][name] = OF_HOST | setting
        return cls(**content)

    def setting_of(self, root: str) -> str:
        """Return the setting whose results folder is `root` ("results/demo" -> "demo"), or whose committed records are
        there.
        """
        for name, setting in self.settings.items():
            if root in (setting["results"], f"{MEASURED}/{name}"):
                return name
        known = [setting["results"] for setting in self.settings.values()]
        remedy = template_remedy(root) or nearest(root, known)
        raise ConfigError(f"{FILES['settings']}: no setting has `results: {root}`{remedy}")

    def split_run(self, run: str) -> tuple[str, int]:
        """Return a run's row and seed: "deit_tiny-s2" -> ("deit_tiny", 2). Raises KeyError for no run."""
        for row in self.runs:
            for seed in self.seeds(row):
                if run == run_name(row, seed):
                    return row, seed
        raise KeyError(run)

    def seeds(self, row: str) -> list[int]:
        """Return the seeds of a row."""
        return self.runs[row].get("seeds", SEEDS)

    def requested_seeds(self, setting: str, row: str, count: int | None) -> list[int]:
        """Return the seeds of a row that an item of the setting asks for: its first `count`, or all without a count.

        If the setting's own `seeds` names the row, that number counts instead.
        """
        if count is not None:
            count = self.settings[setting].get("seeds", {}).get(row, count)
        return self.seeds(row)[:count]

    def is_of_host(self, row: str) -> bool:
        """Return whether a row is of the model that a setting names as its `host`."""
        return self.runs[row]["model"] == HOST

    def has_row(self, row: str, setting: str | None) -> bool:
        """Return whether a setting has a row; None: whether the row has the paper's size.

        A setting with a `host` has the rows of that, and the others have all the rest.
        """
        return self.is_of_host(row) == (setting is not None and HOST in self.settings[setting])

    def sections(self, setting: str) -> list[str]:
        """Return the benchmark groups that a setting has."""
        sections = self.items["sections"]
        return [group for group in sections if self.has_row(sections[group][0], setting)]

    def rows(self, item: str, setting: str | None = None) -> list[dict]:
        """Return the rows of a table or a figure that shows runs (of others none), or of the paper's tables for its
        claims; of these the ones that the setting has, or without a setting those of the paper's size.

        Rows of a setting's host are called by the host's name.
        """
        tables, figures = self.items["tables"], self.items["figures"]
        if item == CLAIMS:
            rows = [row for table in self.paper_tables for row in tables[table]]
        else:
            rows = tables[item] if item in tables else figures.get(item, {}).get("rows", [])
        rows = [row for row in rows if self.has_row(row["run"], setting)]
        if setting is None or HOST not in self.settings[setting]:
            return rows
        name = self.settings[setting][HOST]["model"]
        return [row | {"backbone": name} if row.get("backbone") == HOST else row for row in rows]

    @property
    def tables(self) -> list[str]:
        """All tables: those of runs, and those that are compiled from the records of a kind of job."""
        return [*self.items["tables"], *self.items["compiled"]]

    def tables_of(self, setting: str) -> list[str]:
        """Return the tables that a setting has: all but those that are only of other images, or of other rows."""
        images = self.settings[setting]["data"]["name"]
        tables = [table for table in self.tables if self.items["only_of"].get(table, images) == images]
        return [table for table in tables if table in self.items["compiled"] or self.rows(table, setting)]

    def figures_of(self, setting: str) -> list[str]:
        """Return the figures that a setting has: those that show a table, an analysis or rows that it has."""
        tables = self.tables_of(setting)
        figures = []
        for figure, entry in self.items["figures"].items():
            runs = [self.items["analyses"][name]["run"] for name in self.analyses(figure)]
            has_runs = any(self.has_row(run, setting) for run in runs)
            if has_runs or self.rows(figure, setting) or set(entry.get("tables", [])) & set(tables):
                figures.append(figure)
        return figures

    def has_claims(self, setting: str) -> bool:
        """Return whether a setting has rows that the paper's claims compare."""
        return bool(self.rows(CLAIMS, setting))

    @property
    def paper_tables(self) -> list[str]:
        """The tables that the paper has, too."""
        return [table for table in self.items["tables"] if table not in self.items["ours"]]

    def analyses(self, item: str) -> list[str]:
        """Return the analyses of trained models that a figure shows; a table shows none."""
        return self.items["figures"].get(item, {}).get("analyses", [])

    def sections_of(self, item: str, setting: str | None = None) -> list[str]:
        """Return the benchmark groups of an item's rows, as `rows` has them, in the rows' order."""
        return list(dict.fromkeys(row["section"] for row in self.rows(item, setting)))

    def request(self, setting: str, item: str) -> dict:
        """Return which benchmark groups of an item the setting trains, which it times, and how many seeds of each row.

        For a table or figure that the setting does not name, these are all groups, with one seed.
        """
        measure = self.settings[setting]["measure"]
        if item in measure:
            return {"seeds": None} | measure[item]
        if item == CLAIMS:  # beyond what tables and figures measure, nothing
            return {"train": [], "time": [], "seeds": None}
        groups = self.sections_of(item, setting)
        return {"train": groups, "time": groups, "seeds": 1}


def run_name(row: str, seed: int) -> str:
    """Return what the run of a row's seed is called."""
    return row if seed == 0 else f"{row}-s{seed}"


def template_remedy(root: str) -> str:
    """Return the end of a sentence about a results folder that no setting has: what to do if it is that of a template,
    a setting in comments of settings.yaml; else nothing.
    """
    template = re.search(
        rf"^# (\w+):\n#   results: {re.escape(root)}$", FILES["settings"].read_text(encoding="utf-8"), re.MULTILINE
    )
    if template is None:
        return ""
    return f"; take the '# ' from the lines of {template[1]} in workflow/config/settings.yaml (docs/your-data.md)."
