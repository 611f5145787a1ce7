"""Which form of the algorithm's functions a forward pass runs.

Both modules have the same functions with the same parameters, though not each form needs each of
them; what they hand to one another (a selection, scores, a row) is their own.
"""

from types import ModuleType

import torch
from torch import Tensor

from . import fusible, tokens


def functions_for(x: Tensor) -> ModuleType:
    """``fusible`` where a compiler traces inference on a GPU, else ``tokens``.

    What is exported must do without our operation, too.
    """
    compiling = torch.compiler.is_compiling() and not torch.compiler.is_exporting()
    return fusible if compiling and x.is_cuda and not torch.is_grad_enabled() else tokens
