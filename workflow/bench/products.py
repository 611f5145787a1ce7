"""Convolutions whose windows neither overlap nor leave gaps (patch embeddings, PVTv2's spatial
reduction) as matrix products.

cuDNN has no fast kernel for three channels in bf16: of compiled DeiT-S on an H200, a fifth of the
time was this one convolution (results/measured/).
"""

from torch import Tensor, nn


class PatchProduct(nn.Module):
    """The same map as a convolution with stride = kernel size: (B, C, H, W) to (B, D, H/p, W/q)."""

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        self.kernel_size = conv.kernel_size
        sizes = conv.weight[0].numel(), conv.out_channels
        self.product = nn.Linear(*sizes, bias=conv.bias is not None, device="meta")
        self.product.weight = nn.Parameter(conv.weight.detach().flatten(1))
        if conv.bias is not None:
            self.product.bias = conv.bias

    def forward(self, x: Tensor) -> Tensor:
        height, width = self.kernel_size
        x = x[..., : x.shape[2] // height * height, : x.shape[3] // width * width]
        x = x.unflatten(3, (-1, width)).unflatten(2, (-1, height))  # (B, C, H/p, p, W/q, q)
        x = x.permute(0, 2, 4, 1, 3, 5).flatten(3)
        return self.product(x).permute(0, 3, 1, 2)


def is_patches(module: nn.Module) -> bool:
    """Whether a module is such a convolution."""
    return (
        type(module) is nn.Conv2d  # others compute their weight first
        and module.kernel_size == module.stride
        and module.padding in ((0, 0), "valid")
        and module.dilation == (1, 1)
        and module.groups == 1
        and module.kernel_size != (1, 1)
    )


def with_products(module: nn.Module) -> nn.Module:
    """The module, such convolutions replaced in place."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if is_patches(child):
                setattr(parent, name, PatchProduct(child))
    return module
