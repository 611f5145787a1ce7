"""Before any training: does every model of the workflow build, and can this device be used?"""

import time
from pathlib import Path

from workflow import records
from workflow.node import build, device


def run(spec: dict, site: dict, folder: Path) -> dict:
    """Build every model on the meta device (no memory, no weights); -> record with their sizes.

    Raises build.SpecError with one line for each model that does not build.
    """
    started = time.time()
    where = device.choose(site["device"])
    sizes, faults = [], []
    for model in spec["models"]:
        try:
            module = build.build_model(model, device="meta")
        except build.SpecError as error:
            faults.append(f"{error} (workflow/config/runs.yaml)")
            continue
        params = sum(parameter.numel() for parameter in module.parameters())
        sizes.append({**model, "params_m": params / 1e6})
    if faults:
        raise build.SpecError("\n".join(faults))
    return records.make(spec, {"models": sizes}, started, device=device.describe(where))
