"""Mixed precision for forward passes and for the gradients of fp16."""

from contextlib import nullcontext

import torch

from workflow.runtime import device

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


class PrecisionError(ValueError):
    """A precision that this device does not have; says what to set."""


def make(amp: str | None, where: torch.device):
    """(a context factory for forward passes, a gradient scaler that does nothing unless fp16).

    Raises PrecisionError for fp16 on a CPU, DeviceError for bf16 on a GPU without units for it.
    """
    if amp == "fp16" and where.type != "cuda":
        raise PrecisionError("`amp: fp16` needs a GPU; set `amp: bf16` or `amp: null` in the recipe.")
    device.check_precision(
        amp, where, "ask for another GPU (`constraint` in the profile), or set `amp: null`, for a "
        "training also fp16 with a lower lr (workflow/config/recipes.yaml)",
    )  # fmt: skip
    scaler = torch.amp.GradScaler(where.type, enabled=amp == "fp16")
    if amp is None:
        return nullcontext, scaler
    return lambda: torch.autocast(where.type, DTYPES[amp]), scaler
