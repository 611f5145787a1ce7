"""Weights from elsewhere: plain DeiT's and the authors' published state dicts."""

import argparse
import re
import zipfile
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from timm.models import clean_state_dict, load_state_dict
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor, nn

OLD_SCHEDULE = "_extra_state"  # a key of older files; the schedule is metadata now
OLD_NAMES = {"tradeoff_logits": "alpha_logits", "learning_tradeoff": "learning_alpha"}  # of older files


def load_file(path: str | Path) -> dict[str, Tensor]:
    """Return the state dict (raw weights, not averaged ones) of a published file, .safetensors or pickled.

    Files of the DeiT family also hold the training script's argparse.Namespace; nothing else
    beyond tensors is allowed.
    """
    if str(path).endswith(".safetensors"):
        return load_state_dict(str(path))
    return _weights_in(_read_pickled(path), ("state_dict", "model"))


def _read_pickled(path: str | Path, mmap: bool = False) -> dict[str, Any]:
    """Return the content of a file of ``torch.save``."""
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)


def _weights_in(content: Mapping[str, Any], names: Sequence[str]) -> dict[str, Tensor]:
    """Return the state dict under the first of the names that is there, else the content itself.

    timm's own function loses torch's metadata, in which our files hold their schedule.
    """
    name = next((name for name in names if content.get(name) is not None), None)
    content = content if name is None else content[name]
    weights: Any = OrderedDict(clean_state_dict(content))
    metadata = {f"{name}." if name else "": value for name, value in _metadata(content).items()}
    metadata = clean_state_dict(metadata)
    if metadata:
        weights._metadata = {name.removesuffix("."): value for name, value in metadata.items()}
    return weights


def _metadata(state_dict: Mapping[str, Tensor]) -> Mapping[str, dict]:
    """Return what torch notes about each module besides its weights."""
    return getattr(state_dict, "_metadata", {})


def load_official(model: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Load the authors' Evo-DeiT or Evo-LeViT weights into an ``evo_*`` model.

    Their classifiers of the class token are loaded if the model has them, which is to say after
    ``model.set_training_outputs(True)``; otherwise these are left out.

    Raises:
        ValueError: listing every missing, unexpected or misshapen key; nothing is loaded then.
    """
    load_exactly(model, model.from_official(state_dict))


def with_new_names(entries: Mapping[str, Any]) -> dict[str, Any]:
    """Return weights or metadata of an older file under the names that they have now."""
    return {OLD_NAMES.get(name, name): value for name, value in entries.items()}


def has_own_keys(state_dict: Mapping[str, Tensor], model: nn.Module) -> bool:
    """Return whether weights have the keys of an ``evo_*`` model, not those of the authors' code.

    Keys of parts that only training needs don't decide it: the authors name them as we do.
    """
    names = {key for key in with_new_names(state_dict) if not key.startswith(_training_parts(model))}
    return names - {OLD_SCHEDULE} <= model.state_dict().keys()


def _training_parts(model: nn.Module) -> tuple[str, ...]:
    """Return the beginnings of the keys of the parts that only training needs."""
    return tuple(f"{part}." for part in getattr(model, "training_parts", ()))


def load_exactly(model: nn.Module, state_dict: Mapping[str, Tensor], fresh: Sequence[str] = ()) -> list[str]:
    """Load every key or nothing; keys that start with one of ``fresh`` may be absent.

    Keys of parts that only training needs are left out where the model has no such parts.

    Returns:
        The absent keys, which keep their fresh values.

    Raises:
        ValueError: listing every missing, unexpected or misshapen key.
    """
    own = model.state_dict()
    metadata = _metadata(state_dict)
    state_dict = OrderedDict(with_new_names(state_dict))
    if metadata:
        state_dict._metadata = metadata  # type: ignore[attr-defined]  # as torch does
    parts = _training_parts(model)
    unneeded = () if any(key.startswith(parts) for key in own) else parts
    absent = [key for key in own if key not in state_dict]
    faults = [f"missing {key}" for key in absent if not key.startswith(tuple(fresh))]
    for key, value in state_dict.items():
        if key.startswith(unneeded) or (parts and key == OLD_SCHEDULE):
            continue
        if key not in own:
            faults.append(f"unexpected {key}")
        elif value.shape != own[key].shape:
            faults.append(f"{key} is {tuple(value.shape)}, needed {tuple(own[key].shape)}")
    if faults:
        raise ValueError("the state dict does not fit: " + "; ".join(faults))
    model.load_state_dict(state_dict, strict=False)
    return absent


def filter_deit(state_dict: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    """Filter pretrained weights of a plain DeiT or an Evo-DeiT for timm."""
    return add_saved_metadata(checkpoint_filter_fn(dict(state_dict), model), model)


def add_saved_metadata(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """Return pretrained weights with the metadata that timm lost, so that the model can check it.

    The schedule is in the file that ``pretrained_cfg_overlay`` names, or in the arguments that timm
    saved with the weights.
    """
    state_dict = OrderedDict(state_dict)
    metadata = _metadata_of_source(getattr(model, "pretrained_cfg", None) or {})
    schedule = getattr(model, "pretrained_model_args", {}).get("schedule")
    if "schedule" not in metadata.get("", {}) and schedule is not None:
        metadata = {**metadata, "": {**model.metadata(), "schedule": schedule}}
    if metadata:
        state_dict._metadata = metadata  # type: ignore[attr-defined]  # as torch does
    return state_dict


def _metadata_of_source(cfg: Mapping[str, Any]) -> Mapping[str, dict]:
    """Return torch's metadata in the file that timm loads by a ``pretrained_cfg``."""
    path = cfg.get("file")
    if not path or cfg.get("state_dict") or not Path(path).is_file():
        return {}  # timm hands on a copy of that state dict, without metadata
    if not zipfile.is_zipfile(path):  # safetensors, or a format older than our metadata
        return {}
    names = ("state_dict_ema", "model_ema", "state_dict", "model")  # timm's order
    return _metadata(_weights_in(_read_pickled(path, mmap=True), names))


def deit_from_official(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return Evo-DeiT's weights under our keys; the authors have lists of qk, v, proj and norm1 of all blocks."""
    renamed: dict[str, Tensor] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    for key, value in state_dict.items():
        if match := re.fullmatch(r"(qks|vs)\.(\d+)\.(?:qk|v)\.(weight|bias)", key):
            kind, block, name = match.groups()
            parts.setdefault(f"blocks.{block}.attn.qkv.{name}", {})[kind] = value
            continue
        key = re.sub(r"^projs\.(\d+)\.", r"blocks.\1.attn.proj.", key)
        renamed[re.sub(r"^norms\.(\d+)\.", r"blocks.\1.norm1.", key)] = value
    for key, halves in parts.items():
        if set(halves) != {"qks", "vs"}:
            raise ValueError(f"the state dict does not fit: only {sorted(halves)} of {key}")
        renamed[key] = torch.cat((halves["qks"], halves["vs"]))  # rows: query, key, value
    return renamed


def levit_from_official(state_dict: Mapping[str, Tensor], depths: Sequence[int]) -> dict[str, Tensor]:
    """Return Evo-LeViT's weights under our keys; the authors have one list of blocks, sub-sampling ones included.

    Args:
        depths: blocks per stage.
    """
    modules = []  # ours, in the authors' order
    for stage, depth in enumerate(depths):
        if stage > 0:
            downsample = f"stages.{stage}.downsample"
            modules += [downsample, downsample]  # the attention, then its MLP
        modules += [f"stages.{stage}.blocks.{block}" for block in range(depth)]
    renamed, logits = {}, {}
    for key, value in _without_twins(state_dict).items():
        match = re.fullmatch(r"blocks\.(\d+)\.(.+)", key)
        if key.endswith("learn_tradeoff") and match:
            logits[int(match[1])] = value
        elif match and int(match[1]) < len(modules):
            renamed[f"{modules[int(match[1])]}.{_levit_layer(match[2])}"] = value
        else:
            key = re.sub(r"^patch_embed\.(\d+)\.", _stem_layer, key)
            renamed[_levit_layer(key)] = value
    if logits:
        # Theirs weighs the new score, ours the previous one: sigmoid(-x) = 1 - sigmoid(x).
        renamed["alpha_logits"] = -torch.cat([logits[i] for i in sorted(logits)])
    return renamed


def _stem_layer(match: re.Match) -> str:
    return f"stem.conv{int(match[1]) // 2 + 1}."


def _levit_layer(name: str) -> str:
    """Return timm's name of a layer inside a block, or of a head, for the authors' name."""
    name = re.sub(r"^m1\.m\.", "attn.", name)
    name = re.sub(r"^(?:m2\.)?m\.([02])\.", lambda m: f"mlp.ln{int(m[1]) // 2 + 1}.", name)
    name = re.sub(r"^q\.1\.", "q.", name)
    name = re.sub(r"^poss$", "pos_embed", name)
    name = name.replace("proj.1.", "proj.ln.")
    return re.sub(r"\.[cl]\.", ".linear.", name)


def _without_twins(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights without the copies of all blocks that the authors register; these must be equal."""
    blocks = [key for key in state_dict if key.startswith("blocks.")]
    twins = [key for key in state_dict if key.startswith("stage_blocks.")]
    if twins and len(twins) != len(blocks):
        raise ValueError(f"the state dict does not fit: {len(twins)} keys stage_blocks.*, {len(blocks)} blocks.*")
    for key, twin in zip(blocks, twins, strict=False):
        ends_alike = key.rsplit(".", 1)[1] == twin.rsplit(".", 1)[1]
        if not (ends_alike and torch.equal(state_dict[key], state_dict[twin])):
            raise ValueError(f"the state dict does not fit: {twin} differs from {key}")
    return {key: value for key, value in state_dict.items() if key not in set(twins)}
