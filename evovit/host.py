"""What both hosts share: the switches in force and what a checkpoint knows beside the weights."""

from collections.abc import Mapping

import torch
from torch import Tensor

from . import plan
from .checkpoint import load_exactly
from .features import NoSymbolicGraph


class EvoHost(NoSymbolicGraph):
    """Mixed into a timm model that selects tokens; it stands before the timm class."""

    fresh_keys = ("norm_cls.", "head_cls.", "_extra_state")  # that no dense model has

    def set_switches(self, switches: plan.Switches, schedule: str | None) -> None:
        """Take over resolved switches. A ``schedule`` given here refuses other checkpoints."""
        self.switches = switches
        self.training_outputs = False
        self.selecting = True
        self.set_schedule(schedule or "stage")
        self._schedule_was_given = schedule is not None

    def set_schedule(self, schedule: str) -> None:
        """Select tokens in each block ("layer") or once per stage ("stage") from now on."""
        self._runs = plan.segments(self.switches, schedule)
        self._scoring = plan.scoring_blocks(self.switches, self._runs)
        self.schedule = schedule
        self._schedule_was_given = False  # whoever calls this manages the schedule from here on

    def set_selecting(self, enable: bool) -> None:
        """Switch token selection on or off; off, every block runs on all tokens."""
        self.selecting = enable

    @property
    def runs(self) -> tuple[tuple[int, int], ...]:
        """Runs of blocks that share a selection now; none while selection is off."""
        return self._runs if self.selecting else ()

    @property
    def scoring(self) -> frozenset[int]:
        """Blocks whose class attention counts now."""
        return self._scoring if self.selecting else frozenset()

    def get_extra_state(self) -> Tensor:
        return torch.tensor(
            [plan.SCHEDULES.index(self.schedule), int(self.selecting)], dtype=torch.uint8
        )

    def set_extra_state(self, state: Tensor) -> None:
        code, selecting = state.tolist()
        schedule = plan.SCHEDULES[code]
        if self._schedule_was_given and schedule != self.schedule:
            raise ValueError(
                f"the checkpoint was trained to schedule={schedule!r}, the model was built with "
                f"schedule={self.schedule!r}: build it without, and call set_schedule() after "
                "loading if another schedule is wanted"
            )
        self.set_schedule(schedule)
        self.set_selecting(bool(selecting))

    def load_pretrained_dense(self, state_dict: Mapping[str, Tensor]) -> list[str]:
        """Load a plain DeiT; returns the keys that start fresh (the class head, the schedule).

        Raises:
            ValueError: listing every missing, unexpected or misshapen key; nothing is loaded then.
        """
        return load_exactly(self, state_dict, fresh=self.fresh_keys)

    def set_tradeoff_learning(self, enable: bool) -> None:
        """For the hosts that learn their trade-offs; the others have numbers."""

    def set_training_outputs(self, enable: bool = True) -> None:
        """Whether a forward pass in training returns all that the task's loss needs."""
        self.training_outputs = enable
