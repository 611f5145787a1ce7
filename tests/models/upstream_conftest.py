"""Put beside timm's own tests/test_models.py: its tests then see this project's models alone.

``test_upstream`` copies this file to a temporary folder; it serves no test of this project.
"""

import pytest
import timm

timm_models = set(timm.list_models())

import baselines.topk  # noqa: E402 (registers its models)
import evovit  # noqa: E402, F401
from tests.models.families import fixed_scores  # noqa: E402

baselines.topk.draw_scores = fixed_scores  # timm compares two passes of a model

NAMES = [name for name in timm.list_models() if name not in timm_models]
SMALLEST = [name for name in NAMES if "_tiny_" in name or name.endswith("_128s")]

# What no model here supports; each answers with a sentence (tests/models/test_timm_contract.py).
FX = ("test_model_forward_fx", "test_model_backward_fx", "test_model_forward_fx_torchscript")
TORCHSCRIPT = "test_model_forward_torchscript"  # timm's plain DeiT supports it
BACKWARD = "test_model_backward"  # IA-RED2's interpreters learn from rewards, not from this loss
META = "test_model_default_cfgs_non_std"  # on the meta device no image says who is kept
# Sizes differ in widths alone: the one test without data runs on every name, the others on the
# smallest model of each family.
FOR_ALL_SIZES = (META,)


def list_models(filter="", module="", pretrained=False, exclude_filters="", **_):
    """Answer timm's tests with the names of this project where they ask for transformers.

    timm calls its own transformers non-standard, since they give tokens and not maps, and lists
    the modules whose models have ``forward_intermediates``.
    """
    asks_for_others = (
        pretrained
        or "vit_*" in exclude_filters
        or (filter and "vit_*" not in filter)
        or (module and "vision_transformer" not in module)
    )
    return [] if asks_for_others else NAMES


timm.list_models = list_models


def pytest_configure(config):
    """Know the markers of timm's own configuration."""
    for marker in ("base", "forward", "backward", "cfg", "cfg_nonstd", "torchscript", "features",
                   "fxforward", "fxbackward", "timeout(seconds)"):  # fmt: skip
        config.addinivalue_line("markers", marker)


def _is_exception(test, name):
    return (
        test in FX
        or (test == TORCHSCRIPT and not name.startswith("plain_deit"))
        or (test == META and name.startswith(("ia_red2", "ats")))
        or (test == BACKWARD and name.startswith("ia_red2"))
    )


def pytest_collection_modifyitems(config, items):
    """Leave out the tests of timm's own models, and mark the known exceptions."""
    kept, left_out = [], []
    for item in items:
        name = item.callspec.params.get("model_name") if hasattr(item, "callspec") else None
        test = item.originalname
        wanted = name in (NAMES if test in FOR_ALL_SIZES else SMALLEST)
        (kept if wanted else left_out).append(item)
        if wanted and _is_exception(test, name):
            error = AssertionError if test == BACKWARD else NotImplementedError
            item.add_marker(pytest.mark.xfail(raises=error, strict=True))
    config.hook.pytest_deselected(items=left_out)
    items[:] = kept
