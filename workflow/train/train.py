"""Training: one spec, one folder -> a record, resumable after every step."""

import signal
import time
from pathlib import Path

import torch
from timm.utils import unwrap_model

from workflow.campaign import specs
from workflow.data import check, layout, worker_processes
from workflow.runtime import device, distributed
from workflow.runtime.distributed import Place
from workflow.runtime.preemption import StopFlag
from workflow.storage import journal as journals
from workflow.storage import records
from workflow.storage.journal import Journal
from workflow.train import macs
from workflow.train.checkpoints import Checkpoints, describe_snapshots, save_weights
from workflow.train.trainer import Training, TrainingError

CHECKPOINT_MINUTES = 15


def summarise(metrics: list[dict], epochs: int) -> dict:
    """The record's numbers: the last epoch's, with the best and the averaged weights' beside.

    `metrics` may lack epochs that a crash took; the best one is then of those that are known, and
    `train_s` is None.
    """
    last = metrics[-1]
    best = max(metrics, key=lambda entry: entry["top1"])
    timed = {entry["epoch"]: entry["train_s"] for entry in metrics if "train_s" in entry}
    lost = [epoch for epoch in range(1, epochs + 1) if epoch not in timed]
    return {
        **{key: last.get(key) for key in ("top1", "top5", "val_loss", "loss")},
        "epochs": epochs,
        "best_top1": best["top1"],
        "best_epoch": best["epoch"],
        "ema_top1": last.get("ema_top1"),
        "train_s": None if lost else sum(timed.values()),
        "lost_epochs": lost,
        "history": metrics,
    }


def run(spec: dict, site: dict, folder: Path) -> dict | None:
    """Train to the end; -> the record on rank 0, None elsewhere."""
    started = time.time()
    torch.set_num_threads(spec["recipe"]["threads"])
    layout.check(spec["setting"], {**spec["data"], "root": site["data_root"]})
    where = distributed.join(site["device"])
    fitted = fit(spec, site, folder, where)
    distributed.leave(where)
    if not where.first:
        return None
    results, code = fitted
    seen = {"device": device.describe(where.device), **check.of_images(site)}
    return records.make(spec, results, started, code, world_size=where.world_size, **seen)


def fit(spec: dict, site: dict, folder: Path, where: Place) -> tuple[dict, list[dict]] | None:
    """Train and keep the weights; -> the record's results and the versions of the code that
    trained, on rank 0; None elsewhere."""
    journal = Journal(folder / "journal.jsonl") if where.first else None

    def report(text: str) -> None:
        if journal is not None:
            journal.write("note", text=text)

    minutes = site.get("checkpoint_minutes", CHECKPOINT_MINUTES)
    images = check.of_images(site)
    spec_hash = specs.spec_hash(spec)
    saved = Checkpoints(folder / "checkpoints", spec_hash, report, minutes, images)
    training = Training(spec, site, where, journal)
    with StopFlag() as stop:
        try:
            finished = training.fit(saved, stop)
        except worker_processes.FAULTS as error:
            if stop.received is not None and -signal.SIGTERM in worker_processes.lost():
                # Slurm asks all processes of a job at once, and the loaders obeyed first
                report("Asked to stop: goes on from the last checkpoint.")
                stop.hand_on(where.first)
            if not device.is_out_of_memory(error):
                raise
            raise TrainingError(
                f"{spec['run']} runs out of memory with {training.loader.batch_size} images of a "
                "process in one pass; set `device_batch` to fewer in its recipe "
                "(workflow/config/): the global batch stays, and is accumulated. As the recipe is "
                "another one then, the training starts anew."
            ) from error
        if not finished:
            report(f"Asked to stop: saved before step {training.step} of epoch {training.epoch}.")
            stop.hand_on(where.first)
    if not where.first:
        return None
    results = summarise(training.history, spec["recipe"]["epochs"])
    results["restored_epochs"] = journals.restored(journal.path)
    results["weights"] = save_weights(folder, unwrap_model(training.model), spec, images["classes"])
    if "snapshots" in spec:
        results["snapshots"] = describe_snapshots(saved.folder, spec)
    results["deviations"] = training.deviations()
    results["unreached"] = training.unreached()
    results["val_images"] = len(training.val_loader.loader.dataset)
    model = unwrap_model(training.model)
    if getattr(model, "cost_varies", False):
        results["macs_per_image"] = training.operations(results["val_images"])
        results["macs_g"] = results["macs_per_image"]["mean_g"]
    else:
        results["macs_g"] = macs.count(model, training.config["input_size"]) / 1e9
    journal.write("end")
    return results, training.code
