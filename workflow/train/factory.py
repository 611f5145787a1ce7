"""From a spec's names to timm models and training tasks."""

import inspect

import timm
import torch
from timm.layers import convert_sync_batchnorm, to_2tuple
from timm.task import TrainingTask
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import baselines  # noqa: F401 (registers its models with timm, and its tasks)
import evovit  # noqa: F401
from evovit.task import TASKS, AssistedTokenTask
from workflow.train import checkpoints


class SpecError(ValueError):
    """A spec names a model, keyword argument or task that does not exist; says the nearest one."""


def nearest(name: str, known) -> str:
    """A hint for a mistyped name, '' if nothing is near."""
    import difflib

    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def build_model(model: dict, device: torch.device | str | None = None) -> nn.Module:
    """timm's model of a spec's {"name", "kwargs"}.

    Raises SpecError for an unknown model or keyword argument and for values it refuses.
    """
    name, kwargs = model["name"], model["kwargs"]
    if not timm.is_model(name):
        raise SpecError(f"No model is called {name!r}{nearest(name, timm.list_models())}")
    try:
        with torch.device(device or "cpu"):
            return timm.create_model(name, **kwargs)
    except TypeError as error:
        unknown = [key for key in kwargs if f"'{key}'" in str(error)]
        hint = nearest(unknown[0], _arguments(name)) if unknown else ""
        raise SpecError(f"{name} refuses {kwargs}: {error}{hint}") from error
    except (ValueError, AssertionError) as error:
        raise SpecError(f"{name} refuses {kwargs}: {error}") from error


def image_size(model: nn.Module) -> tuple[int, int]:
    """Height and width in pixels of the images a model takes."""
    for part in (model, getattr(model, "patch_embed", None)):
        if (size := getattr(part, "img_size", None)) is not None:
            return to_2tuple(size)
    # convolutional networks and pyramids take any; timm says what they are for
    return tuple(model.pretrained_cfg["input_size"][1:])


def _arguments(name: str) -> set[str]:
    """Names of the keyword arguments along the class hierarchy of a model."""
    cls = type(timm.create_model(name))
    return {
        parameter
        for base in cls.__mro__
        if issubclass(base, nn.Module) and base is not nn.Module
        for parameter in inspect.signature(base.__init__).parameters
    } - {"self"}


def task_class(name: str) -> type:
    """Return the class of a training task or a search that a recipe names.

    Raises SpecError for an unknown name, with the nearest; for a dotted path, as older recipes have it, with
    the name that it has now.
    """
    if name in TASKS:
        return TASKS[name]
    for new_name, cls in TASKS.items():
        if "." in name and name.rpartition(".")[2] == cls.__name__:
            raise SpecError(f"The task {name!r} is called {new_name!r} now: write task: {new_name}.")
    raise SpecError(f"No task is called {name!r}{nearest(name, TASKS) or '; known are ' + ', '.join(sorted(TASKS))}.")


def build_started(spec: dict, site: dict) -> nn.Module:
    """The spec's model with the weights that it starts from, if it names any."""
    return load_start(build_model(spec["model"]), spec, site)


def load_start(model: nn.Module, spec: dict, site: dict) -> nn.Module:
    """Load the weights that the spec's model starts from, if it names any; -> the model."""
    if "start" in spec:
        weights = checkpoints.final_weights(site, spec["start"])
        if spec["start"]["model"]["name"] == spec["model"]["name"]:
            model.load_state_dict(weights)
        else:
            model.load_pretrained_dense(weights)
    return model


def make_task(spec: dict, cls: type, *arguments, **kwargs):
    """A task or search from its arguments. Raises SpecError with its sentence if it refuses."""
    try:
        return cls(*arguments, **kwargs)
    except (TypeError, ValueError) as error:
        place = f"{spec['run']}, recipe {spec['recipe']['name']} (workflow/config/recipes.yaml)"
        raise SpecError(f"{place}: {cls.__name__} refuses its arguments: {error}") from error


def synchronise_statistics(model: nn.Module, device: torch.device) -> nn.Module:
    """BatchNorm over the images of all processes. Raises SpecError without a GPU."""
    if device.type != "cuda":
        raise SpecError("batch_norm: sync (recipes.yaml) needs GPUs; use local or frozen on a CPU.")
    return convert_sync_batchnorm(model)


def freeze_statistics(module: nn.Module) -> None:
    """Normalise with the running statistics, and leave them as they are, until the next train()."""
    for layer in module.modules():
        if isinstance(layer, _BatchNorm):
            layer.eval()


def build_task(spec: dict, site: dict, device: torch.device) -> TrainingTask:
    """The spec's model inside its task, with starting weights and frozen teacher if it has them.

    Raises SpecError for a task that is none and for what it or the device refuses.
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
        model = synchronise_statistics(model, device)
    extra = {}
    if "teacher" in spec:
        teacher = build_model(spec["teacher"]["model"])
        teacher.load_state_dict(checkpoints.final_weights(site, spec["teacher"]))
        extra["teacher"] = teacher.to(device).eval().requires_grad_(False)
    mixes = recipe["mixup"] > 0 or recipe["cutmix"] > 0
    extra |= recipe.get("task_args", {})
    criterion = {"soft_targets": True} if mixes else {"smoothing": recipe["smoothing"]}
    extra["criterion_kwargs"] = criterion
    return make_task(spec, cls, model.to(device), device=device, verbose=False, **extra)
