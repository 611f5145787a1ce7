"""The job that runs before any training: it builds every model and looks up every name of the recipes.

So a mistyped model, keyword, optimizer or augmentation, or a GPU that torch can't use, costs a minute, not a night.
"""

import time
from pathlib import Path

import torch
from timm.data import create_transform
from timm.optim import create_optimizer_v2

from workflow.runtime import device as devices
from workflow.storage import records
from workflow.train import factory


def _make_optimizer(name: str) -> None:
    create_optimizer_v2([torch.nn.Parameter(torch.zeros(1))], opt=name)


def _make_augmentation(name: str) -> None:
    create_transform(32, is_training=True, auto_augment=name)


# keys of recipes whose values timm must know
LOOKED_UP = {"optimizer": _make_optimizer, "auto_augment": _make_augmentation}


def unknown_names(recipes: dict[str, list[str]]) -> list[str]:
    """Return a sentence for each value of a recipe's key that timm does not know."""
    faults = []
    for key, names in recipes.items():
        for name in names:
            try:
                LOOKED_UP[key](name)
            except Exception as error:  # timm raises many kinds
                reason = (str(error) or type(error).__name__).splitlines()[0]
                faults.append(
                    f"timm makes no {key} of {name!r} here ({reason}); correct it in "
                    "workflow/config/ (recipes, settings or runs)."
                )
    return faults


def run(spec: dict, site: dict, folder: Path) -> dict:
    """Build every model on the meta device, without memory or weights. Return the record of their sizes.

    Raises DeviceError, or SpecError with one line for each model that can't be built and each unknown name.
    """
    started = time.time()
    device = devices.choose(site["device"])
    sizes, faults = [], []
    for model in spec["models"]:
        try:
            module = factory.build_model(model, device="meta")
        except factory.SpecError as error:
            faults.append(f"{error} (workflow/config/runs.yaml)")
            continue
        parameters = sum(parameter.numel() for parameter in module.parameters())
        sizes.append({**model, "params_m": parameters / 1e6})
    faults += unknown_names(spec["recipes"])
    if faults:
        raise factory.SpecError("\n".join(faults))
    return records.make(spec, {"models": sizes}, started, device=devices.describe(device))
