"""Trainings fed with noise, for measurements: how they are built, and the bytes that they hold."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from workflow.bench.fresh import MeasurementError
from workflow.bench.modes import set_attention, set_backends
from workflow.runtime import device
from workflow.runtime.distributed import DistributedContext
from workflow.train import factory, macs
from workflow.train.trainer import Trainer

CLASSES = 1000


def begin(spec: dict) -> torch.device:
    """Threads and backends as the spec says; -> its device. Raises DeviceError, MeasurementError
    for fp16 on a CPU."""
    torch.set_num_threads(spec["threads"])
    set_backends()
    where = device.choose(spec["device"])
    if spec["precision"] == "fp16" and where.type == "cpu":
        raise MeasurementError("fp16 needs a GPU; set `precision: bf16` or `fp32`.")
    device.check_precision(spec["precision"], where, "measure fp16 there")
    return where


def describe(model: dict) -> dict:
    """What is known of a model before its training is measured."""
    module = factory.build_model(model["model"])
    image = (3, *factory.image_size(module))
    return {
        "run": model["run"],
        "model": model["model"]["name"],
        "resolution": image[-1],
        "macs_g": macs.count(module, image) / 1e9,
    }


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


def make_training(model: dict, spec: dict, batch_size: int, where: torch.device) -> Trainer:
    """The engine around one model, with its recipe, fed with noise."""
    amp = None if spec["precision"] == "fp32" else spec["precision"]
    recipe = {**model["recipe"], "batch_size": batch_size, "amp": amp}
    size = factory.image_size(factory.build_model(model["model"], "meta"))
    noise = Noise(batch_size, size, CLASSES, 10**6, where)
    data = {"num_classes": CLASSES}
    known = {"run": model["run"], "model": model["model"], "recipe": recipe, "data": data}
    training = Trainer({**known, "seed": 0}, {}, DistributedContext(where), loader=noise)
    set_attention(training.task, spec["mode"])
    return training


class Kept:
    """Bytes of the tensors that autograd keeps while this context is open, each storage once."""

    def __enter__(self) -> "Kept":
        storages: dict[int, torch.UntypedStorage] = {}  # held, so that no address comes twice

        def pack(tensor: Tensor) -> Tensor:  # no method: in a cycle all would outlive this object
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage
            return tensor

        self.storages = storages
        self._hooks = saved_tensors_hooks(pack, lambda tensor: tensor)
        self._hooks.__enter__()
        return self

    def __exit__(self, *error) -> None:
        self._hooks.__exit__(*error)

    def bytes(self, known: set[int]) -> int:
        """Without the storages (by address) that are there anyway."""
        return sum(s.nbytes() for address, s in self.storages.items() if address not in known)


def static_bytes(training: Trainer) -> tuple[int, set[int]]:
    """Weights, buffers, averaged weights, gradients and optimiser state; and their addresses."""
    held = [*training.task.parameters(), *training.task.buffers()]
    held += [weight.grad for weight in training.task.parameters() if weight.grad is not None]
    states = training.optimizer.state.values()
    held += [value for state in states for value in state.values() if torch.is_tensor(value)]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in held}
    return sum(storage.nbytes() for storage in storages.values()), set(storages)


def count_bytes(training: Trainer, batches: Iterator) -> tuple[int, int]:
    """Bytes that training holds between two steps, and, counted in a step of their own, those that
    the forward pass keeps for the backward pass."""
    with Kept() as kept:
        training.train_step(batches)
    static, known = static_bytes(training)
    return static, kept.bytes(known)
