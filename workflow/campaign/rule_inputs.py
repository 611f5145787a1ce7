"""What Snakemake asks about the campaign: the inputs, outputs and parameters of its rules.

Functions that take wildcards are input functions: Snakemake calls them for the jobs that a target needs and for no
others, so only those specs are written, and only by a start that runs jobs.
"""

import json
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

from snakemake.io import ancient

from workflow.campaign import kinds, targets
from workflow.campaign.config import CLAIMS, FILES, Config
from workflow.campaign.kinds import Kind
from workflow.campaign.specs import write_spec
from workflow.storage import files, records

# A launcher's command, the same for every kind of job; the rule says the rest by its name.
PYTHON = shlex.quote(sys.executable).replace("{", "{{").replace("}", "}}")
SUBMIT = (
    f"{PYTHON} -m workflow.launch.submit --spec {{params.spec:q}} --output {{output:q}} "
    "--log {log:q} --root {wildcards.root} --data {params.data:q} --resources {params.resources:q}"
)
FETCH = f"{PYTHON} -m workflow.launch.fetch_weights --spec {{params.spec:q}} --output {{output:q}} --log {{log:q}}"
# what the paper prints, and the code of items: seconds remake one, so it follows its code, which a training does not
PRINTED = sorted(map(str, Path("results/paper").glob("*.csv")))
PAPER_CODE = sorted(map(str, Path("workflow/paper").glob("*.py")))
NOT_OURS = ("tmpdir", "disk", "disk_mb", "disk_mib", "mem", "mem_mib")  # Snakemake's own

# where workflow/launch/display.py draws, it shows the log
SHOW_LOG = 'test -n "${{EVOVIT_DISPLAY:-}}" || cat {log:q} >&2'
MAKE_ITEM = f"{PYTHON} -m workflow.paper make {{output.first:q}} > {{log:q}} 2>&1 || ({SHOW_LOG}; exit 1)"


def own_resources(resources) -> dict:
    """Return a job's resources without those that Snakemake adds for itself."""
    return {key: value for key, value in resources.items() if not key.startswith("_") and key not in NOT_OURS}


class Plan:
    """The campaign as files: from wildcards to specs, records and their order.

    Attributes:
        runs_jobs: whether this start of snakemake runs jobs; a dry run, a report and the like write nothing.
        changed: records whose spec is another than in the spec.json of their job. A start writes that file, and
            Snakemake finds it newer than the record; a dry run does not, so Snakemake must be told to make these.
    """

    def __init__(self, config: Config, runs_jobs: bool = True):
        self.config = config
        self.runs_jobs = runs_jobs
        self.changed: set[str] = set()

    def wildcards(self) -> dict[str, str]:
        """Return the pattern of each wildcard; startup.py has checked the names of jobs in the targets."""
        names = {name: "[^/]+" for kind in kinds.KINDS.values() for name in kind.pattern.groupindex}
        return names | {
            "root": one_of(setting["results"] for setting in self.config.settings.values()),
            "table": one_of(self.config.tables),
            "figure": one_of(self.config.items["figures"]),
        }

    def roots_given(self) -> str:
        """Return the roots in front of runs whose weights are given (`checkpoints`) instead of trained."""
        roots = [
            rf"{setting['results']}(?=/runs/({one_of(setting['checkpoints'])})/)"
            for setting in self.config.settings.values()
            if setting.get("checkpoints")
        ]
        return "|".join(roots) or NOTHING

    # -- a job's rule

    def inputs(self, kind: Kind) -> Callable:
        """Return the kind's input function: the spec, and the records that must be there first."""

        def inputs(wildcards) -> dict[str, list[str]]:
            record = self.record(kind, wildcards)
            first = [f"{wildcards.root}/{path}" for path in kinds.first_records(record.spec)]
            return {"spec": self._spec_input(record), "first": for_order(first, record)}

        return inputs

    def record(self, kind: Kind, wildcards) -> kinds.Record:
        """Return the record of the kind's job that Snakemake's wildcards choose."""
        names = {name: getattr(wildcards, name) for name in kind.pattern.groupindex}
        return kinds.record(self.config, kind.name, self.config.setting_of(wildcards.root), **names)

    def _spec_input(self, record: kinds.Record) -> list[str]:
        """Return the spec's file, which a start that runs jobs writes; in a dry run and the like, if it exists."""
        path = spec_path(record.path)
        if self.runs_jobs:
            try:
                return [write_spec(path, record.spec)]
            except files.NotWritable as error:
                sys.exit(str(error))  # an exception would come with Snakemake's traceback
        if Path(record.path).exists() and files.read_json(Path(path)) != record.spec:
            self.changed.add(record.path)
        return [path] if Path(path).exists() else []

    def spec(self, kind: Kind) -> Callable:
        """Return the parameter that names the job's spec."""
        return lambda wildcards: spec_path(self.record(kind, wildcards).path)

    def data_option(self, wildcards) -> str:
        """Return where the setting's images are, as JSON; no part of any spec."""
        data = self.config.settings[self.config.setting_of(wildcards.root)]["data"]
        return json.dumps({key: data[key] for key in ("root", "workers")})

    def resources(self, wildcards, resources) -> str:
        """Return the job's resources for the launcher, as JSON."""
        return json.dumps(own_resources(resources))

    # -- an item's rule

    def item_inputs(self, wildcards) -> list[str]:
        """Return the records that a table, a figure or, without a name of these, the claims are made of."""
        item = getattr(wildcards, "table", getattr(wildcards, "figure", CLAIMS))
        return [*targets.item_records(self.config, wildcards.root, item), *PRINTED, *PAPER_CODE]

    def partial_inputs(self, wildcards) -> list[str]:
        """Return notes of what was published, and the YAML that says which of it is current.

        Not the records themselves: asking for those would start what is missing or outdated.
        """
        published = sorted(map(str, Path(wildcards.root).glob("*/**/attempts/*/published")))
        return [*published, *map(str, FILES.values()), *PRINTED, *PAPER_CODE]

    def whole_inputs(self, wildcards) -> list[str]:
        """Return all tables and figures of the setting, and the ledger of claims."""
        setting = self.config.setting_of(wildcards.root)
        return [f"{wildcards.root}/{name}" for name in targets.whole(self.config, setting)]

    def category(self, wildcards) -> str:
        """Return under which heading the report lists a table or a figure."""
        return targets.category(self.config, getattr(wildcards, "table", None) or wildcards.figure)

    def labels(self, wildcards) -> dict[str, str]:
        """Return what the report's list calls a table or a figure."""
        item = getattr(wildcards, "table", None) or wildcards.figure
        return {"shows": self.config.items["titles"].get(item, item)}

    def partial_labels(self, wildcards) -> dict[str, str]:
        """Return what the report's list calls a table that was made of whatever records there were."""
        return {"shows": f"{self.labels(wildcards)['shows']}, from the records that were there"}

    def caption(self, wildcards, output) -> str:
        """Return what the report says below an item."""
        return targets.caption(self.config, wildcards.root, output[0])


NOTHING = "(?!)"  # matches no name


def one_of(names) -> str:
    """Return the pattern of the names, the longest first, as `deit_tiny` begins `deit_tiny-keep0.7`."""
    return "|".join(map(re.escape, sorted(names, key=len, reverse=True))) or NOTHING


def output(kind: Kind) -> str:
    """Return the pattern of the kind's records for Snakemake."""
    return f"{{root}}/{kind.target}"


def log(kind: Kind) -> str:
    """Return the pattern of the logs of the kind's launchers."""
    return f"{kinds.job_folder(output(kind))}/{kind.name}.log"


def spec_path(record_path: str) -> str:
    """Return where a start of snakemake writes the spec of a record's job."""
    return str(kinds.job_folder(record_path) / "spec.json")


def for_order(paths: list[str], record: kinds.Record) -> list[str]:
    """Return inputs that must be there first, but re-make only a record that is outdated anyway.

    `ancient` says so to Snakemake. But below a job that is to run, Snakemake 9 no longer checks whether an ancient
    input's job has another reason, such as its own new spec: there the plain names make it run.
    """
    try:
        records.read(record.path, record.hash)
    except records.RecordError:
        return paths
    return [ancient(path) for path in paths]
