"""Training: one spec, one folder -> a record, resumable after every epoch.

The engine is timm's (task, optimiser, schedule, mixup, EMA, evaluator); what is here is the order
in which they are called, the journal and the checkpoints.
"""

import math
import time
from pathlib import Path

import torch
from timm.data import Mixup, resolve_model_data_config
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.task import TrainingTask
from timm.utils import dispatch_clip_grad, unwrap_model

from workflow import layout, records
from workflow.journal import Journal
from workflow.node import build, data, device, evaluate, macs, place, precision
from workflow.node.checkpoints import Checkpoints, save_weights
from workflow.node.place import Place

REPORT_EVERY_S = 20
MACS_IMAGES = 256


class TrainingError(RuntimeError):
    """The training can't go on; the message says where and why."""


class Training:
    """All that one process holds while it trains; `fit` runs it from wherever it stands."""

    def __init__(self, spec: dict, site: dict, where: Place, journal: Journal | None):
        self.spec, self.where, self.journal = spec, where, journal
        recipe = self.recipe = spec["recipe"]
        data.seed_everything(data.stream_seed(spec["seed"], -1, 0))  # the same on every rank
        self.task = build.build_task(spec, site, where.device)
        self.model = self.task.get_trainable_module()
        config = self.config = resolve_model_data_config(self.model)
        config["input_size"] = (3, *build.image_size(self.model))
        self.loader, self.sampler = data.train_loader(
            spec["data"], site, recipe, config, spec["seed"], where
        )
        self.val_loader = data.eval_loader(spec["data"], site, recipe, config, where)
        self.mixup = make_mixup(recipe, spec["data"]["num_classes"])
        self.optimizer = make_optimizer(self.task, recipe)
        self.scheduler, _ = create_scheduler_v2(
            self.optimizer,
            sched="cosine",
            num_epochs=recipe["epochs"],
            warmup_epochs=recipe["warmup_epochs"],
            warmup_lr=recipe["warmup_lr"],
            min_lr=recipe["min_lr"],
            step_on_epochs=False,
            updates_per_epoch=self.sampler.steps,
        )
        self.autocast, self.scaler = precision.make(recipe["amp"], where.device)
        if recipe["ema"] is not None:
            self.task.setup_ema(decay=recipe["ema"])
        if where.distributed:
            self.task.prepare_distributed(
                device_ids=[where.device] if where.device.type == "cuda" else None
            )

    def state(self) -> dict:
        return {
            **self.task.get_checkpoint_state(),
            **(self.task.get_checkpoint_state(ema=True) if self.task.has_ema() else {}),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load(self, state: dict) -> None:
        self.task.load_checkpoint_state(state["state_dict"], state.get("task_state"))
        if self.task.has_ema():
            self.task.load_checkpoint_state(
                state["state_dict_ema"], state.get("task_state_ema"), ema=True
            )
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])

    def fit(self, saved: Checkpoints) -> None:
        """Train until the recipe's last epoch, from the newest checkpoint if there is one."""
        epochs = self.recipe["epochs"]
        done = 0
        if state := saved.load(self.where.device):
            self.load(state)
            done = state["epoch"]
        self.note("start", epochs=epochs, epoch=done)
        for epoch in range(done, epochs):
            started = time.time()
            metrics = self.train_epoch(epoch)
            train_s = time.time() - started
            metrics |= self.evaluate()
            if self.task.has_ema():
                metrics |= {f"ema_{key}": value for key, value in self.evaluate(ema=True).items()}
            metrics |= {"train_s": train_s, "epoch_s": time.time() - started}
            self.note("epoch", epoch=epoch + 1, metrics=metrics)
            if self.where.first:
                saved.save(epoch + 1, self.state())

    def train_epoch(self, epoch: int) -> dict[str, float]:
        """One pass over the training split; -> the means of loss and its parts, and the lr."""
        self.sampler.epoch = epoch
        self.loader.loader.generator.manual_seed(
            data.stream_seed(self.spec["seed"], epoch, 1 + self.where.rank)
        )
        data.seed_everything(data.stream_seed(self.spec["seed"], epoch, 1 + self.where.rank))
        if hasattr(self.task, "start_epoch"):
            self.task.start_epoch(epoch, self.recipe["epochs"])
        self.task.train()
        sums: dict[str, torch.Tensor] = {}
        reported, steps = time.time(), self.sampler.steps
        for step, (images, target) in enumerate(self.loader):
            update = epoch * steps + step
            self.scheduler.step_update(update)
            for name, value in self.train_step(images, target, update).items():
                sums[name] = sums.get(name, 0) + value.detach()
            if time.time() - reported > REPORT_EVERY_S:
                reported = time.time()
                self.note("progress", epoch=epoch, step=step + 1, steps=steps)
        means = {name: (total / steps).item() for name, total in sums.items()}
        if not math.isfinite(means["loss"]):
            raise TrainingError(
                f"The loss became {means['loss']} in epoch {epoch + 1} of {self.spec['run']}; "
                "try a lower lr, `amp: bf16` or `clip_grad` in workflow/config/."
            )
        return {**means, "lr": max(group["lr"] for group in self.optimizer.param_groups)}

    def train_step(self, images: torch.Tensor, target: torch.Tensor, update: int) -> dict:
        """Forward, backward and one update; -> the task's scalar tensors."""
        if self.mixup is not None:
            images, target = self.mixup(images, target)
        with self.autocast():
            result = self.task(images, target)
        self.optimizer.zero_grad()
        self.scaler.scale(result["loss"]).backward()
        if self.recipe["clip_grad"] is not None:
            self.scaler.unscale_(self.optimizer)
            dispatch_clip_grad(self.task.get_clip_parameters(), self.recipe["clip_grad"])
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.task.update_ema(step=update)
        return {name: value for name, value in result.items() if name != "output"}

    def evaluate(self, ema: bool = False) -> dict[str, float]:
        """{"val_loss", "top1", "top5"} in percent over the whole validation split."""
        # DDP would synchronise buffers for every batch, and ranks may have unequal numbers of them
        module = unwrap_model(self.task.get_eval_model(ema=ema)).eval()
        evaluator = self.task.create_evaluator()
        distributed = self.where.distributed
        return evaluate.accuracy(module, self.val_loader, evaluator, self.autocast, distributed)

    def operations(self, site: dict, val_images: int) -> dict[str, float]:
        """MACs of a model whose cost depends on the image, over some of the validation split."""
        shown = {"data": self.spec["data"], **self.recipe}
        count = min(MACS_IMAGES, val_images)
        images, _ = data.named_images(shown, site, self.config, count, self.where.device)
        return macs.per_image(unwrap_model(self.model), images)

    def note(self, event: str, **values) -> None:
        if self.journal is not None:
            self.journal.write(event, **values)


def make_mixup(recipe: dict, num_classes: int) -> Mixup | None:
    if not recipe["mixup"] and not recipe["cutmix"]:
        return None
    return Mixup(
        mixup_alpha=recipe["mixup"],
        cutmix_alpha=recipe["cutmix"],
        switch_prob=recipe["mixup_switch_prob"],
        label_smoothing=recipe["smoothing"],
        num_classes=num_classes,
    )


def make_optimizer(task: TrainingTask, recipe: dict) -> torch.optim.Optimizer:
    lr = recipe["lr"]
    if recipe["lr_base_batch"] is not None:
        lr *= recipe["batch_size"] / recipe["lr_base_batch"]
    groups = getattr(task, "param_groups", None)
    return create_optimizer_v2(
        task.get_trainable_module(),
        opt=recipe["optimizer"],
        lr=lr,
        weight_decay=recipe["weight_decay"],
        param_group_fn=groups and (lambda _: groups(recipe["weight_decay"])),
    )


def summarise(metrics: list[dict], epochs: int) -> dict:
    """The record's numbers: the last epoch's, with the best and the averaged weights' beside."""
    if [entry["epoch"] for entry in metrics] != list(range(1, epochs + 1)):
        raise TrainingError(f"The journal has {len(metrics)} of {epochs} epochs.")
    last = metrics[-1]
    best = max(metrics, key=lambda entry: entry["top1"])
    return {
        **{key: last[key] for key in ("top1", "top5", "val_loss", "loss")},
        "epochs": epochs,
        "best_top1": best["top1"],
        "best_epoch": best["epoch"],
        "ema_top1": last.get("ema_top1"),
        "train_s": sum(entry["train_s"] for entry in metrics),
        "history": metrics,
    }


def run(spec: dict, site: dict, folder: Path) -> dict | None:
    """Train to the end; -> the record on rank 0, None elsewhere."""
    from workflow import journal as journals

    started = time.time()
    torch.set_num_threads(spec["recipe"]["threads"])
    layout.check(spec["setting"], {**spec["data"], "root": site["data_root"]})
    where = place.join(site["device"])
    journal = Journal(folder / "journal.jsonl") if where.first else None

    def report(text: str) -> None:
        if journal is not None:
            journal.write("note", text=text)

    training = Training(spec, site, where, journal)
    training.fit(Checkpoints(folder / "checkpoints", records.runs.spec_hash(spec), report))
    if not where.first:
        place.leave(where)
        return None
    results = summarise(journals.epochs(journal.path), spec["recipe"]["epochs"])
    results["weights"] = save_weights(folder, unwrap_model(training.model), spec)
    results["val_images"] = len(training.val_loader.loader.dataset)
    if getattr(unwrap_model(training.model), "cost_varies", False):
        results["macs_per_image"] = training.operations(site, results["val_images"])
    journal.write("end")
    place.leave(where)
    return records.make(
        spec,
        results,
        started,
        device=device.describe(where.device),
        world_size=where.world_size,
        manifest=data.manifest_hash(site),
    )
