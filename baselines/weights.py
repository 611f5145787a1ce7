"""What several methods need for loading weights of a plain DeiT, of timm or of the authors."""

import logging
from collections.abc import Mapping
from typing import Any

import torch
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor, nn

_logger = logging.getLogger(__name__)


def complete_dense(state_dict: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    """Filter pretrained weights for timm: those of a plain DeiT get the model's own ``fresh_keys``, logged."""
    filtered = split_weights(model, checkpoint_filter_fn(dict(state_dict), model))
    fresh = {
        key: value
        for key, value in model.state_dict().items()
        if key.startswith(model.fresh_keys) and key not in filtered
    }
    if fresh:
        _logger.warning("plain DeiT weights, these keys start fresh: %s", ", ".join(fresh))
    return {**filtered, **fresh}


class SplitsWeights(nn.Module):
    """A layer that holds in two linear layers what timm or the authors keep in one.

    Tools that wrap or replace linear layers (LoRA, int8, pruning, hooks) reach a weight only where
    the layer that owns it is called. A subclass defines ``split`` and ``join``; ``load_state_dict``
    takes both kinds of keys.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.register_load_state_dict_pre_hook(_split_before_loading)

    @staticmethod
    def split(state_dict: dict[str, Tensor], prefix: str) -> None:
        """Replace the joined keys, if the state dict has them, by the layer's own."""
        raise NotImplementedError

    @staticmethod
    def join(state_dict: dict[str, Tensor], prefix: str) -> None:
        """Replace the layer's own keys by the joined ones."""
        raise NotImplementedError


def _split_before_loading(layer: SplitsWeights, state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:
    layer.split(state_dict, prefix)


def split_weights(model: nn.Module, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict with timm's or the authors' keys under the model's own."""
    state_dict = dict(state_dict)
    for name, layer in model.named_modules():
        if isinstance(layer, SplitsWeights):
            layer.split(state_dict, f"{name}.")
    return state_dict


def joined_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return a model's weights under timm's or the authors' keys; the joined ones are copies."""
    state_dict = dict(model.state_dict())
    for name, layer in model.named_modules():
        if isinstance(layer, SplitsWeights):
            layer.join(state_dict, f"{name}.")
    return state_dict


def refuse_averaged_masks(model: nn.Module, state_dict: Mapping[str, Tensor], prefix: str, *_: Any) -> None:
    """Refuse values of a mask (a bool buffer) that are neither 0 nor 1; a hook before loading weights.

    torch would take each of them for True.

    Raises:
        ValueError: naming the mask; nothing is loaded then.
    """
    for name, buffer in model.named_buffers():
        mask = state_dict.get(f"{prefix}{name}")
        if buffer.dtype != torch.bool or mask is None or mask.dtype == torch.bool or mask.is_meta:
            continue
        if not ((mask == 0) | (mask == 1)).all():
            raise ValueError(
                f"the state dict's mask {prefix}{name} holds values other than 0 and 1 (were weights "
                "with different masks averaged?): average only weights that share their masks"
            )
