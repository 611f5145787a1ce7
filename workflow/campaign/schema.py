"""The YAML, checked before anything is planned: a mistake names file, key and nearest name."""

import functools
import importlib.util
import re
from collections.abc import Collection, Iterator
from pathlib import Path

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError, best_match

from workflow.campaign import benchmarks, kinds, specs
from workflow.campaign.config import CLAIMS, CONFIG, FILES, HOST, Config, ConfigError, nearest, read_yaml, run_name

SCHEMA = CONFIG / "schema.yaml"
# how timm, evovit and baselines register the names of models (timm's former ones, too), tasks and optimizers
REGISTERED = {
    "models": re.compile(r"""@register_model\s+def (\w+)|'(\w+)' ?: '[\w.]+'"""),
    "tasks": re.compile(r"""@register_task\("(\w+)"\)"""),
    "optim": re.compile(r"""(?:OptimInfo|register_alias)\(\s*(?:name=)?'(\w+)'"""),
}
NEW_NAMES = {  # of keywords, by the old one
    "tradeoff": "alpha",
    "learn_tradeoff_from": "learn_alpha_from",
    "prune_blocks": "reduction_blocks",
}


def load(files: dict[str, Path] = FILES) -> Config:
    """Return the configuration, read and checked. Raises ConfigError with one sentence."""
    config = Config.load(files)
    for file, sentence in faults(config):
        raise ConfigError(f"{files[file]}: {sentence}")
    return config


def faults(config: Config) -> Iterator[tuple[str, str]]:
    """Yield each fault as a file and a sentence. Later checks rely on earlier ones, so stop at the first."""
    shapes = read_yaml(SCHEMA)
    for name in FILES:
        content = getattr(config, name)
        error = best_match(Draft202012Validator({"$defs": shapes["$defs"], **shapes[name]}).iter_errors(content))
        if error is not None:
            yield name, describe(error)
        for sentence in old_names(content):
            yield name, sentence
    for file, location, name, names in references(config):
        if name not in names:
            yield file, f"{location} names {name!r}{nearest(name, sorted(names))}"
    keys = set(shapes["$defs"]["recipe"]["properties"]) - {"extends", "task_args", "search"}
    yield from faults_of_recipes(config, keys)
    yield from faults_of_runs(config)
    yield from faults_of_items(config)
    yield from faults_of_settings(config)


def old_names(entry, location: str = "") -> Iterator[str]:
    """Yield a sentence for each keyword of a model or a task under the name that it had once."""
    if not isinstance(entry, dict):
        return
    for key, value in entry.items():
        if key in NEW_NAMES:
            yield f"{location}{key} is called {NEW_NAMES[key]} now; rename it."
        yield from old_names(value, f"{location}{key}.")


def describe(error: ValidationError) -> str:
    """Return one sentence for a schema error."""
    location = ".".join(str(part) for part in error.absolute_path) or "the top level"
    if error.validator == "additionalProperties":
        known = sorted(error.schema["properties"])
        unknown = sorted(set(error.instance) - set(known))[0]
        return f"{location} has an unknown key {unknown!r}{nearest(unknown, known)}"
    if error.validator == "required":
        missing = next(key for key in error.validator_value if key not in error.instance)
        return f"{location} lacks the key {missing!r}."
    if error.validator in ("type", "anyOf"):
        allowed = error.schema.get("type", error.schema.get("description"))
        kinds = " or ".join([allowed] if isinstance(allowed, str) else map(str, allowed))
        return f"{location} is {error.instance!r}, but must be of type {kinds}."
    if error.validator == "enum":
        return f"{location} is {error.instance!r}{nearest(str(error.instance), map(str, error.validator_value))}"
    return f"{location}: {error.message}."


def references(config: Config) -> Iterator[tuple[str, str, str, Collection[str]]]:
    """Yield each name that the YAML uses: its file and key, the name itself, and those that exist.

    Later references rely on earlier ones, so stop at the first that names nothing.
    """
    runs, recipes, items, settings = config.runs, config.recipes, config.items, config.settings
    for name, recipe in recipes.items():
        if "extends" in recipe:
            yield "recipes", f"{name}.extends", recipe["extends"], recipes
    yield from references_to_code(config)
    for row, entry in runs.items():
        yield "runs", f"{row}.recipe", entry["recipe"], recipes
        for role in specs.ROLES:
            if role in entry:
                yield "runs", f"{row}.{role}", entry[role], runs
    for group, rows in items["sections"].items():
        for row in rows:
            yield "items", f"sections.{group}", row, runs
    for location, row in rows_by_location(config):
        yield "items", f"{location}.run", row["run"], runs
        yield "items", f"{location}.section", row["section"], items["sections"]
        yield "items", f"{location}.run", row["run"], items["sections"][row["section"]]
    for name, analysis in items["analyses"].items():
        yield "items", f"analyses.{name}.run", analysis["run"], runs
    for table in items["ours"]:
        yield "items", "ours", table, items["tables"]
    for table, kind in items["compiled"].items():
        yield "items", f"compiled.{table}", kind, kinds.KINDS
    for table, images in items["only_of"].items():
        yield "items", "only_of", table, config.tables
        yield "items", f"only_of.{table}", images, {setting["data"]["name"] for setting in settings.values()}
    for name, entry in items["published"].items():
        yield "items", f"published.{name}.run", entry["run"], runs
    for figure in items["figures"]:
        for name in config.analyses(figure):
            yield "items", f"figures.{figure}.analyses", name, items["analyses"]
    for key in ("figures", "analyses"):
        for name in items["claims"][key]:
            yield "items", f"claims.{key}", name, items[key]
    for name, setting in settings.items():
        for item, request in setting["measure"].items():
            yield "settings", f"{name}.measure", item, [*items["tables"], *items["figures"], CLAIMS]
            for group in (*request["train"], *request["time"]):
                yield "settings", f"{name}.measure.{item}", group, config.sections_of(item, name)
        for group in setting["throughput"]["batch_size_of"]:
            yield "settings", f"{name}.throughput.batch_size_of", group, [*items["sections"], benchmarks.OFFTHESHELF]
        rows = [row for row in runs if config.has_row(row, name)]
        for part in ("checkpoints", "models", "hosts"):
            for run in setting.get(part, {}):
                yield "settings", f"{name}.{part}", run, rows
        for key, evaluation in setting.get("evaluations", {}).items():
            yield "settings", f"{name}.evaluations.{key}.run", evaluation["run"], rows
        for row in setting.get("seeds", {}):
            yield "settings", f"{name}.seeds", row, rows
        for recipe in setting.get("recipes", {}):
            yield "settings", f"{name}.recipes", recipe, recipes


def references_to_code(config: Config) -> Iterator[tuple[str, str, str, Collection[str]]]:
    """Yield each name of a task, an optimizer or a model, as `references` does."""
    changes = [("recipes", name, recipe) for name, recipe in config.recipes.items()]
    models = []
    for row, entry in config.runs.items():
        changes.append(("runs", f"{row}.overrides", entry.get("overrides", {})))
        models.append(("runs", f"{row}.model", entry["model"]))
    for name, setting in config.settings.items():
        changes.append(("settings", f"{name}.recipe", setting.get("recipe", {})))
        for recipe, values in setting.get("recipes", {}).items():
            changes.append(("settings", f"{name}.recipes.{recipe}", values))
        for row, entry in setting.get("models", {}).items():
            models.append(("settings", f"{name}.models.{row}.model", entry["model"]))
        if HOST in setting:
            models.append(("settings", f"{name}.{HOST}.model", setting[HOST]["model"]))
    for file, location, values in changes:
        if "task" in values:
            yield file, f"{location}.task", values["task"], registered("tasks")
        if "search" in values:
            yield file, f"{location}.search.task", values["search"]["task"], registered("tasks")
        if "optimizer" in values:
            optimizer = values["optimizer"].lower().rpartition("_")[2]  # of lookahead_adamw
            yield file, f"{location}.optimizer", optimizer, registered("optim")
    for file, location, model in models:
        if model == HOST and not location.endswith(f".{HOST}.model"):
            continue  # the setting's own
        yield file, location, model.partition(".")[0], registered("models")  # without timm's tag


@functools.cache
def registered(kind: str) -> set[str]:
    """Return the names that timm, evovit and baselines register; `kind` is a key of REGISTERED.

    They are read from the source, since whoever starts jobs imports no torch.
    """
    timm = importlib.util.find_spec("timm")
    if timm is None or timm.origin is None:
        raise ConfigError("timm is not installed here; make setup installs it.")
    paths = list((Path(timm.origin).parent / kind).glob("*.py"))  # timm has no folder of tasks
    for package in ("evovit", "baselines"):
        paths += (CONFIG.parent.parent / package).glob("*.py")
    names = {"classification"} if kind == "tasks" else set()  # timm's own task
    for path in paths:
        for match in REGISTERED[kind].finditer(path.read_text(encoding="utf-8")):
            names |= set(filter(None, match.groups()))
    return names


def rows_by_location(config: Config) -> Iterator[tuple[str, dict]]:
    """Yield every row of the tables and figures with the key where items.yaml has it."""
    rows = {f"tables.{table}": rows for table, rows in config.items["tables"].items()}
    rows |= {f"figures.{name}.rows": entry.get("rows", []) for name, entry in config.items["figures"].items()}
    for location, of_item in rows.items():
        for index, row in enumerate(of_item):
            yield f"{location}.{index}", row


def faults_of_recipes(config: Config, keys: set[str]) -> Iterator[tuple[str, str]]:
    """Yield faults unless each recipe's `extends` ends somewhere, and it then has every one of `keys`."""
    for recipe in config.recipes:
        chain = [recipe]
        missing = keys - set(config.recipes[recipe])
        while "extends" in config.recipes[chain[-1]]:
            parent = config.recipes[chain[-1]]["extends"]
            if parent in chain:
                yield "recipes", f"{' extends '.join([*chain, parent])}: a circle."
                return
            chain.append(parent)
            missing -= set(config.recipes[parent])
        if missing:
            yield "recipes", f"{recipe} lacks the key {min(missing)!r}."


def faults_of_runs(config: Config) -> Iterator[tuple[str, str]]:
    """Yield faults unless no row needs itself, a search has weights to start from, and runs have different names."""
    owners: dict[str, str] = {}
    for row, entry in config.runs.items():
        circle = circle_of(config, [row])
        if circle:
            yield "runs", f"{' needs '.join(circle)}: a circle."
            return
        searches = any("search" in specs.recipe_of(config, setting, row) for setting in config.settings)
        if searches and "start" not in entry:
            yield "runs", f"{row} lacks the key 'start': its recipe searches on a trained model."
        for seed in config.seeds(row):
            name = run_name(row, seed)
            other = owners.setdefault(name, row)
            if other != row:
                yield "runs", f"{row} with seed {seed} and {other} are both called {name!r}; rename one."


def circle_of(config: Config, chain: list[str]) -> list[str] | None:
    """Return the rows over which `start` and `teacher` lead from the chain's last row back into it, None if nowhere."""
    for role in specs.ROLES:
        other = config.runs[chain[-1]].get(role)
        if other in chain:
            return [*chain, other]
        circle = circle_of(config, [*chain, other]) if other else None
        if circle:
            return circle
    return None


def faults_of_items(config: Config) -> Iterator[tuple[str, str]]:
    """Yield faults unless an item's rows all have the same keys, a figure's choice is one of its values, and scenes
    show images.
    """
    first: dict[str, dict] = {}
    for location, row in rows_by_location(config):
        keys = first.setdefault(location.rpartition(".")[0], row)
        if set(row) != set(keys):
            yield (
                "items",
                f"{location} has the keys {', '.join(row)}, but the first row {', '.join(keys)}; "
                "all rows have the same.",
            )
    for figure, content in config.items["figures"].items():
        values = [row["x"] for row in content.get("rows", []) if "x" in row]
        if "chosen" in content and content["chosen"] not in values:
            yield (
                "items",
                f"figures.{figure}.chosen is {content['chosen']!r}, which is no row's x; "
                f"choose among {', '.join(map(str, values))}.",
            )
    scenes = config.items["dense_prediction"]["scenes"]
    if scenes["empty"] >= scenes["side"] ** 2:
        yield (
            "items",
            f"dense_prediction.scenes.empty is {scenes['empty']} of {scenes['side'] ** 2} cells, so that no image is "
            "shown; lower it.",
        )


def faults_of_settings(config: Config) -> Iterator[tuple[str, str]]:
    """Yield faults unless each setting has results of its own, seeds that exist, and a possible configuration."""
    owners: dict[str, str] = {}
    for name, setting in config.settings.items():
        other = owners.setdefault(setting["results"], name)
        if other != name:
            yield "settings", f"{name} and {other} both have results: {setting['results']}; change one."
        for item in setting["measure"]:
            request = config.request(name, item)
            rows = [row for group in request["train"] for row in config.items["sections"][group]]
            most = max((len(config.seeds(row)) for row in rows), default=request["seeds"])
            if request["seeds"] is not None and request["seeds"] > most:
                yield (
                    "settings",
                    f"{name}.measure.{item}.seeds is {request['seeds']}, but its rows have {most}; ask for fewer, or "
                    f"give them more in {FILES['runs']} (`seeds`).",
                )
        for row, count in setting.get("seeds", {}).items():
            if count > len(config.seeds(row)):
                yield (
                    "settings",
                    f"{name}.seeds.{row} is {count}, but the row has {len(config.seeds(row))}; ask for fewer, or give "
                    f"it more in {FILES['runs']} (`seeds`).",
                )
        for key, evaluation in setting.get("evaluations", {}).items():
            published = config.items["published"].get(key, evaluation)
            needed = {"run": published["run"], "kwargs": published.get("kwargs", {})}
            given = {"run": evaluation["run"], "kwargs": evaluation.get("kwargs", {})}
            if given["run"] != needed["run"] or not given["kwargs"].items() >= needed["kwargs"].items():
                yield (
                    "settings",
                    f"{name}.evaluations.{key} has {given}, but {FILES['items']} (published.{key}) says {needed}; take "
                    "these, or give the evaluation another name.",
                )
        if HOST in setting:
            yield from (("settings", sentence) for sentence in faults_of_host(name, setting))
        try:
            benchmarks.check(setting["throughput"])
        except benchmarks.BenchmarkError as error:
            yield "settings", f"{name}.throughput: {error}"


def faults_of_host(name: str, setting: dict) -> Iterator[str]:
    """Yield faults of a setting's own model: weights that nothing names, and what only DeiT's rows have."""
    model = setting[HOST]["model"]
    if "checkpoint" not in setting[HOST] and HOST not in setting.get("checkpoints", {}) and "." not in model:
        yield (
            f"{name}.{HOST}.model is {model!r}, which names no weights; add the tag of those on timm's hub "
            f"(timm.list_pretrained('{model}*') lists them), or `checkpoint: {{file: <path>, sha256: <its sha256>}}`."
        )
    if setting["shrink"]:
        yield f"{name}.shrink is of DeiT's and LeViT's rows, which a setting with a `{HOST}` lacks; use {HOST}.kwargs."
