"""Train: turn a spec and a folder into a record.

`run` does the whole job; `Trainer` holds the training loop, the step, the checkpoints' content, and the way back from a
step whose loss was not finite. A training that is stopped after any step goes on to the same bits: whatever is random
in a step depends on seed, step and rank only.
"""

import functools
import math
import signal
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from timm.data.loader import PrefetchLoader
from timm.utils import distribute_bn, unwrap_model

from workflow.campaign import specs
from workflow.data import augmentation, check, layout, loaders, worker_processes
from workflow.data.sampling import seed_everything, stream_seed
from workflow.runtime import device, distributed
from workflow.runtime.distributed import DistributedContext
from workflow.runtime.preemption import StopFlag
from workflow.storage import journal as journals
from workflow.storage import provenance, records
from workflow.storage.journal import Journal
from workflow.train import evaluate, factory, macs, optimizer
from workflow.train.checkpoints import Checkpoints, describe_snapshots, save_weights, snapshot_epochs

CHECKPOINT_MINUTES = 15
REPORT_EVERY_S = 20
SYNCHRONISE_EVERY = {"cpu": 1, "cuda": 20}  # steps between two checks of losses, clock and stop flag
MACS_IMAGES = 256  # validation images over which the MACs are counted where they depend on the image
MOST_SKIPPED = 5  # steps of one training whose loss was not finite
NEVER = 2**53  # beyond every step, and still a whole number as a float


class TrainingError(RuntimeError):
    """The training can't go on; the message says where and why."""


class NotFiniteError(ArithmeticError):
    """The loss of a step was NaN or infinite.

    Attributes:
        update: number of the step in the whole training, from 0.
    """

    def __init__(self, update: int, loss: float):
        super().__init__(f"loss {loss} at update {update}")
        self.update = update
        self.loss = loss


# -- the job --------------------------------------------------------------------------------------


def run(spec: dict, site: dict, folder: Path) -> dict | None:
    """Train to the last epoch. Return the record on rank 0, None on the other ranks."""
    started = time.time()
    torch.set_num_threads(spec["recipe"]["threads"])
    layout.check(spec["setting"], {**spec["data"], "root": site["data_root"]})
    context = distributed.join(site["device"])
    outcome = train(spec, site, folder, context)
    distributed.leave(context)
    if outcome is None:
        return None
    results, code = outcome
    return records.make(
        spec,
        results,
        started,
        code,
        world_size=context.world_size,
        device=device.describe(context.device),
        **check.describe_images(site),
    )


def train(spec: dict, site: dict, folder: Path, context: DistributedContext) -> tuple[dict, list[dict]] | None:
    """Train, and keep the weights in the folder.

    Returns the record's results and the versions of the code that trained, on rank 0; None on the other ranks.

    Raises TrainingError if memory runs out or too many losses are not finite, Stopped after a signal to stop, and
    CodeError if other code made the checkpoint and the profile refuses that.
    """
    journal = Journal(folder / "journal.jsonl") if context.is_first else None
    trainer = Trainer(spec, site, context, journal)
    images = check.describe_images(site)
    checkpoints = Checkpoints(
        folder / "checkpoints",
        specs.spec_hash(spec),
        trainer.report,
        minutes=site.get("checkpoint_minutes", CHECKPOINT_MINUTES),
        images=images,
    )
    with StopFlag() as stop:
        try:
            finished = trainer.fit(checkpoints, stop)
        except worker_processes.FAULTS as error:
            # Slurm signals all processes of a job at once, and the loader processes ended first; lost() gives the
            # signal the time to arrive here, too
            if -signal.SIGTERM in worker_processes.lost() and stop.received is not None:
                trainer.report("Asked to stop: goes on from the last checkpoint.")
                stop.end_job(context.is_first)
            if not device.is_out_of_memory(error):
                raise
            raise TrainingError(
                f"{spec['run']} runs out of memory with {trainer.loader.batch_size} images of a process in one pass; "
                "set `device_batch` to fewer in its recipe (workflow/config/): the global batch stays, and is "
                "accumulated. As the recipe is another one then, the training starts anew."
            ) from error
        if not finished:
            trainer.report(f"Asked to stop: saved before step {trainer.step} of epoch {trainer.epoch}.")
            stop.end_job(context.is_first)
    if not context.is_first:
        return None
    results = summarise(trainer.history)
    results["restored_epochs"] = journals.restored(journal.path)
    model = unwrap_model(trainer.model)
    results["weights"] = save_weights(folder, model, spec, images["classes"])
    if "snapshots" in spec:
        results["snapshots"] = describe_snapshots(checkpoints.folder, spec)
    results["deviations"] = trainer.deviations()
    results["unreached"] = trainer.unreached()
    results |= evaluate.describe_split(trainer.val_loader) | trainer.right
    if getattr(model, "cost_varies", False):
        sample, _ = trainer.images.spaced(min(MACS_IMAGES, results["val_images"]))
        results["macs_per_image"] = macs.per_image(model, sample)
        results["macs_g"] = results["macs_per_image"]["mean_g"]
    else:
        results["macs_g"] = macs.count(model, trainer.images.model_cfg["input_size"]) / 1e9
    journal.write("end")
    return results, trainer.code


def summarise(history: list[dict]) -> dict:
    """Return the record's numbers: the last epoch's, the best epoch, and the averaged weights' accuracy."""
    last = history[-1]
    best = max(history, key=lambda entry: entry["top1"])
    return {
        **{key: last[key] for key in ("top1", "top5", "val_loss", "loss")},
        "epochs": len(history),
        "best_top1": best["top1"],
        "best_epoch": best["epoch"],
        "ema_top1": last.get("ema_top1"),
        "train_s": sum(entry["train_s"] for entry in history),
        "history": history,
    }


class Trainer:
    """Hold all that one process needs while it trains; `fit` trains to the end.

    Attributes:
        epoch, step: the next step is step `step` of epoch `epoch`, both from 0.
        sums: this rank's sums of the losses over the epoch's steps so far, by name.
        spent_s: seconds that these steps took.
        skipped: updates (steps of the whole training) that were left out because their loss was not finite.
        unchecked_losses: losses, by update, that were not yet checked for being finite.
        history: the metrics of each completed epoch.
        right: which validation images were right after the last one, for the record: by the weights as `right`, by
            their moving average as `ema_right`.
        code: the versions of the code that trained so far.
    """

    def __init__(
        self,
        spec: dict,
        site: dict,
        context: DistributedContext,
        journal: Journal | None = None,
        loader: Any = None,
    ):
        """Build model, task, optimizer and loader. Measurements pass a `loader` instead of the training split's."""
        self.spec = spec
        self.site = site
        self.context = context
        self.journal = journal
        self.recipe = recipe = spec["recipe"]
        seed_everything(stream_seed(spec["seed"], "weights"))  # the same on every rank
        self.task = factory.build_task(spec, site, context.device)
        self.model = self.task.get_trainable_module()
        self.images = loaders.ImageSource(spec["data"], site, recipe, factory.data_config(self.model), context)
        self.loader: Any = loader or loaders.TrainLoader(self.images, spec["seed"])
        self.mixup = augmentation.make_mixup(recipe, spec["data"]["num_classes"])
        self.optimizer = optimizer.make_optimizer(self.task, recipe)
        self.scheduler = optimizer.make_scheduler(self.optimizer, recipe, self.loader.steps)
        self.autocast, self.scaler = factory.mixed_precision(recipe["amp"], context.device)
        if recipe["ema"] is not None:
            self.task.setup_ema(decay=recipe["ema"])
        if recipe["compile"]:
            self.task.compile()
        if context.is_distributed:
            self.task.prepare_distributed(device_ids=[context.device] if context.device.type == "cuda" else None)
        self.epoch = 0
        self.step = 0
        self.spent_s = 0.0
        self.sums: dict[str, torch.Tensor] = {}
        self.skipped: list[int] = []
        self.unchecked_losses: dict[int, torch.Tensor] = {}
        self.history: list[dict] = []
        self.right: dict[str, str] = {}
        self.code = provenance.extended([], from_epoch=0, from_step=0)

    @functools.cached_property
    def val_loader(self) -> PrefetchLoader:
        """Return the validation images that this rank evaluates."""
        return self.images.validation()

    @property
    def update(self) -> int:
        """Return the number of the next step in the whole training, from 0."""
        return self.epoch * self.loader.steps + self.step

    # -- the training loop ------------------------------------------------------------------------

    def fit(self, checkpoints: Checkpoints, stop: StopFlag) -> bool:
        """Train to the recipe's last epoch, from the newest checkpoint. Return False after a signal to stop.

        Raises CodeError if other code made the checkpoint and the profile refuses that.
        """
        warning = self.resume(checkpoints)
        position = {"epochs": self.recipe["epochs"], "epoch": self.epoch, "step": self.step}
        self.note("start", **position, code=provenance.running())
        if warning:
            self.report(warning)
        if self.update == 0:
            for text in [*self.unreached(), *self.loader.remarks]:
                self.report(text)
        while self.epoch < self.recipe["epochs"]:
            try:
                if not self.train_epoch(checkpoints, stop):
                    return False
                self.end_epoch(checkpoints)
            except NotFiniteError as error:
                self.leave_out_step(error, checkpoints)
        self.restore_journal()
        return True

    def train_epoch(self, checkpoints: Checkpoints, stop: StopFlag) -> bool:
        """Train the remaining steps of the epoch. Return False after a signal to stop, with a checkpoint saved.

        Raises NotFiniteError, on every rank, after a step whose loss was not finite.
        """
        self.start_epoch()
        steps = self.loader.steps
        synchronise_every = SYNCHRONISE_EVERY[self.context.device.type]
        batches = self.loader.batches(self.epoch, self.step)
        spent_before = self.spent_s
        started = reported = time.time()
        while self.step < steps:
            self.train_step(batches)
            self.step += 1
            self.spent_s = spent_before + time.time() - started
            if self.step % synchronise_every and self.step < steps:
                continue
            due = self.context.is_first and checkpoints.due()
            stopping, due = self.synchronise(stop.received is not None, due)
            if stopping or (due and self.step < steps):
                self.save(checkpoints)
            if stopping:
                return False
            if time.time() - reported > REPORT_EVERY_S:
                reported = time.time()
                self.note("progress", epoch=self.epoch, step=self.step, steps=steps)
        return True

    def start_epoch(self) -> None:
        """Set up what holds during this epoch, also where it is resumed in the middle."""
        if hasattr(self.task, "start_epoch"):
            self.task.start_epoch(self.epoch, self.recipe["epochs"])
        self.task.train()
        if self.recipe["batch_norm"] == "frozen":
            factory.freeze_statistics(self.model)

    def train_step(self, batches: Iterator) -> None:
        """Do forward and backward passes of the step's batches, then one update of the weights.

        A step that is left out draws its batches and does nothing else.
        """
        update = self.update
        parts = self.loader.accumulate
        if hasattr(self.task, "start_step"):
            self.task.start_step(self.step, self.loader.steps)
        if update in self.skipped:
            for _ in range(parts):
                next(batches)
            return
        self.scheduler.step_update(update)
        self.optimizer.zero_grad()
        losses: dict[str, torch.Tensor] = {}
        for part in range(parts):
            inputs, target = next(batches)  # may draw random numbers, so before the seed
            seed_everything(stream_seed(self.spec["seed"], update, part, self.context.rank, "step"))
            for name, value in self.forward_backward(inputs, target, part, parts).items():
                losses[name] = losses.get(name, 0) + value.detach() / parts
        if self.recipe["clip_grad"] is not None:
            self.scaler.unscale_(self.optimizer)
            optimizer.clip_gradients(self.task, self.recipe)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if hasattr(self.task, "end_step"):
            self.task.end_step(self.step, self.loader.steps)
        self.task.update_ema(step=update)
        self.unchecked_losses[update] = losses["loss"]
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0) + value

    def forward_backward(self, images, target, part: int, parts: int) -> dict[str, torch.Tensor]:
        """Do the forward and backward pass of one of the step's batches. Return the task's scalar tensors."""
        if self.mixup is not None and getattr(self.task, "mixes_images", True):
            images, target = self.mixup(images, target)
        module = self.task.trainable_module
        # processes exchange gradients once per step, with its last batch
        keep_gradients_local = self.context.is_distributed and part < parts - 1
        with module.no_sync() if keep_gradients_local else nullcontext():
            with self.autocast():
                result = self.task(images, target)
            self.scaler.scale(result["loss"] / parts).backward()
        return {name: value for name, value in result.items() if name != "output"}

    def synchronise(self, stopping: bool, due: bool) -> tuple[bool, bool]:
        """Agree with the other ranks whether all stop and whether all save a checkpoint.

        Raises NotFiniteError, on every rank, if a loss of any rank was not finite; for the first such step.
        """
        updates = [update for update, loss in self.unchecked_losses.items() if not math.isfinite(loss)]
        first = float(min(updates, default=NEVER))
        negative_first, any_stopping, any_due = self.context.maximum([-first, float(stopping), float(due)])
        if -negative_first < NEVER:
            update = int(-negative_first)
            loss = self.unchecked_losses.get(update, torch.tensor(math.nan)).item()
            raise NotFiniteError(update, loss)
        self.unchecked_losses.clear()
        return bool(any_stopping), bool(any_due)

    def end_epoch(self, checkpoints: Checkpoints) -> None:
        """Evaluate, write the epoch's metrics into the journal, and save a checkpoint."""
        started = time.time()
        metrics = self.mean_losses()
        metrics["lr"] = max(group["lr"] for group in self.optimizer.param_groups)
        accuracy, right = self.evaluate()
        metrics |= accuracy
        self.right = {"right": right}
        if self.task.has_ema():
            accuracy, right = self.evaluate(ema=True)
            metrics |= {f"ema_{key}": value for key, value in accuracy.items()}
            self.right["ema_right"] = right
        metrics["train_s"] = self.spent_s
        metrics["epoch_s"] = self.spent_s + time.time() - started
        # Python's own numbers, which torch loads from a checkpoint without executing code
        metrics = {name: float(value) for name, value in metrics.items()}
        self.epoch += 1
        self.note("epoch", epoch=self.epoch, metrics=metrics)
        self.history = [*self.history, {"epoch": self.epoch, **metrics}]
        self.step = 0
        self.spent_s = 0.0
        self.sums = {}
        # before the checkpoint: after a kill in between, the epoch and its snapshot are made again
        if self.context.is_first and self.epoch in snapshot_epochs(self.spec):
            checkpoints.keep_snapshot(self.epoch, unwrap_model(self.model))
        self.save(checkpoints, best=metrics["top1"])

    def mean_losses(self) -> dict[str, float]:
        """Return the means of the loss and its terms over the epoch's steps and all ranks."""
        first = self.epoch * self.loader.steps
        left_out = sum(first <= update < first + self.loader.steps for update in self.skipped)
        count = max(1, self.loader.steps - left_out) * self.context.world_size
        ranks = self.context.gather({name: value.cpu() for name, value in self.sums.items()})
        return {name: (sum(rank[name] for rank in ranks) / count).item() for name in ranks[0]}

    # -- evaluation -------------------------------------------------------------------------------

    def evaluate(self, ema: bool = False) -> tuple[dict[str, float], str]:
        """Return `evaluate.accuracy` of the weights, or of their moving average, on the whole validation split."""
        # DDP would synchronise buffers for every batch, and ranks may have unequal numbers of batches
        module = unwrap_model(self.task.get_eval_model(ema=ema)).eval()
        if self.context.is_distributed:  # all ranks evaluate what the first one saves
            distribute_bn(module, self.context.world_size, reduce=False)
        evaluator = self.task.create_evaluator()
        return evaluate.accuracy(module, self.val_loader, evaluator, self.autocast, self.context)

    # -- checkpoints ------------------------------------------------------------------------------

    def resume(self, checkpoints: Checkpoints) -> str | None:
        """Load the newest checkpoint, or save the first. Return a warning if other code made the checkpoint.

        Raises CodeError if the profile refuses other code.
        """
        state = self.newest(checkpoints)
        warning = None
        if state:
            made_by = state["code"]
            if state["epoch"] == state["step"] == 0:  # nothing is trained yet: other code begins anew
                if provenance.is_other(made_by[-1], provenance.running()):
                    state = None
            else:
                warning = provenance.check_resumed(self.spec, made_by, self.site.get("other_code", provenance.WARN))
        if state:
            self.load(state)
            self.restore_journal()
        else:
            self.save(checkpoints)  # for a way back from the first steps
        return warning

    def newest(self, checkpoints: Checkpoints) -> dict | None:
        """Return the first rank's newest checkpoint, on every rank, since the other ranks may see other files."""
        return self.context.broadcast(checkpoints.load() if self.context.is_first else None)

    def save(self, checkpoints: Checkpoints, best: float | None = None) -> None:
        """Save a checkpoint on the first rank. All ranks must call this."""
        state = self.state()
        if self.context.is_first:
            checkpoints.save(self.update, state, best)

    def state(self) -> dict:
        """Return all that a checkpoint needs. All ranks must call this, as their sums are gathered."""
        sums = self.context.gather({name: value.cpu() for name, value in self.sums.items()})
        state = dict(self.task.get_checkpoint_state())
        if self.task.has_ema():
            state |= self.task.get_checkpoint_state(ema=True)
        return state | {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "epoch": self.epoch,
            "step": self.step,
            "spent_s": self.spent_s,
            "skipped": self.skipped,
            "sums": sums,
            "history": self.history,
            "right": self.right,
            "code": self.code,
        }

    def load(self, state: dict) -> None:
        """Go to the position of a checkpoint's content."""
        self.task.load_checkpoint_state(state["state_dict"], state.get("task_state"))
        if self.task.has_ema():
            self.task.load_checkpoint_state(state["state_dict_ema"], state.get("task_state_ema"), ema=True)
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.epoch = state["epoch"]
        self.step = state["step"]
        self.spent_s = state["spent_s"]
        self.skipped = list(state["skipped"])
        self.sums = self.own_sums(state["sums"])
        self.code = provenance.extended(state["code"], from_epoch=self.epoch, from_step=self.step)
        self.history = state["history"]
        self.right = state.get("right", {})  # a checkpoint of older code has none

    def own_sums(self, ranks: list[dict]) -> dict:
        """Return this rank's of the gathered sums; rank 0 takes all if the number of ranks has changed."""
        if len(ranks) == self.context.world_size:
            return ranks[self.context.rank]
        if not self.context.is_first:
            return {}
        return {name: sum(rank[name] for rank in ranks) for name in ranks[0]}

    # -- a step whose loss was not finite ---------------------------------------------------------

    def leave_out_step(self, error: NotFiniteError, checkpoints: Checkpoints) -> None:
        """Go back to the last checkpoint, from which the step is left out.

        Raises TrainingError if there were too many such steps or there is no checkpoint.
        """
        epoch, step = divmod(error.update, self.loader.steps)
        sentence = f"The loss became {error.loss} in epoch {epoch + 1}, step {step + 1}"
        skipped = [*self.skipped, error.update]
        state = self.newest(checkpoints)
        if len(skipped) > MOST_SKIPPED or state is None:
            before = f" after {len(self.skipped)} steps were left out" if self.skipped else ""
            raise TrainingError(
                f"{sentence} of {self.spec['run']}{before}; "
                "try a lower lr, `amp: bf16` or `clip_grad` in workflow/config/."
            )
        self.note("deviation", update=error.update, text=f"{sentence}: the step is left out.")
        self.unchecked_losses.clear()
        self.load(state)
        self.skipped = skipped

    def deviations(self) -> list[dict]:
        """Return update, time and reason of each step that was left out."""
        noted = {deviation["update"]: deviation for deviation in journals.deviations(self.journal.path)}
        deviations = []
        for update in sorted(self.skipped):
            epoch, step = divmod(update, self.loader.steps)
            lost = (
                f"The loss was not finite in epoch {epoch + 1}, step {step + 1}: "
                "the step is left out (its line in the journal is lost)."
            )
            deviations.append(noted.get(update, {"update": update, "time": None, "text": lost}))
        return deviations

    # -- the journal ------------------------------------------------------------------------------

    def note(self, event: str, **values) -> None:
        """Write an event into the journal, on the first rank."""
        if self.journal is not None:
            self.journal.write(event, **values)

    def report(self, text: str) -> None:
        """Write a sentence for the user into the journal, on the first rank."""
        self.note("note", text=text)

    def unreached(self) -> list[str]:
        """Return a sentence for each part of the task's own schedule that so few epochs never reach."""
        if not hasattr(self.task, "unreached"):
            return []
        return self.task.unreached(self.recipe["epochs"])

    def restore_journal(self) -> None:
        """Write the epochs that the journal has lost: the checkpoint has them all."""
        if self.journal is None:
            return
        known = {entry["epoch"] for entry in journals.epochs(self.journal.path)}
        lost = [entry for entry in self.history if entry["epoch"] not in known]
        if lost:
            epochs = ", ".join(str(entry["epoch"]) for entry in lost)
            self.report(f"The journal had lost epochs; restored from the checkpoint: {epochs}.")
        for entry in lost:
            metrics = {key: value for key, value in entry.items() if key != "epoch"}
            self.note("epoch", epoch=entry["epoch"], metrics=metrics, restored=True)
