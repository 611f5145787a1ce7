"""Weights from elsewhere: plain DeiT's and the authors' published Evo-DeiT state dicts."""

import argparse
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor, nn

_logger = logging.getLogger(__name__)


def load_file(path: str | Path) -> dict[str, Tensor]:
    """State dict of a published file, read with ``weights_only``.

    Files of the DeiT family also hold the training script's argparse.Namespace; nothing else
    beyond tensors is allowed.
    """
    with torch.serialization.safe_globals([argparse.Namespace]):
        content = torch.load(path, map_location="cpu", weights_only=True)
    return content.get("model", content)


def load_official(model: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Load the authors' Evo-DeiT weights into an ``evo_deit_*`` model.

    Raises:
        ValueError: listing every missing, unexpected or misshapen key; nothing is loaded then.
    """
    load_exactly(model, _from_official(state_dict), fresh=("_extra_state",))


def load_exactly(
    model: nn.Module, state_dict: Mapping[str, Tensor], fresh: Sequence[str] = ()
) -> list[str]:
    """Load every key or nothing; keys that start with one of ``fresh`` may be absent.

    Returns:
        The absent keys, which keep their fresh values.

    Raises:
        ValueError: listing every missing, unexpected or misshapen key.
    """
    own = model.state_dict()
    absent = [key for key in own if key not in state_dict]
    faults = [f"missing {key}" for key in absent if not key.startswith(tuple(fresh))]
    for key, value in state_dict.items():
        if key not in own:
            faults.append(f"unexpected {key}")
        elif value.shape != own[key].shape:
            faults.append(f"{key} is {tuple(value.shape)}, needed {tuple(own[key].shape)}")
    if faults:
        raise ValueError("the state dict does not fit: " + "; ".join(faults))
    model.load_state_dict(state_dict, strict=False)
    return absent


def complete_dense(state_dict: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    """timm's filter for pretrained weights: a plain DeiT gets the keys it lacks, and we say so."""
    filtered = checkpoint_filter_fn(dict(state_dict), model)
    fresh = {
        key: value
        for key, value in model.state_dict().items()
        if key.startswith(model.fresh_keys) and key not in filtered
    }
    if fresh:
        _logger.warning("plain DeiT weights, these keys start fresh: %s", ", ".join(fresh))
    return {**filtered, **fresh}


def _from_official(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors keep qk, v, proj and norm1 of each block in lists beside the blocks."""
    renamed, parts = {}, {}
    for key, value in state_dict.items():
        if match := re.fullmatch(r"(qks|vs)\.(\d+)\.(?:qk|v)\.(weight|bias)", key):
            kind, block, name = match.groups()
            parts.setdefault(f"blocks.{block}.attn.qkv.{name}", {})[kind] = value
            continue
        key = re.sub(r"^projs\.(\d+)\.", r"blocks.\1.attn.proj.", key)
        renamed[re.sub(r"^norms\.(\d+)\.", r"blocks.\1.norm1.", key)] = value
    for key, found in parts.items():
        if set(found) != {"qks", "vs"}:
            raise ValueError(f"the state dict does not fit: only {sorted(found)} of {key}")
        renamed[key] = torch.cat((found["qks"], found["vs"]))  # rows: query, key, value
    return renamed
