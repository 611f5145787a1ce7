"""Evo-ViT: structure-preserving token selection and slow-fast token updating (AAAI 2022).

Importing this package registers its models in timm. Start reading at ``evovit/tokens.py``.
"""

from . import deit, levit
from .conversion import to_dense
from .deit import from_timm
from .slow_fast import Trace, trace

__all__ = ["Trace", "__version__", "deit", "from_timm", "levit", "to_dense", "trace"]

__version__ = "0.1.0"  # of the distribution, with baselines
