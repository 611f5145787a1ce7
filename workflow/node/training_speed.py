"""How fast training steps are, the models in turns, step by step; and what each keeps for its
backward pass.

All models are in memory at once. What a training needs alone, and at which batch size memory runs
out, `training_cost` measures.
"""

from pathlib import Path

import torch

from workflow.node import device, modes, ratios, timing, watch
from workflow.node.fresh import environment
from workflow.node.throughput import enough, shares
from workflow.node.timing import Contestant
from workflow.node.training_cost import count_bytes, describe, make_training


def prepare(model: dict, spec: dict, where: torch.device) -> tuple[Contestant, dict]:
    """The training at its last epoch (Evo-ViT selects once per stage there), and its bytes."""
    training = make_training(model, spec, spec["batch_size"], where)
    training.epoch = training.recipe["epochs"] - 1
    training.start_epoch()
    batches = training.loader.batches(training.epoch)
    one = Contestant(lambda images: training.train_step(batches), training.loader.images)
    timing.warm_up(one, where)
    found = describe(model)
    if where.type == "cpu":  # on a GPU to count them would be to hold more
        _, found["saved_bytes"] = count_bytes(training, batches)
    return one, found


def measure_section(spec: dict, site: dict | None = None, folder: Path | None = None) -> dict:
    """Steps of every model of the section, the first being the baseline; -> the record's results.

    `spec` as that of `training_cost`, with one `batch_size`; `rounds` at least, up to twice as many
    while a speed-up is unsure. There is no `site` to know, and no part to keep in `folder`.

    Raises:
        DeviceError: for a device or a precision that is not there.
    """
    torch.set_num_threads(spec["threads"])
    modes.set_backends()
    where = device.choose(spec["device"])
    device.check_precision(spec["precision"], where)
    prepared = [prepare(model, spec, where) for model in spec["models"]]
    contestants = [one for one, _ in prepared]
    with watch.watch(where) as seen:
        while not enough(contestants, spec["rounds"]):
            timing.time_round(contestants, where)
        timing.time_share(contestants[0], where)  # after the last one's
    methods = [
        found | ratios.summarise(*both)
        for (_, found), both in zip(prepared, shares(contestants), strict=True)
    ]
    summary = seen.summary(span for one in contestants for span in one.spans)
    return {
        "device": device.describe(where),
        "methods": methods,
        "seen": summary,
        "suspect": [
            *watch.suspicions(summary, where),
            *watch.drifted(contestants[0].rates),
        ],
        "environment": environment(),
    }
