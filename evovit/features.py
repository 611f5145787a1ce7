"""What timm asks of a model besides its logits: feature maps, pooling, empty batches, capture of its graph."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import global_pool_nlc
from torch import Tensor, fx
from torch.utils._pytree import tree_map

if TYPE_CHECKING:  # a class that is mixed into a module uses what modules have
    from torch.nn import Module as Mixin
else:
    Mixin = object


def fill_grid(tokens: Tensor, kept: Tensor, before: Tensor, prefix: int = 1) -> Tensor:
    """Return all tokens of the grid; a patch that was dropped keeps its last value.

    Args:
        tokens: the ``prefix`` tokens before the patches, and the patches still present (B, prefix + n, C).
        kept: positions (B, n) of these patches on the grid of N patches.
        before: all tokens (B, prefix + N, C) as they were earlier.
    """
    if prefix == 1:
        positions = F.pad(kept + 1, (1, 0))  # the class token's is 0
    else:
        first = torch.arange(prefix, device=kept.device).expand(kept.shape[0], -1)
        positions = torch.cat((first, kept + prefix), dim=1)
    return before.scatter(1, positions.unsqueeze(2).expand_as(tokens), tokens.to(before.dtype))


def pack_intermediates(
    intermediates: Sequence[Tensor],
    grids: Sequence[tuple[int, int]],
    final: Tensor,
    *,
    output_fmt: str = "NCHW",
    return_prefix_tokens: bool = False,
    intermediates_only: bool = False,
    output_dict: bool = False,
    prefix: int = 1,
) -> Any:
    """Return what timm's ``VisionTransformer.forward_intermediates`` returns.

    Args:
        intermediates: all tokens (B, prefix + H * W, C) after each block asked for.
        grids: height and width (H, W) of each of them.
        final: the tokens that ``forward_features`` returns.
        output_fmt: "NCHW" for maps (B, C, H, W) or "NLC" for patches (B, H * W, C).
        prefix: number of tokens before the patches.

    Raises:
        ValueError: for another ``output_fmt``.
    """
    if output_fmt not in ("NCHW", "NLC"):
        raise ValueError(f"output_fmt={output_fmt!r} is not one of NCHW, NLC")
    prefixes = [tokens[..., :prefix, :] for tokens in intermediates]
    features = [tokens[..., prefix:, :] for tokens in intermediates]
    if output_fmt == "NCHW":
        features = [
            patches.transpose(-2, -1).unflatten(2, grid).contiguous()
            for patches, grid in zip(features, grids, strict=True)
        ]
    if output_dict:
        result: dict[str, Any] = {"image_intermediates": features}
        if return_prefix_tokens:
            result["image_intermediates_prefix"] = prefixes
        return result if intermediates_only else {**result, "image_features": final}
    if return_prefix_tokens:
        features = list(zip(features, prefixes, strict=True))
    return features if intermediates_only else (final, features)


class TokenPooling(Mixin):
    """Mixed into a timm Vision Transformer, so that torch.export takes batches without a limit."""

    def pool(self, x: Tensor, pool_type: str | None = None) -> Tensor:
        """Pool tokens (B, L, C) to (B, C), or to themselves where pooling is ''.

        This is timm's method without its slices of all images, which torch 2.7 takes for a limit.
        """
        pool_type = self.global_pool if pool_type is None else pool_type
        if self.attn_pool is None:
            if pool_type == "":
                return x
            if pool_type == "token":
                return x.select(1, 0)
        if not self.pool_include_prefix:
            x = x[..., self.num_prefix_tokens :, :]
        if self.attn_pool is not None:
            return self.attn_pool(x)
        return global_pool_nlc(x, pool_type, reduce_include_prefix=True)


class NoSymbolicGraph(Mixin):
    """Mixed into a model that neither TorchScript nor torch.fx can capture, to say so.

    torch.fx hands placeholders to ``forward`` instead of tensors; a model refuses them with
    ``refuse_symbolic_tracing`` before its own checks answer with another reason.
    """

    def __prepare_scriptable__(self) -> None:
        """Refuse ``torch.jit.script``, which asks for this method before it compiles a module."""
        raise NotImplementedError(
            f"TorchScript can't compile {type(self).__name__}: use torch.jit.trace or torch.export"
        )

    def refuse_symbolic_tracing(self, x: Any) -> None:
        """Refuse ``torch.fx.symbolic_trace`` and what is built on it (feature_cls="fx").

        Raises:
            NotImplementedError: if ``x`` is a placeholder of torch.fx.
        """
        if isinstance(x, fx.Proxy):
            raise NotImplementedError(
                f"torch.fx can't trace {type(self).__name__}: use torch.export for its graph, "
                "forward_intermediates() or features_only=True for its features"
            )


def of_no_images(method: Callable[..., Any], x: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Return what a model's method gives for a batch without images (0, 3, H, W).

    timm's methods can't reshape such a batch, so this cuts the results for one black image.
    """
    results = method(x.new_zeros(1, *x.shape[1:]), *args, **kwargs)
    return tree_map(lambda result: result[:0], results)


def refuse_empty_training(model: torch.nn.Module, x: Tensor) -> None:
    """Refuse a batch without images where it would make NaN of BatchNorm's statistics.

    Raises:
        ValueError: in training, if ``x`` (B, 3, H, W) holds no image.
    """
    if model.training and x.shape[0] == 0:
        raise ValueError(
            "a batch without images in training: BatchNorm's statistics would become NaN, so leave such batches out"
        )
