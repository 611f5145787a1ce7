"""What a target stands on: the records it needs, directly or through others, with their specs.

Snakemake plans with rules; this is for those who only look (status, forecast) and write nothing.
"""

import difflib
import re
from collections.abc import Iterator
from pathlib import Path

from workflow.campaign import benchmarks, points, specs
from workflow.campaign.config import CLAIMS, Config, run_name

DEFAULT = "results/table1.csv"  # where no target is named
PATTERNS = {
    "data": re.compile(r"data\.json"),
    "preflight": re.compile(r"preflight\.json"),
    "train": re.compile(r"runs/(?P<run>[^/]+)/train\.json"),
    "search": re.compile(r"runs/(?P<run>[^/]+)/search\.json"),
    "evaluate": re.compile(r"evaluations/(?P<name>[^/]+)\.json"),
    "analysis": re.compile(r"analyses/(?P<name>[^/]+)\.json"),
    "fetch": re.compile(r"weights/(?P<tag>[^/]+)\.json"),
    "throughput": re.compile(r"throughput/(?P<section>\w+)/(?P<point>[^/]+)\.json"),
    "training_cost": re.compile(rf"training/(?P<section>\w+)/{points.TRAINING_COST.pattern}\.json"),
    "table": re.compile(r"(?P<item>table\w+)(\.partial)?\.(csv|md|html)"),
    "claims": re.compile(r"claims(\.partial)?\.(csv|md|html)"),
    "whole": re.compile(r"whole"),
    "figure": re.compile(r"(?P<item>\w+)\.(png|svg|csv)"),
}


def profile(config: Config, setting: str) -> str:
    """Where the setting's jobs are meant to run: trainings on ImageNet on a cluster."""
    return "slurm" if config.settings[setting]["data"]["name"] == "imagenet" else "demo"


class TargetError(ValueError):
    """No rule of the workflow makes the target; the message names those that are like it."""

    @classmethod
    def of(cls, config: Config, target: str, reason: str = "") -> "TargetError":
        """An error that says why, if known, and what may be meant."""
        near = difflib.get_close_matches(target, every(config), n=3, cutoff=0.4)
        nearest = f"the nearest are {', '.join(near)}" if near else "README.md lists all"
        return cls(f"{target} is no target{reason}; {nearest}.")


def split_root(config: Config, target: str) -> tuple[str, str, str]:
    """A target's setting, results folder and the rest of its path."""
    by_length = sorted(config.settings.items(), key=lambda item: -len(item[1]["results"]))
    for name, setting in by_length:
        if target.startswith(setting["results"] + "/"):
            return name, setting["results"], target.removeprefix(setting["results"] + "/")
    raise TargetError.of(config, target, ": it lies in no setting's results")


def item_records(config: Config, root: str, item: str) -> list[str]:
    """The records that a table or a figure of the setting is made of; of the claims, those of all
    tables, of the figures whose rows they compare, and what the setting measures for them alone."""
    shown = config.items["figures"].get(item, {}).get("tables", [])
    if item == CLAIMS:
        shown = [*config.items["tables"], *config.items["claims"]["figures"]]
    others = [path for table in shown for path in item_records(config, root, table)]
    setting = config.setting_of(root)
    wanted, rows = config.wanted(setting, item), config.rows(item)
    names = [row["run"] for row in rows if row["section"] in wanted["train"]]
    if item in config.items["tables"]:  # which say how far each row is above its dense one
        names += [config.items["sections"][section][0] for section in wanted["train"]]
    trained = [
        f"{root}/runs/{run_name(name, seed)}/train.json"
        for name in names
        for seed in config.seeds(name)[: wanted["seeds"]]
    ]
    timed = [
        benchmarks.throughput_path(root, section, benchmarks.throughput_point(config, setting, section))
        for section in wanted["time"]
    ]
    point = benchmarks.training_cost_point(config, setting)
    cost = [
        benchmarks.training_cost_path(root, row["section"], point)
        for row in rows
        if "batch_size" in row and row["section"] in wanted["time"]
    ]
    names = config.items["claims"]["analyses"] if item == CLAIMS else config.analyses(item)
    looks = [specs.analysis_path(root, name) for name in names]
    return list(dict.fromkeys(others + trained + timed + cost + looks))


def whole(config: Config) -> list[str]:
    """The files of all items and of the claims, below a setting's results."""
    tables = [f"{name}.csv" for name in config.items["tables"]]
    figures = [f"{name}.png" for name in config.items["figures"]]
    return [*tables, *figures, f"{CLAIMS}.csv"]


def every(config: Config) -> list[str]:
    """All targets; of measurements those that the settings' tables show."""
    return [f"{setting['results']}/{path}" for name, setting in config.settings.items()
            for path in _below(config, name)]  # fmt: skip


def _below(config: Config, setting: str) -> Iterator[str]:
    """A setting's targets below its results."""
    scale = config.settings[setting]
    yield from ("data.json", "preflight.json", "whole")
    for item in (*config.items["tables"], CLAIMS):
        yield from (f"{item}.{end}" for end in ("csv", "md", "html"))
        yield from (f"{item}.partial.{end}" for end in ("csv", "md", "html"))
    for item in config.items["figures"]:
        yield from (f"{item}.{end}" for end in ("png", "svg", "csv"))
    for row in config.runs:
        for seed in config.seeds(row):
            yield f"runs/{run_name(row, seed)}/train.json"
            if "search" in specs.recipe_of(config, setting, row):
                yield f"runs/{run_name(row, seed)}/search.json"
    yield from (f"evaluations/{name}.json" for name in scale.get("evaluations", {}))
    yield from (f"analyses/{name}.json" for name in config.items["analyses"])
    yield from (f"weights/{one['timm']}.json" for one in checkpoints(scale) if "timm" in one)
    cost = benchmarks.training_cost_point(config, setting)
    for section in config.items["sections"]:
        shown = benchmarks.throughput_point(config, setting, section)
        yield benchmarks.throughput_path("", section, shown).removeprefix("/")
        yield benchmarks.training_cost_path("", section, cost).removeprefix("/")


def checkpoints(scale: dict) -> list[dict]:
    """The weights that a setting's `checkpoints` and `evaluations` name."""
    evaluated = [one["checkpoint"] for one in scale.get("evaluations", {}).values()]
    return [*scale.get("checkpoints", {}).values(), *evaluated]


def spec_of(config: Config, target: str) -> dict | None:
    """The spec of the record at this path; None for a table. Raises TargetError."""
    setting, _, name = split_root(config, target)
    for kind, pattern in PATTERNS.items():
        if found := pattern.fullmatch(name):
            try:
                return _spec(config, setting, kind, found.groupdict())
            except points.PointError as error:
                raise TargetError.of(config, target, f" ({str(error).rstrip('.')})") from None
            except (KeyError, StopIteration):
                break
    raise TargetError.of(config, target)


def _spec(config: Config, setting: str, kind: str, named: dict) -> dict | None:
    if kind in ("whole", CLAIMS):
        return None
    if kind in ("table", "figure"):
        config.items[f"{kind}s"][named["item"]]  # KeyError: there is none
        return None
    if kind == "data":
        return specs.data_spec(config, setting)
    if kind == "preflight":
        return specs.preflight_spec(config, setting)
    if kind == "train":
        return specs.train_spec(config, setting, named["run"])
    if kind == "search":
        spec = specs.search_spec(config, setting, named["run"])
        if spec["recipe"] is None:
            raise KeyError(named["run"])
        return spec
    if kind == "evaluate":
        return specs.evaluation_spec(config, setting, named["name"])
    if kind == "analysis":
        return specs.analysis_spec(config, setting, named["name"])
    if kind == "fetch":
        return fetch_spec(config, setting, named["tag"])
    if kind == "throughput":
        section = named["section"]
        point = points.parse(named["point"], benchmarks.throughput_point(config, setting, section))
        return benchmarks.throughput_spec(config, setting, section, point)
    section = named.pop("section")
    point = benchmarks.training_cost_point(config, setting) | named
    return benchmarks.training_cost_spec(config, setting, section, point)


def fetch_spec(config: Config, setting: str, tag: str) -> dict:
    """The spec of a download that the setting's checkpoints or evaluations name.

    Raises KeyError if none does.
    """
    given = checkpoints(config.settings[setting])
    return specs.fetch_spec({one.get("timm"): one for one in given}[tag])


def needed(config: Config, target: str) -> dict[str, dict]:
    """Every record that the target needs, itself included, by path: what is needed first, first.

    Raises TargetError for a target that nothing makes.
    """
    _, root, name = split_root(config, target)
    spec = spec_of(config, target)
    if name == "whole":
        first = [f"{root}/{item}" for item in whole(config)]
    elif spec is None:
        first = item_records(config, root, name.partition(".")[0])
    else:
        first = [f"{root}/{name}" for name in specs.first_records(spec)]
    found: dict[str, dict] = {}
    for path in first:
        found |= {name: one for name, one in needed(config, path).items() if name not in found}
    if spec is not None:
        found[target] = spec
    return found


def job_folder(record: str) -> Path:
    """Where a record's attempts lie: `runs/x/` for `runs/x/train.json`, else the path's stem."""
    path = Path(record)
    return path.parent if path.name == "train.json" else path.with_suffix("")
