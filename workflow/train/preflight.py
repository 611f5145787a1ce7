"""Before any training: does every model of the workflow build, does timm know what the recipes
name, and can this device be used?"""

import time
from pathlib import Path

import torch
from timm.data import create_transform
from timm.optim import create_optimizer_v2

from workflow.runtime import device
from workflow.storage import records
from workflow.train import factory

TRIED = {
    "optimizer": lambda name: create_optimizer_v2([torch.nn.Parameter(torch.zeros(1))], opt=name),
    "auto_augment": lambda name: create_transform(32, is_training=True, auto_augment=name),
}


def unknown_names(recipes: dict[str, list[str]]) -> list[str]:
    """A sentence for each name, of a recipe's key, of which timm makes nothing."""
    faults = []
    for key, names in recipes.items():
        for name in names:
            try:
                TRIED[key](name)
            except Exception as error:  # timm asserts, raises or looks up, as it happens
                why = (str(error) or type(error).__name__).splitlines()[0]
                faults.append(f"timm makes no {key} of {name!r} here ({why}); correct it in "
                              "workflow/config/ (recipes, settings or runs).")  # fmt: skip
    return faults


def run(spec: dict, site: dict, folder: Path) -> dict:
    """Build every model on the meta device (no memory, no weights); -> record with their sizes.

    Raises build.SpecError with one line for each model that does not build, and for each of the
    recipes' names that is none.
    """
    started = time.time()
    where = device.choose(site["device"])
    sizes, faults = [], []
    for model in spec["models"]:
        try:
            module = factory.build_model(model, device="meta")
        except factory.SpecError as error:
            faults.append(f"{error} (workflow/config/runs.yaml)")
            continue
        params = sum(parameter.numel() for parameter in module.parameters())
        sizes.append({**model, "params_m": params / 1e6})
    if faults := faults + unknown_names(spec["recipes"]):
        raise factory.SpecError("\n".join(faults))
    return records.make(spec, {"models": sizes}, started, device=device.describe(where))
