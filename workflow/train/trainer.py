"""The training's loop: epochs, checkpoints, evaluation, and the way back from a step that failed.

A training that is stopped at any step goes on to the same bits.
"""

import functools
import math
import time

import torch
from timm.data.loader import PrefetchLoader
from timm.utils import distribute_bn, unwrap_model

from workflow.data import loaders
from workflow.runtime.distributed import Place
from workflow.runtime.preemption import StopFlag
from workflow.storage import journal as journals
from workflow.storage import provenance
from workflow.storage.journal import Journal
from workflow.train import evaluate, macs
from workflow.train.checkpoints import Checkpoints, snapshot_epochs
from workflow.train.step import CODE_OF_OLD, Stepper

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


def listed(epochs: list[int]) -> str:
    """Epochs for people: "epoch 3", "epochs 3, 4"."""
    return f"epoch{'s' * (len(epochs) > 1)} {', '.join(map(str, epochs))}"


def plain(metrics: dict[str, float]) -> dict[str, float]:
    """The metrics as Python's own numbers, which a checkpoint is loaded with."""
    return {name: float(value) for name, value in metrics.items()}


class Training(Stepper):
    """A training from wherever it stands to its end, by `fit`."""

    def __init__(self, spec: dict, site: dict, where: Place, journal: Journal | None, loader=None):
        """`loader` takes the place of the training split's, for measurements."""
        super().__init__(spec, site, where, loader)
        self.journal = journal

    @functools.cached_property
    def val_loader(self) -> PrefetchLoader:
        """Every rank's share of the validation split."""
        spec = self.spec
        return loaders.eval_loader(spec["data"], self.site, self.recipe, self.config, self.where)

    def fit(self, saved: Checkpoints, stop: StopFlag) -> bool:
        """Train to the recipe's last epoch from the newest checkpoint; False: asked to stop.

        Raises CodeError where other code made the checkpoint and the profile refuses that.
        """
        warning = self.resume(saved)
        place = {"epochs": self.recipe["epochs"], "epoch": self.epoch, "step": self.step}
        self.note("start", **place, code=provenance.running())
        if warning:
            self.note("note", text=warning)
        for text in self.unreached() if self.update == 0 else ():
            self.note("note", text=text)
        while self.epoch < self.recipe["epochs"]:
            try:
                if not self.train_epoch(saved, stop):
                    return False
                self.end_epoch(saved)
            except NotFinite as found:
                self.go_back(found, saved)
        self.complete_history()
        return True

    def resume(self, saved: Checkpoints) -> str | None:
        """Load the newest checkpoint, or save the first; -> a warning if other code made it."""
        state, warning = self.newest(saved), None
        if state:
            policy = self.site.get("other_code", provenance.WARN)
            made_by = state.get("code", CODE_OF_OLD)
            if state["epoch"] == state["step"] == 0:  # nothing was trained yet: begin by this code
                state = None if provenance.is_other(made_by[-1], provenance.running()) else state
            else:
                warning = provenance.check_resumed(self.spec, made_by, policy)
        if state:
            self.load(state)
            self.restore_journal()
        else:
            self.save(saved)  # something to go back to
        return warning

    def load(self, state: dict) -> None:
        super().load(state)
        if "history" not in state and self.journal is not None:  # of an older version of this code
            known = journals.epochs(self.journal.path)
            self.history = [entry for entry in known if entry["epoch"] <= self.epoch]
            if lost := self.lost_epochs():
                self.note("note", text=f"The journal has lost {listed(lost)}, and the checkpoint "
                          "is too old to know them: their metrics are gone.")  # fmt: skip

    def lost_epochs(self) -> list[int]:
        """Return the completed epochs whose metrics are lost."""
        known = {entry["epoch"] for entry in self.history}
        return [epoch for epoch in range(1, self.epoch + 1) if epoch not in known]

    def restore_journal(self) -> None:
        """Write the epochs that the journal has lost, as the checkpoint knows them."""
        if self.journal is None:
            return
        known = {entry["epoch"] for entry in journals.epochs(self.journal.path)}
        lost = [entry for entry in self.history if entry["epoch"] not in known]
        if lost:
            epochs = listed([entry["epoch"] for entry in lost])
            self.note("note", text=f"The journal has lost {epochs}; restored from the checkpoint.")
        for entry in lost:
            metrics = {key: value for key, value in entry.items() if key != "epoch"}
            self.note("epoch", epoch=entry["epoch"], metrics=metrics, restored=True)

    def complete_history(self) -> None:
        """See to it that the last epoch's metrics are known, and the journal has all that are."""
        if self.where.from_first(self.epoch in self.lost_epochs()):
            self.history.append({"epoch": self.epoch, **plain(self.evaluate_all())})
        self.restore_journal()

    def deviations(self) -> list[dict]:
        """The steps that were left out, each once: update, time and why."""
        known = {one["update"]: one for one in journals.deviations(self.journal.path)}
        return [known.get(update, self.lost_deviation(update)) for update in sorted(self.skipped)]

    def lost_deviation(self, update: int) -> dict:
        epoch, step = divmod(update, self.loader.steps)
        text = f"The loss was not finite in epoch {epoch + 1}, step {step + 1}: the step is left out"
        return {
            "update": update,
            "time": None,
            "text": f"{text} (its line in the journal is lost).",
        }

    def unreached(self) -> list[str]:
        """A sentence for each part of the task's own schedule that so few epochs never come to."""
        told = getattr(self.task, "unreached", None)
        return told(self.recipe["epochs"]) if told else []

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
        metrics |= self.evaluate_all()
        spent = self.spent_s
        metrics |= {"train_s": spent, "epoch_s": spent + time.time() - started}
        self.note("epoch", epoch=self.epoch + 1, metrics=metrics)
        self.history = [*self.history, {"epoch": self.epoch + 1, **plain(metrics)}]
        self.epoch, self.step, self.spent_s, self.sums = self.epoch + 1, 0, 0.0, {}
        # before the checkpoint: killed in between, the epoch is done again and so is this
        if self.where.first and self.epoch in snapshot_epochs(self.spec):
            saved.keep_snapshot(self.epoch, unwrap_model(self.model))
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

    def evaluate_all(self) -> dict[str, float]:
        """What `evaluate` says of the weights, and of their average where there is one."""
        metrics = self.evaluate()
        if self.task.has_ema():
            metrics |= {f"ema_{key}": value for key, value in self.evaluate(ema=True).items()}
        return metrics

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
        images, _ = loaders.named_images(shown, self.site, self.config, count, self.where.device)
        return macs.per_image(unwrap_model(self.model), images)

    def note(self, event: str, **values) -> None:
        if self.journal is not None:
            self.journal.write(event, **values)
