"""Measure what token reduction costs the features of a pretrained ViT, when nothing of the ViT is trained.

    python -m workflow.analysis.probe --model vit_small_patch14_dinov2.lvd142m --images photographs --size 112 \
        --output probe.json

A logistic regression (the head) learns classes from the dense model's features of the training images. It then
classifies the test images by the features of the dense model and of each method, all with the same weights. The head
never sees a method's features, so its loss of accuracy tells how far they are from the dense ones, for a ViT without a
classifier of its own, too. Features are the class token and the mean of the patches.

`--images` is a folder with train/<class>/<image> and test/<class>/<image> or val/<class>/<image>. Each result is
written at once; the same call goes on after an interruption, and further strengths join those that are there.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tabulate
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from timm.data import create_transform
from torch import nn
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

import baselines
import evovit
from baselines.any_vit import METHODS
from evovit.__main__ import build, data_config
from workflow import command_line
from workflow.campaign import specs
from workflow.data.layout import DataError
from workflow.data.loaders import spaced
from workflow.data.readers import StrictImageDataset, open_reader
from workflow.runtime import device as devices
from workflow.storage import files, provenance, records
from workflow.train import factory, macs

EVO = "evo"
ALL_METHODS = (EVO, *METHODS)
KEEP_RATIOS = (0.9, 0.7, 0.5, 0.3)
MERGES = (4, 8, 13, 16)  # r of ToMe for 196 patches
PENALTIES = (0.001, 0.01, 0.1, 1.0)  # C of the logistic regression; cross-validation takes one
FOLDS = 3
DRAWS = 10_000  # of the bootstrap
COUNTED = 16  # images, where MACs depend on the image


class Split(NamedTuple):
    """Images of one purpose."""

    name: str
    digest: str  # of the names and classes of all images of the folder
    dataset: Subset
    labels: np.ndarray  # (n,)


class Reduction(NamedTuple):
    """A method at one strength."""

    method: str
    strength: float  # keep_ratio, or r of ToMe
    keywords: dict[str, Any]  # of from_timm

    @property
    def title(self) -> str:
        return f"{self.method} {self.strength:g}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    options = parse(arguments)
    try:
        device = devices.choose(options.device)
        host = load_host(options.model, options.checkpoint, options.size).to(device).eval()
        models = reduced_models(host, options)
        training, test = open_splits(options.images, host, options.train, options.test)
        record = probe(host, models, training, test, options, device)
    except (ValueError, DataError, devices.DeviceError, records.RecordError) as error:
        sys.exit(str(error))
    print(table(record["results"]))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = command_line.parser(__doc__, prog="python -m workflow.analysis.probe")
    parser.add_argument(
        "--model", required=True, help="a timm ViT with a class token, vit_small_patch14_dinov2.lvd142m"
    )
    parser.add_argument("--checkpoint", type=Path, help="its weights; by default timm fetches the pretrained ones")
    parser.add_argument(
        "--images", type=Path, required=True, help="folder with train/<class>/ and test/ or val/<class>/"
    )
    parser.add_argument("--size", type=int, help="pixels of the images, where they are not the model's own")
    parser.add_argument("--train", type=int, default=10_000, metavar="N", help="training images at most (10000)")
    parser.add_argument("--test", type=int, default=10_000, metavar="N", help="test images at most (10000)")
    parser.add_argument("--methods", nargs="+", choices=ALL_METHODS, default=ALL_METHODS, metavar="METHOD",
                        help=f"of {', '.join(ALL_METHODS)} (all)")  # fmt: skip
    parser.add_argument("--keep-ratios", type=float, nargs="+", default=KEEP_RATIOS, metavar="RATIO",
                        help="strengths (0.9 0.7 0.5 0.3)")  # fmt: skip
    parser.add_argument("--merges", type=int, nargs="+", metavar="R",
                        help="r, ToMe's strengths (4 8 13 16 for 196 patches, in proportion for others)")  # fmt: skip
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: the GPU if there is one"
    )
    parser.add_argument("--batch-size", type=int, default=50, metavar="N")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="processes that read images (0)")
    parser.add_argument("--output", type=Path, required=True, help="the record, a .json file")
    options = parser.parse_args(arguments)
    for name in ("size", "train", "test", "batch_size"):
        value = getattr(options, name)
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} {value} must be at least 1")
    return options


# -- models -------------------------------------------------------------------------------------


def load_host(name: str, checkpoint: Path | None, size: int | None) -> nn.Module:
    """Return timm's model without a classifier.

    It counts as one that pools patches. A method that gives the patches of a batch different weights in a mean, because
    they are merged or padding, then returns tokens that have the mean that it means.
    """
    vit = build(name, checkpoint, size)
    evovit.from_timm(vit)  # which refuses what is no host
    vit.reset_classifier(0, global_pool="avg")
    return vit


def reductions(host: nn.Module, options: argparse.Namespace) -> list[Reduction]:
    """Return all methods at all strengths, the weakest of each method first, so that a comparison grows evenly."""
    patches = host.patch_embed.num_patches
    merges = options.merges or [factory.scaled({"r": r}, patches)["r"] for r in MERGES]
    chosen = []
    for number in range(max(len(merges), len(options.keep_ratios))):
        for method in options.methods:
            strengths = merges if method == "tome" else options.keep_ratios
            if number < len(strengths):
                chosen.append(Reduction(method, strengths[number], keywords(method, strengths[number])))
    return chosen


def keywords(method: str, strength: float) -> dict[str, Any]:
    """Return the keywords of from_timm for a keep_ratio, or for the r of ToMe on this host."""
    if method == "tome":
        return {"r": int(strength)}
    return factory.at_strength(method, {"keep_ratio": strength}, factory.PATCHES)


def reduced_models(host: nn.Module, options: argparse.Namespace) -> list[tuple[Reduction, nn.Module]]:
    """Return each method at each strength, and the host with fewer tokens by it, which shares the host's weights.

    A strength that a method refuses, such as one that keeps no patch of a small image, is named and left out.

    Raises:
        ValueError: where all are refused.
    """
    models = []
    refused = ""
    for reduction in reductions(host, options):
        try:
            if reduction.method == EVO:
                model = evovit.from_timm(host, **reduction.keywords)
            else:
                model = baselines.from_timm(host, reduction.method, **reduction.keywords)
        except ValueError as error:
            refused = f"{reduction.title} is left out: {error}"
            print(refused, file=sys.stderr)
        else:
            models.append((reduction, model))
    if not models:
        raise ValueError(f"No method works at these strengths; {refused}")
    return models


def count_macs(model: nn.Module, test: Split, size: tuple[int, int, int]) -> float:
    """Return the MACs of an image in 10^9; their mean over some test images where they depend on the image."""
    if getattr(model, "cost_varies", False):
        chosen = spaced(len(test.dataset), COUNTED)
        return macs.per_image(model, torch.stack([test.dataset[index][0] for index in chosen]))["mean_g"]
    return macs.count(model, size) / 1e9


# -- images and features ------------------------------------------------------------------------


def open_splits(folder: Path, host: nn.Module, train: int, test: int) -> tuple[Split, Split]:
    """Return the training and the test images, evenly spaced over all that the folder has, as the model takes them.

    Raises:
        DataError: for a folder without these splits, for splits of other classes, or with too few images per class.
    """
    held_out = [name for name in ("test", "val") if (folder / name).is_dir()]
    if not (folder / "train").is_dir() or not held_out:
        raise DataError(
            f"--images {folder} needs the folders train/<class>/ and test/<class>/ or val/<class>/ with images."
        )
    transform = create_transform(**data_config(host), is_training=False)
    splits = []
    classes = []
    for name, most in (("train", train), (held_out[0], test)):
        reader = open_reader({}, {"data_root": folder}, name)
        chosen = spaced(len(reader), most)
        labels = np.array([reader.labels[index] for index in chosen])
        splits.append(Split(name, reader.digest(), Subset(StrictImageDataset(reader, transform), chosen), labels))
        classes.append(reader.classes)
    training, held = splits
    if classes[0] != classes[1]:
        raise DataError(f"--images {folder}: train and {held.name} must have the same class folders.")
    fewest = np.bincount(training.labels, minlength=len(classes[0])).min()
    if fewest < FOLDS or len(classes[0]) < 2:
        raise DataError(
            f"--images {folder}: of {len(classes[0])} classes one has {fewest} of {len(training.labels)} training "
            f"images; the head needs 2 classes and {FOLDS} images of each, so give more images or a larger --train."
        )
    return training, held


@torch.inference_mode()
def features(vit: nn.Module, split: Split, options: argparse.Namespace, device: torch.device, title: str) -> np.ndarray:
    """Return the class token and the mean of the patches (n, 2C) of all images, with a progress bar."""
    rows = []
    loader = DataLoader(split.dataset, options.batch_size, num_workers=options.workers)
    with tqdm(total=len(split.labels), desc=title, unit="image") as progress:
        for number, (images, _) in enumerate(loader):
            torch.manual_seed(number)  # a method that draws does so alike in each call
            tokens = vit.forward_features(images.to(device))
            mean = tokens[:, vit.num_prefix_tokens :].mean(dim=1)
            rows.append(torch.cat((tokens[:, 0], mean), dim=1).float().cpu().numpy())
            progress.update(len(images))
    return np.concatenate(rows)


def dense_features(
    host: nn.Module, splits: Sequence[Split], options: argparse.Namespace, device: torch.device, spec_hash: str
) -> list[np.ndarray]:
    """Return the dense features (n, 2C) of the splits. They are kept in a file next to the output, split by split."""
    path = options.output.with_suffix(".features.npz")
    arrays: dict[str, np.ndarray] = {}
    if path.exists():
        with np.load(path) as kept:
            if str(kept["spec_hash"]) == spec_hash:
                arrays = {split.name: kept[split.name] for split in splits if split.name in kept}
    for split in splits:
        if split.name not in arrays:
            arrays[split.name] = features(host, split, options, device, f"dense, {split.name}")
            with files.replacing(path) as temporary, temporary.open("wb") as stream:
                np.savez(stream, spec_hash=np.array(spec_hash), **arrays)
    return [arrays[split.name] for split in splits]


# -- the head and its results -------------------------------------------------------------------


def fit_head(rows: np.ndarray, labels: np.ndarray) -> Pipeline:
    """Return a logistic regression of labels (n,) on standardized features (n, 2C).

    Cross-validation among the training images chooses its penalty.
    """
    head = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    grid = GridSearchCV(head, {"logisticregression__C": PENALTIES}, cv=folds)
    return grid.fit(rows, labels).best_estimator_


def compare(labels: np.ndarray, dense: np.ndarray, classes: np.ndarray) -> dict:
    """Return what became of accuracy when predictions `dense` (n,) became `classes` (n,), in % and points.

    The interval of the change is that of a paired bootstrap over the images. Each image is worse, as before, or better,
    so that a draw of n images is a draw of these three counts.
    """
    was_right = dense == labels
    is_right = classes == labels
    images = len(labels)
    worse = int((was_right & ~is_right).sum())
    better = int((~was_right & is_right).sum())
    shares = np.array([worse, images - worse - better, better]) / images
    drawn = np.random.default_rng(0).multinomial(images, shares, size=DRAWS)
    low, high = np.percentile(100 * (drawn[:, 2] - drawn[:, 0]) / images, (2.5, 97.5))
    return {
        "top1": 100 * is_right.mean().item(),
        "change": 100 * (better - worse) / images,
        "change_low": low.item(),
        "change_high": high.item(),
        "changed": int((classes != dense).sum()),
        "worse": worse,
        "better": better,
    }


def probe(
    host: nn.Module,
    models: Sequence[tuple[Reduction, nn.Module]],
    training: Split,
    test: Split,
    options: argparse.Namespace,
    device: torch.device,
) -> dict:
    """Return the record with all results, those of an earlier call included; it is written after each."""
    size = (3, *host.patch_embed.img_size)
    spec = make_spec(options, size, training, test)
    spec_hash = specs.spec_hash(spec)
    results, code = earlier_results(options.output, spec_hash)
    code = provenance.extended(code, from_result=len(results["methods"]))
    started = time.time()
    train_rows, test_rows = dense_features(host, (training, test), options, device, spec_hash)
    head = fit_head(train_rows, training.labels)
    dense = head.predict(test_rows)
    results["dense"] = {
        "top1": 100 * (dense == test.labels).mean().item(),
        "macs_g": count_macs(host, test, size),
        "penalty": head[-1].C,
    }
    results |= {"patches": host.patch_embed.num_patches, "train": len(training.labels), "test": len(test.labels)}
    results["device"] = devices.describe(device)
    done = {(line["method"], line["strength"]) for line in results["methods"]}

    def written() -> dict:
        record = records.make(spec, results, started, code)
        records.write_json(options.output, record)
        return record

    record = written()
    for reduction, model in models:
        if (reduction.method, reduction.strength) in done:
            continue
        classes = head.predict(features(model, test, options, device, reduction.title))
        line = {"method": reduction.method, "strength": reduction.strength, "keywords": reduction.keywords}
        line |= compare(test.labels, dense, classes) | {"macs_g": count_macs(model, test, size)}
        results["methods"].append(line)
        record = written()
    return record


def make_spec(options: argparse.Namespace, size: Sequence[int], training: Split, test: Split) -> dict:
    """Return what all results of a record share; the strengths may grow from call to call."""
    checkpoint = None
    if options.checkpoint is not None:
        checkpoint = {"name": options.checkpoint.name, "sha256": records.sha256(options.checkpoint)}
    images = {split.name: {"digest": split.digest, "images": len(split.labels)} for split in (training, test)}
    return {"kind": "probe", "model": options.model, "checkpoint": checkpoint, "size": list(size), "images": images}


def earlier_results(path: Path, spec_hash: str) -> tuple[dict, list[dict]]:
    """Return the results of an earlier call and the versions of the code that made them.

    Raises:
        RecordError: for a file that another model, other images or another size made.
    """
    if not path.exists():
        return {"methods": []}, []
    try:
        record = records.read(path, spec_hash)
    except records.RecordError:
        raise records.RecordError(
            f"--output {path} is no record of this model, these images and this size; give another name, or delete it."
        ) from None
    return record["results"], record["provenance"]["code"]


def table(results: dict) -> str:
    """Return the results as Markdown, by method and strength."""
    dense = results["dense"]
    rows = [["dense", "", f"{dense['top1']:.1f}", "", "", f"{dense['macs_g']:.3f}", ""]]
    order = {method: number for number, method in enumerate(ALL_METHODS)}
    for line in sorted(results["methods"], key=lambda line: (order[line["method"]], -line["macs_g"])):
        option = "r" if line["method"] == "tome" else "keep_ratio"
        change = f"{line['change']:+.1f} ({line['change_low']:+.1f} to {line['change_high']:+.1f})"
        rows.append([
            *(line["method"], f"{option} {line['strength']:g}", f"{line['top1']:.1f}", change),
            f"{100 * line['changed'] / results['test']:.1f}",
            *(f"{line['macs_g']:.3f}", f"{100 * line['macs_g'] / dense['macs_g']:.0f}"),
        ])  # fmt: skip
    heads = (
        "method",
        "strength",
        "accuracy %",
        "change, points (95 %)",
        "predictions changed %",
        "G MACs",
        "of dense %",
    )
    return tabulate.tabulate(rows, heads, tablefmt="github", disable_numparse=True)


if __name__ == "__main__":
    command_line.run(main)
