"""What MLflow shows on top of a run's page: what it is, how, where, how long, and how to make it
again. Markdown; standard library only.
"""

from pathlib import Path

from workflow.campaign import targets
from workflow.campaign.config import Config
from workflow.storage import provenance

NOTE = "mlflow.note.content"
DOES = {
    "train": "Training", "evaluate": "Evaluation of given weights", "search": "Search",
    "throughput": "Measurement of images/s", "training_cost": "Measurement of training steps",
    "analysis": "Look into a trained model",
}  # fmt: skip
RECIPE = ("epochs", "batch_size", "optimizer", "lr", "amp", "images")


def of_attempt(config: Config, spec: dict, setting: str, folder: Path, record: dict | None) -> str:
    """The description of an attempt; `folder` is its job's, below the project's root.

    MLflow folds all but the first lines, so result, place and duration come first.
    """
    lines = [f"**{DOES[spec['kind']]}** in the setting `{setting}`"]
    lines += made(record) if record else ["- not finished yet"]
    if "model" in spec:
        lines.append(f"- model: {model(spec['model'])}")
    if "models" in spec:
        names = ", ".join(f"`{one['run']}`" for one in spec["models"])
        lines.append(f"- models, in turns: {names}")
        point = [f"{key} {spec[key]}" for key in ("device", "mode", "precision") if key in spec]
        lines.append(f"- how: {', '.join(point)}{batches(spec)}")
    if "data" in spec:
        lines.append(f"- data: {spec['data']['name']}, {spec['data']['num_classes']} classes")
    if "name" in spec.get("recipe", {}):  # an analysis has but what images need
        known = {key: spec["recipe"].get(key) for key in RECIPE}
        values = (f"{key} {value}" for key, value in known.items() if value is not None)
        lines.append(f"- recipe: `{spec['recipe']['name']}` ({', '.join(values)})")
    for role, does in (("start", "starts from"), ("teacher", "learns from")):
        if role in spec:
            lines.append(f"- {does} `{spec[role]['run']}`")
    if "seed" in spec:
        lines.append(f"- seed: {spec['seed']}")
    if record:
        lines.append(f"- code: {code(record['provenance'])}")
    return "\n".join([*lines, "", "Again:", "", f"    {command(config, spec, setting, folder)}"])


def code(known: dict) -> str:
    """The commit behind a record, or why it is unknown, or which ones made which part."""
    if reason := provenance.unknown_reason(known):
        return f"unknown commit: {reason}"
    dirty = ", with changes that are not committed" if known.get("dirty") else ""
    return provenance.spans(known) or f"commit {known['commit'][:10]}{dirty}"


def model(found: dict) -> str:
    given = ", ".join(f"{key}={value}" for key, value in found["kwargs"].items())
    return f"`{found['name']}`" + (f" ({given})" if given else "")


def batches(spec: dict) -> str:
    sizes = spec.get("batch_sizes") or [spec["batch_size"]]
    return f", batch {', '.join(map(str, sizes))}"


def made(record: dict) -> list[str]:
    """Result, place and duration of a finished one."""
    results, known = record["results"], record["provenance"]
    lines = []
    if "top1" in results:
        images = f" on {results['val_images']} images" if "val_images" in results else ""
        lines.append(f"- result: top-1 {results['top1']:.2f} %{images}")
    device = results.get("device") or known.get("device") or "unknown device"
    several = f", {known['world_size']} processes" if known.get("world_size", 1) > 1 else ""
    lines.append(f"- where: {device}{several}, on {known['host']}")
    lines.append(f"- how long: {duration(known['wall_s'])}")
    return lines


def duration(seconds: float) -> str:
    minutes, hours = seconds / 60, seconds / 3600
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{minutes:.0f} min" if minutes < 100 else f"{hours:.1f} h"


def command(config: Config, spec: dict, setting: str, folder: Path) -> str:
    """What makes the record anew, although it is there."""
    given = spec["kind"] in ("train", "evaluate") and "evaluation" not in spec
    record = folder / "train.json" if given else folder.with_name(f"{folder.name}.json")
    return f"snakemake {record} --profile {targets.profile(config, setting)} --forcerun {record}"


def of_item(config: Config, setting: str, path: Path) -> str:
    """The description of a table, a figure or the ledger."""
    root = config.settings[setting]["results"]
    return targets.caption(config, root, str(path)).replace("``", "`")
