"""One step of a training: timm's task, optimiser, schedule, mixup and EMA, and their state.

What is here is the order in which they are called, and that what is random depends on seed, step
and rank alone.
"""

from collections.abc import Iterator
from contextlib import nullcontext

import torch
from timm.data import resolve_model_data_config

from workflow.data import loaders
from workflow.data.sampling import seed_everything, stream_seed
from workflow.runtime import precision
from workflow.runtime.distributed import Place
from workflow.storage import provenance
from workflow.train import factory, recipes

# of a checkpoint that was saved before code versions were noted
CODE_OF_OLD = [{**provenance.UNREPORTED, "from_epoch": 0, "from_step": 0}]


class Stepper:
    """All that one process holds while it trains, and one step of it.

    It stands before step `step` of epoch `epoch`; `sums` are this rank's sums over the epoch's
    steps so far, `spent_s` the seconds they took. `skipped` are updates (steps of the whole
    training) left out because their loss was not finite; `unseen` are losses at which nobody has
    looked yet, by update. `history` are the metrics of each completed epoch, `code` the versions of
    the code that trained it so far.
    """

    def __init__(self, spec: dict, site: dict, where: Place, loader=None):
        """`loader` takes the place of the training split's, for measurements."""
        self.spec, self.site, self.where = spec, site, where
        recipe = self.recipe = spec["recipe"]
        seed_everything(stream_seed(spec["seed"], "weights"))  # the same on every rank
        self.task = factory.build_task(spec, site, where.device)
        self.model = self.task.get_trainable_module()
        config = self.config = resolve_model_data_config(self.model)
        config["input_size"] = (3, *factory.image_size(self.model))
        self.loader = loader or loaders.TrainLoader(spec["data"], site, recipe, config, spec["seed"], where)
        self.mixup = recipes.make_mixup(recipe, spec["data"]["num_classes"])
        self.optimizer = recipes.make_optimizer(self.task, recipe)
        self.scheduler = recipes.make_scheduler(self.optimizer, recipe, self.loader.steps)
        self.autocast, self.scaler = precision.make(recipe["amp"], where.device)
        if recipe["ema"] is not None:
            self.task.setup_ema(decay=recipe["ema"])
        if recipe["compile"]:
            self.task.compile()
        if where.distributed:
            self.task.prepare_distributed(device_ids=[where.device] if where.device.type == "cuda" else None)
        self.epoch, self.step, self.spent_s = 0, 0, 0.0
        self.sums: dict[str, torch.Tensor] = {}
        self.skipped: list[int] = []
        self.unseen: dict[int, torch.Tensor] = {}
        self.history: list[dict] = []
        self.code = provenance.extended([], from_epoch=0, from_step=0)

    # -- its state --------------------------------------------------------------------------

    def state(self) -> dict:
        """All that a checkpoint needs; of every rank, so every rank must ask."""
        sums = self.where.gather({name: value.cpu() for name, value in self.sums.items()})
        return {
            **self.task.get_checkpoint_state(),
            **(self.task.get_checkpoint_state(ema=True) if self.task.has_ema() else {}),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "epoch": self.epoch,
            "step": self.step,
            "spent_s": self.spent_s,
            "skipped": self.skipped,
            "sums": sums,
            "history": self.history,
            "code": self.code,
        }

    def load(self, state: dict) -> None:
        self.task.load_checkpoint_state(state["state_dict"], state.get("task_state"))
        if self.task.has_ema():
            self.task.load_checkpoint_state(state["state_dict_ema"], state.get("task_state_ema"), ema=True)
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.epoch, self.step, self.spent_s = state["epoch"], state["step"], state["spent_s"]
        self.skipped = list(state["skipped"])
        self.sums = self.where.share_of(state["sums"])
        self.history = list(state.get("history", []))
        made_by = state.get("code", CODE_OF_OLD)
        self.code = provenance.extended(made_by, from_epoch=self.epoch, from_step=self.step)

    @property
    def update(self) -> int:
        """The step of the whole training that comes next."""
        return self.epoch * self.loader.steps + self.step

    # -- one step ---------------------------------------------------------------------------

    def start_epoch(self) -> None:
        """What holds during this epoch, also where it is taken up in the middle."""
        if hasattr(self.task, "start_epoch"):
            self.task.start_epoch(self.epoch, self.recipe["epochs"])
        self.task.train()
        if self.recipe["batch_norm"] == "frozen":
            factory.freeze_statistics(self.model)

    def train_step(self, batches: Iterator) -> None:
        """Forward and backward of the step's batches, then one update; skipped ones only draw."""
        update, parts = self.update, self.loader.accumulate
        if hasattr(self.task, "start_step"):
            self.task.start_step(self.step)
        if update in self.skipped:
            for _ in range(parts):
                next(batches)
            return
        self.scheduler.step_update(update)
        self.optimizer.zero_grad()
        found: dict[str, torch.Tensor] = {}
        for part in range(parts):
            inputs, target = next(batches)  # may draw random numbers, so before the seed
            seed_everything(stream_seed(self.spec["seed"], update, part, self.where.rank, "step"))
            for name, value in self.forward_backward(inputs, target, part, parts).items():
                found[name] = found.get(name, 0) + value.detach() / parts
        if self.recipe["clip_grad"] is not None:
            self.scaler.unscale_(self.optimizer)
            recipes.clip(self.task, self.recipe)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.task.update_ema(step=update)
        self.unseen[update] = found["loss"]
        for name, value in found.items():
            self.sums[name] = self.sums.get(name, 0) + value

    def forward_backward(self, images, target, part: int, parts: int) -> dict[str, torch.Tensor]:
        """One of a step's batches; -> the task's scalar tensors."""
        if self.mixup is not None:
            images, target = self.mixup(images, target)
        module = self.task.trainable_module
        # gradients travel between processes once per step, with its last batch
        quiet = self.where.distributed and part < parts - 1
        with module.no_sync() if quiet else nullcontext():
            with self.autocast():
                result = self.task(images, target)
            self.scaler.scale(result["loss"] / parts).backward()
        return {name: value for name, value in result.items() if name != "output"}
