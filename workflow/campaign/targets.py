"""Targets: which files the workflow makes, and the records that each is made of, directly or through others.

Snakemake plans with rules; status and forecast, which write nothing, use this module.
"""

import re
from pathlib import Path

from workflow.campaign import benchmarks, kinds
from workflow.campaign.config import CLAIMS, HOST, Config, nearest, run_name, template_remedy

DEFAULT = "results/table1.csv"  # where no target is named
WHOLE = "whole"


class TargetError(ValueError):
    """No rule of the workflow makes the target; the message names those that are like it."""

    @classmethod
    def of(cls, config: Config, target: str, reason: str = "") -> "TargetError":
        """Return an error that says why, if known, and what may be meant."""
        return cls(f"{target} is no target{reason}{nearest(target, every(config), most=3)}")


def split_root(config: Config, target: str) -> tuple[str, str, str]:
    """Return a target's setting, results folder and the rest of its path. Raises TargetError."""
    by_length = sorted(config.settings.items(), key=lambda item: -len(item[1]["results"]))
    for name, setting in by_length:
        if target.startswith(setting["results"] + "/"):
            return name, setting["results"], target.removeprefix(setting["results"] + "/")
    raise TargetError.of(config, target, ": it is in no setting's results")


def spec_of(config: Config, target: str) -> dict | None:
    """Return the spec of the record at this path; None for a table, a figure and the like. Raises TargetError."""
    setting, root, name = split_root(config, target)
    if name in item_files(config, setting):
        return None
    _check_folder(config, target, root, name)
    images = config.items["only_of"].get(name.partition(".")[0])
    if images is not None:
        raise TargetError.of(config, target, f" (it is only of {images}, not of the images of {setting})")
    item = name.partition(".")[0]
    if HOST in config.settings[setting] and item in (*config.tables, *config.items["figures"], CLAIMS):
        raise TargetError.of(config, target, f" ({setting} has a host of its own, and no {item})")
    for kind in kinds.KINDS.values():
        match = kind.pattern.fullmatch(name)
        if match:
            try:
                return kinds.record(config, kind.name, setting, **match.groupdict()).spec
            except benchmarks.BenchmarkError as error:
                raise TargetError.of(config, target, f" ({str(error).rstrip('.')})") from None
            except KeyError:
                break
    raise TargetError.of(config, target)


def _check_folder(config: Config, target: str, root: str, name: str) -> None:
    """Raise TargetError for a target in a folder that seems to be a setting's, but no setting has.

    ImageNet's results are in results/, and those of the others in folders of it.
    """
    folder, slash, _ = name.partition("/")
    own = {kind.target.partition("/")[0] for kind in kinds.KINDS.values()}
    has_others = any(setting["results"].startswith(f"{root}/") for setting in config.settings.values())
    if not slash or folder in own or not has_others:
        return
    unknown = f"{target} is no target: no setting has {root}/{folder}"
    remedy = template_remedy(f"{root}/{folder}")
    # not the items of this setting, which differ by that folder only
    known = [other for other in every(config) if "/" in other.removeprefix(f"{root}/")]
    raise TargetError(f"{unknown}{remedy or nearest(target, known, most=3)}")


def needed(config: Config, target: str) -> dict[str, dict]:
    """Return the spec of every record that the target needs, itself included, by path and in the order of their jobs.

    Raises TargetError for a target that nothing makes.
    """
    setting, root, name = split_root(config, target)
    spec = spec_of(config, target)
    if name == WHOLE:
        first = [f"{root}/{item}" for item in whole(config, setting)]
    elif spec is None:
        first = item_records(config, root, name.partition(".")[0])
    else:
        first = [f"{root}/{record}" for record in kinds.first_records(spec)]
    specs_by_path: dict[str, dict] = {}
    for path in first:
        for record, its_spec in needed(config, path).items():
            specs_by_path.setdefault(record, its_spec)
    if spec is not None:
        specs_by_path[target] = spec
    return specs_by_path


def item_records(config: Config, root: str, item: str) -> list[str]:
    """Return the paths of the records that a table or a figure of the setting is made of.

    The claims are made of those of the paper's tables, of the figures whose rows they compare, and of what the setting
    measures only for them.
    """
    setting = config.setting_of(root)
    measured, rows = config.request(setting, item), config.rows(item, setting)
    others = config.items["figures"].get(item, {}).get("tables", [])
    analyses = config.analyses(item)
    if item == CLAIMS:
        others = [*config.paper_tables, *config.items["claims"]["figures"]]
        analyses = config.items["claims"]["analyses"]
    trained = [row["run"] for row in rows if row["section"] in measured["train"]]
    if item in config.items["tables"]:  # which say how far each row is above its dense one
        trained += [config.items["sections"][group][0] for group in measured["train"]]
    stepped = dict.fromkeys(row["section"] for row in rows if "batch_size" in row)

    paths = [path for other in others for path in item_records(config, root, other)]
    for row in trained:
        for seed in config.requested_seeds(setting, row, measured["seeds"]):
            paths.append(f"{root}/runs/{run_name(row, seed)}/train.json")
    paths += [kinds.throughput_record(config, setting, group).path for group in measured["time"]]
    for group in stepped:
        if group in measured["time"]:
            paths.append(kinds.training_cost_record(config, setting, group).path)
    paths += [kinds.record(config, "analysis", setting, analysis=name).path for name in analyses]
    if item in config.items["compiled"]:
        paths += [record.path for record in kinds.records_of(config, config.items["compiled"][item], setting)]
    return list(dict.fromkeys(paths))


def whole(config: Config, setting: str) -> list[str]:
    """Return the files of all items and of the claims that a setting has, below its results."""
    tables = [f"{name}.csv" for name in config.tables_of(setting)]
    figures = [f"{name}.png" for name in config.figures_of(setting)]
    claims = [f"{CLAIMS}.csv"] if config.has_claims(setting) else []
    return [*tables, *figures, *claims]


def every(config: Config) -> list[str]:
    """Return all targets; of measurements those that the settings' tables show."""
    targets = []
    for name, setting in config.settings.items():
        targets += [f"{setting['results']}/{item}" for item in item_files(config, name)]
        for kind in kinds.KINDS.values():
            targets += [f"{setting['results']}/{kind.target.format(**names)}" for names in kind.jobs(config, name)]
    return targets


def item_files(config: Config, setting: str) -> list[str]:
    """Return the files of a setting's tables and figures, of the claims and the whole, below its results."""
    tables, figures = config.tables_of(setting), config.figures_of(setting)
    if config.has_claims(setting):
        tables = [*tables, CLAIMS]
    ends = ("csv", "md", "html", "partial.csv", "partial.md", "partial.html")
    files = [f"{table}.{end}" for table in tables for end in ends]
    return [WHOLE, *files, *(f"{figure}.{end}" for figure in figures for end in ("png", "svg", "csv"))]


def profile(config: Config, setting: str) -> str:
    """Return the profile that is meant for the setting's jobs: ImageNet is trained on a cluster."""
    return "slurm" if config.settings[setting]["data"]["name"] == "imagenet" else "demo"


def category(config: Config, item: str) -> str:
    """Return under which heading the report lists a table or a figure."""
    kind = "Tables" if item in config.tables else "Figures"
    return kind if re.match(r"(table|figure)S?\d", item) else f"{kind} beyond the paper"


def caption(config: Config, root: str, output: str) -> str:
    """Return what the report says below the item in this file: what it shows, its command, and the runs behind it."""
    item, setting = Path(output).name.partition(".")[0], config.setting_of(root)
    captions = config.items["captions"]
    shown = captions.get(item, f"{item}.")
    if HOST in config.settings[setting]:
        shown = captions.get(f"{item}_{HOST}", shown)
    text = f"{shown} Made in the setting {setting} by ``snakemake --profile {profile(config, setting)} {output}``"
    if ".partial." in output:
        return f"{text}, from the records that were there."
    trained, timed, steps, compiled = [], [], [], []
    for path in item_records(config, root, item):
        name = Path(path).parent.name
        if "/runs/" in path:
            trained.append(name)
        elif "/throughput/" in path:
            timed.append(name)
        elif "/training/" in path:
            steps.append(name)
        elif "/analyses/" not in path:
            compiled.append(path)
    analysed = [config.items["analyses"][name]["run"] for name in config.analyses(item)]
    if compiled:
        return f"{text}. It is made of {', '.join(compiled)}."
    text += f". Trained for it: {', '.join([*trained, *analysed]) or 'nothing'}."
    text += f" Timed for it: {', '.join(timed) or 'nothing'}."
    if steps:
        text += f" Training steps measured for it: {', '.join(steps)}."
    if analysed:
        text += f" Analysed for it: {', '.join(analysed)}, trained on {config.settings[setting]['data']['name']}."
    return text
