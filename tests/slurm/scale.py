"""How much many waiting launchers cost: `python -m tests.slurm.scale [LAUNCHERS] [RUNS]`.

A campaign of RUNS trainings under `snakemake --profile slurm` on the one-machine Slurm, whose nodes
are full, so that LAUNCHERS jobs wait in its queue and the rest inside Snakemake. Prints memory
(PSS), the share of a core and the questions to the scheduler, over two minutes of waiting.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from tests.conftest import copy_project
from tests.integration.project import command, edit, environment
from tests.slurm.cluster import Cluster

SECONDS = 120


def descendants(root: int) -> list[int]:
    """The process and all below it."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(entry.name))
    found, new = [], [root]
    while new:
        found += new
        new = [child for parent in new for child in children.get(parent, [])]
    return found


def pss_mb(pids: list[int]) -> float:
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError, ValueError):
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
            total += int(text.partition("\nPss:")[2].split()[0])
    return total / 1024


def cpu_s(pids: list[int]) -> float:
    """Processor time of the processes and of their ended children (squeue)."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += sum(int(fields[i]) for i in (11, 12, 13, 14))
    return total / os.sysconf("SC_CLK_TCK")


def is_launcher(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return b"workflow.launch.submit" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def main() -> None:
    launchers, runs = (int(word) for word in [*sys.argv[1:], "64", "300"][:2])
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        root = Path(folder) / "project"
        root.mkdir()
        copy_project(root)
        seeds = list(range(runs))
        edit(root, "runs", lambda c: c["deit_tiny"].update(seeds=seeds))
        path = root / "workflow/profiles/slurm/config.yaml"
        profile = yaml.safe_load(path.read_text())
        profile["cores"] = launchers
        profile["default-resources"].update(cpus_per_task=1, mem_mb=2000, runtime=30)
        profile["set-resources"] = {"train": {"slurm_extra": "--begin=now+1hour"}}
        path.write_text(yaml.safe_dump(profile))
        cluster = Cluster(Path(folder) / "slurm")
        stack.callback(cluster.stop)
        cluster.start()
        asked = Path(folder) / "asked"
        wrapper = Path(folder) / "bin/squeue"
        wrapper.parent.mkdir()
        wrapper.write_text(f'#!/bin/sh\necho >> {asked}\nexec /usr/bin/squeue "$@"\n')
        wrapper.chmod(0o755)
        here = {**environment(root), "SLURM_CONF": str(cluster.conf)}
        here["PATH"] = f"{wrapper.parent}:{here['PATH']}"
        names = ["deit_tiny", *(f"deit_tiny-s{seed}" for seed in seeds[1:])]
        wanted = [f"results/demo/runs/{name}/train.json" for name in names]
        snakemake = subprocess.Popen(
            command(*wanted, "--profile", "slurm"), cwd=root, env=here, start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        stack.callback(lambda: os.killpg(snakemake.pid, signal.SIGKILL))

        def waiting() -> list[int]:
            return [pid for pid in descendants(snakemake.pid) if is_launcher(pid)]

        submitted = ("squeue", "--noheader", "--states=pending", "--format=%i")
        cluster.wait(lambda: len(cluster.run(*submitted).split()) >= launchers, 900)
        time.sleep(20)
        below = descendants(snakemake.pid)
        pids = [pid for pid in below if pid != snakemake.pid]
        before, own = cpu_s(pids), cpu_s([snakemake.pid])
        questions = asked.stat().st_size
        time.sleep(SECONDS)
        spent, own_spent = cpu_s(pids) - before, cpu_s([snakemake.pid]) - own
        count = sum(map(is_launcher, pids))
        print(f"{runs} runs; {count} processes of launchers and their shells wait")
        print(f"memory: {pss_mb(pids):.0f} MB PSS, with snakemake itself "
              f"{pss_mb([*pids, snakemake.pid]):.0f} MB")  # fmt: skip
        print(f"processor: {100 * spent / SECONDS:.2f} % of a core, snakemake itself "
              f"{100 * own_spent / SECONDS:.2f} %")  # fmt: skip
        print(f"squeue was asked {asked.stat().st_size - questions} times in {SECONDS} s")
        assert len(waiting()) >= launchers


if __name__ == "__main__":
    main()
