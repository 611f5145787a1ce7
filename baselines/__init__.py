"""What Evo-ViT is compared with. Importing this package registers its models in timm."""

from . import deit, dynamicvit, iared2, levit, psvit, subsample, svite

__all__ = ["deit", "dynamicvit", "iared2", "levit", "psvit", "subsample", "svite"]
