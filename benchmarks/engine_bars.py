"""Measure what the training engine costs besides forward and backward, on this machine's CPU.

    python -m benchmarks.engine_bars --images <folder of class folders> [--output x.csv]

Prints how many images per second one core decodes and augments by the paper's recipe (the images repeated to a stream),
which share of a training step on them is not forward and backward, and the engine's overhead over a bare loop of the
same model on the same random tensors, in interleaved rounds. Ends with code 1 if the overhead is not under its bar.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from workflow import command_line
from workflow.bench import bars
from workflow.bench.process import restart_tuned
from workflow.bench.training_step import Noise
from workflow.campaign import specs
from workflow.campaign.config import Config
from workflow.data import loaders
from workflow.runtime import preemption
from workflow.runtime.distributed import DistributedContext
from workflow.train import factory
from workflow.train.checkpoints import Checkpoints
from workflow.train.trainer import Trainer

BAR_PCT = 3.0  # the engine's overhead
STREAM = 1024  # images, at least
RUN = "deit_tiny"
BATCH = 16
STEPS = 4
PLAIN = {"mixup": 0.0, "cutmix": 0.0, "ema": None}  # a bare loop has none of them
CPU = DistributedContext(torch.device("cpu"))


def make_spec(config: Config, images: int, **recipe) -> dict:
    """Return the paper's DeiT-T as a spec, in fp32 with one thread, of small batches."""
    small = {"batch_size": BATCH, "threads": 1, "amp": None, **recipe}
    return {
        "run": RUN,
        "seed": 0,
        "model": specs.model_of(config, RUN),
        "recipe": specs.recipe_of(config, None, RUN) | small,
        "data": {"train": "train", "val": "train", "num_classes": images},
    }


def repeat(folder: Path, root: Path) -> int:
    """Link to the folder's images as root/train/<class>/, repeated; return the number of classes."""
    images = sorted(path.resolve() for path in folder.glob("*/*") if path.is_file())
    if not images:
        sys.exit(f"{folder} holds no <class>/<image>.")
    for index in range(max(STREAM, len(images))):
        path = images[index % len(images)]
        link = root / "train" / path.parent.name / f"{index}{path.suffix}"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)
    return len({path.parent for path in images})


def loader_rate(spec: dict, site: dict) -> float:
    """Return the images per second that one core decodes and augments."""
    config = {"input_size": (3, 224, 224), "mean": (0.5,) * 3, "std": (0.5,) * 3}
    source = loaders.ImageSource(spec["data"], site, spec["recipe"], config, CPU)
    batches = loaders.TrainLoader(source, seed=0).batches(0)
    next(batches)
    count = 0
    started = time.perf_counter()
    for images, _ in batches:
        count += len(images)
    return count / (time.perf_counter() - started)


def other_share(spec: dict, site: dict, steps: int) -> float:
    """Return the share of a step's time, on real images, that is not forward and backward."""
    spent = []

    class Timed(Trainer):
        def forward_backward(self, *arguments):
            started = time.perf_counter()
            outputs = super().forward_backward(*arguments)
            spent.append(time.perf_counter() - started)
            return outputs

    training = Timed(spec, site, CPU, None)
    training.start_epoch()
    batches = training.loader.batches(0)
    training.train_step(batches)
    spent.clear()
    started = time.perf_counter()
    for _ in range(steps):
        training.train_step(batches)
        training.synchronise(False, False)
    return 1 - sum(spent) / (time.perf_counter() - started)


def engine_round(training: Trainer, folder: str) -> float:
    """Return the seconds of STEPS steps of the engine, with all it does around them."""
    training.epoch = 0
    training.step = 0
    checkpoints = Checkpoints(Path(folder), "none", print)
    flag = preemption.StopFlag()
    started = time.perf_counter()
    training.train_epoch(checkpoints, flag)
    return time.perf_counter() - started


def bare_round(model, optimizer, noise: Noise) -> float:
    """Return the seconds of STEPS steps of a loop that does nothing else."""
    model.train()
    started = time.perf_counter()
    for images, labels in noise.batches(0):
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    return time.perf_counter() - started


def overhead_pct(config: Config, rounds: int) -> list[float]:
    """Return for each round the engine's time over the bare loop's, in percent."""
    spec = make_spec(config, 1000, smoothing=0.0, **PLAIN)
    noise = Noise(BATCH, (224, 224), 1000, STEPS, "cpu")
    training = Trainer(spec, {}, CPU, None, loader=noise)
    model = factory.build_model(spec["model"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    overheads = []
    with tempfile.TemporaryDirectory() as folder:
        bare_round(model, optimizer, noise)
        engine_round(training, folder)
        for number in range(rounds):
            if number % 2:  # the order may matter
                bare = bare_round(model, optimizer, noise)
                engine = engine_round(training, folder)
            else:
                engine = engine_round(training, folder)
                bare = bare_round(model, optimizer, noise)
            overheads.append(100 * (engine / bare - 1))
    return overheads


def main() -> None:
    """Measure and print what the command line asks for."""
    parser = command_line.parser(__doc__)
    parser.add_argument("--images", type=Path, help="folder of class folders with photographs")
    parser.add_argument("--rounds", type=int, default=15, help="of engine and bare loop")
    parser.add_argument("--output", type=Path, help="write the numbers to this CSV too")
    arguments = parser.parse_args()
    restart_tuned({"threads": 1, "device": "cpu"}, "benchmarks.engine_bars")
    torch.set_num_threads(1)
    config = Config.load()
    rows = []

    def show(name: str, value: float, unit: str, bar: str = "") -> None:
        print(f"{name:62}{value:8.2f} {unit}{bar}", flush=True)
        rows.append({"what": name, "value": round(value, 3), "unit": unit})

    if arguments.images:
        with tempfile.TemporaryDirectory() as folder:
            spec = make_spec(config, repeat(arguments.images, Path(folder)))
            spec["model"]["kwargs"]["num_classes"] = spec["data"]["num_classes"]
            site = {"data_root": folder, "workers": 0}
            show("photographs decoded and augmented per core", loader_rate(spec, site), "images/s")
            for workers in (0, 1):
                share = other_share(spec, site | {"workers": workers}, 10)
                name = f"of a {RUN} step not forward and backward, {workers} workers"
                show(name, 100 * share, "%")
    overheads = overhead_pct(config, arguments.rounds)
    low, median, high = statistics.quantiles(overheads, n=4, method="inclusive")
    show("the engine over a bare loop of the same model", median, "%", f"  bar {BAR_PCT} %")
    print(f"{'(quartiles)':62}{low:8.2f} to {high:.2f} %")
    if arguments.output:
        bars.write(arguments.output, rows)
    sys.exit(median >= BAR_PCT)


if __name__ == "__main__":
    command_line.run(main)
