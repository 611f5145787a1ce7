"""Build every model, and look up every name of the recipes, before anything is trained.

So a mistyped model, keyword, optimizer or augmentation, or a GPU that torch can't use, costs a minute, not a night.
"""

import time
from pathlib import Path

import torch
from timm.data import create_transform
from timm.optim import create_optimizer_v2

from workflow.runtime import device as devices
from workflow.storage import records
from workflow.train import checkpoints, factory


def unknown_names(recipes: dict[str, list[str]]) -> list[str]:
    """Return a sentence for each optimizer and each `auto_augment` of the recipes that timm does not know."""
    faults = []
    for key, names in recipes.items():
        for name in names:
            try:
                if key == "optimizer":
                    create_optimizer_v2([torch.nn.Parameter(torch.zeros(1))], opt=name)
                else:
                    create_transform(32, is_training=True, auto_augment=name)
            except Exception as error:  # timm raises many kinds
                faults.append(
                    f"timm makes no {key} of {name!r} here ({checkpoints.first_line(error)}); correct it in "
                    "workflow/config/ (recipes, settings or runs)."
                )
    return faults


def run(spec: dict, site: dict, folder: Path) -> dict:
    """Build every model on the meta device, without memory or weights. Return the record of their sizes.

    Raises DeviceError, or SpecError with one line for each model that can't be built and each unknown name.
    """
    started = time.time()
    device = devices.choose(site["device"])
    sizes = []
    faults = []
    for model in spec["models"]:
        try:
            module = factory.build_model(model, device="meta")
        except factory.SpecError as error:
            faults.append(f"{error} (workflow/config/{spec.get('source', 'runs.yaml')})")
            continue
        parameters = sum(parameter.numel() for parameter in module.parameters())
        sizes.append({**model, "params_m": parameters / 1e6})
    faults += unknown_names(spec["recipes"])
    if faults:
        raise factory.SpecError("\n".join(faults))
    return records.make(spec, {"models": sizes}, started, device=devices.describe(device))
