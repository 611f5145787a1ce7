"""The numbers MLflow shows of an attempt: the metrics of its journal, the values of its record."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from workflow.storage import journal

RUNS = ("train", "evaluate")  # kinds of records that hold a model's accuracy
STEPS = ("epoch", "layer")  # events of a journal that carry metrics
FINAL = ("top1", "top5", "val_loss", "loss", "ema_top1")
AS_THEY_ARE = ("best_top1", "best_epoch", "val_images")


@dataclass(frozen=True)
class Point:
    """One value of one metric."""

    key: str
    value: float
    time_ms: int
    step: int


def of_journal(path: Path) -> tuple[list[Point], list[int]]:
    """The journal's epochs or a search's layers, each once, and which of them stand twice.

    A job that died before it saved an epoch does it again. The record counts the second time, here
    the first stays: MLflow takes no point back. On a CPU they differ in their seconds alone.
    """
    found: dict[int, list[Point]] = {}
    again = set()
    for event, _ in journal.read(path):
        step = event.get(event["event"]) if event["event"] in STEPS else None
        if step in found:
            again.add(step)
        elif step is not None:
            at, metrics = round(1000 * event["time"]), event["metrics"].items()
            found[step] = [Point(key, value, at, step) for key, value in metrics
                           if value is not None]  # fmt: skip
    return [point for points in found.values() for point in points], sorted(again)


def of_record(record: dict, time_ms: int) -> list[Point]:
    """The record's single numbers."""
    results, step = record["results"], record["results"].get("epochs", 0)
    if record["kind"] in RUNS:
        found = {f"final_{key}": results.get(key) for key in FINAL}
        found |= {key: results.get(key) for key in AS_THEY_ARE}
        found["deviations"] = len(results.get("deviations", []))
        found["macs_g"] = results.get("macs_g")
        found["total_train_s"] = results.get("train_s")  # `train_s` is each epoch's
    elif record["kind"] == "search":
        found = {key: results[key] for key in ("macs_g", "images")}
        found |= {f"kept.layer_{i + 1}": kept for i, kept in enumerate(results["counts"])}
    elif record["kind"] == "training_cost":
        found = dict(of_training_cost(results))
    elif record["kind"] == "analysis":
        found = {"images": results["images"]}
    else:
        found = {}
    found["wall_s"] = record["provenance"]["wall_s"]
    points = [Point(key, value, time_ms, step) for key, value in found.items() if value is not None]
    if record["kind"] == "throughput":
        points += of_throughput(results, time_ms)
    for name, curve in results.get("curves", {}).items():  # over layers or epochs
        points += [Point(name, value, time_ms, layer) for layer, value in enumerate(curve, 1)]
    return points


def of_throughput(results: dict, time_ms: int) -> Iterator[Point]:
    """Each model's rate and speed-up; of a sweep as a curve over the batch size."""
    for found in results.get("sizes", [results]):
        step = found["batch_size"] if "sizes" in results else 0
        for method in found["methods"]:
            speedup = method.get("speedup")
            values = {key: method.get(key) for key in ("images_per_s", "macs_g", "params_m")}
            values["speedup_pct"] = None if speedup is None else 100 * (speedup - 1)
            values["out_of_memory"] = float(method["out_of_memory"])
            for key, value in values.items():
                if value is not None:
                    yield Point(f"{key}.{method['run']}", value, time_ms, step)


def of_training_cost(results: dict) -> Iterator[tuple[str, float]]:
    """Step times and bytes by batch size and run."""
    for method in results["methods"]:
        for size in method["sizes"]:
            for key in ("step_s_first", "step_s_last", "bytes"):
                if key in size:
                    yield f"{key}.b{size['batch_size']}.{method['run']}", size[key]
            yield f"out_of_memory.b{size['batch_size']}.{method['run']}", size["out_of_memory"]
