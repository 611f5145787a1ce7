"""Checkpoints that survive a kill at any byte, and weights that other runs start from."""

import argparse
import json
import math
import os
import pickle
import shutil
import time
from pathlib import Path
from zipfile import BadZipFile

import torch
from torch import nn

from evovit.checkpoint import has_own_keys, load_exactly, load_file
from workflow.campaign import specs
from workflow.data import layout, readers
from workflow.storage import files, records

KEPT = 2
UNREADABLE = (OSError, EOFError, RuntimeError, ValueError, KeyError, BadZipFile)
UNREADABLE += (pickle.UnpicklingError,)


class WeightsError(RuntimeError):
    """Weights that a run needs are missing or not the ones its record names."""


def save(path: Path, state: dict) -> None:
    """torch.save, flushed, and seen only whole. Raises OSError (a full disk)."""
    try:
        with files.replacing(path) as beside, open(beside, "wb") as stream:
            torch.save(state, stream)
            stream.flush()
            os.fsync(stream.fileno())
    except RuntimeError as error:  # torch's zip writer wraps the disk's error
        raise OSError(f"{path} could not be written: {error}") from error


class Checkpoints:
    """An attempt's newest checkpoints, `step-000001250.pt` before step 1250 (from 0), and its best.

    Args:
        report: takes a sentence for the user.
        minutes: after which another is due.
        images: hash of the data job's manifest and list of classes, which no resumption may change.
    """

    def __init__(
        self,
        folder: Path,
        spec_hash: str,
        report,
        minutes: float = math.inf,
        images: dict | None = None,
    ):
        self.folder, self.spec_hash, self.report = folder, spec_hash, report
        self.images = images or {}
        self.minutes, self.saved_at = minutes, time.monotonic()

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("step-*.pt"))

    def due(self) -> bool:
        return time.monotonic() - self.saved_at > 60 * self.minutes

    def save(self, step: int, state: dict, best: float | None = None) -> None:
        """Keep the last two, and a copy of the one with the highest `best`, as best.pt.

        A failed save is reported and does not end the run.
        """
        path = self.folder / f"step-{step:09d}.pt"
        self.saved_at = time.monotonic()
        for half in self.folder.glob(".*.pt.*"):  # of a process that was killed while it saved
            half.unlink(missing_ok=True)
        try:
            save(path, {"spec_hash": self.spec_hash, "best": best, **self.images, **state})
            if best is not None:
                self._keep_best(path, best)
        except OSError as error:
            self.report(f"The checkpoint before step {step} was not saved: {error}. Going on.")
            return
        for old in self._paths()[:-KEPT]:
            old.unlink()

    def _keep_best(self, path: Path, value: float) -> None:
        note = self.folder / "best.json"
        if self._best_value() < value:
            with files.replacing(self.folder / "best.pt") as beside:
                try:
                    os.link(path, beside)
                except OSError:  # a file system without links
                    shutil.copyfile(path, beside)
            records.write_json(note, {"value": value, "was": path.name})

    def _best_value(self) -> float:
        """What best.pt reached; minus infinity if there is none or its note is damaged."""
        try:
            return float(json.loads((self.folder / "best.json").read_text())["value"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return -math.inf

    def keep_snapshot(self, epoch: int, model: nn.Module) -> None:
        """Keep the weights after an epoch (from 1), for good; a failed save is reported."""
        try:
            save(snapshot_path(self.folder, epoch), cpu_weights(model))
        except OSError as error:
            self.report(f"The snapshot after epoch {epoch} was not saved: {error}. Going on.")

    def load(self) -> dict | None:
        """The newest checkpoint that is whole and of this spec; None if there is none.

        One that is neither is set aside, with a word to the user. Raises WeightsError for one that
        was trained on other images.
        """
        for path in reversed(self._paths()):
            try:
                state = torch.load(path, map_location="cpu", weights_only=True)
                if state["spec_hash"] == self.spec_hash:
                    break
                reason = f"it is of another spec ({state['spec_hash']})"
            except UNREADABLE as error:
                reason = (str(error) or type(error).__name__).splitlines()[0]  # EOFError is mute
            aside = path.with_name(f"{path.name}.aside")
            path.replace(aside)
            self.report(f"{path} can't be used ({reason}): set aside, taking the one before.")
        else:
            return None
        self._check_images(path, state)
        return state

    def _check_images(self, path: Path, state: dict) -> None:
        """Raise WeightsError if a checkpoint names other images than there are now."""
        before, now = state.get("manifest"), self.images.get("manifest")
        if None in (before, now) or before == now:
            return
        difference = f"manifest {before} then, {now} now"
        if (classes := state.get("classes")) not in (None, self.images["classes"]):
            difference = readers.class_difference(classes, self.images["classes"])
        raise WeightsError(
            f"{path} was trained on other images than there are now ({difference}); restore them, "
            f"or delete {self.folder.parent} to begin anew."
        )


def final_weights(site: dict, needed: dict) -> dict[str, torch.Tensor]:
    """The state dict that a training or search of this setting ended with.

    `needed` is a spec's `start` or `teacher`. Raises WeightsError unless that job's record is of
    the spec this one was planned with and the file's sha256 is the one in the record.
    """
    source, record = needed_record(site, needed)
    return read_weights(source, record["results"]["weights"])


def snapshots(site: dict, needed: dict) -> list[tuple[int, dict[str, torch.Tensor]]]:
    """Epochs (from 1) and state dicts that a training kept on its way, its end not among them; of
    weights that were given, none. Raises WeightsError as `final_weights` does."""
    source, record = needed_record(site, needed)
    kept = record["results"].get("snapshots", [])
    return [(one["epoch"], read_weights(source, one)) for one in kept]


def needed_record(site: dict, needed: dict) -> tuple[Path, dict]:
    """The record of a job whose weights another needs, and where it lies."""
    source = Path(site["root"]) / "runs" / needed["run"] / f"{needed['job']}.json"
    try:
        record = records.read(source, needed["spec_hash"])
    except records.RecordError as error:
        raise WeightsError(f"This run needs the weights of {needed['run']}: {error}") from None
    remedy = f"restore the images, or make it again (--forcerun {source})"
    check_classes(record["provenance"].get("classes"), site, source, remedy)
    return source, record


def check_classes(trained: list[str] | None, site: dict, source: Path | str, remedy: str) -> None:
    """Raise WeightsError if weights were trained with other classes than the images have now.

    Weights without a list of classes, as published files, pass.
    """
    now = (readers.looked_through(site) or {}).get("classes")
    if trained is None or now is None or trained == now:
        return
    raise WeightsError(
        f"The weights of {source} were trained with other classes than {site['root']}/data.json "
        f"lists ({readers.class_difference(trained, now)}); {remedy}."
    )


def read_weights(source: Path, weights: dict) -> dict[str, torch.Tensor]:
    """The state dict in a file that the record at `source` names by path and sha256."""
    path = source.parent / weights["path"]
    if not path.exists() or records.sha256(path) != weights["sha256"]:
        raise WeightsError(f"{path} is missing or not the file that {source} names; make {source} again.")
    return torch.load(path, map_location="cpu", weights_only=True)


def classes_of(path: Path) -> list[str] | None:
    """Return the list of classes in a file of our weights or in a checkpoint, None without one."""
    if path.suffix == ".safetensors":
        return None
    with torch.serialization.safe_globals([argparse.Namespace]):  # of published files
        content = torch.load(path, map_location="cpu", weights_only=True)
    classes = content.get("classes")
    if isinstance(classes, list):
        return classes
    return getattr(content, "_metadata", {}).get("classes")


def given_file(spec: dict, site: dict) -> tuple[Path, str, str]:
    """Where the weights lie that a spec names, their sha256, and who says so."""
    given = spec["checkpoint"]
    if "file" in given:
        group = f"evaluations.{spec['evaluation']}" if "evaluation" in spec else None
        key = group or f"checkpoints.{spec['run']}"
        place = f"settings.yaml, {spec['setting']}.{key}"
        return layout.expand(given["file"], place), given["sha256"], place
    source = Path(site["root"]) / "weights" / f"{given['timm']}.json"
    try:
        fetched = records.read(source, specs.spec_hash(specs.fetch_spec(given)))
    except records.RecordError as error:
        raise WeightsError(f"This evaluation needs fetched weights: {error}") from None
    results = fetched["results"]
    return Path(site["root"]) / results["path"], results["sha256"], str(source)


def load_given(model: nn.Module, spec: dict, site: dict) -> None:
    """Load the file that the spec names: our own, timm's, or the authors' keys.

    Raises WeightsError unless it is the file of that sha256 and every key fits.
    """
    path, named, place = given_file(spec, site)
    if not path.is_file():
        raise WeightsError(f"{path} ({place}) is missing; download it, or correct the path.")
    if (found := records.sha256(path)) != named:
        raise WeightsError(f"{path} has the sha256 {found}, but {place} says {named}.")
    try:
        weights = load_file(path)
        if hasattr(model, "from_official") and not has_own_keys(weights, model):
            weights = model.from_official(weights)
        load_exactly(model, weights)
        classes = classes_of(path)
    except UNREADABLE as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        shown = reason if len(reason) < 400 else f"{reason[:400]} ..."
        name = spec["model"]["name"]
        raise WeightsError(f"{path} ({place}) does not fit {name}: {shown}") from None
    check_classes(classes, site, f"{path} ({place})", "name other weights, or restore the images")


def save_weights(folder: Path, model: nn.Module, spec: dict, classes: list[str] | None = None) -> dict:
    """Write weights.pt in the attempt's folder; -> what a record says of them.

    The list of classes is in the state dict's metadata, which torch keeps in the file.

    The path counts from the run's folder, so that results can be moved as a whole.
    """
    path = folder / "weights.pt"
    weights = cpu_weights(model)
    weights._metadata["classes"] = classes
    save(path, weights)
    return describe_file(path, spec["run"])


def cpu_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict on the CPU, with torch's metadata, in which Evo-ViTs hold their schedule."""
    weights = model.state_dict()
    for key, value in weights.items():
        weights[key] = value.cpu()
    return weights


def describe_file(path: Path, job: str) -> dict:
    """A file's sha256, and its path from the folder `job` that its attempt lies in."""
    above = next(above for above in path.parents if above.name == job)
    return {"path": str(path.relative_to(above)), "sha256": records.sha256(path)}


def snapshot_path(folder: Path, epoch: int) -> Path:
    return folder / f"epoch-{epoch:04d}.pt"


def snapshot_epochs(spec: dict) -> list[int]:
    """The epochs (from 1) after which a training's spec keeps weights, its last one left out."""
    epochs = spec["recipe"]["epochs"]
    wanted = {max(1, round(share * epochs)) for share in spec.get("snapshots", [])}
    return sorted(wanted - {epochs})


def describe_snapshots(folder: Path, spec: dict) -> list[dict]:
    """What a record says of the snapshots in the attempt's folder of checkpoints."""
    paths = {epoch: snapshot_path(folder, epoch) for epoch in snapshot_epochs(spec)}
    return [{"epoch": epoch, **describe_file(path, spec["run"])} for epoch, path in paths.items() if path.exists()]
