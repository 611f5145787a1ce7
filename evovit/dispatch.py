"""Which form of the algorithm's functions a forward pass runs."""

from types import ModuleType

import torch
from torch import Tensor

from . import fusible, tokens


def functions_for(x: Tensor) -> ModuleType:
    """``fusible`` where a compiler traces inference on a GPU, else ``tokens``."""
    traced = torch.compiler.is_compiling() and x.is_cuda and not torch.is_grad_enabled()
    return fusible if traced else tokens
