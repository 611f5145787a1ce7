"""What a prediction rests on: gradient times attention, by Captum, carried through the layers.

Nothing else imports Captum.
"""

import torch
from captum.attr import LayerGradientXActivation
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

METHOD = "gradient x attention, rolled out (Chefer et al. 2021, ICCV), by Captum"


def relevance(model: VisionTransformer, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the relevance (B, N) of images' patches for the predicted class, and the class (B,).

    `images` are (B, 3, H, W). In each layer the attention matrix is weighed with its gradient; the
    positive part, averaged over the heads, is added to the identity, and the products over the
    layers say how much of the last class token comes from each patch (Chefer, Gur and Wolf, Generic
    Attention-model Explainability, ICCV 2021, Eqs. 5 and 6). Their CVPR 2021 method, which the
    Evo-ViT paper shows, takes layer-wise relevance propagation in the place of the attention.

    The model is left with unfused attention, which shows its matrices.
    """
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
