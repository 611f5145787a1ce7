"""What both hosts share: the options in force, and what a checkpoint holds besides the weights."""

import logging
from collections.abc import Mapping
from typing import Any

from timm.models._input import update_model_args
from torch import Tensor, nn

from . import options
from .checkpoint import OLD_NAMES, OLD_SCHEDULE, load_exactly, with_new_names
from .fast import deferred
from .features import NoSymbolicGraph
from .scores import Scores

_logger = logging.getLogger(__name__)


class EvoHost(NoSymbolicGraph):
    """The part of a model that selects tokens; a base class in front of timm's own.

    The state dict holds nothing but weights. The schedule that they were trained to travels as metadata,
    in torch's state dicts (``torch.save`` keeps it and ``load_state_dict`` reads it) and in timm's model
    arguments.

    Attributes:
        options: the checked keywords.
        schedule: "layer" or "stage".
        selecting: whether tokens are selected.
        training_outputs: whether a forward pass in training returns all that the task's loss needs.
        defers_scores: False turns off the deferred scores of ``evovit.fast.deferred``, so that a model
            that torch.compile traces for a GPU computes its scores as everywhere else.
    """

    training_parts: tuple[str, ...] = ()  # modules that exist after set_training_outputs(True)
    defers_scores = True

    def set_options(self, checked: options.Options, schedule: str | None) -> None:
        """Take over checked options. A ``schedule`` makes the model refuse checkpoints of another one."""
        self.options = checked
        self.training_outputs = False
        self.selecting = True
        self.set_schedule(schedule or "stage")
        self._schedule_was_given = schedule is not None

    def set_schedule(self, schedule: str) -> None:
        """Select tokens in each block ("layer") or once per stage ("stage") from now on."""
        self._groups = options.selection_groups(self.options, schedule)
        self._scoring = options.scoring_blocks(self.options, self._groups)
        self.schedule = schedule
        self._schedule_was_given = False  # whoever calls this manages the schedule from here on
        self.note_arguments(schedule=schedule)

    def set_selecting(self, enable: bool) -> None:
        """Switch token selection on or off; off, every block runs on all tokens."""
        if enable != self.selecting:  # a model built with these arguments computes the same
            self.note_arguments(keep_ratio=list(self.options.keep_ratio) if enable else 1.0)
        self.selecting = enable

    def note_arguments(self, **arguments: Any) -> None:
        """Note keywords among timm's model arguments, by which it builds the model anew."""
        update_model_args(self, **arguments)

    @property
    def groups(self) -> tuple[tuple[int, int], ...]:
        """Return the groups of blocks that share a selection now; none while selection is off."""
        return self._groups if self.selecting else ()

    @property
    def scoring(self) -> frozenset[int]:
        """Return the blocks whose class attention counts now."""
        return self._scoring if self.selecting else frozenset()

    def new_scores(self, x: Tensor) -> Scores | deferred.DeferredScores:
        """Return the scores before the first attention of a forward pass on the device of ``x``."""
        if self.defers_scores and deferred.saves_time(x):
            return deferred.DeferredScores(self.options.sums_heads, prefix=self.options.host.prefix)
        # Only the weights of Eq. 5 let a gradient through; without them the scores just rank.
        detached = self.options.placeholders != "update"
        return Scores(self.options.sums_heads, detached, prefix=self.options.host.prefix)

    def metadata(self) -> dict[str, Any]:
        """Return what a checkpoint says besides the weights, in plain values."""
        return {"schedule": self.schedule, "selecting": self.selecting}

    def accept_metadata(self, metadata: Mapping[str, Any]) -> None:
        """Take over what a checkpoint says besides the weights.

        Raises:
            ValueError: if the model was built with another schedule.
        """
        self.accept_schedule(metadata["schedule"])
        self.set_selecting(metadata["selecting"])

    def accept_schedule(self, schedule: str) -> None:
        """Take over the schedule that weights were trained to.

        Raises:
            ValueError: if the model was built with another schedule.
        """
        if schedule == self.schedule:
            return
        if self._schedule_was_given:
            raise ValueError(
                f"the checkpoint was trained to schedule={schedule!r}, the model was built with "
                f"schedule={self.schedule!r}: build it without, and call set_schedule() after "
                "loading if you need another schedule"
            )
        self.set_schedule(schedule)

    def _save_to_state_dict(self, destination, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if hasattr(destination, "_metadata"):
            destination._metadata[prefix[:-1]].update(self.metadata())

    def _load_from_state_dict(self, state_dict, prefix: str, local_metadata, *args: Any) -> None:
        """Load one module; torch calls this before the methods of the modules inside it."""
        stored = state_dict.pop(f"{prefix}{OLD_SCHEDULE}", None)
        for old, new in OLD_NAMES.items():
            if f"{prefix}{old}" in state_dict:
                state_dict[f"{prefix}{new}"] = state_dict.pop(f"{prefix}{old}")
        if "schedule" in local_metadata:
            self.accept_metadata(with_new_names(local_metadata))
        elif stored is not None:
            self.accept_metadata(self._read_extra_state(stored))
        elif "version" not in local_metadata:  # weights without torch's metadata
            remedy = "; build it with schedule=... to choose"
            if self._schedule_was_given:
                remedy = ", which could not be checked: load a .pt file with torch.load() to do so"
            _logger.warning(
                "the weights do not say to which schedule they were trained, so the model keeps schedule=%r%s",
                self.schedule,
                remedy,
            )
        self._fit_training_parts(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    def _read_extra_state(self, stored: Tensor) -> dict[str, Any]:
        """Return the metadata from a tensor among the weights, as older files hold it.

        Raises:
            ValueError: for numbers that are none of its codes.
        """
        names, numbers = list(self.metadata()), stored.tolist()
        whole = all(number in (0, 1) for number in numbers)
        if not whole or len(numbers) != len(names):
            raise ValueError(
                f"the state dict's key {OLD_SCHEDULE} holds {numbers}, which names no schedule "
                "(were weights of different schedules averaged?): delete the key to load the rest"
            )
        flags = [bool(number) for number in numbers[1:]]
        return dict(zip(names, [options.SCHEDULES[int(numbers[0])], *flags], strict=True))

    def load_pretrained_dense(self, state_dict: Mapping[str, Tensor]) -> list[str]:
        """Load a plain model of the host's kind.

        Returns:
            The keys that start fresh: those of the parts that only training needs, if the model has them.

        Raises:
            ValueError: listing every missing, unexpected or misshapen key; nothing is loaded then.
        """
        return load_exactly(self, state_dict, fresh=self.training_parts)

    def set_alpha_learning(self, enable: bool) -> None:
        """Do nothing: a host whose alphas are learned overrides this, in others they are numbers."""

    def set_training_outputs(self, enable: bool = True) -> None:
        """Set whether a forward pass in training returns all that the task's loss needs.

        The parts that only this needs (classifiers of the class token) are made when it is
        switched on, with fresh weights, and go when it is switched off. Call it before an optimizer
        or DDP takes the parameters.
        """
        if enable != self.training_outputs:
            parts = self._make_training_parts() if enable else {}
            for name in self.training_parts:
                if enable:
                    self.add_module(name, parts[name].train(self.training))
                else:
                    delattr(self, name)
        self.training_outputs = enable

    def _make_training_parts(self) -> dict[str, nn.Module]:
        """Return fresh modules, one for each of ``training_parts``."""
        raise NotImplementedError

    def _fit_training_parts(self, state_dict: dict[str, Tensor], prefix: str) -> None:
        """Make weights fit that have, or lack, the parts that only training needs.

        What the model has no part for is left out; a part that the weights lack stays fresh.
        """
        lacking = []
        for part in (f"{prefix}{name}." for name in self.training_parts):
            keys = [key for key in state_dict if key.startswith(part)]
            if not keys:
                lacking.append(part)
            elif not self.training_outputs:
                for key in keys:
                    del state_dict[key]
        if not self.training_outputs:
            return
        own = self.state_dict(prefix=prefix).items()
        fresh = {key: value for key, value in own if key.startswith(tuple(lacking))}
        state_dict.update(fresh)
        if fresh:
            _logger.warning("these keys start fresh: %s", ", ".join(fresh))
