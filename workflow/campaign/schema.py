"""The YAML, checked before anything is planned: a mistake names file, key and nearest name."""

import difflib
from collections.abc import Collection, Iterator
from pathlib import Path

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError, best_match

from workflow.campaign import benchmarks, specs
from workflow.campaign.config import CLAIMS, CONFIG, FILES, Config, ConfigError, read_yaml, run_name

SCHEMA = CONFIG / "schema.yaml"
NEW_NAMES = {  # of keywords, by the old one
    "tradeoff": "alpha",
    "learn_tradeoff_from": "learn_alpha_from",
    "prune_blocks": "reduction_blocks",
}


def load(files: dict[str, Path] = FILES) -> Config:
    """Return the configuration, read and checked. Raises ConfigError with one sentence."""
    config = Config.load(files)
    shapes = read_yaml(SCHEMA)
    for name, path in files.items():
        schema = {"$defs": shapes["$defs"], **shapes[name]}
        error = best_match(Draft202012Validator(schema).iter_errors(getattr(config, name)))
        if error is not None:
            raise ConfigError(describe(path, error))
        refuse_old_names(path, getattr(config, name))
    check_names(config, files, set(shapes["$defs"]["recipe"]["properties"]))
    return config


def refuse_old_names(path: Path, entry, location: str = "") -> None:
    """Refuse a keyword of a model or a task under the name that it had once. Raises ConfigError."""
    if not isinstance(entry, dict):
        return
    for key, value in entry.items():
        if key in NEW_NAMES:
            raise ConfigError(f"{path}: {location}{key} is called {NEW_NAMES[key]} now; rename it.")
        refuse_old_names(path, value, f"{location}{key}.")


def describe(path: Path, error: ValidationError) -> str:
    """Return one sentence for a schema error."""
    location = ".".join(str(part) for part in error.absolute_path) or "the top level"
    if error.validator == "additionalProperties":
        known = sorted(error.schema["properties"])
        unknown = sorted(set(error.instance) - set(known))[0]
        return f"{path}: {location} has an unknown key {unknown!r}{nearest(unknown, known)}"
    if error.validator == "required":
        missing = next(key for key in error.validator_value if key not in error.instance)
        return f"{path}: {location} lacks the key {missing!r}."
    if error.validator in ("type", "anyOf"):
        allowed = error.schema.get("type", error.schema.get("description"))
        kinds = " or ".join([allowed] if isinstance(allowed, str) else map(str, allowed))
        return f"{path}: {location} is {error.instance!r}, but must be of type {kinds}."
    if error.validator == "enum":
        return (
            f"{path}: {location} is {error.instance!r}"
            f"{nearest(str(error.instance), list(map(str, error.validator_value)))}"
        )
    return f"{path}: {location}: {error.message}."


def nearest(name: str, known) -> str:
    """Return the end of a sentence about an unknown name."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known are {', '.join(known)}."


def check_names(config: Config, files: dict[str, Path], keys: set[str]) -> None:
    """Raise ConfigError unless every name that one file uses exists in another, and recipes have all of `keys`."""
    for file, location, name, names in references(config):
        if name not in names:
            raise ConfigError(f"{files[file]}: {location} names {name!r}{nearest(name, sorted(names))}")
    for recipe in config.recipes:
        check_keys(config, files["recipes"], recipe, keys)
    for row in config.runs:
        check_chain(config, files["runs"], row, [])
        check_search(config, files["runs"], row)
    check_items(config, files["items"])
    check_settings(config, files["settings"])
    check_seeds(config, files["runs"])


def references(config: Config) -> Iterator[tuple[str, str, str, Collection[str]]]:
    """Yield each name that the YAML uses: its file and key, the name itself, and those that exist.

    Later references rely on earlier ones, so stop at the first that names nothing.
    """
    runs, recipes, items, settings = config.runs, config.recipes, config.items, config.settings
    for name, recipe in recipes.items():
        if "extends" in recipe:
            yield "recipes", f"{name}.extends", recipe["extends"], recipes
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
                yield "settings", f"{name}.measure.{item}", group, config.sections_of(item)
        for group in setting["throughput"]["batch_size_of"]:
            yield "settings", f"{name}.throughput.batch_size_of", group, items["sections"]
        for part in ("checkpoints", "models"):
            for run in setting.get(part, {}):
                yield "settings", f"{name}.{part}", run, runs
        for key, evaluation in setting.get("evaluations", {}).items():
            yield "settings", f"{name}.evaluations.{key}.run", evaluation["run"], runs
        for recipe in setting.get("recipes", {}):
            yield "settings", f"{name}.recipes", recipe, recipes


def rows_by_location(config: Config) -> Iterator[tuple[str, dict]]:
    """Yield every row of the tables and figures with the key where items.yaml has it."""
    for kind, end in (("tables", ""), ("figures", ".rows")):
        for item in config.items[kind]:
            for index, row in enumerate(config.rows(item)):
                yield f"{kind}.{item}{end}.{index}", row


def check_items(config: Config, path: Path) -> None:
    """Raise ConfigError unless an item's rows all have the same keys, and a figure's choice is one of its values."""
    first: dict[str, dict] = {}
    for location, row in rows_by_location(config):
        keys = first.setdefault(location.rpartition(".")[0], row)
        if set(row) != set(keys):
            raise ConfigError(
                f"{path}: {location} has the keys {', '.join(row)}, but the first row {', '.join(keys)}; "
                "all rows have the same."
            )
    for figure, content in config.items["figures"].items():
        values = [row["x"] for row in content.get("rows", []) if "x" in row]
        if "chosen" in content and content["chosen"] not in values:
            raise ConfigError(
                f"{path}: figures.{figure}.chosen is {content['chosen']!r}, which is no row's x; "
                f"choose among {', '.join(map(str, values))}."
            )


def check_settings(config: Config, path: Path) -> None:
    """Raise ConfigError unless each setting has results of its own, seeds that exist, and a possible configuration."""
    owners: dict[str, str] = {}
    for name, setting in config.settings.items():
        other = owners.setdefault(setting["results"], name)
        if other != name:
            raise ConfigError(f"{path}: {name} and {other} both have results: {setting['results']}; change one.")
        for item in setting["measure"]:
            check_measured_seeds(config, path, name, item)
        try:
            benchmarks.check(setting["throughput"])
        except benchmarks.BenchmarkError as error:
            raise ConfigError(f"{path}: {name}.throughput: {error}") from None


def check_keys(config: Config, path: Path, recipe: str, keys: set[str]) -> None:
    """Raise ConfigError unless `extends` ends somewhere and the recipe then has every one of `keys`."""
    chain: list[str] = []
    missing = keys - {"extends", "task_args", "search"}
    name: str | None = recipe
    while name is not None:
        if name in chain:
            raise ConfigError(f"{path}: {' extends '.join([*chain, name])}: a circle.")
        chain.append(name)
        missing -= set(config.recipes[name])
        name = config.recipes[name].get("extends")
    if missing:
        raise ConfigError(f"{path}: {recipe} lacks the key {min(missing)!r}.")


def check_search(config: Config, path: Path, row: str) -> None:
    """Raise ConfigError unless a row whose recipe searches starts from a trained model to search on."""
    for setting in config.settings:
        if "search" in specs.recipe_of(config, setting, row) and "start" not in config.runs[row]:
            raise ConfigError(f"{path}: {row} lacks the key 'start': its recipe searches on a trained model.")


def check_chain(config: Config, path: Path, row: str, chain: list[str]) -> None:
    """Raise ConfigError if `start` and `teacher` lead from the rows of `chain` over this one back to one of them."""
    if row in chain:
        raise ConfigError(f"{path}: {' needs '.join([*chain, row])}: a circle.")
    for role in specs.ROLES:
        if role in config.runs[row]:
            check_chain(config, path, config.runs[row][role], [*chain, row])


def check_measured_seeds(config: Config, path: Path, setting: str, item: str) -> None:
    """Raise ConfigError if an item asks for more seeds than its rows have."""
    measured = config.request(setting, item)
    rows = [row for group in measured["train"] for row in config.items["sections"][group]]
    most = max((len(config.seeds(row)) for row in rows), default=measured["seeds"])
    if measured["seeds"] is not None and measured["seeds"] > most:
        raise ConfigError(
            f"{path}: {setting}.measure.{item}.seeds is {measured['seeds']}, but its rows have "
            f"{most}; ask for fewer, or give them more in {FILES['runs']} (`seeds`)."
        )


def check_seeds(config: Config, path: Path) -> None:
    """Raise ConfigError if a seed's run has the name of another row's."""
    owners: dict[str, str] = {}
    for row in config.runs:
        for seed in config.seeds(row):
            name = run_name(row, seed)
            if owners.setdefault(name, row) != row:
                raise ConfigError(
                    f"{path}: {row} with seed {seed} and {owners[name]} are both called {name!r}; rename one."
                )
