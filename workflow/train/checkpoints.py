"""Save checkpoints that survive a kill at any byte, and files of weights that other runs start from."""

import argparse
import math
import os
import pickle
import shutil
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from zipfile import BadZipFile

import torch
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import nn

from evovit.checkpoint import has_own_keys, load_exactly, load_file
from workflow.campaign import specs
from workflow.data import layout, readers
from workflow.storage import files, records

KEPT = 2  # checkpoints
UNREADABLE = (OSError, EOFError, RuntimeError, ValueError, KeyError, BadZipFile, pickle.UnpicklingError)


class WeightsError(RuntimeError):
    """Weights that a run needs are missing or not the ones its record names."""


# -- checkpoints of a job -------------------------------------------------------------------------


class Checkpoints:
    """Keep an attempt's newest checkpoints, and its best.

    `step-000001250.pt` was saved before step 1250 (from 0).

    Args:
        report: takes a sentence for the user.
        minutes: after which another checkpoint is due.
        images: hash of the data job's manifest and list of classes, which must stay the same when a job is resumed.
    """

    def __init__(
        self,
        folder: Path,
        spec_hash: str,
        report: Callable[[str], None],
        minutes: float = math.inf,
        images: dict | None = None,
    ):
        self.folder = folder
        self.spec_hash = spec_hash
        self.report = report
        self.minutes = minutes
        self.images = images or {}
        self.saved_at = time.monotonic()

    def due(self) -> bool:
        return time.monotonic() - self.saved_at > 60 * self.minutes

    def save(self, step: int, state: dict, best: float | None = None) -> None:
        """Save a checkpoint, and keep the newest two.

        The one with the highest `best` is kept as best.pt, too. A failed save is reported and does not end the run.
        """
        path = self.folder / f"step-{step:09d}.pt"
        self.saved_at = time.monotonic()
        for unfinished in self.folder.glob(".*.pt.*"):  # of a process that was killed while it saved
            unfinished.unlink(missing_ok=True)
        try:
            save(path, {"spec_hash": self.spec_hash, "best": best, **self.images, **state})
            if best is not None:
                self._keep_best(path, best)
        except OSError as error:
            self.report(f"The checkpoint before step {step} was not saved: {error}. Going on.")
            return
        for old in self._paths()[:-KEPT]:
            old.unlink()

    def load(self) -> dict | None:
        """Return the newest checkpoint that is whole and of this spec, None if there is none.

        A checkpoint that is damaged or of another spec is set aside and reported. Raises WeightsError for one that was
        trained on other images.
        """
        for path in reversed(self._paths()):
            try:
                state = torch.load(path, map_location="cpu", weights_only=True)
                spec_hash = state["spec_hash"]
            except UNREADABLE as error:
                reason = first_line(error)
            else:
                if spec_hash == self.spec_hash:
                    self._check_images(path, state)
                    return state
                reason = f"it is of another spec ({spec_hash})"
            path.replace(path.with_name(f"{path.name}.aside"))
            self.report(f"{path} can't be used ({reason}): set aside, taking the one before.")
        return None

    def keep_snapshot(self, epoch: int, model: nn.Module) -> None:
        """Keep the weights after an epoch (from 1) for good. A failed save is reported."""
        try:
            save(snapshot_path(self.folder, epoch), cpu_weights(model))
        except OSError as error:
            self.report(f"The snapshot after epoch {epoch} was not saved: {error}. Going on.")

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("step-*.pt"))

    def _keep_best(self, path: Path, value: float) -> None:
        if value <= self._best_value():
            return
        with files.replacing(self.folder / "best.pt") as temporary:
            try:
                os.link(path, temporary)
            except OSError:  # a file system without links
                shutil.copyfile(path, temporary)
        records.write_json(self.folder / "best.json", {"value": value, "was": path.name})

    def _best_value(self) -> float:
        """Return what best.pt reached, minus infinity if there is none or its note is damaged."""
        return files.read_json(self.folder / "best.json").get("value", -math.inf)

    def _check_images(self, path: Path, state: dict) -> None:
        """Raise WeightsError if a checkpoint names other images than there are now."""
        before = state.get("manifest")
        now = self.images.get("manifest")
        if None in (before, now) or before == now:
            return
        difference = f"manifest {before} then, {now} now"
        classes = state.get("classes")
        if classes not in (None, self.images["classes"]):
            difference = readers.class_difference(classes, self.images["classes"])
        raise WeightsError(
            f"{path} was trained on other images than there are now ({difference}); restore them, "
            f"or delete {self.folder.parent} to begin anew."
        )


def save(path: Path, state: dict) -> None:
    """Write a file by torch.save so that readers see it only whole, and flush it. Raises OSError (a full disk)."""
    try:
        with files.replacing(path) as temporary, open(temporary, "wb") as stream:
            torch.save(state, stream)
            stream.flush()
            os.fsync(stream.fileno())
    except RuntimeError as error:  # torch's zip writer wraps the disk's error
        raise OSError(f"{path} could not be written: {error}") from error


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its name if it has none, as EOFError."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


# -- weights that a record names ------------------------------------------------------------------


def save_weights(folder: Path, model: nn.Module, spec: dict, classes: list[str] | None = None) -> dict:
    """Write weights.pt in the attempt's folder. Return its path and sha256 for the record.

    The list of classes goes into the state dict's metadata, which torch keeps in the file.
    """
    path = folder / "weights.pt"
    weights = cpu_weights(model)
    weights._metadata["classes"] = classes  # type: ignore[attr-defined]  # torch's own
    save(path, weights)
    return describe_file(path, spec["run"])


def cpu_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the state dict on the CPU, with torch's metadata, in which Evo-ViTs keep their schedule."""
    weights = model.state_dict()
    for key, value in weights.items():
        weights[key] = value.cpu()
    return weights


def describe_file(path: Path, job: str) -> dict:
    """Return a file's sha256, and its path from the folder named `job` above its attempt.

    As the path is relative, results can be moved as a whole.
    """
    folder = next(parent for parent in path.parents if parent.name == job)
    return {"path": str(path.relative_to(folder)), "sha256": records.sha256(path)}


def final_weights(site: dict, needed: dict) -> dict[str, torch.Tensor]:
    """Return the state dict that a training or search of this setting ended with.

    `needed` is a spec's `start` or `teacher`. Raises WeightsError unless that job's record is of the spec that this one
    was planned with, and the file's sha256 is the one in the record.
    """
    source, record = needed_record(site, needed)
    return read_weights(source, record["results"]["weights"])


def needed_record(site: dict, needed: dict) -> tuple[Path, dict]:
    """Return the path and the record of a job whose weights another job needs. Raises WeightsError."""
    source = Path(site["root"]) / "runs" / needed["run"] / f"{needed['job']}.json"
    try:
        record = records.read(source, needed["spec_hash"])
    except records.RecordError as error:
        raise WeightsError(f"This run needs the weights of {needed['run']}: {error}") from None
    remedy = f"restore the images, or make it again (--forcerun {source})"
    check_classes(record["provenance"].get("classes"), site, source, remedy)
    return source, record


def read_weights(source: Path, weights: dict) -> dict[str, torch.Tensor]:
    """Return the state dict in a file that the record at `source` names by path and sha256. Raises WeightsError."""
    path = source.parent / weights["path"]
    if not path.exists() or records.sha256(path) != weights["sha256"]:
        raise WeightsError(f"{path} is missing or not the file that {source} names; make {source} again.")
    return torch.load(path, map_location="cpu", weights_only=True)


def check_classes(trained: list[str] | None, site: dict, source: Path | str, remedy: str) -> None:
    """Raise WeightsError if weights were trained with other classes than the images have now.

    Weights without a list of classes, as published files, pass.
    """
    now = (readers.read_manifest(site) or {}).get("classes")
    if trained is None or now is None or trained == now:
        return
    raise WeightsError(
        f"The weights of {source} were trained with other classes than {site['root']}/data.json "
        f"lists ({readers.class_difference(trained, now)}); {remedy}."
    )


# -- snapshots: weights that a training keeps on its way ------------------------------------------


def snapshot_path(folder: Path, epoch: int) -> Path:
    return folder / f"epoch-{epoch:04d}.pt"


def snapshot_epochs(spec: dict) -> list[int]:
    """Return the epochs (from 1) after which a training keeps its weights, without its last one."""
    epochs = spec["recipe"]["epochs"]
    chosen = {max(1, round(share * epochs)) for share in spec.get("snapshots", [])}
    return sorted(chosen - {epochs})


def describe_snapshots(folder: Path, spec: dict) -> list[dict]:
    """Return epoch, path and sha256 of the snapshots in the attempt's folder of checkpoints, for the record."""
    paths = {epoch: snapshot_path(folder, epoch) for epoch in snapshot_epochs(spec)}
    return [{"epoch": epoch, **describe_file(path, spec["run"])} for epoch, path in paths.items() if path.exists()]


def snapshots(site: dict, needed: dict) -> list[tuple[int, dict[str, torch.Tensor]]]:
    """Return epochs (from 1) and state dicts of a training's snapshots; none for weights from a file.

    Raises WeightsError as `final_weights` does.
    """
    source, record = needed_record(site, needed)
    kept = record["results"].get("snapshots", [])
    return [(snapshot["epoch"], read_weights(source, snapshot)) for snapshot in kept]


# -- weights from a file that settings.yaml names -------------------------------------------------


def load_external(model: nn.Module, spec: dict, site: dict) -> None:
    """Load the file that an evaluation's spec names, with our own, timm's or the authors' keys.

    Raises WeightsError unless it is the file of that sha256 and every key fits.
    """
    path, source = _checked_file(spec, site)
    try:
        weights = load_file(path)
        if hasattr(model, "from_official") and not has_own_keys(weights, model):
            weights = model.from_official(weights)
        load_exactly(model, weights)
        classes = classes_of(path)
    except UNREADABLE as error:
        raise _misfit(path, source, spec, error) from None
    check_classes(classes, site, f"{path} ({source})", "name other weights, or restore the images")


def load_pretrained(model: nn.Module, spec: dict, site: dict) -> list[str]:
    """Load the weights that a training's spec names as `pretrained`, in any format that timm reads for its own ViTs.

    Positions are interpolated to the model's grid. A classifier of another number of classes, or none, leaves the
    model's own, which is fresh. Return the keys that stay fresh. Raises WeightsError as `load_external` does.
    """
    path, source = _checked_file(spec, site)
    try:
        weights = checkpoint_filter_fn(load_file(path), model)
        classifier = f"{model.pretrained_cfg['classifier']}."
        own = model.state_dict()
        for key in [key for key in weights if key.startswith(classifier)]:
            if key in own and weights[key].shape != own[key].shape:
                del weights[key]
        return load_exactly(model, weights, fresh=(classifier,))
    except UNREADABLE as error:
        raise _misfit(path, source, spec, error) from None


def _checked_file(spec: dict, site: dict) -> tuple[Path, str]:
    """Return the path of the weights that a spec names, and what names them.

    Raises WeightsError unless it is the file of that sha256.
    """
    path, expected, source = external_file(spec, site)
    if not path.is_file():
        raise WeightsError(f"{path} ({source}) is missing; download it, or correct the path.")
    sha256 = records.sha256(path)
    if sha256 != expected:
        raise WeightsError(f"{path} has the sha256 {sha256}, but {source} says {expected}.")
    return path, source


def _misfit(path: Path, source: str, spec: dict, error: BaseException) -> WeightsError:
    reason = textwrap.shorten(first_line(error), 400, placeholder=" ...")
    return WeightsError(f"{path} ({source}) does not fit {spec['model']['name']}: {reason}")


def external_file(spec: dict, site: dict) -> tuple[Path, str, str]:
    """Return the path of the weights that a spec names, their sha256, and what names them.

    Raises WeightsError if the weights were not fetched yet.
    """
    checkpoint = spec["pretrained"] if "pretrained" in spec else spec["checkpoint"]
    if "file" in checkpoint:
        if "pretrained" in spec:
            source = f"settings.yaml, {spec['setting']}.host.checkpoint"
        elif "evaluation" in spec:
            source = f"settings.yaml, {spec['setting']}.evaluations.{spec['evaluation']}"
        elif spec.get("kind") in specs.OF_HOSTS:
            source = f"settings.yaml, {spec['setting']}.hosts.{spec['run']}"
        else:
            source = f"settings.yaml, {spec['setting']}.checkpoints.{spec['run']}"
        return layout.expand(checkpoint["file"], source), checkpoint["sha256"], source
    record = Path(site["root"]) / "weights" / f"{checkpoint['timm']}.json"
    try:
        fetched = records.read(record, specs.spec_hash(specs.fetch_spec(checkpoint)))
    except records.RecordError as error:
        raise WeightsError(f"This job needs fetched weights: {error}") from None
    results = fetched["results"]
    return Path(site["root"]) / results["path"], results["sha256"], str(record)


def classes_of(path: Path) -> list[str] | None:
    """Return the list of classes in a file of our weights or in a checkpoint, None if it has none."""
    if path.suffix == ".safetensors":
        return None
    with torch.serialization.safe_globals([argparse.Namespace]):  # which published files hold
        content = torch.load(path, map_location="cpu", weights_only=True)
    classes = content.get("classes")
    if isinstance(classes, list):
        return classes
    return getattr(content, "_metadata", {}).get("classes")
