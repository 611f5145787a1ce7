"""Train runs of CIFAR-10 side by side on one GPU, in the order of a list, and return records at any time.

    python -m benchmarks.gpu.train --list runs.txt --images DIR --output DIR --minutes 9

Needs torch and timm. The list names one run a line, such as `deit_tiny` or `evo_deit_tiny-common-s1` (seed 1), the most
wanted first; `#` begins a comment. A run that goes on from another one's weights waits for that. Each training is a
process of its own: the trainer of the workflow with the spec that workflow/config/ asks for, so that its record is the
one that the workflow would have made.

--output holds trainings.tar.gz (records, journals, logs), written anew whenever an epoch ends, and state.tar.1,
state.tar.2 and so on with the weights that other runs go on from, as far as --state-mib allows. Shortly before the
minutes are over all trainings save a checkpoint and end; the state then holds the checkpoints, too. The command may be
killed anywhere. Started again with the same --work, or elsewhere with `--resume` and an earlier output, it goes on; a
run is trained again if another one needs its weights and they did not come along. `--smoke` trains tiny models on the
CPU, to test this command.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.gpu import transport
from workflow import command_line, job_environment
from workflow.campaign import specs
from workflow.campaign.config import Config
from workflow.command_line import nearest
from workflow.storage import journal, locks, records

ARCHIVE = "trainings.tar.gz"
RESULTS = ("data.json", "runs/*/spec.json", "runs/*/train.json", "runs/*/attempts/1/journal.jsonl", "runs/*/log.txt")
EVERY_S = 1.0  # between two looks at the trainings
GRACE_S = 35.0  # the trainings are asked to end this long before the minutes are over, to save what they go on from
GRACE_SHARE = 0.25  # of the minutes, where that is less
SMOKE_MODEL = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "num_heads": 3}
SMOKE_RECIPE = {"epochs": 3, "batch_size": 8, "warmup_epochs": 1, "threads": 1}


class ListError(ValueError):
    """The list names what can't be trained; the message says which line and what to do."""


# -- the runs -----------------------------------------------------------------------------------


def read_list(path: Path) -> list[str]:
    """Return the names of runs in a list, in its order. Raises ListError for a list without any, or none at all."""
    if not path.is_file():
        raise ListError(f"--list {path}: there is no such file; benchmarks/gpu/runs.txt is a list.")
    lines = [line.partition("#")[0].strip() for line in path.read_text().splitlines()]
    runs = list(dict.fromkeys(filter(None, lines)))
    if not runs:
        raise ListError(f"{path} names no run; write one a line, such as deit_tiny.")
    return runs


def make_spec(config: Config, setting: str, run: str, smoke: bool) -> dict:
    """Return the spec of a run's training; with `smoke`, of a tiny model for a few epochs.

    Raises ListError for a name that is no run, and for what is not trained by the trainer alone.
    """
    rows = [row for row in config.runs if config.has_row(row, setting)]
    try:
        row, _ = config.split_run(run)
    except KeyError:
        row = None
    if row not in rows:
        raise ListError(f"{run} is no run of {setting}{nearest(run, rows)}")
    spec = specs.train_spec(config, setting, run)
    if spec["kind"] != "train":
        raise ListError(f"{run} has given weights (settings.yaml, {setting}.checkpoints); take it from the list.")
    if smoke:
        spec["model"] = spec["model"] | {"kwargs": spec["model"]["kwargs"] | SMOKE_MODEL}
        spec["recipe"] = spec["recipe"] | SMOKE_RECIPE
        spec["smoke"] = True
    for role in specs.ROLES:
        if role in spec:
            if spec[role]["job"] != "train":
                raise ListError(f"{run} needs a search before its training, which only the workflow runs.")
            spec[role] = specs.reference(make_spec(config, setting, spec[role]["run"], smoke))
    return spec


def make_specs(setting: str, runs: list[str], smoke: bool) -> dict[str, dict]:
    """Return the specs of all runs by their names, in the list's order.

    Raises ListError for an unknown setting, and for a run that goes on from one that is not in the list.
    """
    config = Config.load()
    if setting not in config.settings:
        raise ListError(f"--setting {setting} is unknown{nearest(setting, config.settings)}")
    made = {run: make_spec(config, setting, run, smoke) for run in runs}
    for run, spec in made.items():
        for needed in needs(spec):
            if needed not in made:
                raise ListError(f"{run} goes on from {needed}, which the list lacks; add {needed} before it.")
    return made


def needs(spec: dict) -> list[str]:
    """Return the runs that a training goes on or learns from."""
    return [spec[role]["run"] for role in specs.ROLES if role in spec]


class Campaign:
    """The trainings of a list below a work folder, and the processes that train some of them now."""

    def __init__(self, made: dict[str, dict], work: Path, arguments: argparse.Namespace):
        self.specs = made
        self.work = work
        self.arguments = arguments
        self.running: dict[str, subprocess.Popen] = {}
        self.failed: dict[str, str] = {}  # sentences by run

    def folder(self, run: str) -> Path:
        """Return the folder of a run, as the workflow lays it out."""
        return self.work / "runs" / run

    def is_trained(self, run: str) -> bool:
        """Return whether there is a record of the run, of the spec that is asked for now."""
        return has_record(self.folder(run), self.specs[run])

    def untrained(self) -> list[str]:
        """Return the runs that have no record yet, in the list's order."""
        return [run for run in self.specs if not self.is_trained(run)]

    def weights(self, run: str) -> Path:
        """Return where the weights are that a run's training ended with."""
        return self.folder(run) / "attempts/1/weights.pt"

    def needed_runs(self) -> list[str]:
        """Return the trained runs that untrained ones go on from, in the list's order."""
        needed = {other for run in self.untrained() for other in needs(self.specs[run])}
        return [run for run in self.specs if run in needed and self.is_trained(run)]

    def retrain_lost(self) -> None:
        """Forget the record of each run whose weights others need and did not come along: it is trained again."""
        while lost := [run for run in self.needed_runs() if not self.weights(run).exists()]:
            for run in lost:
                print(f"{run} is trained again: others go on from its weights, which did not come along.", flush=True)
                (self.folder(run) / "train.json").unlink()

    def next_run(self) -> str | None:
        """Return the first run of the list that can start now; None if there is none."""
        for run in self.untrained():
            if run in self.running or run in self.failed:
                continue
            if all(self.is_trained(needed) for needed in needs(self.specs[run])):
                return run
        return None

    def start(self, run: str) -> None:
        """Start a process that trains the run, or goes on with it."""
        folder = self.folder(run)
        records.write_json(folder / "spec.json", self.specs[run])
        arguments = self.arguments
        command = [sys.executable, "-m", "benchmarks.gpu.train", "--run", run, "--work", str(self.work)]
        command += ["--images", str(arguments.images), "--device", device_of(arguments)]
        command += ["--workers", str(workers_of(arguments))]
        environ = dict(os.environ)
        job_environment.clean(environ)
        with open(folder / "log.txt", "ab") as log:
            self.running[run] = subprocess.Popen(
                command, env=environ, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT
            )
        print(f"{run} starts", flush=True)

    def reap(self, stopping: bool = False) -> None:
        """Take the trainings that have ended out of those that run, and say how they ended.

        When `stopping`, one that has no record has not failed.
        """
        for run, process in list(self.running.items()):
            if process.poll() is None:
                continue
            del self.running[run]
            if self.is_trained(run):
                results = records.read(self.folder(run) / "train.json")["results"]
                print(f"{run}: {results['top1']:.2f} % after {results['epochs']} epochs", flush=True)
            elif not stopping:
                self.failed[run] = last_line(self.folder(run) / "log.txt")
                print(f"{run} failed: {self.failed[run]}", file=sys.stderr, flush=True)

    def stop(self, deadline: float) -> None:
        """Let all trainings save a checkpoint and end; kill those that still run at the deadline."""
        for process in self.running.values():
            process.terminate()
        while self.running and time.time() < deadline:
            time.sleep(0.1)
            self.reap(stopping=True)
        for process in self.running.values():
            process.kill()
            process.wait()
        self.reap(stopping=True)

    def progress(self, run: str) -> str:
        """Return a run with how many of its epochs it has made, for people."""
        done = len(journal.epochs(self.folder(run) / "attempts/1/journal.jsonl"))
        return f"{run} ({done} of {self.specs[run]['recipe']['epochs']} epochs)"

    def results(self) -> list[Path]:
        """Return the files of the archive, none of which is large."""
        return [path for pattern in RESULTS for path in self.work.glob(pattern)]

    def state(self) -> Iterator[Path]:
        """Yield what trainings go on from: the weights that are needed, and the newest checkpoints.

        While trainings run, which replace their checkpoints, it is the weights only. What would exceed `--state-mib` is
        left out, with a sentence.
        """
        paths = {run: self.weights(run) for run in self.needed_runs()}
        if not self.running:
            for run in self.untrained():
                checkpoints = sorted(self.folder(run).glob("attempts/1/checkpoints/step-*.pt"))
                if checkpoints:
                    paths[run] = checkpoints[-1]
        left = self.arguments.state_mib * 2**20
        for run, path in paths.items():
            size = path.stat().st_size
            if size > left:
                print(f"{run}: {path.name} does not fit into the state; raise --state-mib.", file=sys.stderr)
                continue
            left -= size
            yield path


def has_record(folder: Path, spec: dict) -> bool:
    """Return whether a run's folder has the record of a spec."""
    try:
        records.read(folder / "train.json", specs.spec_hash(spec))
    except records.RecordError:
        return False
    return True


def last_line(path: Path) -> str:
    """Return the last line of a log that says something."""
    lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "its process said nothing"


def device_of(arguments: argparse.Namespace) -> str:
    """Return the device that trains."""
    return "cpu" if arguments.smoke else "cuda"


def workers_of(arguments: argparse.Namespace) -> int:
    """Return the loader processes of each training: its equal share of the processors, less one for itself."""
    if arguments.smoke:
        return 0
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, processors // arguments.together - 1)


# -- the process of one training ----------------------------------------------------------------


def train_one(arguments: argparse.Namespace) -> None:
    """Train one run in its attempt's folder, and publish its record."""
    transport.end_with_parent()
    from workflow.data import worker_processes  # with torch, which the command itself does without
    from workflow.runtime.preemption import Stopped
    from workflow.train import trainer

    work = arguments.work
    folder = work / "runs" / arguments.run
    spec = json.loads((folder / "spec.json").read_text())
    with locks.exclusive(folder / "rank0.lock", patience_s=60.0):  # a killed command's may still save its checkpoint
        if has_record(folder, spec):
            return
        try:
            with worker_processes.explained():
                record = trainer.run(spec, site_of(arguments, work), folder / "attempts/1")
        except Stopped as stopped:
            sys.exit(str(stopped))
        records.write_json(folder / "train.json", record)


def site_of(arguments: argparse.Namespace, work: Path) -> dict:
    """Return where a training finds images and other runs' weights, and what it computes on."""
    site = {"root": str(work), "data_root": str(arguments.images), "workers": arguments.workers}
    return site | {"device": arguments.device}


def resume(source: Path | None, work: Path) -> None:
    """Take over what an earlier output on another machine holds, if `source` is one and nothing is here yet."""
    if source is None or (work / "runs").exists():
        return
    if not (source / ARCHIVE).exists():
        sys.exit(f"ERROR: --resume {source} holds no {ARCHIVE}; name an earlier --output.")
    try:
        transport.unpack(source / ARCHIVE, work)
    except transport.ArchiveError as error:
        sys.exit(f"ERROR: {error}")
    transport.unpack_state(source, work)


def check_images(setting: str, work: Path, arguments: argparse.Namespace) -> None:
    """Check the images once, as the workflow does, so that each record names them. Ends with a sentence on a fault."""
    from workflow.data import check, layout

    if (work / "data.json").exists():
        return
    processors = 0 if arguments.smoke else os.cpu_count()
    site = {"root": str(work), "data_root": str(arguments.images), "workers": processors}
    try:
        record = check.run(specs.data_spec(Config.load(), setting), site, work / "data")
    except layout.DataError as error:
        sys.exit(f"ERROR: {error}")
    records.write_json(work / "data.json", record)


# -- the command --------------------------------------------------------------------------------


def train_until(deadline: float, grace_s: float, campaign: Campaign, output: Path) -> None:
    """Train the list side by side until all is trained or the time is up, and pack what there is after each epoch.

    At the deadline all is packed; `grace_s` before it the trainings are asked to save a checkpoint and to end.
    """
    packed: dict[Path, int] = {}

    def pack() -> None:
        now = {path: path.stat().st_mtime_ns for path in campaign.results()}
        if now != packed:
            transport.pack(output / ARCHIVE, campaign.work, now)
            packed.clear()
            packed.update(now)

    while time.time() < deadline - grace_s:
        running = len(campaign.running)
        campaign.reap()
        if len(campaign.running) < running:  # one has ended, and others may go on from its weights
            transport.pack_state(output, campaign.work, campaign.state())
        while len(campaign.running) < campaign.arguments.together:
            run = campaign.next_run()
            if run is None:
                break
            campaign.start(run)
        pack()
        if not campaign.running:
            break
        time.sleep(EVERY_S)
    campaign.stop(deadline - grace_s / 2)
    pack()
    transport.pack_state(output, campaign.work, campaign.state())


def main() -> None:
    """Train what is not trained yet, until the time is up."""
    started = time.time()
    parser = command_line.parser(__doc__)
    parser.add_argument("--list", type=Path, metavar="FILE", help="names of runs, one a line")
    parser.add_argument("--images", type=Path, required=True, help="folder with the setting's two splits")
    parser.add_argument("--output", type=Path, help=f"folder for {ARCHIVE} and {transport.STATE}.1, ...")
    parser.add_argument("--minutes", type=float, default=9.0, help="after which the command has ended (9)")
    parser.add_argument("--together", type=int, default=4, help="most trainings at a time (4)")
    kept = "folder that keeps everything between two calls (results/gpu/trainings)"
    parser.add_argument("--work", type=Path, default=Path("results/gpu/trainings"), help=kept)
    parser.add_argument("--resume", type=Path, metavar="DIR", help="an earlier --output, from another machine")
    parser.add_argument("--state-mib", type=float, default=45.0, help="most of checkpoints and weights (45)")
    parser.add_argument("--setting", default="cifar10_gpu", help="of settings.yaml (cifar10_gpu)")
    parser.add_argument("--smoke", action="store_true", help="tiny models on the CPU, to test this command")
    for option in ("--run", "--device"):  # of the process of one training
        parser.add_argument(option, help=argparse.SUPPRESS)
    parser.add_argument("--workers", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        train_one(arguments)
        return
    if not arguments.list or not arguments.output:
        parser.error("--list and --output are required")
    if arguments.together < 1:
        parser.error(f"--together {arguments.together} must be at least 1")
    try:
        made = make_specs(arguments.setting, read_list(arguments.list), arguments.smoke)
    except ListError as error:
        sys.exit(f"ERROR: {error}")
    work = arguments.work / "smoke" if arguments.smoke else arguments.work
    arguments.output.mkdir(parents=True, exist_ok=True)
    work.mkdir(parents=True, exist_ok=True)
    campaign = Campaign(made, work, arguments)
    try:
        with locks.exclusive(work / "train.lock", patience_s=5.0):
            resume(arguments.resume, work)
            campaign.retrain_lost()
            check_images(arguments.setting, work, arguments)
            grace_s = min(GRACE_S, GRACE_SHARE * 60 * arguments.minutes)
            train_until(started + 60 * arguments.minutes, grace_s, campaign, arguments.output)
    except (locks.Held, locks.NoLocks) as error:
        sys.exit(f"ERROR: {error}")
    untrained = [campaign.progress(run) for run in campaign.untrained()]
    print(f"{arguments.output / ARCHIVE}; not trained yet: {', '.join(untrained) or 'nothing'}")
    if campaign.failed:
        sys.exit(f"ERROR: {len(campaign.failed)} of {len(made)} trainings failed: {', '.join(campaign.failed)}")


if __name__ == "__main__":
    command_line.run(main)
