"""From YAML to specs: the only place that resolves recipe, setting and overrides.

A spec is a JSON object that says all that defines a job's result and nothing about where it runs;
its hash is the identity of that result. Standard library and yaml only: launchers import this.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from workflow.campaign.config import Config, run_name
from workflow.storage import files

ROLES = ("start", "teacher")  # whose weights a run starts from, and learns from
EVALUATED = ("name", "batch_size", "threads", "amp", "interpolation", "crop_pct")
SAMPLE_IMAGES = "scikit-learn"  # in place of a folder of photographs: the two that ship with it
NAMED = ("optimizer", "auto_augment")  # of a recipe's values those that are timm's names
TRAINED = (*ROLES, "snapshots")  # what only a training has


def spec_hash(spec: dict) -> str:
    """16 hexadecimal digits that change with any value of the spec."""
    text = json.dumps(spec, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_spec(path: str | Path, spec: dict) -> str:
    """Write the spec unless the file says the same already (its time stamp re-runs the job)."""
    path = Path(path)
    text = json.dumps(spec, indent=1, sort_keys=True) + "\n"
    if not path.exists() or path.read_text() != text:
        files.write(path, text)
    return str(path)


def recipe_of(config: Config, setting: str | None, row: str) -> dict:
    """The recipe with every override applied: recipe < setting < setting's recipe < row."""
    name = config.runs[row]["recipe"]
    chain, parent = [], name
    while parent is not None:
        chain.append(config.recipes[parent])
        parent = chain[-1].get("extends")
    scale = config.settings.get(setting, {})
    layers = [*reversed(chain), scale.get("recipe", {})]
    layers += [scale.get("recipes", {}).get(name, {}), config.runs[row].get("overrides", {})]
    recipe = {key: value for layer in layers for key, value in layer.items()}
    recipe.pop("extends", None)
    return {"name": name, **recipe}


def take_search(recipe: dict) -> dict | None:
    """Take what a recipe does before it trains out of it, with what both need; None: nothing."""
    search = recipe.pop("search", None)
    shared = ("name", "threads", "interpolation", "crop_pct")
    return search and search | {key: recipe[key] for key in shared}


def model_of(config: Config, row: str, setting: str | None = None) -> dict:
    """The row's model: at the paper's own size, or shrunk to a setting's."""
    scale = config.settings.get(setting, {})
    entry = config.runs[row] | scale.get("models", {}).get(row, {})
    kwargs = dict(entry.get("kwargs", {}))
    if setting is not None:
        kwargs |= scale["shrink"].get(entry["family"], {})
        kwargs["num_classes"] = scale["data"]["num_classes"]
    return {"name": entry["model"], "kwargs": kwargs}


def data_of(config: Config, setting: str) -> dict:
    """What the data are, without where they lie and how many processes read them."""
    data = config.settings[setting]["data"]
    named = ("name", "reader", "image_column", "label_column", "train", "val", "num_classes")
    return {key: data[key] for key in named if key in data}


def train_spec(config: Config, setting: str, run: str) -> dict:
    """The spec of one training, or of what the setting gives a run instead (`checkpoints`).

    Raises KeyError for a run that no row makes.
    """
    if given := config.settings[setting].get("checkpoints", {}).get(run):
        return evaluate_spec(config, setting, run, given)
    spec = _run_spec(config, setting, run)
    if take_search(spec["recipe"]) is not None:
        spec["start"] = reference(search_spec(config, setting, run))
    return spec


def evaluate_spec(config: Config, setting: str, run: str, checkpoint: dict) -> dict:
    """The spec of the evaluation of given weights in a training's place."""
    spec = {k: v for k, v in _run_spec(config, setting, run).items() if k not in TRAINED}
    recipe = {key: spec["recipe"][key] for key in EVALUATED}
    return spec | {"kind": "evaluate", "recipe": recipe, "checkpoint": checkpoint}


def evaluation_spec(config: Config, setting: str, name: str) -> dict:
    """The spec of one of the setting's `evaluations`: any weights, beside the campaign's runs."""
    wanted = config.settings[setting]["evaluations"][name]
    spec = evaluate_spec(config, setting, wanted["run"], wanted["checkpoint"])
    kwargs = spec["model"]["kwargs"] | wanted.get("kwargs", {})
    return spec | {"evaluation": name, "model": spec["model"] | {"kwargs": kwargs}}


def fetch_spec(checkpoint: dict) -> dict:
    """The spec of the download of weights from timm's hub."""
    return {"kind": "fetch", **checkpoint}


def search_spec(config: Config, setting: str, run: str) -> dict:
    """The spec of the search before a run's training, on the model that its row starts from."""
    spec = _run_spec(config, setting, run)
    spec = {k: v for k, v in spec.items() if k not in ("teacher", "snapshots")}
    return spec | {"kind": "search", "recipe": take_search(spec["recipe"])}


def _run_spec(config: Config, setting: str, run: str) -> dict:
    row, seed = config.split_run(run)
    spec = {
        "kind": "train",
        "run": run,
        "row": row,
        "setting": setting,
        "seed": seed,
        "model": model_of(config, row, setting),
        "data": data_of(config, setting),
        "recipe": recipe_of(config, setting, row),
    }
    for role in ROLES:
        if other := config.runs[row].get(role):
            # the same seed's run where there is one, so that seeds stay independent
            other = run_name(other, seed if seed in config.seeds(other) else 0)
            spec[role] = reference(train_spec(config, setting, other))
    if "snapshots" in config.runs[row]:
        spec["snapshots"] = config.runs[row]["snapshots"]
    return spec


def analysis_spec(config: Config, setting: str, name: str) -> dict:
    """The spec of one of items.yaml's `analyses`: a look into the model that a run ended with."""
    wanted = config.items["analyses"][name]
    training = train_spec(config, setting, wanted["run"])
    images = {key: wanted[key] for key in ("validation", "shown") if key in wanted}
    if wanted.get("photographs"):
        images["photographs"] = config.settings[setting].get("photographs", SAMPLE_IMAGES)
    shown = ("threads", "interpolation", "crop_pct")
    return {
        "kind": "analysis",
        "analysis": name,
        "computes": wanted["computes"],
        **{key: training[key] for key in ("run", "row", "setting", "model", "data")},
        "recipe": {key: training["recipe"][key] for key in shown},
        "images": images,
        "start": reference(training),
    }


def analysis_path(root: str, name: str) -> str:
    return f"{root}/analyses/{name}.json"


def reference(spec: dict) -> dict:
    """How another spec names the job of this one and its weights."""
    return {
        "run": spec["run"],
        "job": "search" if spec["kind"] == "search" else "train",
        "spec_hash": spec_hash(spec),
        "model": spec["model"],
    }


def needed_records(spec: dict) -> list[str]:
    """The records, below the setting's results, of the jobs whose weights this one needs."""
    needed = [spec[role] for role in ROLES if role in spec]
    needed += [model["weights"] for model in spec.get("models", []) if "weights" in model]
    paths = [f"runs/{one['run']}/{one['job']}.json" for one in needed]
    if tag := spec.get("checkpoint", {}).get("timm"):
        paths.append(f"weights/{tag}.json")
    return list(dict.fromkeys(paths))


def data_spec(config: Config, setting: str) -> dict:
    """The spec of the job that looks through all images; the one that says where they lie."""
    data = data_of(config, setting)
    root = config.settings[setting]["data"]["root"]
    return {"kind": "data", "setting": setting, "data": data, "root": root}


def preflight_spec(config: Config, setting: str) -> dict:
    """The spec of the job that builds every model of the setting, and of the paper, unweighted,
    and looks up what its recipes name."""
    models = [model_of(config, row, scale) for scale in (setting, None) for row in config.runs]
    recipes = [recipe_of(config, setting, row) for row in config.runs]
    named = {key: {recipe.get(key) for recipe in recipes} - {None} for key in NAMED}
    return {
        "kind": "preflight",
        "models": list(_unique(models)),
        "recipes": {key: sorted(names) for key, names in named.items()},
    }


def _unique(found: list[dict]) -> Iterable[dict]:
    by_text = {json.dumps(one, sort_keys=True): one for one in found}
    return (by_text[key] for key in sorted(by_text))


def first_records(spec: dict) -> list[str]:
    """All records, below the setting's results, that must be there before this spec's job."""
    checks = {"data": [], "preflight": [], "fetch": []}
    measured = ("throughput", "training_cost")
    both = ["preflight.json"] if spec["kind"] in measured else ["data.json", "preflight.json"]
    return [*checks.get(spec["kind"], both), *needed_records(spec)]
