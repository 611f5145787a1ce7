"""What a prediction rests on: gradient times attention, by Captum, carried through the layers.

Captum is imported here alone.
"""

import torch
from captum.attr import LayerGradientXActivation
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

METHOD = "gradient x attention, rolled out (Chefer et al. 2021, ICCV), by Captum"


def relevance(model: VisionTransformer, images: Tensor) -> tuple[Tensor, Tensor]:
    """The relevance (B, N) of the patches of images (B, 3, H, W) for the class that the model
    predicts, and that class (B,).

    In each layer the attention matrix is weighed with its gradient; the positive part, averaged
    over the heads, is added to the identity, and the products over the layers say how much of the
    last class token comes from each patch (Chefer, Gur and Wolf, Generic Attention-model
    Explainability, ICCV 2021, Eqs. 5 and 6). Their CVPR 2021 method, which the Evo-ViT paper
    shows, takes layer-wise relevance propagation in the place of the attention.

    The model is left with unfused attention, for its matrices to be seen.
    """
    for block in model.blocks:
        block.attn.fused_attn = False
    with torch.no_grad():
        predicted = model(images).argmax(dim=1)
    attentions = [block.attn.attn_drop for block in model.blocks]
    weighed = LayerGradientXActivation(model, attentions).attribute(images, target=predicted)
    length = weighed[0].shape[-1]
    found = torch.eye(length, device=images.device).expand(len(images), -1, -1)
    for layer in weighed:  # (B, H, L, L), first block first
        found = found + layer.detach().clamp_min(0).mean(dim=1) @ found
    return found[:, 0, 1:], predicted
