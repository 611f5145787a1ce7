"""A real Slurm on this one machine: munged, slurmctld and a slurmd for each of a few virtual nodes.

    python -m tests.slurm.cluster start DIR [--accounting]     then: . DIR/env
    python -m tests.slurm.cluster stop DIR

Needs Debian's slurm-wlm and munge (for --accounting also slurmdbd, slurm-wlm-mysql-plugin and
mariadb-server); neither systemd nor cgroups. Everything lies under DIR. The GPUs are false: any
character device will do for Slurm to hand them out.
"""

import argparse
import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from tests.slurm import accounting as accounting_daemons
from workflow.launch import follow

NEEDED = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "scontrol", "squeue")
SBIN = "/usr/sbin:/sbin"
PATIENCE_S = 300.0  # of waiting which only ends what hangs
TEMPLATE = Path(__file__).with_name("slurm.conf.in")
MUNGE = ["--force", "--key-file={d}/munge.key", "--socket={d}/munge.socket",
         "--pid-file={d}/munged.pid", "--log-file={d}/munged.log",
         "--seed-file={d}/munge.seed"]  # fmt: skip


def missing() -> list[str]:
    """The programs that a cluster needs and this machine has not."""
    path = f"{os.environ['PATH']}:{SBIN}"
    return [name for name in NEEDED if shutil.which(name, path=path) is None]


def names_resolve(nodes: int) -> bool:
    """Whether node1, node2, ... are this machine; root writes them into /etc/hosts."""
    for name in (f"node{i + 1}" for i in range(nodes)):
        with contextlib.suppress(OSError):
            socket.gethostbyname(name)
            continue
        if not os.access("/etc/hosts", os.W_OK):
            return False
        with open("/etc/hosts", "a") as hosts:
            hosts.write(f"127.0.0.1 {name}\n")
    return True


def free_ports(count: int) -> int:
    """The first of so many ports in a row that nobody listens on."""
    start = 17300 + 100 * (os.getpid() % 100)  # others may look for theirs at the same time
    for first in range(start, 32000, 100):
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in range(first, first + count):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return first
    raise RuntimeError("no ports are free")


class Cluster:
    """Its daemons, by their process id files; each can be killed and started again."""

    def __init__(self, folder: Path, nodes: int = 2, cpus: int = 16):
        self.folder, self.nodes, self.cpus = Path(folder).resolve(), nodes, cpus
        self.port = free_ports(92)
        self.first_job = 10 * self.port  # clusters of one machine must not mix up their jobs
        self.conf = self.folder / "slurm.conf"

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to talk to it."""
        path = os.environ["PATH"]
        return {**os.environ, "SLURM_CONF": str(self.conf), "PATH": f"{path}:{SBIN}"}

    @property
    def node_names(self) -> list[str]:
        return [f"node{i + 1}" for i in range(self.nodes)]

    def run(self, *command: str, check: bool = True) -> str:
        done = subprocess.run(
            command,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE_S,
        )
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
        return done.stdout.strip()

    # -- daemons ----------------------------------------------------------------------------

    def start(self, accounting: bool = False) -> None:
        """Start everything and wait until the nodes are idle. Raises RuntimeError if they don't."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o755)  # munge's socket must be within reach
        key = self.folder / "munge.key"
        if not key.exists():
            key.touch(mode=0o600)
            key.write_bytes(os.urandom(1024))
        self.run("munged", *(option.format(d=self.folder) for option in MUNGE))
        self._configure(accounting)
        if accounting:
            accounting_daemons.start(self)
        self.start_controller()
        for node in self.node_names:
            self.start_node(node)
        self.wait(lambda: self.idle() == self.nodes)

    def _configure(self, accounting: bool) -> None:
        ports = f"[{self.port + 1}-{self.port + self.nodes}]" if self.nodes > 1 else self.port + 1
        names = f"node[1-{self.nodes}]" if self.nodes > 1 else "node1"
        values = {
            "DIR": self.folder, "HOST": socket.gethostname().split(".")[0], "PORT": self.port,
            "USER": getpass.getuser(), "NODES": names, "PORTS": ports, "CPUS": self.cpus,
            "ACCOUNTING": "slurmdbd" if accounting else "none", "FIRST_JOB": self.first_job,
        }  # fmt: skip
        text = TEMPLATE.read_text()
        for key, value in values.items():
            text = text.replace(f"@{key}@", str(value))
        if accounting:
            text += f"AccountingStorageHost=127.0.0.1\nAccountingStoragePort={self.port + 91}\n"
            # without it slurmctld ends with "no TRES"
            text += f"AccountingStoragePass={self.folder}/munge.socket\n"
        self.conf.write_text(text)
        (self.folder / "gres.conf").write_text("Name=gpu Type=v100 File=/dev/tty[1-2]\n")
        (self.folder / "env").write_text(f"export SLURM_CONF='{self.conf}' PATH=\"$PATH:{SBIN}\"\n")

    def start_controller(self) -> None:
        self.run("slurmctld")
        self.wait(lambda: "UP" in self.run("scontrol", "ping", check=False))

    def start_node(self, node: str) -> None:
        self.run("slurmd", "-N", node)

    @contextlib.contextmanager
    def without(self, line: str):
        """The cluster as if that line did not stand in its slurm.conf."""
        whole = self.conf.read_text()
        assert f"\n{line}\n" in whole
        try:
            self._reconfigure(whole.replace(f"\n{line}\n", "\n"))
            yield
        finally:
            self._reconfigure(whole)

    def _reconfigure(self, text: str) -> None:
        beside = self.conf.with_suffix(".new")
        beside.write_text(text)
        beside.replace(self.conf)  # who asks meanwhile reads the one or the other
        self.run("scontrol", "reconfigure")

    def kill(self, daemon: str, number: int = signal.SIGKILL) -> None:
        """Kill a daemon ("slurmctld", "slurmd.node1", ...) and wait until it is gone."""
        path = self.folder / f"{daemon}.pid"
        with contextlib.suppress(OSError, ValueError):
            pid = int(path.read_text())
            os.kill(pid, number)
            self.wait(lambda: follow.process_start(pid) is None)

    def stop(self) -> None:
        """End all jobs, which would outlive their slurmd, and then the daemons."""
        with contextlib.suppress(RuntimeError, subprocess.TimeoutExpired):
            self.run("scancel", "--full", f"--user={getpass.getuser()}")
            self.wait(lambda: not self.run("squeue", "--noheader"), 30)
        nodes = [f"slurmd.{node}" for node in self.node_names]
        for daemon in (*nodes, "slurmctld", "slurmdbd", "mariadbd", "munged"):
            self.kill(daemon, signal.SIGTERM)

    # -- what is asked of it ----------------------------------------------------------------

    def idle(self) -> int:
        """How many nodes could run something."""
        command = ["sinfo", "--noheader", "--Node", "--partition=gpu", "--states=idle,alloc,mix"]
        return len(set(self.run(*command, "--format=%N", check=False).split()))

    def jobs_named(self, name: str) -> list[str]:
        """The ids of all jobs of that name that it was ever given; it forgets none here."""
        command = ("squeue", "--states=all", "--noheader", f"--name={name}", "--format=%i")
        return self.run(*command).split()

    def job(self, job_id: str) -> dict[str, str]:
        """What `scontrol show job` says, by its keys."""
        shown = self.run("scontrol", "--oneliner", "show", "job", job_id)
        return dict(word.split("=", 1) for word in shown.split() if "=" in word)

    def release(self, job_id: str) -> None:
        """Let a requeued job start at once, which Slurm otherwise makes wait for two minutes."""
        self.run("scontrol", "update", f"JobId={job_id}", "StartTime=now", check=False)

    def processes(self, job_id: str, kind: str = "python", words: str = "_submit") -> list[int]:
        """The job's processes of that kind of program whose command line has `words` in it."""
        found, ours = [], {f"SLURM_JOB_ID={job_id}".encode(), f"SLURM_CONF={self.conf}".encode()}
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                of_job = ours <= set((entry / "environ").read_bytes().split(b"\0"))
                program, _, rest = (entry / "cmdline").read_bytes().partition(b"\0")
                if of_job and kind.encode() in program and words.encode() in rest:
                    found.append(int(entry.name))
        return found

    def step_daemons(self, job_id: str) -> list[int]:
        """The slurmstepd processes of a job; by its number alone, which is this cluster's."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if (entry / "cmdline").read_bytes().startswith(f"slurmstepd: [{job_id}.".encode()):
                    found.append(int(entry.name))
        return found

    @staticmethod
    def wait(condition, seconds: float = PATIENCE_S) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise RuntimeError(f"waited {seconds} s in vain")
            time.sleep(0.2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("action", choices=("start", "stop"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--accounting", action="store_true", help="with slurmdbd and MariaDB")
    arguments = parser.parse_args()
    if lacking := missing():
        sys.exit(f"No {', '.join(lacking)} here: install slurm-wlm and munge.")
    cluster = Cluster(arguments.folder)
    if arguments.action == "stop":
        cluster.stop()
        return
    names_resolve(cluster.nodes)
    cluster.start(arguments.accounting)
    print(f"{cluster.nodes} nodes are up; now: . {cluster.folder}/env")


if __name__ == "__main__":
    main()
