"""The YAML, checked before anything is planned: a mistake names file, key and nearest name."""

import difflib
from pathlib import Path

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError, best_match

from workflow.campaign import benchmarks, specs
from workflow.campaign.config import CLAIMS, CONFIG, FILES, Config, ConfigError, read_yaml, run_name

SCHEMA = CONFIG / "schema.yaml"
NEW_NAMES = {"tradeoff": "alpha", "learn_tradeoff_from": "learn_alpha_from"}  # of keywords, by the old one


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


def refuse_old_names(path: Path, entry, place: str = "") -> None:
    """Refuse a keyword of a model or a task under the name that it had once. Raises ConfigError."""
    if not isinstance(entry, dict):
        return
    for key, value in entry.items():
        if key in NEW_NAMES:
            raise ConfigError(f"{path}: {place}{key} is called {NEW_NAMES[key]} now; rename it.")
        refuse_old_names(path, value, f"{place}{key}.")


def describe(path: Path, error: ValidationError) -> str:
    """Return one sentence for a schema error."""
    place = ".".join(str(part) for part in error.absolute_path) or "the top level"
    if error.validator == "additionalProperties":
        known = sorted(error.schema["properties"])
        unknown = sorted(set(error.instance) - set(known))[0]
        return f"{path}: {place} has an unknown key {unknown!r}{nearest(unknown, known)}"
    if error.validator == "required":
        missing = next(key for key in error.validator_value if key not in error.instance)
        return f"{path}: {place} lacks the key {missing!r}."
    if error.validator in ("type", "anyOf"):
        allowed = error.schema.get("type", error.schema.get("description"))
        kinds = " or ".join([allowed] if isinstance(allowed, str) else map(str, allowed))
        return f"{path}: {place} is {error.instance!r}, but must be of type {kinds}."
    if error.validator == "enum":
        return (
            f"{path}: {place} is {error.instance!r}"
            f"{nearest(str(error.instance), list(map(str, error.validator_value)))}"
        )
    return f"{path}: {place}: {error.message}."


def nearest(name: str, known) -> str:
    """Return the end of a sentence about an unknown name."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known are {', '.join(known)}."


def check_names(config: Config, files: dict[str, Path], keys: set[str]) -> None:
    """Raise ConfigError unless every name that one file uses exists in another, and recipes have all of `keys`."""

    def known(path: Path, place: str, name: str, names) -> None:
        if name not in names:
            raise ConfigError(f"{path}: {place} names {name!r}{nearest(name, sorted(names))}")

    for name, recipe in config.recipes.items():
        if "extends" in recipe:
            known(files["recipes"], f"{name}.extends", recipe["extends"], config.recipes)
        check_ends(config, files["recipes"], name, keys)
    for row, entry in config.runs.items():
        known(files["runs"], f"{row}.recipe", entry["recipe"], config.recipes)
        for role in ("start", "teacher"):
            if role in entry:
                known(files["runs"], f"{row}.{role}", entry[role], config.runs)
        check_chain(config, files["runs"], row)
        check_search(config, files["runs"], row)
    for name, rows in config.items["sections"].items():
        for row in rows:
            known(files["items"], f"sections.{name}", row, config.runs)
    sections = config.items["sections"]
    items = {**config.items["tables"], **config.items["figures"]}
    for item in items:
        for index, row in enumerate(config.rows(item)):
            among = f"tables.{item}" if item in config.items["tables"] else f"figures.{item}.rows"
            place = f"{among}.{index}"
            known(files["items"], f"{place}.run", row["run"], config.runs)
            known(files["items"], f"{place}.section", row["section"], sections)
            known(files["items"], f"{place}.run", row["run"], sections[row["section"]])
            first = config.rows(item)[0]
            if set(row) != set(first):
                raise ConfigError(
                    f"{files['items']}: {place} has the keys {', '.join(row)}, but the first row {', '.join(first)}; "
                    "all rows have the same."
                )
    for figure, content in config.items["figures"].items():
        if "chosen" in content:
            shown = [row["x"] for row in content.get("rows", [])]
            if content["chosen"] not in shown:
                raise ConfigError(
                    f"{files['items']}: figures.{figure}.chosen is {content['chosen']!r}, which is "
                    f"no row's x; choose among {', '.join(map(str, shown))}."
                )
    for name, wanted in config.items["analyses"].items():
        known(files["items"], f"analyses.{name}.run", wanted["run"], config.runs)
    for figure in config.items["figures"]:
        for name in config.analyses(figure):
            known(files["items"], f"figures.{figure}.analyses", name, config.items["analyses"])
    owners: dict[str, str] = {}
    for name, setting in config.settings.items():
        other = owners.setdefault(setting["results"], name)
        if other != name:
            raise ConfigError(
                f"{files['settings']}: {name} and {other} both have results: {setting['results']}; change one."
            )
        for item, wanted in setting["measure"].items():
            known(files["settings"], f"{name}.measure", item, [*items, CLAIMS])
            for section in (*wanted["train"], *wanted["time"]):
                place = f"{name}.measure.{item}"
                known(files["settings"], place, section, config.sections_of(item))
            check_measured_seeds(config, files["settings"], name, item)
        try:
            benchmarks.check(setting["throughput"])
        except benchmarks.BenchmarkError as error:
            raise ConfigError(f"{files['settings']}: {name}.throughput: {error}") from None
        for section in setting["throughput"]["batch_size_of"]:
            known(files["settings"], f"{name}.throughput.batch_size_of", section, sections)
        for part in ("checkpoints", "models"):
            for run in setting.get(part, {}):
                known(files["settings"], f"{name}.{part}", run, config.runs)
        for key, wanted in setting.get("evaluations", {}).items():
            known(files["settings"], f"{name}.evaluations.{key}.run", wanted["run"], config.runs)
        for recipe in setting.get("recipes", {}):
            known(files["settings"], f"{name}.recipes", recipe, config.recipes)
    for key in ("figures", "analyses"):
        for name in config.items["claims"][key]:
            known(files["items"], f"claims.{key}", name, config.items[key])
    check_seeds(config, files["runs"])


def check_ends(config: Config, path: Path, recipe: str, keys: set[str]) -> None:
    """Raise ConfigError unless `extends` ends somewhere and the recipe then has every one of `keys`."""
    chain: list[str] = []
    has: set[str] = set()
    name = recipe
    while name is not None:
        if name in chain:
            raise ConfigError(f"{path}: {' extends '.join([*chain, name])}: a circle.")
        chain.append(name)
        has |= set(config.recipes[name])
        name = config.recipes[name].get("extends")
        if name is not None and name not in config.recipes:
            return  # reported at that recipe
    optional = {"extends", "task_args", "search"}
    missing = sorted(keys - has - optional)
    if missing:
        raise ConfigError(f"{path}: {recipe} lacks the key {missing[0]!r}.")


def check_search(config: Config, path: Path, row: str) -> None:
    """Raise ConfigError unless a row whose recipe searches starts from a trained model to search on."""
    for setting in config.settings:
        if "search" in specs.recipe_of(config, setting, row) and "start" not in config.runs[row]:
            raise ConfigError(f"{path}: {row} lacks the key 'start': its recipe searches on a trained model.")


def check_chain(config: Config, path: Path, row: str) -> None:
    """Raise ConfigError if `start` and `teacher` lead back to the row."""

    def walk(name: str, chain: list[str]) -> None:
        if name in chain:
            raise ConfigError(f"{path}: {' needs '.join([*chain, name])}: a circle.")
        for role in ("start", "teacher"):
            if role in config.runs.get(name, {}):
                walk(config.runs[name][role], [*chain, name])

    walk(row, [])


def check_measured_seeds(config: Config, path: Path, setting: str, item: str) -> None:
    """Raise ConfigError if an item asks for more seeds than its rows have."""
    measured = config.wanted(setting, item)
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
