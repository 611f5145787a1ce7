"""Loaders: the parts of a batch, and worker processes that stay from epoch to epoch; a lost one is one sentence."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from workflow.data import check, layout, loaders, worker_processes
from workflow.data.layout import DataError
from workflow.runtime import job
from workflow.runtime.distributed import DistributedContext
from workflow.runtime.preemption import Stopped
from workflow.storage import journal
from workflow.train import trainer
from workflow.train.trainer import Trainer


def test_each_validation_image_comes_once_whatever_the_number_of_processes(images, tiny_spec):
    spec = tiny_spec("deit_tiny")
    config = {"input_size": (3, 16, 16), "mean": (0.5,) * 3, "std": (0.5,) * 3}
    site = {"data_root": str(images), "workers": 0}
    for world in (1, 3):
        contexts = [DistributedContext(torch.device("cpu"), rank, world) for rank in range(world)]
        counts = [
            len(labels)
            for context in contexts
            for _, labels in loaders.ImageSource(spec["data"], site, spec["recipe"], config, context).validation()
        ]
        assert sum(counts) == 20


@pytest.mark.parametrize(
    ("total", "most", "processes", "expected"),
    [(1024, None, 1, (1024, 1)), (1024, 128, 8, (128, 1)), (1024, 128, 1, (128, 8)),
     (1024, 128, 2, (128, 4)), (96, 36, 1, (32, 3)), (90, 40, 1, (30, 3))],
)  # fmt: skip
def test_fewer_gpus_accumulate_to_the_same_global_batch(total, most, processes, expected):
    recipe = {"batch_size": total, "device_batch": most, "mixup": 0.8, "cutmix": 0.0}
    assert loaders.split_batch(recipe, processes) == expected


@pytest.mark.parametrize(
    ("total", "processes", "sentence"),
    [(1024, 3, r"1024 = 3 x 341 \+ 1"), (10, 2, "gives each of 2 processes 5 images")],
)
def test_a_batch_that_the_processes_cannot_share_is_refused(total, processes, sentence):
    recipe = {"batch_size": total, "device_batch": None, "mixup": 0.8, "cutmix": 0.0}
    with pytest.raises(DataError, match=sentence):
        loaders.split_batch(recipe, processes)


# -- worker processes -------------------------------------------------------------------------------


ROOT = Path(__file__).parent.parent.parent


def attempt(site, number: int) -> Path:
    return Path(site["root"]) / "runs/evo_deit_tiny/attempts" / str(number)


def assert_same_bits(one: Path, two: Path) -> None:
    for key, value in torch.load(one / "weights.pt").items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, torch.load(two / "weights.pt")[key]), key


@pytest.fixture
def started(monkeypatch):
    """The loader processes that were started since."""
    processes: list = []
    monkeypatch.setattr(worker_processes, "_started", processes)
    return processes


@pytest.mark.integration
def test_workers_stay_from_epoch_to_epoch_and_end_with_the_training(site, tiny_spec, started):
    random = {"mixup": 0.8, "random_erasing": 0.5, "hflip": 0.5, "crop_scale": [0.3, 1.0]}
    spec = tiny_spec("evo_deit_tiny", epochs=2, **random)
    trainer.run(spec, site, attempt(site, 1))
    record = trainer.run(spec, site | {"workers": 2}, attempt(site, 2))
    assert len(started) == 2 * 2  # of the training and of the validation split
    assert not any(process.is_alive() for process in started)
    assert not worker_processes.lost()
    assert_same_bits(attempt(site, 1), attempt(site, 2))
    # two epochs never become stage-wise, which the log and the record say
    (sentence,) = record["results"]["unreached"]
    events = [event for event, _ in journal.read(attempt(site, 2) / "journal.jsonl")]
    assert [event["text"] for event in events if event["event"] == "note"] == [sentence]


@pytest.mark.integration
def test_a_training_with_workers_goes_on_to_the_same_bits(site, tiny_spec, monkeypatch, started):
    """Stopped in the middle of an epoch as Slurm does it, which signals loader processes, too."""
    spec = tiny_spec("evo_deit_tiny", epochs=2, hflip=0.5, crop_scale=[0.3, 1.0])
    trainer.run(spec, site, attempt(site, 1))
    step_of = Trainer.train_step

    def interrupted(self, batches):
        step_of(self, batches)
        if self.update == 6:
            pids = [process.pid for process in started] + [os.getpid()]
            subprocess.run(["kill", "-TERM", *map(str, pids)], check=True)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", interrupted)
        with pytest.raises(Stopped):
            trainer.run(spec, site | {"workers": 2}, attempt(site, 2))
    trainer.run(spec, site | {"workers": 1}, attempt(site, 2))
    assert_same_bits(attempt(site, 1), attempt(site, 2))


@pytest.mark.integration
def test_a_step_that_is_left_out_finds_the_workers_again(site, tiny_spec, monkeypatch, started):
    """The epoch is begun once more while batches of its first try are on their way."""
    spec = tiny_spec("deit_tiny", epochs=2)
    folders = [Path(site["root"]) / "runs/deit_tiny/attempts" / str(n) for n in (1, 2)]
    forward = Trainer.forward_backward

    def poisoned(self, images, target, part, parts):
        losses = forward(self, images, target, part, parts)
        return {**losses, "loss": losses["loss"] * float("nan")} if self.update == 6 else losses

    monkeypatch.setattr(Trainer, "forward_backward", poisoned)
    for workers, folder in zip((0, 2), folders, strict=True):
        trainer.run(spec, site | {"workers": workers}, folder)
        assert len(journal.deviations(folder / "journal.jsonl")) == 1
    assert_same_bits(*folders)
    assert len(started) == 4


class Ending:
    """Stands for a transform whose process ends with this signal, or by itself (0)."""

    def __init__(self, number: int):
        self.number = number

    def __call__(self, image):
        if not self.number:
            os._exit(3)
        os.kill(os.getpid(), self.number)


@pytest.mark.integration
@pytest.mark.parametrize(
    ("number", "sentence"),
    [
        (signal.SIGKILL, "A loader process was killed (signal 9), as the kernel does"),
        (signal.SIGBUS, "The loader processes found no room in shared memory (/dev/shm has "),
        (0, "A loader process ended with code 3"),
    ],
)
def test_a_lost_process_of_a_training_is_one_sentence(number, sentence, site, tiny_spec, monkeypatch, started):
    monkeypatch.setattr("workflow.data.augmentation.create_transform", lambda *a, **o: Ending(number))
    spec, folder = tiny_spec("deit_tiny"), Path(site["root"]) / "runs/deit_tiny/attempts/1"
    with pytest.raises(worker_processes.LoaderError) as raised:
        job.Job(spec, site | {"workers": 2}, str(folder))._run(folder)
    job.keep_error(folder, 0, raised.value)
    assert json.loads((folder / "error-rank0.json").read_text())["sentence"].startswith(sentence)
    assert "workers" in str(raised.value)


@pytest.mark.integration
def test_a_lost_process_of_the_data_job_is_one_sentence(site, config, monkeypatch, started):
    monkeypatch.setattr(check.Decoding, "__getitem__", lambda *a: Ending(signal.SIGKILL)(None))
    monkeypatch.setattr(layout, "check", lambda *a: None)
    spec = {"kind": "data", "setting": "mine"}
    spec["data"] = {"name": "mine", "train": "train", "val": "val", "num_classes": 10}
    folder = Path(site["root"]) / "data/attempts/1"
    with pytest.raises(worker_processes.LoaderError, match=r"killed \(signal 9\).*fewer `workers`"):
        job.Job(spec, site | {"workers": 2}, str(folder))._run(folder)


@pytest.mark.integration
def test_a_lost_process_interrupts_nothing_but_the_loading(images, tiny_spec, started):
    """Not a checkpoint that is being written, as torch's own signal handler would."""
    config = {"input_size": (3, 16, 16), "mean": (0.5,) * 3, "std": (0.5,) * 3}
    spec = tiny_spec("deit_tiny")
    context = DistributedContext(torch.device("cpu"), 0, 1)
    site = {"data_root": str(images), "workers": 1}
    source = loaders.ImageSource(spec["data"], site, spec["recipe"], config, context)
    batches = iter(source.load(source.evaluation_set("val"), range(20), 1))
    next(batches)
    (process,) = started
    subprocess.run(["kill", "-TERM", str(process.pid)], check=True)  # from its parent it would end as it should
    process.join()
    time.sleep(0.1)  # a signal handler would raise here
    with pytest.raises(RuntimeError, match="exited unexpectedly"):
        list(batches)
    assert worker_processes.lost() == [-signal.SIGTERM]


@pytest.mark.integration
@pytest.mark.parametrize("size", ["16k", "300k"])
def test_a_shared_memory_that_is_too_small_is_one_sentence(size, site, tiny_spec, tmp_path):
    """As docker's of 64 MB is for images of 224 pixels."""
    mount = ["unshare", "--mount", "sh", "-c",
             f'mount -t tmpfs -o size={size} tmpfs /dev/shm && exec "$@"', "sh"]  # fmt: skip
    if not shutil.which("unshare") or subprocess.run([*mount, "true"], check=False).returncode:
        pytest.skip("needs a mount namespace of its own")
    spec, folder = tiny_spec("deit_tiny"), Path(site["root"]) / "runs/deit_tiny/attempts/1"
    spec["model"]["kwargs"]["img_size"] = 96
    code = (
        "import json, sys\n"
        "from pathlib import Path\n"
        "from workflow.runtime import job\n"
        "spec, site, folder = json.loads(sys.argv[1])\n"
        "job.Job(spec, site, folder)._run(Path(folder))\n"
    )
    arguments = json.dumps([spec, site | {"workers": 2}, str(folder)])
    done = subprocess.run(
        [*mount, sys.executable, "-c", code, arguments], cwd=ROOT, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    # not always the last line: the second of the killed loaders may report its bus error later
    errors = [line for line in done.stderr.splitlines() if line.startswith("workflow.")]
    assert len(errors) == 1
    assert errors[0].startswith("workflow.data.worker_processes.LoaderError: The loader processes found no room")
    assert "--shm-size" in errors[0]
