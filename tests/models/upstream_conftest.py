"""Put beside timm's own tests/test_models.py: its tests then see this project's models alone.

``test_upstream`` copies this file to a temporary folder; it serves no test of this project.
"""

import pytest
import timm

from baselines import topk
from tests.models.families import FAMILIES, fixed_scores

topk.draw_scores = fixed_scores  # timm compares two passes of a model

# The smallest model of each family: sizes differ in numbers only, and test_timm_contract.py looks at all of them.
FAMILY_OF = {family.example: family for family in FAMILIES.values()}
OF_IMAGES = ("img_size", "patch_size", "num_classes")  # timm's tests take them from the configuration of the name
create_model = timm.create_model

# What no model here supports and test_timm_contract.py sees refused by each, in less time; timm's plain DeiT supports
# TorchScript.
FX = ("test_model_forward_fx", "test_model_backward_fx", "test_model_forward_fx_torchscript")
TORCHSCRIPT = "test_model_forward_torchscript"
# What one or two models do not support
BACKWARD = "test_model_backward"  # IA-RED2's interpreters learn from rewards, not from this loss
META = "test_model_default_cfgs_non_std"  # on the meta device no image says who is kept


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
    return [] if asks_for_others else list(FAMILY_OF)


def create_narrow_model(name, *args, **kwargs):
    """Create a model of this project as narrow as in the other tests: timm prunes each at every block."""
    family = FAMILY_OF.get(name)
    narrow = {} if family is None else {key: value for key, value in family.small.items() if key not in OF_IMAGES}
    return create_model(name, *args, **{**narrow, **kwargs})


timm.list_models = list_models
timm.create_model = create_narrow_model


def pytest_configure(config):
    """Know the markers of timm's own configuration."""
    for marker in ("base", "forward", "backward", "cfg", "cfg_nonstd", "torchscript", "features",
                   "fxforward", "fxbackward", "timeout(seconds)"):  # fmt: skip
        config.addinivalue_line("markers", marker)


def _is_refused(test, name):
    return test in FX or (test == TORCHSCRIPT and not name.startswith("plain_deit"))


def _is_exception(test, name):
    return (test == META and name.startswith(("ia_red2", "ats"))) or (test == BACKWARD and name.startswith("ia_red2"))


def pytest_collection_modifyitems(config, items):
    """Leave out the tests of timm's own models and of what is refused, and mark the known exceptions."""
    kept, left_out = [], []
    for item in items:
        name = item.callspec.params.get("model_name") if hasattr(item, "callspec") else None
        test = item.originalname
        wanted = name in FAMILY_OF and not _is_refused(test, name)
        (kept if wanted else left_out).append(item)
        if wanted and _is_exception(test, name):
            error = AssertionError if test == BACKWARD else NotImplementedError
            item.add_marker(pytest.mark.xfail(raises=error, strict=True))
    config.hook.pytest_deselected(items=left_out)
    items[:] = kept
