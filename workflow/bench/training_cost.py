"""What a training step costs: seconds and bytes, the models of a section in turns.

On a GPU the bytes are the largest that torch's allocator held at once, and running out of them is a
result. On a CPU they are counted: weights, gradients, optimiser state and what the forward pass
keeps for the backward pass; two small batches give the line on which larger ones lie.
"""

import statistics
import time
from functools import partial
from pathlib import Path

import torch

from workflow.bench import watch
from workflow.bench.fresh import environment
from workflow.bench.parts import Parts
from workflow.bench.timing import synchronise
from workflow.bench.training_on_noise import begin, count_bytes, describe, make_training
from workflow.runtime import device
from workflow.storage import warnings
from workflow.train.step import Stepper

ROUND_S = 1.0  # a model's share of a round is at least one step and about this long
GIB = 2**30


def time_steps(
    training: Stepper, epoch: int, where: torch.device, counts: bool
) -> tuple[float, int | None, int | None]:
    """Seconds of a step in that epoch, the bytes that training needs there, and, on a CPU, those of
    them that the forward pass keeps for the backward pass.

    On a CPU bytes are counted in a step of their own, if it `counts`; they are the same each time.
    """
    training.epoch, training.step = epoch, 0
    training.start_epoch()
    batches = training.loader.batches(epoch)
    if where.type == "cuda":
        torch.cuda.reset_peak_memory_stats(where)
    training.train_step(batches)  # the optimiser's state is there only after a step
    needed, saved = None, None
    # on a GPU the allocator knows, and to count would be to hold more
    if where.type == "cpu" and counts:
        static, saved = count_bytes(training, batches)
        needed = static + saved
    synchronise(where)
    started = time.perf_counter()
    training.train_step(batches)
    synchronise(where)
    more = max(0, round(ROUND_S / (time.perf_counter() - started)) - 1)
    for _ in range(more):
        training.train_step(batches)
    synchronise(where)
    seconds = (time.perf_counter() - started) / (1 + more)
    if where.type == "cuda":
        needed = torch.cuda.max_memory_allocated(where)
    return seconds, needed, saved


def measure_once(model: dict, spec: dict, batch_size: int, where: torch.device, counts: bool) -> dict | None:
    """{"first": `time_steps`, "last": likewise} of the training's epochs; None: out of memory.

    Evo-ViT selects in each layer in the first epochs and once per stage in the last ones.
    """
    training = None
    try:
        training = make_training(model, spec, batch_size, where)
        last = training.recipe["epochs"] - 1
        return {name: time_steps(training, epoch, where, counts) for name, epoch in (("first", 0), ("last", last))}
    except RuntimeError as error:
        if not device.is_out_of_memory(error):
            raise
        return None
    finally:
        del training
        device.free()


def measure_round(
    spec: dict, batch_size: int, where: torch.device, before: list[list[dict | None]]
) -> tuple[list[dict | None], dict]:
    """Each model once, in turn; None for one that runs, or in a round before ran, out of memory.
    And what else was seen on the device meanwhile."""
    began = time.time()
    with watch.watch(where) as seen:
        told = [
            None
            if any(one[index] is None for one in before)
            else measure_once(model, spec, batch_size, where, counts=not before)
            for index, model in enumerate(spec["models"])
        ]
    return told, seen.summary([(began, time.time())])


def summarise(rounds: list[dict | None]) -> dict:
    """Medians over the rounds; a model that ran out of memory once has no numbers."""
    if None in rounds:
        return {"out_of_memory": True}
    found: dict = {"out_of_memory": False}
    for phase in ("first", "last"):
        seconds = [one[phase][0] for one in rounds]
        low, _, high = statistics.quantiles(seconds, n=4, method="inclusive")
        found[f"step_s_{phase}"] = statistics.median(seconds)
        found[f"step_s_{phase}_quartiles"] = [low, high]
        found[f"step_s_{phase}_rounds"] = seconds
        found[f"bytes_{phase}"] = max(one[phase][1] for one in rounds if one[phase][1] is not None)
        if rounds[0][phase][2] is not None:
            found[f"saved_bytes_{phase}"] = rounds[0][phase][2]
    found["bytes"] = max(found["bytes_first"], found["bytes_last"])
    return found


def extrapolate(sizes: list[dict], spec: dict) -> list[dict]:
    """Bytes at the batch sizes asked for, on the line through the smallest and largest measured."""
    fits = [size for size in sizes if not size["out_of_memory"]]
    if len(fits) < 2 or not spec["extrapolate_to"]:
        return []
    one, two = fits[0], fits[-1]
    slope = (two["bytes"] - one["bytes"]) / (two["batch_size"] - one["batch_size"])
    limit = spec["memory_gib"] and spec["memory_gib"] * GIB
    found = []
    for batch_size in spec["extrapolate_to"]:
        needed = round(one["bytes"] + slope * (batch_size - one["batch_size"]))
        over = None if limit is None else needed > limit
        found.append({"batch_size": batch_size, "bytes": needed, "over_limit": over})
    return found


def measure_section(spec: dict, site: dict | None = None, folder: Path | None = None) -> dict:
    """Measure every model of the section at every batch size, round by round, each a part that is
    kept in `folder`; -> the record's results."""
    where = begin(spec)
    emulated = False
    if where.type == "cuda" and spec["memory_gib"] is not None:
        share = spec["memory_gib"] * GIB / torch.cuda.get_device_properties(where).total_memory
        emulated = share < 1  # a larger GPU stands for a smaller one
        if emulated:
            torch.cuda.set_per_process_memory_fraction(share, where)
    parts = Parts(folder, spec, device.describe(where))
    rounds: dict[int, list[list[dict | None]]] = {size: [] for size in spec["batch_sizes"]}
    summaries: dict[int, list[dict]] = {size: [] for size in spec["batch_sizes"]}
    for number in range(spec["rounds"]):
        for size, before in rounds.items():
            once = partial(measure_round, spec, size, where, before)
            told, summary = parts.get(f"b{size}-{number}", once)
            before.append(told)
            summaries[size].append(summary)
    methods = []
    for index, model in enumerate(spec["models"]):
        sizes = [{"batch_size": size, **summarise([one[index] for one in told])} for size, told in rounds.items()]
        further = extrapolate(sizes, spec)
        methods.append({**describe(model), "sizes": sizes, "extrapolated": further})
    seen = {f"b{size}": watch.worst(several) for size, several in summaries.items()}
    about = [warning for one in seen.values() for warning in watch.find_warnings(one, where)]
    return {
        "device": device.describe(where),
        "bytes_are": "largest held by the allocator" if where.type == "cuda" else "counted",
        "memory_limit_emulated": emulated,
        "methods": methods,
        "seen": seen,
        "warnings": warnings.to_json(list(dict.fromkeys(about))),
        "environment": environment(),
        "kept_parts": parts.kept,
    }
