"""Show what Evo-ViT does to a pretrained timm ViT on your own images, without any training.

    python -m evovit image.jpg --model deit_small_patch16_224.fb_in1k --keep-ratio 0.5

Prints the most probable classes of the dense and of the reduced model and the speed of both, and draws the tokens
that are kept, selection by selection.
"""

import argparse
import pickle
import statistics
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import timm
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageOps
from timm.data import ImageNetInfo, create_transform, infer_imagenet_subset, resolve_model_data_config
from torch import Tensor, nn
from tqdm import tqdm

from .checkpoint import load_file
from .conversion import check_host
from .deit import EvoVisionTransformer, from_timm
from .options import did_you_mean
from .slow_fast import trace

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}
DRAWING = ".tokens.png"  # end of the names of the drawings
CLASSES_SHOWN = 3
MOST_SHOWN = 400  # characters of a reason: torch names each key that is missing or unknown
TITLE_HEIGHT = 16  # pixels above each panel of a drawing
GAP = 4  # pixels between the panels
FADED = 0.25  # share of a placeholder's own color in a drawing


class Speeds(NamedTuple):
    """Medians over interleaved rounds."""

    dense: float  # images/s
    reduced: float  # images/s
    speedup: float  # of the ratios of each round


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    options = parse(arguments)
    paths = find_images(options.images)
    try:
        device = torch.device(options.device)
        dense = build(options.model, options.checkpoint, options.img_size).to(device).eval()
        reduced = from_timm(dense, keep_ratio=options.keep_ratio, schedule=options.schedule)
    except (ValueError, RuntimeError) as error:  # torch's own is about the device
        sys.exit(str(error))
    batch_size = options.batch_size or (64 if device.type == "cuda" else 8)
    names = class_names(dense)
    folder = options.images if options.images.is_dir() else options.images.parent
    seen, same, speeds = 0, 0, None
    with tqdm(total=len(paths), unit="image", disable=len(paths) == 1) as progress:
        for batch_paths, images in read_batches(paths, dense, batch_size, progress):
            images = images.to(device)
            with torch.inference_mode():
                dense_logits = dense(images)
                traced = trace(reduced, images)
            if speeds is None:
                speeds = measure(dense, reduced, images, batch_size, options.rounds)
            for i, path in enumerate(batch_paths):
                if dense.num_classes:
                    text = describe_classes(dense_logits[i], traced.logits[i], names)
                else:
                    text = describe_features(dense_logits[i], traced.logits[i])
                progress.write(f"{path}\n{text}")
                drawing = options.output / f"{path.relative_to(folder)}{DRAWING}"
                drawing.parent.mkdir(parents=True, exist_ok=True)
                draw(dense, images[i], traced.blocks, [kept[i] for kept in traced.kept]).save(drawing)
            seen += len(batch_paths)
            same += int((dense_logits.argmax(dim=1) == traced.logits.argmax(dim=1)).sum())
    if speeds is None:
        sys.exit(f"None of the files in {options.images} could be read as an image.")
    if len(paths) > 1 and dense.num_classes:
        print(f"The most probable class is the same for {same} of {seen} images.")
    print(
        f"Speed on {device.type}, {batch_size} images a batch, medians of {options.rounds} interleaved rounds: "
        f"dense {speeds.dense:.1f} images/s, keep_ratio={options.keep_ratio:g} {speeds.reduced:.1f} images/s, "
        f"in the same round {speeds.speedup:.2f} times as fast."
    )
    print(f"Kept tokens: {seen} drawing{'s' if seen > 1 else ''} in {options.output}")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(prog="python -m evovit", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("images", type=Path, help="an image, or a folder with images at any depth")
    parser.add_argument("--model", required=True, help="a timm ViT with a class token, deit_small_patch16_224.fb_in1k")
    parser.add_argument("--checkpoint", type=Path, help="its weights; by default timm fetches the pretrained ones")
    parser.add_argument("--keep-ratio", type=float, default=0.5, help="share of informative tokens (default: 0.5)")
    parser.add_argument("--schedule", choices=("stage", "layer"), default="stage", help="select once a stage, or layer")
    parser.add_argument("--img-size", type=int, help="pixels, where the model is to run at another size than its own")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch-size", type=int, help="default: 64 on a GPU, else 8")
    parser.add_argument("--rounds", type=int, default=11, help="of the measurement of speed (default: 11)")
    parser.add_argument("--output", type=Path, default=Path("kept_tokens"), help="folder (default: kept_tokens)")
    refuse_unknown_options(parser, sys.argv[1:] if arguments is None else arguments)
    options = parser.parse_args(arguments)
    for name in ("rounds", "batch_size", "img_size"):
        value = getattr(options, name)
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} {value} must be at least 1")
    return options


def refuse_unknown_options(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """End the program for an option that the parser does not have, and name the nearest that it has."""
    known = list(parser._option_string_actions)
    for word in words:
        option = word.partition("=")[0]
        if option.startswith("--") and not any(name.startswith(option) for name in known):
            parser.error(f"there is no option {option}{did_you_mean(option, known)}")


def find_images(path: Path) -> list[Path]:
    """Return the image, or those in the folder, drawings of ours left out; end the program if there is none."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        sys.exit(f"{path} does not exist: give an image or a folder with images.")
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
    images = [file for file in files if not file.name.endswith(DRAWING)]
    if not images:
        sys.exit(f"{path} has no image: files must end in {', '.join(sorted(SUFFIXES))}.")
    return images


def build(name: str, checkpoint: Path | None, img_size: int | None) -> nn.Module:
    """Return timm's model with its pretrained weights, or with those of a file.

    Raises:
        ValueError: for an unknown name, for a model that is no host, and where the weights can't be had or don't fit.
    """
    if ":" not in name:  # else it is on the Hub, and its configuration must be fetched first
        architecture = name.partition(".")[0]
        if not timm.is_model(name):
            remedy = did_you_mean(architecture, timm.list_models())
            remedy = remedy or "; timm.list_models('vit_*') lists some that work"
            raise ValueError(f"--model {name}: timm has no such model{remedy}")
        check_host(timm.create_model(architecture), "a model with fewer tokens")
    sizes = {} if img_size is None else {"img_size": img_size}
    if checkpoint is None:
        try:
            return timm.create_model(name, pretrained=True, **sizes)
        except (OSError, RuntimeError, ValueError) as error:
            reason = str(error).partition("\n")[0]
            raise ValueError(
                f"--model {name}: its pretrained weights can't be had ({reason}); give a file with --checkpoint"
            ) from error
    try:
        weights = load_file(checkpoint)
    except pickle.UnpicklingError as error:  # torch's text tells to trust the file
        raise ValueError(f"--checkpoint {checkpoint} is no file of weights (torch or safetensors)") from error
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"--checkpoint {checkpoint} can't be read: {reason}") from error
    num_classes = weights["head.weight"].shape[0] if "head.weight" in weights else 0
    source = {"state_dict": weights, "num_classes": num_classes, "label_offset": 0}
    try:
        return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=source, num_classes=num_classes, **sizes)
    except (RuntimeError, ValueError) as error:
        reason = textwrap.shorten(str(error), MOST_SHOWN, placeholder=" ...")
        raise ValueError(f"--checkpoint {checkpoint} does not fit --model {name}: {reason}") from error


def class_names(model: nn.Module) -> list[str] | None:
    """Return what timm calls the model's classes; None where it has no names for as many."""
    subset = infer_imagenet_subset(model) if model.num_classes else None
    return None if subset is None else ImageNetInfo(subset).label_descriptions()


def data_config(model: nn.Module) -> dict:
    """Return timm's size, mean and standard deviation of the images that the model takes, and how they are resized."""
    return resolve_model_data_config(model, {"input_size": (3, *model.patch_embed.img_size)})


def read_batches(
    paths: Sequence[Path], model: nn.Module, batch_size: int, progress: tqdm
) -> Iterator[tuple[list[Path], Tensor]]:
    """Yield paths and images (B, 3, H, W) as the model takes them; files that are no images are named and left out."""
    transform = create_transform(**data_config(model), is_training=False)
    for start in range(0, len(paths), batch_size):
        batch_paths, images = [], []
        for path in paths[start : start + batch_size]:
            try:
                with Image.open(path) as image:
                    images.append(transform(ImageOps.exif_transpose(image).convert("RGB")))
            except OSError as error:
                progress.write(f"{path} is left out, it can't be read as an image: {error}", file=sys.stderr)
            else:
                batch_paths.append(path)
            progress.update()
        if images:
            yield batch_paths, torch.stack(images)


def describe_classes(dense: Tensor, reduced: Tensor, names: Sequence[str] | None) -> str:
    """Return a line for each model with the most probable classes by its logits (num_classes,).

    Args:
        names: of the classes; None: their numbers are shown.
    """
    lines = []
    for title, logits in (("dense", dense), ("reduced", reduced)):
        probabilities, classes = logits.float().softmax(dim=0).topk(min(CLASSES_SHOWN, len(logits)))
        shown = []
        for probability, index in zip(probabilities.tolist(), classes.tolist(), strict=True):
            name = f"class {index}" if names is None else names[index]
            shown.append(f"{name} {probability:.1%}")
        lines.append(f"  {title:<8} {'; '.join(shown)}")
    return "\n".join(lines)


def describe_features(dense: Tensor, reduced: Tensor) -> str:
    """Return a line with the similarity of two features (C,) of models without classes."""
    similarity = F.cosine_similarity(dense.float(), reduced.float(), dim=0).item()
    return f"  cosine similarity of the features, dense and reduced: {similarity:.4f}"


@torch.inference_mode()
def measure(dense: nn.Module, reduced: nn.Module, images: Tensor, batch_size: int, rounds: int) -> Speeds:
    """Return the speeds of both models on batches that repeat the images, timed in turn after one round to warm up."""
    batch = images.repeat(-(-batch_size // len(images)), 1, 1, 1)[:batch_size]
    dense_seconds, reduced_seconds = [], []
    for _ in range(1 + rounds):
        dense_seconds.append(seconds(dense, batch))
        reduced_seconds.append(seconds(reduced, batch))
    del dense_seconds[0], reduced_seconds[0]
    ratios = [slow / fast for slow, fast in zip(dense_seconds, reduced_seconds, strict=True)]
    return Speeds(
        batch_size / statistics.median(dense_seconds),
        batch_size / statistics.median(reduced_seconds),
        statistics.median(ratios),
    )


def seconds(model: nn.Module, batch: Tensor) -> float:
    """Return how long the model takes for a batch."""
    synchronize(batch.device)
    start = time.perf_counter()
    model(batch)
    synchronize(batch.device)
    return time.perf_counter() - start


def synchronize(device: torch.device) -> None:
    """Wait for a GPU; a CPU is done when a function returns."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def draw(model: EvoVisionTransformer, image: Tensor, blocks: Sequence[int], kept: Sequence[Tensor]) -> Image.Image:
    """Return the image as the model takes it, and again for each selection with its placeholders faded.

    Args:
        image: normalised (3, H, W).
        blocks: the selecting blocks, counted from 0; titles count layers from 1.
        kept: positions (k,) of the informative patches in each.
    """
    config = data_config(model)
    mean, std = (torch.tensor(config[name]).view(3, 1, 1) for name in ("mean", "std"))
    colors = (image.float().cpu() * std + mean).clamp(0, 1)
    height, width = colors.shape[1:]
    rows, columns = model.patch_embed.dynamic_feat_size((height, width))
    panels, titles = [colors], ["image"]
    for block, positions in zip(blocks, kept, strict=True):
        mask = torch.zeros(rows * columns).index_fill(0, positions.cpu(), 1.0).view(1, 1, rows, columns)
        mask = F.interpolate(mask, size=(height, width), mode="nearest")[0]
        faded = FADED * colors + (1 - FADED)
        panels.append(torch.where(mask > 0, colors, faded))
        titles.append(f"layer {block + 1}: {len(positions)} of {rows * columns}")
    sheet = Image.new("RGB", ((width + GAP) * len(panels) - GAP, TITLE_HEIGHT + height), "white")
    pen = ImageDraw.Draw(sheet)
    for i, (panel, title) in enumerate(zip(panels, titles, strict=True)):
        pixels = (panel * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
        left = i * (width + GAP)
        sheet.paste(Image.fromarray(pixels), (left, TITLE_HEIGHT))
        pen.text((left + 2, 2), title, fill="black")
    return sheet


if __name__ == "__main__":
    main()
