"""What a training step costs: seconds and bytes, the models of a section in turns.

On a GPU the bytes are the largest that torch's allocator held at once, and running out of them is a
result. On a CPU they are counted: weights, gradients, optimiser state and what the forward pass
keeps for the backward pass; two small batches give the line on which larger ones lie.
"""

import statistics
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from workflow.node import build, device, macs, watch
from workflow.node.fresh import MeasurementError, environment
from workflow.node.modes import set_attention, set_backends
from workflow.node.parts import Parts
from workflow.node.place import Place
from workflow.node.stepping import Stepper
from workflow.node.timing import synchronise

ROUND_S = 1.0  # a model's share of a round is at least one step and about this long
GIB = 2**30
CLASSES = 1000


class Noise:
    """Stands for a TrainLoader: the same random images again and again, on the device."""

    accumulate = 1

    def __init__(self, batch_size: int, size: tuple[int, int], classes: int, steps: int, where):
        self.images = torch.randn(batch_size, 3, *size, device=where)
        self.labels = torch.randint(classes, (batch_size,), device=where)
        self.steps = steps

    def batches(self, epoch: int, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(first, self.steps):
            yield self.images, self.labels


class Kept:
    """Bytes of the tensors that autograd keeps while this context is open, each storage once."""

    def __enter__(self) -> "Kept":
        self.storages: dict[int, torch.UntypedStorage] = {}  # held, so that no address comes twice
        self._hooks = saved_tensors_hooks(self._pack, lambda tensor: tensor)
        self._hooks.__enter__()
        return self

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        self.storages[storage.data_ptr()] = storage
        return tensor

    def __exit__(self, *error) -> None:
        self._hooks.__exit__(*error)

    def bytes(self, known: set[int]) -> int:
        """Without the storages (by address) that are there anyway."""
        return sum(s.nbytes() for address, s in self.storages.items() if address not in known)


def make_training(model: dict, spec: dict, batch_size: int, where: torch.device) -> Stepper:
    """The engine around one model, with its recipe, fed with noise."""
    amp = None if spec["precision"] == "fp32" else spec["precision"]
    recipe = {**model["recipe"], "batch_size": batch_size, "amp": amp}
    size = build.image_size(build.build_model(model["model"], "meta"))
    noise = Noise(batch_size, size, CLASSES, 10**6, where)
    data = {"num_classes": CLASSES}
    known = {"run": model["run"], "model": model["model"], "recipe": recipe, "data": data}
    training = Stepper({**known, "seed": 0}, {}, Place(where), loader=noise)
    set_attention(training.task, spec["mode"])
    return training


def static_bytes(training: Stepper) -> tuple[int, set[int]]:
    """Weights, buffers, averaged weights, gradients and optimiser state; and their addresses."""
    held = [*training.task.parameters(), *training.task.buffers()]
    held += [weight.grad for weight in training.task.parameters() if weight.grad is not None]
    states = training.optimizer.state.values()
    held += [value for state in states for value in state.values() if torch.is_tensor(value)]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in held}
    return sum(storage.nbytes() for storage in storages.values()), set(storages)


def count_bytes(training: Stepper, batches: Iterator) -> tuple[int, int]:
    """Bytes that training holds between two steps, and, counted in a step of their own, those that
    the forward pass keeps for the backward pass."""
    with Kept() as kept:
        training.train_step(batches)
    static, known = static_bytes(training)
    return static, kept.bytes(known)


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


def measure_once(
    model: dict, spec: dict, batch_size: int, where: torch.device, counts: bool
) -> dict | None:
    """{"first": `time_steps`, "last": likewise} of the training's epochs; None: out of memory.

    Evo-ViT selects in each layer in the first epochs and once per stage in the last ones.
    """
    training = None
    try:
        training = make_training(model, spec, batch_size, where)
        last = training.recipe["epochs"] - 1
        return {
            name: time_steps(training, epoch, where, counts)
            for name, epoch in (("first", 0), ("last", last))
        }
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


def describe(model: dict) -> dict:
    """What is known of a model before its training is measured."""
    module = build.build_model(model["model"])
    image = (3, *build.image_size(module))
    return {
        "run": model["run"],
        "model": model["model"]["name"],
        "resolution": image[-1],
        "macs_g": macs.count(module, image) / 1e9,
    }


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
    if spec["precision"] == "fp16" and spec["device"] == "cpu":
        raise MeasurementError("fp16 needs a GPU; set `precision: bf16` or `fp32`.")
    torch.set_num_threads(spec["threads"])
    set_backends()
    where = device.choose(spec["device"])
    device.check_precision(spec["precision"], where)
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
        sizes = [
            {"batch_size": size, **summarise([one[index] for one in told])}
            for size, told in rounds.items()
        ]
        further = extrapolate(sizes, spec)
        methods.append({**describe(model), "sizes": sizes, "extrapolated": further})
    seen = {f"b{size}": watch.worst(several) for size, several in summaries.items()}
    doubts = [why for one in seen.values() for why in watch.suspicions(one, where)]
    return {
        "device": device.describe(where),
        "bytes_are": "largest held by the allocator" if where.type == "cuda" else "counted",
        "memory_limit_emulated": emulated,
        "methods": methods,
        "seen": seen,
        "suspect": [*dict.fromkeys(doubts), *drifts(methods[0])],
        "environment": environment(),
        "kept_parts": parts.kept,
    }


def drifts(baseline: dict) -> list[str]:
    """Whether the dense model's speed changed too much from round to round, at any batch size."""
    return [
        f"at batch {size['batch_size']} {why}"
        for size in baseline["sizes"]
        for why in watch.drifted(
            [size["batch_size"] / seconds for seconds in size.get("step_s_last_rounds", [])]
        )
    ]
