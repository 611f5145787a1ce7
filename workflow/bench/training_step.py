"""Measure what training steps cost and how fast they are, with trainings that are fed with noise.

`measure_cost`: seconds and bytes of a step, each model's training built anew in each round. On a GPU the bytes are the
largest that torch's allocator held at once, and running out of them is a result. On a CPU they are counted: weights,
gradients, optimiser state and what the forward pass keeps for the backward pass; two small batches give the line for
larger ones.

`measure_speed`: how fast steps are, in interleaved rounds. All models are in memory at once.
"""

import itertools
import statistics
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from workflow.bench import monitor, throughput
from workflow.bench.modes import set_attention, set_up, synchronise
from workflow.bench.process import PartialResults, environment
from workflow.bench.statistics import quartiles
from workflow.bench.statistics import summarise as summarise_rates
from workflow.bench.throughput import TimedModel
from workflow.runtime import device as devices
from workflow.runtime.distributed import DistributedContext
from workflow.storage.warnings import to_json
from workflow.train import factory, macs
from workflow.train.trainer import Trainer

TIMING_S = 1.0  # a model's timing in a round is at least one step and about this long
GIB = 2**30
CLASSES = 1000


# -- trainings that are fed with noise ----------------------------------------------------------


def describe(model: dict) -> dict:
    """Return what is known of a model before its training is measured."""
    module = factory.build_model(model["model"])
    image = (3, *factory.image_size(module))
    return {
        "run": model["run"],
        "model": model["model"]["name"],
        "resolution": image[-1],
        "macs_g": macs.count(module, image) / 1e9,
    }


class Noise:
    """Stand in for a TrainLoader, with the same random images again and again, on the device."""

    accumulate = 1

    def __init__(self, batch_size: int, size: tuple[int, int], classes: int, steps: int, device):
        self.images = torch.randn(batch_size, 3, *size, device=device)
        self.labels = torch.randint(classes, (batch_size,), device=device)
        self.steps = steps

    def batches(self, epoch: int, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(first, self.steps):
            yield self.images, self.labels


def make_training(model: dict, spec: dict, batch_size: int, device: torch.device) -> Trainer:
    """Return the training engine around one model, with its recipe, fed with noise."""
    amp = None if spec["precision"] == "fp32" else spec["precision"]
    size = factory.image_size(factory.build_model(model["model"], "meta"))
    noise = Noise(batch_size, size, CLASSES, 10**6, device)
    training_spec = {
        "run": model["run"],
        "model": model["model"],
        "recipe": {**model["recipe"], "batch_size": batch_size, "amp": amp},
        "data": {"num_classes": CLASSES},
        "seed": 0,
    }
    training = Trainer(training_spec, {}, DistributedContext(device), loader=noise)
    set_attention(training.task, spec["mode"])
    return training


class SavedTensors(saved_tensors_hooks):
    """Count the bytes that autograd keeps while this context is open, each storage once."""

    def __init__(self):
        storages: dict[int, torch.UntypedStorage] = {}  # held, so that no address comes twice

        def pack(tensor: Tensor) -> Tensor:  # no method: in a cycle all would outlive this object
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage
            return tensor

        self.storages = storages
        super().__init__(pack, lambda tensor: tensor)

    def bytes(self, known: set[int]) -> int:
        """Return the bytes of all storages but the known ones (by address)."""
        return sum(s.nbytes() for address, s in self.storages.items() if address not in known)


def static_bytes(training: Trainer) -> tuple[int, set[int]]:
    """Return the bytes that are held between two steps, and the addresses of their storages.

    These are weights, buffers, averaged weights, gradients and optimiser state.
    """
    tensors = [*training.task.parameters(), *training.task.buffers()]
    tensors += [weight.grad for weight in training.task.parameters() if weight.grad is not None]
    states = training.optimizer.state.values()
    tensors += [value for state in states for value in state.values() if torch.is_tensor(value)]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in tensors}
    return sum(storage.nbytes() for storage in storages.values()), set(storages)


def count_bytes(training: Trainer, batches: Iterator) -> tuple[int, int]:
    """Return the bytes held between two steps, and those that a forward pass keeps.

    The latter wait for the backward pass; they are counted in a step of their own.
    """
    saved = SavedTensors()
    with saved:
        training.train_step(batches)
    static, known = static_bytes(training)
    return static, saved.bytes(known)


# -- cost: seconds and bytes --------------------------------------------------------------------


def measure_cost(spec: dict, site: dict | None = None, folder: Path | None = None) -> dict:
    """Measure every model of the group at every batch size, and return the record's results.

    Each round of a batch size is a partial result that is kept in `folder`. No `site` is needed.
    """
    device = set_up(spec)
    emulated = limit_memory(spec, device)
    partial_results = PartialResults(folder, spec, devices.describe(device))
    rounds: dict[int, list[list[dict | None]]] = {size: [] for size in spec["batch_sizes"]}
    summaries: dict[int, list[dict]] = {size: [] for size in spec["batch_sizes"]}
    for number in range(spec["rounds"]):
        for size, earlier in rounds.items():
            measure = partial(measure_round, spec, size, device, earlier)
            costs, summary = partial_results.get(f"b{size}-{number}", measure)
            earlier.append(costs)
            summaries[size].append(summary)
    methods = []
    for index, model in enumerate(spec["models"]):
        sizes = []
        for size, of_rounds in rounds.items():
            sizes.append({"batch_size": size, **summarise_cost([costs[index] for costs in of_rounds])})
        methods.append({**describe(model), "sizes": sizes, "extrapolated": extrapolate(sizes, spec)})
    warnings = {}  # one of each code
    for summary in itertools.chain.from_iterable(summaries.values()):
        for warning in monitor.find_warnings(summary, device):
            warnings[warning.code] = warning
    return {
        "device": devices.describe(device),
        "bytes_are": "largest held by the allocator" if device.type == "cuda" else "counted",
        "memory_limit_emulated": emulated,
        "methods": methods,
        "seen": {f"b{size}": of_rounds for size, of_rounds in summaries.items()},
        "warnings": to_json(list(warnings.values())),
        "environment": environment(),
        "kept_parts": partial_results.kept,
    }


def limit_memory(spec: dict, device: torch.device) -> bool:
    """Let a larger GPU have no more memory than the spec's; return whether it is limited."""
    if device.type != "cuda" or spec["memory_gib"] is None:
        return False
    share = spec["memory_gib"] * GIB / torch.cuda.get_device_properties(device).total_memory
    if share >= 1:
        return False
    torch.cuda.set_per_process_memory_fraction(share, device)
    return True


def measure_round(
    spec: dict, batch_size: int, device: torch.device, earlier: list[list[dict | None]]
) -> tuple[list[dict | None], dict]:
    """Measure each model once, and return the costs and the monitor's summary.

    The cost is None for a model that runs out of memory, or did in an earlier round.
    """
    began = time.time()
    costs: list[dict | None] = []
    with monitor.start_monitor(device) as watch:
        for index, model in enumerate(spec["models"]):
            if any(of_round[index] is None for of_round in earlier):
                costs.append(None)
            else:
                costs.append(measure_once(model, spec, batch_size, device, counts=not earlier))
    return costs, watch.summary([(began, time.time())])


def measure_once(model: dict, spec: dict, batch_size: int, device: torch.device, counts: bool) -> dict | None:
    """Return `time_steps` of the training's "first" and "last" epoch, or None: out of memory.

    Evo-ViT selects in each layer in the first epochs and once per stage in the last ones.
    """
    training = None
    try:
        training = make_training(model, spec, batch_size, device)
        last = training.recipe["epochs"] - 1
        return {
            "first": time_steps(training, 0, device, counts),
            "last": time_steps(training, last, device, counts),
        }
    except RuntimeError as error:
        if not devices.is_out_of_memory(error):
            raise
        return None
    finally:
        del training
        devices.free()


def time_steps(
    training: Trainer, epoch: int, device: torch.device, counts: bool
) -> tuple[float, int | None, int | None]:
    """Return the seconds of a step in the epoch, and the bytes that training needs there.

    The third value, on a CPU, is the part that the forward pass keeps for the backward pass. On a CPU bytes
    are counted in a step of their own, if `counts`; they are the same each time.
    """
    training.epoch = epoch
    training.step = 0
    training.start_epoch()
    batches = training.loader.batches(epoch)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    training.train_step(batches)  # the optimiser's state exists only after a step
    needed = None
    saved = None
    # on a GPU the allocator knows, and to count would be to hold more
    if device.type == "cpu" and counts:
        static, saved = count_bytes(training, batches)
        needed = static + saved
    synchronise(device)
    started = time.perf_counter()
    training.train_step(batches)
    synchronise(device)
    more = max(0, round(TIMING_S / (time.perf_counter() - started)) - 1)
    for _ in range(more):
        training.train_step(batches)
    synchronise(device)
    seconds = (time.perf_counter() - started) / (1 + more)
    if device.type == "cuda":
        needed = torch.cuda.max_memory_allocated(device)
    return seconds, needed, saved


def summarise_cost(rounds: list[dict | None]) -> dict:
    """Return medians over the rounds; a model that ran out of memory once has no numbers."""
    if None in rounds:
        return {"out_of_memory": True}
    summary: dict = {"out_of_memory": False}
    for phase in ("first", "last"):
        seconds = [cost[phase][0] for cost in rounds]
        summary[f"step_s_{phase}"] = statistics.median(seconds)
        summary[f"step_s_{phase}_quartiles"] = quartiles(seconds)
        summary[f"step_s_{phase}_rounds"] = seconds
        summary[f"bytes_{phase}"] = max(cost[phase][1] for cost in rounds if cost[phase][1] is not None)
        saved = rounds[0][phase][2]
        if saved is not None:
            summary[f"saved_bytes_{phase}"] = saved
    summary["bytes"] = max(summary["bytes_first"], summary["bytes_last"])
    return summary


def extrapolate(sizes: list[dict], spec: dict) -> list[dict]:
    """Return the bytes at `extrapolate_to`, on the line through the least and largest measured size."""
    fits = [size for size in sizes if not size["out_of_memory"]]
    if len(fits) < 2 or not spec["extrapolate_to"]:
        return []
    least = fits[0]
    largest = fits[-1]
    slope = (largest["bytes"] - least["bytes"]) / (largest["batch_size"] - least["batch_size"])
    extrapolated = []
    for batch_size in spec["extrapolate_to"]:
        needed = round(least["bytes"] + slope * (batch_size - least["batch_size"]))
        over = needed > spec["memory_gib"] * GIB if spec["memory_gib"] else None
        extrapolated.append({"batch_size": batch_size, "bytes": needed, "over_limit": over})
    return extrapolated


# -- speed: interleaved rounds ------------------------------------------------------------------


def measure_speed(spec: dict, site: dict | None = None, folder: Path | None = None) -> dict:
    """Time steps of every model of the group, the first being the baseline of the speed-ups.

    `spec` is that of `measure_cost`, with one `batch_size`; `rounds` is the least number, and up to twice as many are
    made while a speed-up's interval is not narrow. No `site` is needed, and no partial result is kept in `folder`.
    Returns the record's results.

    Raises:
        DeviceError: for a device or a precision that the machine does not have.
        torch.OutOfMemoryError: where a GPU does not hold all trainings at once.
    """
    device = set_up(spec)
    models = [prepare(model, spec, device) for model in spec["models"]]
    watch = throughput.time_in_rounds(models, spec["rounds"], device)
    for model, baseline in zip(models, throughput.baselines_of(models), strict=True):
        model.method |= summarise_rates(model.rates, baseline)
    return {
        "device": devices.describe(device),
        "methods": [model.method for model in models],
        **throughput.observations(models, watch, device),
        "environment": environment(),
    }


def prepare(model: dict, spec: dict, device: torch.device) -> TimedModel:
    """Return the training at its last epoch, where Evo-ViT selects once per stage, warmed up.

    On a CPU its method has the bytes that a step keeps for its backward pass.
    """
    training = make_training(model, spec, spec["batch_size"], device)
    training.epoch = training.recipe["epochs"] - 1
    training.start_epoch()
    batches = training.loader.batches(training.epoch)
    method = describe(model)
    if device.type == "cpu":  # on a GPU to count them would be to hold more
        training.train_step(batches)  # the optimiser's state exists only after a step
        _, method["saved_bytes"] = count_bytes(training, batches)
        devices.free()
    timed = TimedModel(lambda images: training.train_step(batches), training.loader.images, method)
    timed.warm_up()
    return timed
