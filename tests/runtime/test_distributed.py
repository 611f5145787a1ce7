"""Several processes over gloo: the same losses as one, the same bits after a kill, each image evaluated once."""

import json
import os
import socket
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as processes

from tests import forked
from workflow.campaign import specs
from workflow.storage import journal, records
from workflow.train import evaluate, trainer
from workflow.train.trainer import Trainer

KILLED = 7


def work(rank: int, world: int, port: int, spec: dict, site: dict, folder: str, steps: int | None):
    """One process of a training, killed before its `steps` + 1st step, or of an evaluation."""
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world),
        "RANK": str(rank), "LOCAL_RANK": str(rank),
    }  # fmt: skip
    if steps is not None:
        step_of, done = Trainer.train_step, []

        def killing(self, batches):
            if len(done) == steps:
                os._exit(KILLED)
            step_of(self, batches)
            done.append(self.update)

        Trainer.train_step = killing
    job = evaluate if spec["kind"] == "evaluate" else trainer
    record = job.run(spec, site, Path(folder))
    if rank == 0:
        records.write_json(Path(folder) / "record.json", record)
    else:
        assert record is None


def together(spec: dict, site: dict, folder: Path, world: int = 2, steps: int | None = None):
    """Train or evaluate with so many processes; -> the record, None if they were killed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = (world, port, spec, site | {"checkpoint_minutes": 0}, str(folder), steps)
    context = forked.start(work, arguments, world, join=False)
    try:
        while not context.join():
            pass
    except (processes.ProcessExitedException, processes.ProcessRaisedException):
        if KILLED not in [process.exitcode for process in context.processes]:
            raise  # else the other process may have died of that
        return None
    return json.loads((folder / "record.json").read_text())


def attempt(site, run, number) -> Path:
    return Path(site["root"]) / "runs" / run / "attempts" / str(number)


def weights(folder: Path) -> dict:
    return torch.load(folder / "weights.pt")


@pytest.mark.integration
@pytest.mark.parametrize(
    ("run", "most"),
    [
        ("deit_tiny", 2),
        pytest.param("deit_tiny", None, marks=pytest.mark.integration),
        pytest.param("levit_128s", None, marks=pytest.mark.integration),
        pytest.param("svite_deit_tiny", None, marks=pytest.mark.integration),
        pytest.param("svite_deit_tiny", 2, marks=pytest.mark.integration),
    ],
)
def test_two_processes_have_the_losses_of_one(run, most, site, tiny_spec, with_needed):
    spec = tiny_spec(run, repeated_augmentation=3, hflip=0.5, crop_scale=[0.3, 1.0])
    spec["recipe"]["batch_norm"] = "frozen"  # LeViT's; a process has only half of the images
    spec["model"]["kwargs"].pop("drop_path_rate", None)  # each process draws its own
    with_needed(spec)
    alone = trainer.run(spec, site, attempt(site, run, 1))
    spec["recipe"]["device_batch"] = most
    both = together(spec, site, attempt(site, run, 2))
    for single, double in zip(alone["results"]["history"], both["results"]["history"], strict=True):
        assert double["loss"] == pytest.approx(single["loss"], rel=1e-5)
        assert double["val_loss"] == pytest.approx(single["val_loss"], rel=1e-5)
        assert double["top1"] == single["top1"]
    assert both["provenance"]["world_size"] == 2
    assert both["results"]["val_images"] == 20  # each once
    for key in ("right", "val_listing"):
        assert both["results"][key] == alone["results"][key]


@pytest.mark.integration
def test_processes_with_unequal_numbers_of_images_say_of_each_whether_it_is_right(site, tiny_spec, config):
    run = "deit_tiny"
    alone = trainer.run(tiny_spec(run, epochs=3), site, attempt(site, run, 1))
    path = attempt(site, run, 1) / "weights.pt"
    checkpoint = {"file": str(path), "sha256": records.sha256(path)}
    spec = specs.evaluate_spec(config, "demo", run, checkpoint) | {"model": alone["spec"]["model"]}
    spec["recipe"] = spec["recipe"] | {"batch_size": 4}  # 2 images in a pass
    of_three = together(spec, site, attempt(site, run, 2), world=3)  # 7, 7 and 6 images
    assert of_three["provenance"]["world_size"] == 3
    for key in ("top1", "right", "val_images", "val_listing"):
        assert of_three["results"][key] == alone["results"][key]


@pytest.mark.integration
@pytest.mark.parametrize("run", ["evo_deit_tiny", "svite_deit_tiny", "ia_red2_deit_tiny", "evo_levit_128s"])
def test_two_processes_killed_at_any_step_end_with_the_same_bits(run, site, tiny_spec, with_needed):
    random = {"mixup": 0.8, "cutmix": 1.0, "random_erasing": 0.5, "ema": 0.9}
    spec = with_needed(tiny_spec(run, **random))
    spec["model"]["kwargs"]["drop_path_rate"] = 0.1
    whole = together(spec, site, attempt(site, run, 1))
    assert together(spec, site, attempt(site, run, 2), steps=3) is None
    assert together(spec, site, attempt(site, run, 2), steps=4) is None
    resumed = together(spec, site, attempt(site, run, 2))
    for key, value in weights(attempt(site, run, 1)).items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, weights(attempt(site, run, 2))[key]), key
    timed = {"train_s", "epoch_s"}
    for key in ("right", "ema_right"):
        assert whole["results"][key] == resumed["results"][key]
    for one, two in zip(whole["results"]["history"], resumed["results"]["history"], strict=True):
        assert {k: v for k, v in one.items() if k not in timed} == {k: v for k, v in two.items() if k not in timed}
    events = [e for e, _ in journal.read(attempt(site, run, 2) / "journal.jsonl")]
    starts = [(e["epoch"], e["step"]) for e in events if e["event"] == "start"]
    assert starts[0] == (0, 0)
    assert starts[1] == (0, 3)  # in the middle of the first epoch
