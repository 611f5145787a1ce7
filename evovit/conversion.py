"""Turning a timm Vision Transformer into a model of another class that shares its weights, and back.

A class that a host can be turned into inherits from ``FromHost`` in front of timm's VisionTransformer, and has
a method ``configure`` that checks and stores its keywords. The models that are registered in timm call the same
method when they are built, so that both ways lead to one implementation.
"""

import copy
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from timm.layers import Attention
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn

from .options import did_you_mean

if TYPE_CHECKING:  # a class that is mixed into a module uses what modules have
    from torch.nn import Module as Mixin
else:
    Mixin = object

HOST_CLASSES: list[type] = [VisionTransformer]  # what ``check_host`` accepts
WHAT_WORKS = (
    "a timm VisionTransformer with a class token and timm's own blocks works, such as "
    "timm.create_model('deit_small_patch16_224'), or a ViT of AugReg, DeiT-3, DINO, DINOv2 or CLIP"
)


def register_host(cls: type) -> type:
    """Decorate a dense subclass of timm's VisionTransformer that computes what timm's own class does."""
    HOST_CLASSES.append(cls)
    return cls


class FromHost(Mixin):
    """A model that timm's VisionTransformer, the host, is turned into.

    Attributes:
        host_class: the class of the host, which ``to_dense`` gives back.
        training_parts: modules that exist in training alone and that the host lacks.
    """

    host_class: type = VisionTransformer
    training_parts: tuple[str, ...] = ()
    _added: Sequence[tuple[str, str]] = ()  # module paths and names of the attributes that ``configure`` added

    @property
    def is_converted(self) -> bool:
        """Return whether ``convert`` made the model of a host, so that timm can't build it by its name."""
        return "host_class" in vars(self)

    def configure(self, *args: Any, **options: Any) -> None:
        """Check the keywords of the class and store what follows from them; no weights are made here."""
        raise NotImplementedError

    def configure_host(self, options: Mapping[str, Any]) -> None:
        """Call ``configure`` and note which attributes it added, so that ``to_dense`` can remove them.

        Raises:
            TypeError: for a keyword that the class does not have, with the nearest that it has.
        """
        known = sorted(_option_names(type(self)))
        for name in options:
            if name not in known:
                remedy = f"it has {', '.join(known)}{did_you_mean(name, known)}"
                raise TypeError(f"{type(self).__name__} has no keyword {name!r}; {remedy}")
        before = set(_attributes(self))
        self.configure(**options)
        modules = {path for path, _ in before}  # what is inside a module that was added goes with it
        self._added = sorted(added for added in set(_attributes(self)) - before if added[0] in modules)


def pop_options(cls: type[FromHost], keywords: dict[str, Any]) -> dict[str, Any]:
    """Take the keywords of ``configure``, those of base classes included, out of the keywords of ``__init__``."""
    names = _option_names(cls)
    return {name: keywords.pop(name) for name in list(keywords) if name in names}


def _option_names(cls: type[FromHost]) -> set[str]:
    """Return the keywords of ``configure``, those of base classes included."""
    return {
        name
        for base in cls.__mro__
        if "configure" in vars(base)
        for name, parameter in inspect.signature(vars(base)["configure"]).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }


def convert(
    model: nn.Module,
    model_cls: type[nn.Module],
    block_cls: type[nn.Module],
    attn_cls: type[nn.Module],
) -> nn.Module:
    """Return a model of ``model_cls`` that shares the host's parameters and buffers; the host is unchanged.

    It has the mode, dtype, device and hooks of the host. Its keywords are still to be set, by ``configure_host``.
    """
    converted = _twin(model, model_cls, block_cls, attn_cls)
    converted.host_class = type(model)
    return converted


def to_dense(model: nn.Module) -> nn.Module:
    """Return the dense model again: one of the host's class, which shares the weights.

    The parts that only training needs, such as the class token's head of Eq. 8, are left out.

    Raises:
        ValueError: for a model that ``from_timm`` did not make and that is no registered variant of a DeiT.
    """
    if not isinstance(model, FromHost):
        raise ValueError(f"to_dense undoes from_timm, but {type(model).__name__} is not a model that it makes")
    dense = _twin(model, model.host_class, Block, Attention)
    modules = dict(dense.named_modules())
    for path, name in [*model._added, *(("", part) for part in model.training_parts)]:
        if path in modules and hasattr(modules[path], name):
            delattr(modules[path], name)
    for name in ("_added", "host_class"):
        vars(dense).pop(name, None)
    return dense


def _twin(
    model: nn.Module, model_cls: type[nn.Module], block_cls: type[nn.Module], attn_cls: type[nn.Module]
) -> nn.Module:
    """Return a copy of the tree of modules, with the same parameters and buffers, in other classes."""
    tensors = [*model.parameters(), *model.buffers()]
    twin = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
    twin.__class__ = model_cls
    for block in twin.blocks:
        block.__class__ = block_cls
        block.attn.__class__ = attn_cls
    return twin


def _attributes(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Yield each attribute of each module as the module's path and the attribute's name."""
    for path, module in model.named_modules():
        for names in (vars(module), module._parameters, module._buffers, module._modules):
            for name in names:
                yield path, name


def check_host(model: Any, what: str) -> None:
    """Check that ``model`` can be turned into another class.

    Args:
        what: the name of the result, for the message.

    Raises:
        ValueError: for a model that is no host, with the reason and what would work.
    """
    reason = _reason_against_class(model) or _reason_against_layers(model)
    if reason is not None:
        raise ValueError(f"{what} can't be made of {type(model).__name__}: {reason}")


def _reason_against_class(model: Any) -> str | None:
    """Return why the class of a model makes it no host, and what would work; None if it may be one."""
    if type(model) in HOST_CLASSES:
        return None
    if isinstance(model, FromHost):
        return "it reduces tokens already; call evovit.to_dense(model) first"
    if hasattr(model, "_orig_mod") or isinstance(getattr(model, "module", None), nn.Module):
        return (
            "it is compiled or wrapped; unwrap it first (model._orig_mod of torch.compile, model.module of DDP), "
            "and compile or wrap the result"
        )
    if hasattr(model, "dist_token"):
        return f"it has a distillation token with a second head; {WHAT_WORKS}"
    module = type(model).__module__
    if module == "timm.models._features":
        return "it gives features alone; build it without features_only, and call forward_intermediates of the result"
    if module == "timm.models.levit":
        return "LeViT's grid shrinks between its stages; use the registered evo_levit_* models instead"
    if module == "timm.models.eva":
        return f"EVA's blocks have their own attention (rotary positions, SwiGLU); {WHAT_WORKS}"
    if module.startswith("timm.models."):
        return f"its windows, stages or blocks are not those of a plain ViT; {WHAT_WORKS}"
    return f"it is not a model of timm; {WHAT_WORKS}"


def _reason_against_layers(model: VisionTransformer) -> str | None:
    """Return why the layers of a model of a host's class make it no host, and what would work; None if it is one."""
    if not model.has_class_token:
        return f"it has no class token, whose attention ranks the patches; {WHAT_WORKS}"
    if not isinstance(model.patch_drop, nn.Identity):
        return "it drops patches at random in training; build it without patch_drop_rate"
    for block in model.blocks:
        if type(block) is not Block:
            kinds = "parallel blocks or norms after the residual, for example"
            return f"its blocks are not timm's Block ({kinds}); {WHAT_WORKS}"
        if type(block.attn) is not Attention or block.attn.gate is not None:
            return f"its attention is not timm's plain Attention; {WHAT_WORKS}"
    return None
