"""What Evo-ViT is compared with. Importing this package imports all its modules, which register their
models in timm and their training tasks in evovit.task."""

import importlib
import pkgutil

from .any_vit import from_timm, to_dense

__all__ = ["from_timm", "to_dense"]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
