"""Loading weights from elsewhere: all of them, or an error that says which do not fit."""

from collections.abc import Mapping

from torch import Tensor, nn


def load_exactly(
    model: nn.Module, state_dict: Mapping[str, Tensor], fresh: tuple[str, ...] = ()
) -> list[str]:
    """Load every key or nothing; keys that start with one of ``fresh`` may be absent.

    Returns:
        The absent keys, which keep their fresh values.

    Raises:
        ValueError: listing every missing, unexpected or misshapen key.
    """
    own = model.state_dict()
    absent = [key for key in own if key not in state_dict]
    faults = [f"missing {key}" for key in absent if not key.startswith(fresh)]
    for key, value in state_dict.items():
        if key not in own:
            faults.append(f"unexpected {key}")
        elif value.shape != own[key].shape:
            faults.append(f"{key} is {tuple(value.shape)}, needed {tuple(own[key].shape)}")
    if faults:
        raise ValueError("the state dict does not fit: " + "; ".join(faults))
    model.load_state_dict(state_dict, strict=False)
    return absent
