"""Build what a spec names: models with their starting weights, training tasks, and mixed precision."""

import functools
import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import timm
import torch
from timm.data import resolve_model_data_config
from timm.layers import convert_sync_batchnorm, to_2tuple
from timm.task import TrainingTask
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import baselines  # registers its models with timm, and its tasks
import evovit
from evovit.task import TASKS, AssistedTokenTask
from workflow.campaign.config import nearest
from workflow.runtime.device import check_precision
from workflow.train import checkpoints

AUTOCAST_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


class SpecError(ValueError):
    """A spec names a model, keyword argument or task that does not exist; says the nearest one."""


PATCHES = 196  # that ToMe's `r` is meant for


def build_model(model: dict, device: torch.device | str | None = None) -> nn.Module:
    """Build timm's model of a spec's {"name", "kwargs"}; with a "method", reduced by it with the keywords "options".

    Raises SpecError for an unknown model or keyword argument and for values it refuses.
    """
    built = _build_timm(model, device)
    if "method" not in model:
        return built
    patches = getattr(getattr(built, "patch_embed", None), "num_patches", None)
    return reduced(built, model["method"], scaled(model["options"], patches or PATCHES))


def _build_timm(model: dict, device: torch.device | str | None) -> nn.Module:
    name = model["name"]
    kwargs = model["kwargs"]
    if not timm.is_model(name):
        raise SpecError(f"No model is called {name!r}{nearest(name, timm.list_models())}")
    try:
        with torch.device(device or "cpu"):
            return timm.create_model(name, **kwargs)
    except TypeError as error:
        unknown = [key for key in kwargs if f"'{key}'" in str(error)]
        hint = nearest(unknown[0], sorted(_arguments(name))) if unknown else ""
        raise SpecError(f"{name} refuses {kwargs}: {error}{hint}") from error
    except (ValueError, AssertionError) as error:
        raise SpecError(f"{name} refuses {kwargs}: {error}") from error
    except RuntimeError as error:
        if "Invalid pretrained tag" not in str(error):
            raise
        tags = timm.list_pretrained(f"{name.partition('.')[0]}.*")
        raise SpecError(f"timm has no weights called {name!r}{nearest(name, tags)}") from error


def at_strength(method: str, options: dict, patches: int) -> dict:
    """Return the keywords of from_timm for a method's `keep_ratio` or `r`, on a host with this number of patches.

    `r` is of 196 patches. ATS has no ratio of its own, and here keeps as many of its best patches as Top-K.
    """
    if method == "ats":
        return {"keep_profile": [round(options["keep_ratio"] ** times, 6) for times in (1, 2, 3)]}
    return scaled(options, patches)


def scaled(options: dict, patches: int) -> dict:
    """Return a method's keywords for a host with this number of patches: `r` is of 196 patches, and at least 1."""
    if isinstance(options.get("r"), int) and options["r"] > 0:
        return {**options, "r": max(1, round(options["r"] * patches / PATCHES))}
    return options


def image_size(model: nn.Module) -> tuple[int, int]:
    """Return height and width, in pixels, of the images that a model takes."""
    for module in (model, getattr(model, "patch_embed", None)):
        size = getattr(module, "img_size", None)
        if size is not None:
            return to_2tuple(size)
    # convolutional networks and pyramids take any size; timm notes the usual one
    return tuple(model.pretrained_cfg["input_size"][1:])


def data_config(model: nn.Module) -> dict:
    """Return timm's `input_size` (3, H, W), `mean`, `std` and so on of the images that a model takes."""
    return resolve_model_data_config(model) | {"input_size": (3, *image_size(model))}


def _arguments(name: str) -> set[str]:
    """Return the names of the keyword arguments along the class hierarchy of a model."""
    cls = type(timm.create_model(name))
    return {
        parameter
        for base in cls.__mro__
        if issubclass(base, nn.Module) and base is not nn.Module
        for method in ("__init__", "configure")
        if method in vars(base)
        for parameter in inspect.signature(getattr(base, method)).parameters
    } - {"self"}


def task_class(name: str) -> type:
    """Return the class of a training task or a search that a recipe names.

    Raises SpecError for an unknown name, with the nearest.
    """
    if name in TASKS:
        return TASKS[name]
    raise SpecError(f"No task is called {name!r}{nearest(name, sorted(TASKS))}")


def build_started(spec: dict, site: dict) -> nn.Module:
    """Build the spec's model and load the weights that it starts from, if it names any."""
    return load_start(build_model(spec["model"]), spec, site)


def load_start(model: nn.Module, spec: dict, site: dict) -> nn.Module:
    """Load the weights that the spec's model starts from, if it names any. Return the model."""
    if "pretrained" in spec:
        checkpoints.load_pretrained(model, spec, site)
    if "start" in spec:
        weights = checkpoints.final_weights(site, spec["start"])
        if _kind_of(spec["start"]["model"]) == _kind_of(spec["model"]):
            model.load_state_dict(weights)
        else:
            model.load_pretrained_dense(weights)
    return model


def build_host(spec: dict, site: dict) -> nn.Module:
    """Build one of a setting's `hosts`, with the weights that its training ended with or those of a file."""
    if "start" in spec:
        return build_started(spec, site)
    model = build_model(spec["model"])
    checkpoints.load_external(model, spec, site)
    return model


def _kind_of(model: dict) -> tuple[str, str | None]:
    return model["name"], model.get("method")


def reduced(model: nn.Module, method: str, kwargs: dict) -> nn.Module:
    """Return a dense model with its tokens reduced by "evo" or a method of baselines.from_timm; both share the weights.

    Raises SpecError, with its own sentence, if from_timm refuses the model or the arguments.
    """
    try:
        if method == "evo":
            return evovit.from_timm(model, **kwargs)
        return baselines.from_timm(model, method, **kwargs)
    except (TypeError, ValueError) as error:
        raise SpecError(str(error)) from error


def make_task(spec: dict, cls: type, *arguments, **kwargs):
    """Build a task or a search. Raises SpecError, with its own sentence, if it refuses its arguments."""
    try:
        return cls(*arguments, **kwargs)
    except (TypeError, ValueError) as error:
        source = f"{spec['run']}, recipe {spec['recipe']['name']} (workflow/config/recipes.yaml)"
        raise SpecError(f"{source}: {cls.__name__} refuses its arguments: {error}") from error


def freeze_statistics(module: nn.Module) -> None:
    """Let BatchNorm use its running statistics and keep them as they are, until the next train()."""
    for layer in module.modules():
        if isinstance(layer, _BatchNorm):
            layer.eval()


def build_task(spec: dict, site: dict, device: torch.device) -> TrainingTask:
    """Build the spec's task around its model, with starting weights and a frozen teacher if it has them.

    Raises SpecError for a name that is no training task, and for arguments that the task or the device refuses.
    """
    recipe = spec["recipe"]
    cls = task_class(recipe["task"])
    if not issubclass(cls, TrainingTask):
        raise SpecError(f"{recipe['task']!r} is no timm TrainingTask.")
    model = build_model(spec["model"])
    if issubclass(cls, AssistedTokenTask) and hasattr(model, "training_parts"):
        model.set_training_outputs()  # the weights to start from may hold these parts, too
    load_start(model, spec, site)
    if recipe["batch_norm"] == "sync":
        if device.type != "cuda":
            raise SpecError("batch_norm: sync (recipes.yaml) needs GPUs; use local or frozen on a CPU.")
        model = convert_sync_batchnorm(model)
    kwargs = {}
    if "teacher" in spec:
        teacher = build_model(spec["teacher"]["model"])
        teacher.load_state_dict(checkpoints.final_weights(site, spec["teacher"]))
        kwargs["teacher"] = teacher.to(device).eval().requires_grad_(False)
    kwargs |= recipe.get("task_args", {})
    if recipe["mixup"] > 0 or recipe["cutmix"] > 0:
        kwargs["criterion_kwargs"] = {"soft_targets": True}  # which mixup smooths
    else:
        kwargs["criterion_kwargs"] = {"smoothing": recipe["smoothing"]}
    return make_task(spec, cls, model.to(device), device=device, verbose=False, **kwargs)


def mixed_precision(
    amp: str | None, device: torch.device
) -> tuple[Callable[[], AbstractContextManager], torch.amp.GradScaler]:
    """Return a factory of contexts for forward passes, and a gradient scaler that is active for fp16 only.

    Args:
        amp: "fp16", "bf16", or None for fp32 throughout.

    Raises DeviceError for a format that the device does not compute.
    """
    check_precision(
        amp,
        device,
        "ask for a GPU that computes it (`constraint` in the profile), or set `amp` in workflow/config/recipes.yaml: "
        "null runs everywhere, bf16 on every CPU, and fp16, with a lower lr, on every GPU",
    )
    scaler = torch.amp.GradScaler(device.type, enabled=amp == "fp16")
    if amp is None:
        return nullcontext, scaler
    return functools.partial(torch.autocast, device.type, AUTOCAST_DTYPES[amp]), scaler
