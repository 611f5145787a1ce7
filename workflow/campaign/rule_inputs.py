"""What Snakemake asks about the campaign: inputs of each rule, and what each target needs.

Functions that take wildcards are input functions: Snakemake calls them only for jobs that a target
needs, so only those specs are written.
"""

import contextlib
import json
import re
import shlex
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.io import ancient

from workflow.campaign import benchmarks, captions, points, specs, targets
from workflow.campaign.config import CLAIMS, FILES, Config, run_name
from workflow.storage import files, records

# A launcher's command, the same for every kind of job; the rule says the rest by its name.
PYTHON = shlex.quote(sys.executable).replace("{", "{{").replace("}", "}}")
SUBMIT = (
    f"{PYTHON} -m workflow.launch.submit --spec {{input.spec:q}} --output {{output:q}} "
    "--log {log:q} --root {wildcards.root} --data {params.data:q} --resources {params.resources:q}"
)
FETCH = f"{PYTHON} -m workflow.launch.fetch_weights --spec {{input.spec:q}} --output {{output:q}} --log {{log:q}}"
COMPILE = (
    f"{PYTHON} -m workflow.paper.tables --root {{wildcards.root}} "
    "--output {output.first:q} > {log:q} 2>&1 || (cat {log:q} >&2; exit 1)"
)
WEIGH = COMPILE.replace("workflow.paper.tables", "workflow.paper.claims")
DRAW = COMPILE.replace("workflow.paper.tables", "workflow.paper.figures")
# what the paper prints, and the code of items: seconds remake one, so it follows its code, which a
# training does not
PRINTED = sorted(map(str, Path("results/paper").glob("*.csv")))
PAPER_CODE = sorted(map(str, Path("workflow/paper").glob("*.py")))
NOT_OURS = ("tmpdir", "disk", "disk_mb", "disk_mib", "mem", "mem_mib")  # Snakemake's own


def for_order(paths: list[str], record: str, spec: dict) -> list[str]:
    """Inputs that must be there first, but re-make only a record that is outdated anyway.

    `ancient` says so to Snakemake. But below a job that is to run, Snakemake 9 no longer looks
    whether an ancient input's job has another reason, such as its own new spec: there the plain
    names make it run.
    """
    try:
        records.read(record, specs.spec_hash(spec))
    except records.RecordError:
        return paths
    return [ancient(path) for path in paths]


def write_spec(path: str | Path, spec: dict) -> str:
    """Write a job's spec unless it is there already; -> its path."""
    try:
        return specs.write_spec(path, spec)
    except files.NotWritable as error:
        sys.exit(str(error))  # an exception would come with Snakemake's traceback


def own_resources(resources) -> dict:
    """A job's resources without those that Snakemake adds for itself."""
    return {k: v for k, v in resources.items() if not k.startswith("_") and k not in NOT_OURS}


class Plan:
    """The campaign as files: from wildcards to specs, records and their order."""

    def __init__(self, config: Config):
        self.config = config

    # -- patterns ---------------------------------------------------------------------------

    @property
    def roots(self) -> str:
        return "|".join(setting["results"] for setting in self.config.settings.values())

    @property
    def roots_given(self) -> str:
        """The roots in front of runs whose weights are given (`checkpoints`) instead of trained."""
        given = [
            (setting["results"], "|".join(map(re.escape, setting["checkpoints"])))
            for setting in self.config.settings.values()
            if setting.get("checkpoints")
        ]
        return "|".join(f"{root}(?=/runs/({names})/)" for root, names in given) or "(?!)"

    @property
    def run_names(self) -> str:
        names = [run_name(row, s) for row in self.config.runs for s in self.config.seeds(row)]
        return "|".join(map(re.escape, sorted(names, key=len, reverse=True)))  # keep0.7 has a dot

    @property
    def evaluation_names(self) -> str:
        settings = self.config.settings.values()
        names = {name for setting in settings for name in setting.get("evaluations", {})}
        return "|".join(sorted(names, key=len, reverse=True)) or "(?!)"  # or nothing at all

    @property
    def analysis_names(self) -> str:
        return "|".join(self.config.items["analyses"])

    throughput_points = points.wildcard(points.THROUGHPUT)
    training_cost_points = points.wildcard(points.TRAINING_COST)

    @property
    def table_names(self) -> str:
        return "|".join(self.config.items["tables"])

    @property
    def figure_names(self) -> str:
        return "|".join(self.config.items["figures"])

    @property
    def section_names(self) -> str:
        return "|".join(self.config.items["sections"])

    # -- what a job needs -------------------------------------------------------------------

    def train_inputs(self, wildcards) -> dict:
        root, run = wildcards.root, wildcards.run
        spec = specs.train_spec(self.config, self.config.setting_of(root), run)
        return self._run_inputs(root, spec, f"runs/{run}/spec.json", f"runs/{run}/train.json")

    def search_inputs(self, wildcards) -> dict:
        root, run = wildcards.root, wildcards.run
        spec = specs.search_spec(self.config, self.config.setting_of(root), run)
        if spec["recipe"] is None:
            raise WorkflowError(
                f"{root}/runs/{run}/search.json: the recipe of {run} has no `search` (workflow/config/recipes.yaml)."
            )
        path = f"runs/{run}/search"
        return self._run_inputs(root, spec, f"{path}/spec.json", f"{path}.json")

    def _run_inputs(self, root: str, spec: dict, path: str, record: str) -> dict:
        """Spec; the data's manifest, the preflight and the jobs it starts from, only for order."""
        first = [f"{root}/{name}" for name in specs.first_records(spec)]
        return {
            "spec": write_spec(f"{root}/{path}", spec),
            "first": for_order(first, f"{root}/{record}", spec),
        }

    def evaluation_inputs(self, wildcards) -> dict:
        root, name = wildcards.root, wildcards.evaluation
        setting = self.config.setting_of(root)
        if name not in self.config.settings[setting].get("evaluations", {}):
            raise WorkflowError(
                f"{root}/evaluations/{name}.json: {setting}.evaluations in "
                f"workflow/config/settings.yaml has no {name!r}; another setting has."
            )
        spec = specs.evaluation_spec(self.config, setting, name)
        path = f"evaluations/{name}"
        return self._run_inputs(root, spec, f"{path}/spec.json", f"{path}.json")

    def analysis_inputs(self, wildcards) -> dict:
        root, name = wildcards.root, wildcards.analysis
        spec = specs.analysis_spec(self.config, self.config.setting_of(root), name)
        path = f"analyses/{name}"
        return self._run_inputs(root, spec, f"{path}/spec.json", f"{path}.json")

    def fetch_spec(self, wildcards) -> str:
        """The spec of a download that the setting's checkpoints or evaluations name."""
        root, tag = wildcards.root, wildcards.tag
        try:
            spec = targets.fetch_spec(self.config, self.config.setting_of(root), tag)
        except KeyError:
            raise WorkflowError(
                f"{root}/weights/{tag}.json: no checkpoint in workflow/config/settings.yaml says `timm: {tag}`."
            ) from None
        return write_spec(f"{root}/weights/{tag}/spec.json", spec)

    def throughput_inputs(self, wildcards) -> dict:
        root = wildcards.root
        setting = self.config.setting_of(root)
        shown = benchmarks.throughput_point(self.config, setting, wildcards.section)
        try:
            point = points.parse(wildcards.point, shown)
        except points.PointError as error:
            raise WorkflowError(f"{root}/throughput/.../{wildcards.point}.json: {error}") from None
        record = benchmarks.throughput_path(root, wildcards.section, point)
        spec = benchmarks.throughput_spec(self.config, setting, wildcards.section, point)
        first = [f"{root}/{name}" for name in specs.first_records(spec)]
        return {
            "spec": write_spec(Path(record).with_suffix("") / "spec.json", spec),
            "first": for_order(first, record, spec),
        }

    def training_cost_inputs(self, wildcards) -> dict:
        root, setting = wildcards.root, self.config.setting_of(wildcards.root)
        wanted = points.TRAINING_COST.fullmatch(wildcards.point).groupdict()
        point = benchmarks.training_cost_point(self.config, setting) | wanted
        record = benchmarks.training_cost_path(root, wildcards.section, point)
        spec = benchmarks.training_cost_spec(self.config, setting, wildcards.section, point)
        return {
            "spec": write_spec(Path(record).with_suffix("") / "spec.json", spec),
            "first": for_order([f"{root}/preflight.json"], record, spec),
        }

    def data_spec(self, wildcards) -> str:
        spec = specs.data_spec(self.config, self.config.setting_of(wildcards.root))
        return write_spec(f"{wildcards.root}/data/spec.json", spec)

    def preflight_spec(self, wildcards) -> str:
        """The spec of the check that every model of the setting builds."""
        spec = specs.preflight_spec(self.config, self.config.setting_of(wildcards.root))
        return write_spec(f"{wildcards.root}/preflight/spec.json", spec)

    # -- what a table needs -----------------------------------------------------------------

    def table_inputs(self, wildcards) -> list[str]:
        """What the setting asks for, and the printed numbers."""
        found = targets.item_records(self.config, wildcards.root, wildcards.table)
        return [*found, *PRINTED, *PAPER_CODE]

    def figure_inputs(self, wildcards) -> list[str]:
        found = targets.item_records(self.config, wildcards.root, wildcards.figure)
        return [*found, *PRINTED, *PAPER_CODE]

    def whole_inputs(self, wildcards) -> list[str]:
        """All tables and figures of the setting, and what they make of the claims."""
        return [f"{wildcards.root}/{name}" for name in targets.whole(self.config)]

    def claims_inputs(self, wildcards) -> list[str]:
        """What all tables and the figures that claims compare rows of need; what the claims are."""
        found = targets.item_records(self.config, wildcards.root, CLAIMS)
        return [*found, *PRINTED, *PAPER_CODE]

    def partial_inputs(self, wildcards) -> list[str]:
        return [*self._published(wildcards.root), *PRINTED, *PAPER_CODE]

    def _published(self, root: str) -> list[str]:
        """Notes of what was published, and the YAML that says which of it is current."""
        # not the records themselves: asking for those would start what is missing or outdated
        published = Path(root).glob("*/**/attempts/*/published")
        return [*sorted(map(str, published)), *map(str, FILES.values())]

    # -- a rule's parameters ----------------------------------------------------------------

    def caption(self, wildcards, output) -> str:
        """What the report says below an item."""
        return captions.caption(self.config, wildcards.root, output[0])

    def data_option(self, wildcards) -> str:
        """Where the setting's images lie; no part of any spec."""
        data = self.config.settings[self.config.setting_of(wildcards.root)]["data"]
        return json.dumps({key: data[key] for key in ("root", "workers")})

    def resources(self, wildcards, resources) -> str:
        """The job's resources for the launcher, as JSON."""
        return json.dumps(own_resources(resources))

    # -- before anything starts -------------------------------------------------------------

    def settings_asked_for(self, wanted) -> list[str]:
        """The settings whose results the targets name."""
        found = set()
        for target in wanted:
            with contextlib.suppress(targets.TargetError):
                found.add(targets.split_root(self.config, str(target))[0])
        return sorted(found)
