"""Before anything is timed: it computes what the model does in fp32 with unfused attention."""

import torch
from torch import Tensor, nn

from workflow.bench import modes
from workflow.bench.fresh import MeasurementError
from workflow.runtime import device

# Of `distance`; another image's logits are 1.4 away. Below fp32 other tokens are selected where
# scores nearly tie: with random weights all models were off by less than 0.15, but for one whose
# scores are alike (`near_ties`, as the model says), which was by 0.4.
TOLERANCE = {"fp32": 2e-3, "bf16": 0.3, "fp16": 0.3}
NEAR_TIES = 0.7


def seeded(run: modes.Run, images: Tensor) -> Tensor:
    """Logits in fp32; models that select at random select the same each time."""
    torch.manual_seed(0)
    return run(images).float().clone()


def distance(outputs: Tensor, reference: Tensor) -> float:
    """Median over the images of how far logits are from the reference's, in units of how far those
    of an image are from the mean image's."""
    typical = reference.mean(dim=0) if len(reference) > 1 else 0.0
    sizes = (reference - typical).norm(dim=1).clamp_min(torch.finfo(reference.dtype).tiny)
    return ((outputs - reference).norm(dim=1) / sizes).median().item()


def compare(outputs: Tensor, reference: Tensor, precision: str, module: nn.Module) -> dict:
    """Whether the timed path computes what the module in fp32 with unfused attention does.

    Raises MeasurementError if not.
    """
    name = type(module).__name__
    if not outputs.isfinite().all():
        raise MeasurementError(f"{name} gives outputs that are not finite.")
    error, tolerance = distance(outputs, reference), TOLERANCE[precision]
    if precision != "fp32" and getattr(module, "near_ties", False):
        tolerance = NEAR_TIES
    if not error <= tolerance:
        raise MeasurementError(
            f"{name} gives other outputs, timed in {precision}, than in fp32 with unfused "
            f"attention: they are {error:.2g} apart, tolerance {tolerance:g}."
        )
    return {"distance": error, "tolerance": tolerance, "images": len(outputs)}


def make_reference(module: nn.Module, images: Tensor, spec: dict, where) -> Tensor | None:
    """Logits in fp32 with unfused attention, to which those with the mode's attention are equal;
    None if they need more memory than there is, which what is timed may not.

    Raises MeasurementError if they are not equal.
    """
    try:
        modes.set_attention(module, "paper")
        reference = seeded(module, images)
        modes.set_attention(module, spec["mode"])
        compare(seeded(module, images), reference, "fp32", module)
        return reference
    except RuntimeError as error:
        if not device.is_out_of_memory(error):
            raise
    device.free()
    return None
