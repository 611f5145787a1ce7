"""Evo-ViT: structure-preserving token selection and slow-fast token updating (AAAI 2022).

Importing this package registers its models in timm. Start reading at ``evovit/tokens.py``.
"""

from . import deit, levit
from .conversion import to_dense
from .deit import from_timm
from .slow_fast import Trace, trace

__all__ = ["Trace", "deit", "from_timm", "levit", "to_dense", "trace"]
