"""The training engine: timm's task, optimiser, schedule, mixup and EMA, step by step.

What is here is the order in which they are called, and that a training which is stopped at any step
goes on to the same bits.
"""

import functools
import math
import time
from collections.abc import Iterator
from contextlib import nullcontext

import torch
from timm.data import resolve_model_data_config
from timm.data.loader import PrefetchLoader
from timm.utils import distribute_bn, unwrap_model

from workflow.journal import Journal
from workflow.node import build, data, evaluate, macs, precision, recipes
from workflow.node.checkpoints import Checkpoints
from workflow.node.order import seed_everything, stream_seed
from workflow.node.place import Place
from workflow.node.stop import StopFlag

REPORT_EVERY_S = 20
MACS_IMAGES = 256
LOOK_EVERY = {"cpu": 1, "cuda": 20}  # steps between two looks at the loss, the clock and the flag
NEVER = 2**53  # beyond every step, and still a whole number as a float
MOST_SKIPPED = 5  # steps of one training whose loss was not finite


class TrainingError(RuntimeError):
    """The training can't go on; the message says where and why."""


class NotFinite(ArithmeticError):
    """A step's loss was NaN or infinite."""

    def __init__(self, update: int, loss: float):
        super().__init__(f"loss {loss} at update {update}")
        self.update, self.loss = update, loss


class Training:
    """All that one process holds while it trains; `fit` runs it from wherever it stands.

    It stands before step `step` of epoch `epoch`; `sums` are this rank's sums over the epoch's
    steps so far, `spent_s` the seconds they took. `skipped` are updates (steps of the whole
    training) left out because their loss was not finite.
    """

    def __init__(self, spec: dict, site: dict, where: Place, journal: Journal | None, loader=None):
        """`loader` takes the place of the training split's, for measurements."""
        self.spec, self.site, self.where, self.journal = spec, site, where, journal
        recipe = self.recipe = spec["recipe"]
        seed_everything(stream_seed(spec["seed"], "weights"))  # the same on every rank
        self.task = build.build_task(spec, site, where.device)
        self.model = self.task.get_trainable_module()
        config = self.config = resolve_model_data_config(self.model)
        config["input_size"] = (3, *build.image_size(self.model))
        self.loader = loader or data.TrainLoader(
            spec["data"], site, recipe, config, spec["seed"], where
        )
        self.mixup = recipes.make_mixup(recipe, spec["data"]["num_classes"])
        self.optimizer = recipes.make_optimizer(self.task, recipe)
        self.scheduler = recipes.make_scheduler(self.optimizer, recipe, self.loader.steps)
        self.autocast, self.scaler = precision.make(recipe["amp"], where.device)
        if recipe["ema"] is not None:
            self.task.setup_ema(decay=recipe["ema"])
        if recipe["compile"]:
            self.task.compile()
        if where.distributed:
            self.task.prepare_distributed(
                device_ids=[where.device] if where.device.type == "cuda" else None
            )
        self.epoch, self.step, self.spent_s = 0, 0, 0.0
        self.sums: dict[str, torch.Tensor] = {}
        self.skipped: list[int] = []
        self.unseen: dict[int, torch.Tensor] = {}  # losses since the last look, by update

    @functools.cached_property
    def val_loader(self) -> PrefetchLoader:
        """Every rank's share of the validation split."""
        spec = self.spec
        return data.eval_loader(spec["data"], self.site, self.recipe, self.config, self.where)

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
        }

    def load(self, state: dict) -> None:
        self.task.load_checkpoint_state(state["state_dict"], state.get("task_state"))
        if self.task.has_ema():
            self.task.load_checkpoint_state(
                state["state_dict_ema"], state.get("task_state_ema"), ema=True
            )
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.epoch, self.step, self.spent_s = state["epoch"], state["step"], state["spent_s"]
        self.skipped = list(state["skipped"])
        self.sums = self.where.share_of(state["sums"])

    @property
    def update(self) -> int:
        """The step of the whole training that comes next."""
        return self.epoch * self.loader.steps + self.step

    # -- the loop ---------------------------------------------------------------------------

    def fit(self, saved: Checkpoints, stop: StopFlag) -> bool:
        """Train to the recipe's last epoch from the newest checkpoint; False: asked to stop."""
        if state := self.newest(saved):
            self.load(state)
        else:
            self.save(saved)  # something to go back to
        self.note("start", epochs=self.recipe["epochs"], epoch=self.epoch, step=self.step)
        while self.epoch < self.recipe["epochs"]:
            try:
                if not self.train_epoch(saved, stop):
                    return False
                self.end_epoch(saved)
            except NotFinite as found:
                self.go_back(found, saved)
        return True

    def train_epoch(self, saved: Checkpoints, stop: StopFlag) -> bool:
        """The rest of the epoch's steps; False: asked to stop, and the checkpoint is saved.

        Raises NotFinite, on every rank, after a step whose loss was not.
        """
        self.start_epoch()
        steps, look_every = self.loader.steps, LOOK_EVERY[self.where.device.type]
        batches = self.loader.batches(self.epoch, self.step)
        before, started = self.spent_s, time.time()
        reported = started
        while self.step < steps:
            self.train_step(batches)
            self.step += 1
            self.spent_s = before + time.time() - started
            if self.step % look_every and self.step < steps:
                continue
            due = self.where.first and saved.due()
            stopping, due = self.look(stop.received is not None, due)
            if stopping or (due and self.step < steps):
                self.save(saved)
            if stopping:
                return False
            if time.time() - reported > REPORT_EVERY_S:
                reported = time.time()
                self.note("progress", epoch=self.epoch, step=self.step, steps=steps)
        return True

    def start_epoch(self) -> None:
        """What holds during this epoch, also where it is taken up in the middle."""
        if hasattr(self.task, "start_epoch"):
            self.task.start_epoch(self.epoch, self.recipe["epochs"])
        self.task.train()
        if self.recipe["batch_norm"] == "frozen":
            build.freeze_statistics(self.model)

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

    def look(self, stopping: bool, due: bool) -> tuple[bool, bool]:
        """What all ranks do now: (stop, save). Raises NotFinite for the first such loss."""
        bad = [update for update, loss in self.unseen.items() if not math.isfinite(loss)]
        first = float(min(bad, default=NEVER))
        first, stopping, due = self.where.agree([-first, float(stopping), float(due)])
        if -first < NEVER:
            loss = self.unseen.get(int(-first), torch.tensor(math.nan)).item()
            raise NotFinite(int(-first), loss)
        self.unseen.clear()
        return bool(stopping), bool(due)

    def go_back(self, found: "NotFinite", saved: Checkpoints) -> None:
        """To the last checkpoint, from where the step is left out. Raises TrainingError at last."""
        epoch, step = divmod(found.update, self.loader.steps)
        place = f"The loss became {found.loss} in epoch {epoch + 1}, step {step + 1}"
        skipped = [*self.skipped, found.update]
        state = self.newest(saved)
        if len(skipped) > MOST_SKIPPED or state is None:
            before = f" after {len(self.skipped)} steps were left out" if self.skipped else ""
            raise TrainingError(
                f"{place} of {self.spec['run']}{before}; "
                "try a lower lr, `amp: bf16` or `clip_grad` in workflow/config/."
            )
        self.note("deviation", update=found.update, text=f"{place}: the step is left out.")
        self.unseen.clear()
        self.load(state)
        self.skipped = skipped

    def end_epoch(self, saved: Checkpoints) -> None:
        """Evaluate, note the epoch's metrics, and save."""
        started, metrics = time.time(), self.means()
        metrics["lr"] = max(group["lr"] for group in self.optimizer.param_groups)
        metrics |= self.evaluate()
        if self.task.has_ema():
            metrics |= {f"ema_{key}": value for key, value in self.evaluate(ema=True).items()}
        spent = self.spent_s
        metrics |= {"train_s": spent, "epoch_s": spent + time.time() - started}
        self.note("epoch", epoch=self.epoch + 1, metrics=metrics)
        self.epoch, self.step, self.spent_s, self.sums = self.epoch + 1, 0, 0.0, {}
        self.save(saved, best=metrics["top1"])

    def newest(self, saved: Checkpoints) -> dict | None:
        """The checkpoint to go on from; the first rank's, since the others may see other files."""
        return self.where.from_first(saved.load() if self.where.first else None)

    def save(self, saved: Checkpoints, best: float | None = None) -> None:
        state = self.state()
        if self.where.first:
            saved.save(self.update, state, best)

    def means(self) -> dict[str, float]:
        """The means of loss and its parts over the epoch's steps and all ranks."""
        begun = self.epoch * self.loader.steps
        left_out = sum(begun <= update < begun + self.loader.steps for update in self.skipped)
        counted = max(1, self.loader.steps - left_out) * self.where.world_size
        ranks = self.where.gather({name: value.cpu() for name, value in self.sums.items()})
        names = ranks[0]
        return {name: (sum(rank[name] for rank in ranks) / counted).item() for name in names}

    def evaluate(self, ema: bool = False) -> dict[str, float]:
        """{"val_loss", "top1", "top5"} in percent over the whole validation split."""
        # DDP would synchronise buffers for every batch, and ranks may have unequal numbers of them
        module = unwrap_model(self.task.get_eval_model(ema=ema)).eval()
        if self.where.distributed:  # all ranks evaluate what the first one saves
            distribute_bn(module, self.where.world_size, reduce=False)
        evaluator = self.task.create_evaluator()
        distributed = self.where.distributed
        return evaluate.accuracy(module, self.val_loader, evaluator, self.autocast, distributed)

    def operations(self, val_images: int) -> dict[str, float]:
        """MACs of a model whose cost depends on the image, over some of the validation split."""
        shown = {"data": self.spec["data"], **self.recipe}
        count = min(MACS_IMAGES, val_images)
        images, _ = data.named_images(shown, self.site, self.config, count, self.where.device)
        return macs.per_image(unwrap_model(self.model), images)

    def note(self, event: str, **values) -> None:
        if self.journal is not None:
            self.journal.write(event, **values)
