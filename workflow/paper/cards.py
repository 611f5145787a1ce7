"""Model cards: a page for each trained model, next to its record: what it is, how it was trained, its numbers, its use.

Whenever snakemake ends, it brings the cards up to date (`update`); no rule makes them, so that a missing or an old one
never is a reason to train. `python -m workflow.paper cards results/demo` writes them anew.
"""

import sys
import time
from pathlib import Path

from workflow.campaign.config import Config
from workflow.storage import files, records

CARD = "README.md"  # in the folder of the run
# of the method with which a model's name begins: its name, its paper and what it does
METHODS = {
    "evo": (
        "Evo-ViT",
        "Xu et al., AAAI 2022",
        "updates the informative patches in full, and all others at once through one representative token",
    ),
    "dynamic": ("DynamicViT", "Rao et al., NeurIPS 2021", "drops the patches that small predictors score low"),
    "svite": ("SViTE", "Chen et al., NeurIPS 2021", "trains with few heads and neurons, and cuts the others off"),
    "ia_red2": ("IA-RED2", "Pan et al., NeurIPS 2021", "drops patches by a policy that is learned from rewards"),
    "ps": ("PS-ViT", "Tang et al., CVPR 2022", "keeps one fixed set of patches in each layer, found by a search"),
    "evit": (
        "EViT",
        "Liang et al., ICLR 2022",
        "keeps the patches that the class token attends to, and fuses the rest",
    ),
    "tome": ("ToMe", "Bolya et al., ICLR 2023", "merges the most similar patches in each block"),
    "topk": ("Top-K", "Haurum et al., ICCV Workshops 2023", "keeps the patches that the class token attends to most"),
    "random": ("random dropping", "Haurum et al., ICCV Workshops 2023", "drops patches at random"),
    "ats": ("ATS", "Fayyaz et al., ECCV 2022", "samples as many patches as the class token's attention asks for"),
    "dpcknn": ("DPC-KNN", "Haurum et al., ICCV Workshops 2023", "merges clusters of patches"),
    "pooled": ("sub-sampling", "Evo-ViT's Table 4", "pools the patches once, after the seventh layer"),
    "plain_deit": ("DeiT", "Touvron et al., ICML 2021", "is dense: it keeps all patches"),
    "plain_levit": ("LeViT", "Graham et al., ICCV 2021", "is dense: it keeps all patches"),
}
LOSSES = {  # of a recipe's task
    "classification": "cross-entropy",
    "hard_distillation": "cross-entropy with the labels and with the teacher's predictions",
    "assisted_tokens": "Eq. 8: the mean prediction's loss and the class token's",
    "assisted_distillation": "Eq. 8, with the labels and with the teacher's predictions",
    "dynamicvit": "cross-entropy, and the distance of the kept shares from their targets",
    "svite": "cross-entropy, while heads and neurons are cut and grown again",
    "ia_red2": "rewards of the policy (REINFORCE) and cross-entropy, in turns",
    "evit": "cross-entropy, while fewer and fewer patches are kept",
}
AUGMENTATIONS = {  # of a recipe, where they are not 0 or null
    "auto_augment": "auto-augmentation ({})",
    "color_jitter": "colour jitter ({:g})",
    "hflip": "horizontal flips ({:g})",
    "random_erasing": "random erasing ({:g})",
    "mixup": "mixup ({:g})",
    "cutmix": "CutMix ({:g})",
    "smoothing": "label smoothing ({:g})",
}


def update(config: Config) -> list[Path]:
    """Write the cards that are missing or older than what they are made of, say so, and return their paths.

    A card that can't be written is named with its reason, and nothing else stops: all numbers are in the records.
    """
    written = []
    for setting, scale in config.settings.items():
        root = Path(scale["results"])
        timed = [path.stat().st_mtime for path in root.glob("throughput/*/*.json")]
        for record in sorted(root.glob("runs/*/train.json")):
            card = record.with_name(CARD)
            newest = max(record.stat().st_mtime, *timed) if timed else record.stat().st_mtime
            if card.exists() and card.stat().st_mtime >= newest:
                continue
            try:
                if write(config, setting, record):
                    written.append(card)
            except (records.RecordError, KeyError, OSError) as error:
                reason = f"it has no {error}" if isinstance(error, KeyError) else error
                print(f"No model card for {record}: {reason}", file=sys.stderr)
    for folder in dict.fromkeys(path.parent.parent for path in written):
        changed = sum(path.parent.parent == folder for path in written)
        print(f"Model cards: {folder}/<run>/{CARD}, {changed} of them new or changed.", file=sys.stderr)
    return written


def write(config: Config, setting: str, record_path: Path) -> bool:
    """Write the card of a training's record; return False for a record of weights that were not trained here."""
    record = records.read(record_path)
    if record["kind"] != "train":
        return False
    files.write(record_path.with_name(CARD), text_of(config, setting, record))
    return True


def text_of(config: Config, setting: str, record: dict) -> str:
    """Return the card of a training as Markdown."""
    from workflow.paper import printed, results  # scipy, which a start of snakemake does not need

    spec = record["spec"]
    root = config.settings[setting]["results"]
    accuracy = results.accuracy([record], config)
    name = printed.label(config, spec["row"])
    title = spec["run"] if name == spec["row"] else f"{spec['run']}: {name}"
    parts = [f"# {title}", describe_model(spec, results.describe_size(spec, config))]
    parts += ["## Training", bullets(describe_training(record, config))]
    rows = numbers_of(record, accuracy) + speeds_of(config, setting, spec)
    lines = ["| number | value | of |", "| --- | --- | --- |", *(f"| {' | '.join(row)} |" for row in rows)]
    parts += ["## Numbers", "\n".join(lines)]
    if accuracy.flags:
        parts.append(bullets(f"Note: {flag}." for flag in accuracy.flags))
    parts += ["## Use", describe_use(record, root)]
    return "\n\n".join(parts) + "\n"


def bullets(texts) -> str:
    """Return a list in Markdown."""
    return "\n".join(f"- {text}" for text in texts)


# -- what it is -----------------------------------------------------------------------------


def describe_model(spec: dict, size: str) -> str:
    """Say what the model, its method and the paper are called, and which images it classifies."""
    model, data = spec["model"], spec["data"]
    text = f"`{model['name']}`, {size}, a classifier of {data['num_classes']} classes, trained on {data['name']}."
    method = method_of(model)
    if method is not None:
        called, paper, does = method
        text += f" {called} ({paper}) {does}."
    return text


def method_of(model: dict) -> tuple[str, str, str] | None:
    """Return name, paper and purpose of a model's method, None for a model that is no part of this repository."""
    if "method" in model:
        return METHODS[model["method"]]
    known = [prefix for prefix in METHODS if model["name"].startswith(f"{prefix}_")]
    return METHODS[max(known, key=len)] if known else None


# -- how it was trained ---------------------------------------------------------------------


def describe_training(record: dict, config: Config) -> list[str]:
    """Return sentences on the start, the recipe and the circumstances of a training."""
    spec, recipe = record["spec"], record["spec"]["recipe"]
    made = record["provenance"]
    begun = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(made["started"]))
    steps = duration(record["results"]["train_s"])
    commits = list(dict.fromkeys(str(code["commit"]) for code in made["code"]))
    versions = ", ".join(f"{package} {version}" for package, version in made["versions"].items())
    return [
        describe_start(spec, config),
        describe_recipe(recipe),
        describe_augmentation(recipe),
        f"Seed {spec['seed']}; recipe `{recipe['name']}` and row `{spec['row']}` of `workflow/config/`, in the setting "
        f"`{spec['setting']}`. All values are in `spec.json`.",
        f"Made on {made['device']} ({count(made['world_size'], 'process', 'processes')}), from {begun} on, in "
        f"{duration(made['wall_s'])}, of it {steps} in training steps.",
        f"Code: commit {', '.join(commits)}; {versions}.",
    ]


def describe_start(spec: dict, config: Config) -> str:
    """Say from which weights a training starts, and from which model it learns."""
    text = "From random weights"
    if "start" in spec and spec["start"]["job"] == "train":
        text = f"From the weights of `{spec['start']['run']}`"
    elif "start" in spec:
        job = spec["start"]["job"]
        text = f"From the weights of `{config.runs[spec['row']]['start']}`, after a {job} on it (`{job}.json`)"
    elif "pretrained" in spec:
        pretrained = spec["pretrained"]
        text = f"From the pretrained weights {pretrained.get('timm') or Path(pretrained['file']).name}"
    if "teacher" in spec:
        text += f", with `{spec['teacher']['run']}` as its teacher"
    return text + "."


def describe_recipe(recipe: dict) -> str:
    """Say for how long, in which batches and by which optimizer and loss a recipe trains."""
    rate = recipe["lr"]
    if recipe["lr_base_batch"] is not None:
        rate *= recipe["batch_size"] / recipe["lr_base_batch"]
    loss = f"{LOSSES.get(recipe['task'], 'its own')} (task `{recipe['task']}`)"
    begin = f"begins at {rate:g}"
    if recipe["warmup_epochs"]:
        begin = f"rises to {rate:g} in {count(recipe['warmup_epochs'], 'epoch')}"
    text = (
        f"{count(recipe['epochs'], 'epoch')} in batches of {recipe['batch_size']} images; loss: {loss}; optimizer "
        f"{recipe['optimizer']} with a weight decay of {recipe['weight_decay']:g}; the learning rate {begin} and falls "
        f"to {recipe['min_lr']:g} along a cosine"
    )
    if recipe["clip_grad"] is not None:
        text += f"; gradients are clipped at {recipe['clip_grad']:g} ({recipe['clip_mode']})"
    text += f"; {recipe['amp'] or 'fp32'}"
    if recipe["ema"] is not None:
        text += f"; weights are averaged with a decay of {recipe['ema']:g}, and the raw ones are kept"
    return text + "."


def describe_augmentation(recipe: dict) -> str:
    """Say how a recipe changes training images and their labels."""
    low, high = recipe["crop_scale"]
    texts = [] if low == high == 1 else [f"random crops of {100 * low:g} to {100 * high:g} % of the image"]
    texts += [text.format(recipe[name]) for name, text in AUGMENTATIONS.items() if recipe[name]]
    if recipe["repeated_augmentation"] > 1:
        texts.append(f"each image drawn {recipe['repeated_augmentation']} times an epoch")
    return f"Images and labels: {', '.join(texts) or 'as they are'}."


def count(number: int, one: str, several: str = "") -> str:
    """Return a number of things: "1 epoch", "2 epochs"."""
    return f"{number} {one if number == 1 else several or one + 's'}"


def duration(seconds: float) -> str:
    """Return a duration in the two largest of days, hours, minutes and seconds."""
    minutes, left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {left} s" if minutes else f"{left} s"


# -- its numbers ----------------------------------------------------------------------------


def numbers_of(record: dict, accuracy) -> list[tuple[str, str, str]]:
    """Return name, value and conditions of a training's accuracies and costs."""
    results = record["results"]
    images = f"{accuracy.val_images} validation images"
    interval = f"{images}; in brackets the 95 % interval, which leaves out chance in training"
    rows = [("top-1", f"{accuracy.top1:.2f} % ({accuracy.low:.2f} to {accuracy.high:.2f})", interval)]
    rows.append(("top-5", f"{results['top5']:.2f} %", images))
    if results.get("ema_top1") is not None:
        rows.append(("top-1 of averaged weights", f"{results['ema_top1']:.2f} %", images))
    if results.get("best_top1") is not None:
        rows.append(("best top-1 of all epochs", f"{results['best_top1']:.2f} %", f"epoch {results['best_epoch']}"))
    rows.append(("G MACs", f"{results['macs_g']:.3g}", "this model, an image"))
    return rows


def speeds_of(config: Config, setting: str, spec: dict) -> list[tuple[str, str, str]]:
    """Return name, value and conditions of a row's speed-ups, one for each benchmark group in which it was timed."""
    from workflow.paper import results

    rows = []
    reader = results.Records(config, config.settings[setting]["results"], partial=True)
    for group in config.sections(setting):
        base, *others = config.items["sections"][group]
        if spec["row"] not in others:
            continue
        timed = reader.throughput(group)
        if timed is None:
            continue
        size = f"`{spec['model']['name']}`" if config.is_of_host(spec["row"]) else f"{results.FULL_SIZE} at full size"
        speed = results.speed(timed, spec["row"], size)
        if speed.speedup_pct is None:
            continue
        value = f"{speed.speedup_pct:.1f} % ({speed.speedup_pct_low:.0f} to {speed.speedup_pct_high:.0f})"
        how = f"{speed.device}, {speed.mode}, {speed.precision}, batch {speed.batch_size}, {speed.resolution} px"
        if speed.flags:
            how += f"; {'; '.join(speed.flags)}"
        rows.append((f"speed-up over `{base}`", value, f"{size}, in the group `{group}`: {how}"))
    return rows


# -- its use --------------------------------------------------------------------------------


def describe_use(record: dict, root: str) -> str:
    """Show how to load the model, in the folder of the clone, and say what images it takes."""
    spec, recipe = record["spec"], record["spec"]["recipe"]
    folder = Path(root) / "runs" / spec["run"]
    weights = record["results"]["weights"]
    model = spec["model"]
    if "method" in model:
        create = [
            "import json, torch; from workflow.train.factory import build_model",
            f'model = build_model(json.load(open("{folder}/spec.json"))["model"])',
        ]
    else:
        arguments = "".join(f", {name}={value!r}" for name, value in model["kwargs"].items())
        create = [
            "import baselines, evovit, timm, torch  # the first two register their models in timm",
            f'model = timm.create_model("{model["name"]}"{arguments})',
        ]
    load = f'model.load_state_dict(torch.load("{folder / weights["path"]}", weights_only=True))'
    code = "\n".join(["```python", *create, load, "```"])
    classes = record["provenance"].get("classes") or []
    known = f" Classes in their order: {', '.join(classes)}." if 0 < len(classes) <= 20 else ""
    if "img_size" in model["kwargs"]:
        size = "to {0} x {0} pixels".format(model["kwargs"]["img_size"])
    else:
        size = "to the size"
    return (
        f"In the folder of the clone, in its environment:\n\n{code}\n\n"
        f"Call `model.eval()` before use. Images are scaled {size} with {recipe['interpolation']} interpolation and a "
        f"`crop_pct` of {recipe['crop_pct']:g}, and normalised with the mean and deviation that "
        f"`timm.data.resolve_model_data_config(model)` returns.{known} The weights' sha256 is `{weights['sha256']}`."
    )
