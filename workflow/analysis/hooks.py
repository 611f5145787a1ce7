"""A dense vision transformer observed layer by layer: tokens, queries, class attention, and relevance by Captum.

Forward hooks on timm's modules observe it, so the model computes as it always does. Token selection is observed by
``evovit.trace`` instead.
"""

from typing import NamedTuple

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from evovit import tokens as tk
from evovit.host import EvoHost
from workflow.train.factory import SpecError

ALPHA = 0.5  # of Eq. 4, the paper's value in all layers
RELEVANCE = "gradient x attention, rolled out (Chefer et al. 2021, ICCV), by Captum"


class Layer(NamedTuple):
    """What one block makes of B images; patches in raster order."""

    tokens: Tensor  # (B, 1 + N, C) after the block, class token first
    queries: Tensor  # (B, N, C) of the patches, all heads side by side
    class_attention: Tensor  # (B, N), Eq. 3, mean over the heads
    global_attention: Tensor  # (B, N), Eq. 4 from the first block on


def check_dense(model: nn.Module, run: str) -> None:
    """Raise SpecError unless it is a plain vision transformer that predicts by its class token."""
    if (
        not isinstance(model, VisionTransformer)
        or isinstance(model, EvoHost)
        or model.global_pool != "token"
        or model.num_prefix_tokens != 1
    ):
        raise SpecError(
            f"{run} is a {type(model).__name__}, but this analysis observes dense vision transformers with a class "
            "token; name such a run under `analyses` in workflow/config/items.yaml."
        )


@torch.no_grad()
def observe(model: VisionTransformer, images: Tensor) -> list[Layer]:
    """Return what every block makes of images (B, 3, H, W), first block first."""
    outputs: dict[str, list[Tensor]] = {"tokens": [], "queries": [], "keys": []}
    hooks = []
    for block in model.blocks:
        for module, name in ((block, "tokens"), (block.attn.q_norm, "queries"), (block.attn.k_norm, "keys")):
            hooks.append(module.register_forward_hook(_append_to(outputs[name])))
    try:
        model(images)
    finally:
        for hook in hooks:
            hook.remove()
    layers: list[Layer] = []
    for block, tokens, queries, keys in zip(model.blocks, *outputs.values(), strict=True):
        attention = tk.class_attention(queries[:, :, 0], _joined(keys), block.attn.scale)
        attention = attention[:, :, 1:].mean(dim=1)
        before = layers[-1].global_attention if layers else None
        evolved = tk.evolve_scores(before, attention, ALPHA)
        layers.append(Layer(tokens, _joined(queries)[:, 1:], attention, evolved))
    return layers


def _append_to(outputs: list[Tensor]):
    return lambda module, arguments, output: outputs.append(output)


def _joined(heads: Tensor) -> Tensor:
    """Return (B, H, L, D) with the heads side by side, (B, L, H * D)."""
    return heads.transpose(1, 2).flatten(2)


def relevance(model: VisionTransformer, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the relevance (B, N) of the patches of images (B, 3, H, W) for the predicted class, and the class (B,).

    In each layer the attention matrix is weighed with its gradient; the positive part, averaged over the heads, is
    added to the identity, and the products over the layers say how much of the last class token comes from each patch
    (Chefer, Gur and Wolf, Generic Attention-model Explainability, ICCV 2021, Eqs. 5 and 6). Their CVPR 2021 method,
    which the Evo-ViT paper shows, uses layer-wise relevance propagation instead of the attention.

    The model is left with unfused attention, which shows its matrices.
    """
    from captum.attr import LayerGradientXActivation  # takes seconds, and only Figure 2 needs it

    for block in model.blocks:
        block.attn.fused_attn = False
    with torch.no_grad():
        predicted = model(images).argmax(dim=1)
    attentions = [block.attn.attn_drop for block in model.blocks]
    weighed = LayerGradientXActivation(model, attentions).attribute(images, target=predicted)
    length = weighed[0].shape[-1]
    carried = torch.eye(length, device=images.device).expand(len(images), -1, -1)
    for layer in weighed:  # (B, H, L, L), first block first
        carried = carried + layer.detach().clamp_min(0).mean(dim=1) @ carried
    return carried[:, 0, 1:], predicted
