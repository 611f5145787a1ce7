"""Measurements as specs: a section's models at one point, and where the record lies.

Standard library and yaml only: launchers import this.
"""

from workflow.campaign import points
from workflow.campaign.config import Config
from workflow.campaign.specs import ROLES, data_of, model_of, recipe_of, reference, train_spec


def throughput_spec(config: Config, setting: str, section: str, point: dict, weights: str | None = None) -> dict:
    """The spec of one measurement: the section's models at the paper's size, one device and mode.

    `point` is one of points.py. Rows whose speed depends on weights have those of their training,
    on real images, or a declared profile, as `weights` or else the setting says.
    """
    trained = (weights or config.settings[setting]["throughput"]["weights"]) == "trained"
    models = []
    for row in config.items["sections"][section]:
        model = {"run": row, **model_of(config, row)}
        profile = config.items["profiles"].get(row)
        if profile and trained:
            training = train_spec(config, setting, row)
            model |= training["model"] | {"weights": reference(training)}
        elif profile:
            model |= {"kwargs": model["kwargs"] | profile, "profile": "assumed"}
        models.append(model)
    spec = {"kind": "throughput", "section": section, "models": models, **point}
    if any("weights" in model for model in models):
        recipe = recipe_of(config, setting, config.items["sections"][section][0])
        shown = {key: recipe[key] for key in ("interpolation", "crop_pct")}
        spec["images"] = {"data": data_of(config, setting), **shown}
    return spec


def throughput_point(config: Config, setting: str, section: str) -> dict:
    """The point of measurement that the setting's tables show of a section; "auto" is this
    machine's device."""
    values = config.settings[setting]["throughput"]
    point = points.resolve(values, "weights", "batch_size_of")
    return point | {"batch_size": values["batch_size_of"].get(section, values["batch_size"])}


def throughput_path(root: str, section: str, point: dict) -> str:
    return f"{root}/throughput/{section}/{points.name(point)}.json"


def training_cost_spec(config: Config, setting: str, section: str, point: dict) -> dict:
    """The spec of the measurement of training steps: of the section's models that train from
    scratch, at the paper's size and with its recipe.

    `point` holds device, mode, precision, threads, rounds, batch_sizes and extrapolate_to (images),
    and memory_gib (of the GPU that is meant, or null).
    """
    models = []
    for row in config.items["sections"][section]:
        recipe = recipe_of(config, None, row) | {"device_batch": None}  # sizes are the point's
        if "search" not in recipe and not any(role in config.runs[row] for role in ROLES):
            models.append({"run": row, "model": model_of(config, row), "recipe": recipe})
    return {"kind": "training_cost", "section": section, "models": models, **point}


def training_cost_point(config: Config, setting: str) -> dict:
    """Likewise for the cost of training."""
    return points.resolve(config.settings[setting]["training_cost"])


def training_cost_path(root: str, section: str, point: dict) -> str:
    return f"{root}/training/{section}/{{device}}-{{mode}}-{{precision}}.json".format(**point)
