"""From YAML to specs: the only module that resolves recipe, setting and overrides.

A spec is a JSON object that says all that defines a job's result and nothing about where it runs;
its hash is the identity of that result. Standard library and yaml only: launchers import this.
"""

import hashlib
import json
from pathlib import Path

from workflow.campaign.config import HOST, Config, ConfigError, run_name
from workflow.data import layout
from workflow.storage import files

ROLES = ("start", "teacher")  # whose weights a run starts from, and learns from
EVALUATED = ("name", "batch_size", "threads", "amp", "interpolation", "crop_pct")
SAMPLE_IMAGES = "scikit-learn"  # instead of a folder of photographs: the two that it comes with
NAMED = ("optimizer", "auto_augment")  # of a recipe's values those that are timm's names
OF_TRAININGS = (*ROLES, "pretrained", "snapshots")  # what only a training has
OF_HOSTS = ("offtheshelf", "dense_prediction")  # kinds of jobs that reduce a setting's `hosts` as they are
TRAINED = "trained"  # instead of a checkpoint: the weights that the setting's own training ended with


def spec_hash(spec: dict) -> str:
    """Return 16 hexadecimal digits that change with any value of the spec."""
    text = json.dumps(spec, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_spec(path: str | Path, spec: dict) -> str:
    """Write the spec unless the file has it already, and return the path. A new time stamp makes the job run again."""
    path = Path(path)
    text = json.dumps(spec, indent=1, sort_keys=True) + "\n"
    if not path.exists() or path.read_text() != text:
        files.write(path, text)
    return str(path)


def recipe_of(config: Config, setting: str | None, row: str) -> dict:
    """Return the recipe with every override applied: recipe < setting < setting's recipe < row."""
    name = config.runs[row]["recipe"]
    chain = []
    parent = name
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
    """Take the search before the training out of a recipe, and return it with what both need; None if there is none."""
    search = recipe.pop("search", None)
    if search is None:
        return None
    shared = ("name", "threads", "interpolation", "crop_pct")
    return search | {key: recipe[key] for key in shared}


def model_of(config: Config, row: str, setting: str | None = None) -> dict:
    """Return a row's model: at the paper's own size, or shrunk to a setting's."""
    scale = config.settings.get(setting, {})
    entry = config.runs[row] | scale.get("models", {}).get(row, {})
    kwargs = dict(entry.get("kwargs", {}))
    if setting is not None:
        kwargs |= scale["shrink"].get(entry["family"], {})
        kwargs["num_classes"] = num_classes(config, setting)
    if not config.is_of_host(row):
        return {"name": entry["model"], "kwargs": kwargs}
    host = scale[HOST]
    model = {"name": host["model"], "kwargs": kwargs | host.get("kwargs", {})}
    if "method" in entry:  # of from_timm, with its keywords
        model |= {"method": entry["method"], "options": entry.get("options", {})}
    return model


def num_classes(config: Config, setting: str) -> int:
    """Return how many classes a setting's images have: as it says, or as many as there are class folders.

    Raises ConfigError if there are no such folders.
    """
    data = config.settings[setting]["data"]
    if "num_classes" in data:
        return data["num_classes"]
    if setting not in config.classes:
        try:
            config.classes[setting] = layout.count_classes(setting, data)
        except layout.DataError as error:
            raise ConfigError(str(error)) from None
    return config.classes[setting]


def data_of(config: Config, setting: str) -> dict:
    """Return what the data are, without where they are and how many processes read them."""
    data = config.settings[setting]["data"]
    named = ("name", "reader", "image_column", "label_column", "train", "val")
    return {key: data[key] for key in named if key in data} | {"num_classes": num_classes(config, setting)}


def train_spec(config: Config, setting: str, run: str) -> dict:
    """Return the spec of one training, or of the evaluation of the weights that the setting gives a run instead.

    Raises KeyError for a run that no row makes.
    """
    checkpoint = config.settings[setting].get("checkpoints", {}).get(run)
    if checkpoint is not None:
        return evaluate_spec(config, setting, run, checkpoint)
    spec = _run_spec(config, setting, run)
    if take_search(spec["recipe"]) is not None:
        spec["start"] = reference(search_spec(config, setting, run))
    return spec


def evaluate_spec(config: Config, setting: str, run: str, checkpoint: dict) -> dict:
    """Return the spec of the evaluation of a checkpoint, which replaces a training."""
    training = _run_spec(config, setting, run)
    spec = {key: value for key, value in training.items() if key not in OF_TRAININGS}
    recipe = {key: spec["recipe"][key] for key in EVALUATED}
    return spec | {"kind": "evaluate", "recipe": recipe, "checkpoint": checkpoint}


def evaluation_spec(config: Config, setting: str, evaluation: str) -> dict:
    """Return the spec of one of the setting's `evaluations`: any weights, apart from the campaign's runs.

    Raises KeyError for one that the setting does not have.
    """
    entry = config.settings[setting].get("evaluations", {})[evaluation]
    spec = evaluate_spec(config, setting, entry["run"], entry["checkpoint"])
    kwargs = spec["model"]["kwargs"] | entry.get("kwargs", {})
    return spec | {"evaluation": evaluation, "model": spec["model"] | {"kwargs": kwargs}}


def fetch_spec(checkpoint: dict) -> dict:
    """Return the spec of the download of weights from timm's hub."""
    return {"kind": "fetch", **checkpoint}


def checkpoints(config: Config, setting: str) -> list[dict]:
    """Return the weights that the setting's `checkpoints`, `evaluations`, `hosts` and `host` name."""
    scale = config.settings[setting]
    evaluated = [entry["checkpoint"] for entry in scale.get("evaluations", {}).values()]
    hosts = [weights for weights in scale["hosts"].values() if weights != TRAINED]
    pretrained = [host_checkpoint(scale)] if HOST in scale else []
    return [*scale.get("checkpoints", {}).values(), *evaluated, *hosts, *pretrained]


def host_checkpoint(scale: dict) -> dict:
    """Return the pretrained weights of a setting's host: those that it names, or else those of its name on the hub."""
    return scale[HOST].get("checkpoint", {"timm": scale[HOST]["model"]})


def search_spec(config: Config, setting: str, run: str) -> dict:
    """Return the spec of the search before a run's training, on the model that its row starts from.

    Raises KeyError for a run whose recipe does not search.
    """
    spec = _run_spec(config, setting, run)
    search = take_search(spec["recipe"])
    if search is None:
        raise KeyError(f"the recipe of {run} has no search")
    spec = {key: value for key, value in spec.items() if key not in ("teacher", "snapshots")}
    return spec | {"kind": "search", "recipe": search}


def _run_spec(config: Config, setting: str, run: str) -> dict:
    row, seed = config.split_run(run)
    if not config.has_row(row, setting):
        raise KeyError(f"{setting} has no {run}")
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
        other = config.runs[row].get(role)
        if other is not None:
            # the run of the same seed if that row has it, so that seeds stay independent
            other_seed = seed if seed in config.seeds(other) else 0
            spec[role] = reference(train_spec(config, setting, run_name(other, other_seed)))
    if config.is_of_host(row) and "start" not in config.runs[row]:
        spec["pretrained"] = host_checkpoint(config.settings[setting])
    if "snapshots" in config.runs[row]:
        spec["snapshots"] = config.runs[row]["snapshots"]
    return spec


def analysis_spec(config: Config, setting: str, analysis: str) -> dict:
    """Return the spec of one of items.yaml's `analyses` of the model that a run ended with."""
    entry = config.items["analyses"][analysis]
    training = train_spec(config, setting, entry["run"])
    images = {key: entry[key] for key in ("validation", "shown") if key in entry}
    if entry.get("photographs"):
        images["photographs"] = config.settings[setting].get("photographs", SAMPLE_IMAGES)
    shown = ("threads", "interpolation", "crop_pct")
    return {
        "kind": "analysis",
        "analysis": analysis,
        "computes": entry["computes"],
        **{key: training[key] for key in ("run", "row", "setting", "model", "data")},
        "recipe": {key: training["recipe"][key] for key in shown},
        "images": images,
        "start": reference(training),
    }


def host_of(config: Config, setting: str, host: str) -> dict:
    """Return what a spec says of one of the setting's `hosts`: the model, the images, and where the weights are from.

    Raises KeyError for a model that is no host of the setting.
    """
    weights = config.settings[setting]["hosts"][host]
    spec = {
        "run": host,
        "row": host,
        "setting": setting,
        "model": model_of(config, host, setting),
        "data": data_of(config, setting),
    }
    if weights == TRAINED:
        return spec | {"start": reference(train_spec(config, setting, host))}
    return spec | {"checkpoint": weights}


def dense_prediction_spec(config: Config, setting: str, host: str) -> dict:
    """Return the spec of the prediction of patches by one of the setting's `hosts` and by methods that reduce it.

    Raises KeyError for a model that is no host of the setting.
    """
    recipe = recipe_of(config, setting, host)
    entry = config.items["dense_prediction"]
    return {
        "kind": "dense_prediction",
        **host_of(config, setting, host),
        "recipe": {key: recipe[key] for key in ("threads", "interpolation", "crop_pct")},
        **{key: entry[key] for key in ("scenes", "keep_ratio", "matched")},
    }


def reference(spec: dict) -> dict:
    """Return how another spec names the job of this spec, and with it its weights."""
    return {
        "run": spec["run"],
        "job": "search" if spec["kind"] == "search" else "train",
        "spec_hash": spec_hash(spec),
        "model": spec["model"],
    }


def needed_records(spec: dict) -> list[str]:
    """Return the records, below the setting's results, of the jobs whose weights the spec's job needs."""
    references = [spec[role] for role in ROLES if role in spec]
    references += [model["weights"] for model in spec.get("models", []) if "weights" in model]
    paths = [f"runs/{needed['run']}/{needed['job']}.json" for needed in references]
    for key in ("checkpoint", "pretrained"):
        if "timm" in spec.get(key, {}):
            paths.append(f"weights/{spec[key]['timm']}.json")
    return list(dict.fromkeys(paths))


def data_spec(config: Config, setting: str) -> dict:
    """Return the spec of the job that reads all images, the only spec that says where they are."""
    data = data_of(config, setting)
    root = config.settings[setting]["data"]["root"]
    return {"kind": "data", "setting": setting, "data": data, "root": root}


def preflight_spec(config: Config, setting: str) -> dict:
    """Return the spec of the job that builds every model of the setting, and of the paper, without weights, and looks
    up what its recipes name."""
    has_host = HOST in config.settings[setting]
    scales = (setting,) if has_host else (setting, None)  # a host has one size
    models = [model_of(config, row, scale) for scale in scales for row in config.runs if config.has_row(row, scale)]
    recipes = [recipe_of(config, setting, row) for row in config.runs if config.has_row(row, setting)]
    named = {key: {recipe.get(key) for recipe in recipes} - {None} for key in NAMED}
    by_text = {json.dumps(model, sort_keys=True): model for model in models}
    spec = {
        "kind": "preflight",
        "models": [by_text[text] for text in sorted(by_text)],  # each once
        "recipes": {key: sorted(names) for key, names in named.items()},
    }
    return spec | {"source": f"settings.yaml, {setting}.{HOST}"} if has_host else spec
