"""How fast training steps are, the models in turns, step by step; and what each keeps for its
backward pass.

All models are in memory at once. What a training needs alone, and at which batch size memory runs
out, `training_cost` measures.
"""

from pathlib import Path

import torch

from workflow.bench import statistics, timing, turns
from workflow.bench.fresh import environment
from workflow.bench.timing import Contestant
from workflow.bench.training_on_noise import begin, count_bytes, describe, make_training
from workflow.runtime import device


def prepare(model: dict, spec: dict, where: torch.device) -> tuple[Contestant, dict]:
    """The training at its last epoch (Evo-ViT selects once per stage there), and its bytes."""
    training = make_training(model, spec, spec["batch_size"], where)
    training.epoch = training.recipe["epochs"] - 1
    training.start_epoch()
    batches = training.loader.batches(training.epoch)
    found = describe(model)
    if where.type == "cpu":  # on a GPU to count them would be to hold more
        training.train_step(batches)  # the optimiser's state is there only after a step
        _, found["saved_bytes"] = count_bytes(training, batches)
        device.free()
    one = Contestant(lambda images: training.train_step(batches), training.loader.images)
    timing.warm_up(one, where)
    return one, found


def measure_section(spec: dict, site: dict | None = None, folder: Path | None = None) -> dict:
    """Steps of every model of the section, the first being the baseline; -> the record's results.

    `spec` as that of `training_cost`, with one `batch_size`; `rounds` at least, up to twice as many
    while a speed-up is unsure. It needs no `site`, and leaves no part in `folder` to go on from.

    Raises:
        DeviceError: for a device or a precision that is not there.
        MeasurementError: for fp16 on a CPU.
        torch.OutOfMemoryError: where a GPU does not hold all trainings at once.
    """
    where = begin(spec)
    prepared = [prepare(model, spec, where) for model in spec["models"]]
    contestants = [one for one, _ in prepared]
    seen = turns.take(contestants, spec["rounds"], where)
    methods = [
        found | statistics.summarise(*both)
        for (_, found), both in zip(prepared, turns.shares(contestants), strict=True)
    ]
    return {
        "device": device.describe(where),
        "methods": methods,
        **turns.noticed(contestants, seen, where),
        "environment": environment(),
    }
