"""Which code a job runs: noted once per process, before the heavy modules load.

A version of the code is a dictionary:

    commit        of the clone that holds the code; None if it is unknown
    dirty         whether files differ from that commit; None if it is unknown
    reason        why they are unknown; None if they are known
    source_hash   of the source files that jobs import (SOURCES)
    versions      of the packages in PACKAGES

Two versions are the same code if their sources and packages are: a commit that changes only
documents makes no other code. Standard library only: launchers import this.
"""

import functools
import hashlib
import importlib.metadata
import multiprocessing
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
PACKAGES = ("torch", "torchvision", "timm", "numpy")
# of the workflow's packages those that a job imports
JOB_PACKAGES = ("campaign", "storage", "runtime", "data", "train", "bench", "analysis")
SOURCES = (
    "evovit/**/*.py",
    "baselines/**/*.py",
    "workflow/*.py",
    *(f"workflow/{package}/*.py" for package in JOB_PACKAGES),
)
WARN, REFUSE = POLICIES = ("warn", "refuse")  # values of the profile's `other_code`
GIT_TIMEOUT_S = 60
CPU_INFO = Path("/proc/cpuinfo")
MIXED = "mixed"  # instead of a commit, where several versions of the code made a result
UNREPORTED = "it was made before code versions were noted"  # why the commit of an old record is unknown


class CodeError(RuntimeError):
    """A job would mix versions of the code; the message names both and the remedy."""


@functools.cache
def running() -> dict:
    """Return the version of the code that this process runs.

    It is read from the disk at the first call and kept. A job calls it before any module that
    computes is imported, so later edits and commits change nothing.
    """
    return {**checkout(ROOT), "source_hash": source_hash(ROOT), "versions": versions()}


def note_running_code() -> None:
    """Read the version of the running code now, unless a data loader's process asks.

    Such a process belongs to one that has read it already.
    """
    if multiprocessing.parent_process() is None:
        running()


def versions() -> dict[str, str]:
    """Return the installed versions of the packages that compute."""
    installed = {}
    for name in PACKAGES:
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed


def source_hash(root: Path) -> str:
    """Return 16 hexadecimal digits over the names and contents of the source files below `root`."""
    digest = hashlib.sha256()
    for path in sorted({path for pattern in SOURCES for path in root.glob(pattern)}):
        if path.name.startswith(".") or not path.is_file():  # an editor's lock is a broken link
            continue
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root).as_posix()} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()[:16]


def checkout(root: Path) -> dict:
    """Return {"commit", "dirty", "reason"} of the git clone whose top folder is `root`.

    A commit is never another repository's: `root` itself must be the top of the clone. `dirty`
    also counts source files that git does not track.
    """
    unknown = {"commit": None, "dirty": None}
    if not (root / ".git").exists():
        return {**unknown, "reason": "the code is no git clone, but a copy or an installed package"}
    if not os.access(root / ".git", os.R_OK):
        return {**unknown, "reason": "the user may not read the clone's .git"}
    try:
        with tempfile.TemporaryDirectory() as home:
            top, commit = _git(root, home, "rev-parse", "--show-toplevel", "HEAD").splitlines()
            if not os.path.samefile(top, root):
                return {**unknown, "reason": "the code's folder is not the top of its git clone"}
            changed = _git(root, home, "status", "--porcelain", "--untracked-files=no")
            patterns = [*(f":(glob){pattern}" for pattern in SOURCES), ":(exclude,glob)**/.*"]
            others = ("ls-files", "--others", "--exclude-standard", "--", *patterns)
            untracked = _git(root, home, *others)
    except FileNotFoundError:
        return {**unknown, "reason": "git is not installed where it ran"}
    except subprocess.TimeoutExpired:
        return {**unknown, "reason": f"git did not answer within {GIT_TIMEOUT_S} s"}
    except subprocess.CalledProcessError as error:
        lines = error.stderr.strip().splitlines() or [f"exit code {error.returncode}"]
        return {**unknown, "reason": f"git fails: {lines[0].removeprefix('fatal: ')}"}
    except (OSError, ValueError) as error:
        return {**unknown, "reason": f"git can't be asked: {' '.join(str(error).split())}"}
    return {"commit": commit, "dirty": bool(changed or untracked), "reason": None}


def _git(root: Path, home: str, *arguments: str) -> str:
    """Return what git prints about the clone at `root`. `home` is an empty folder of this process.

    git reads the clone of another user (a shared clone, a container's root) only if the user's own
    configuration says so; a configuration on the command line does not count before git 2.38.
    Variables of the shell (GIT_DIR, ...) would name another repository.
    """
    Path(home, ".gitconfig").write_text("[safe]\n\tdirectory = *\n")
    environment = {name: text for name, text in os.environ.items() if not name.startswith("GIT_")}
    environment |= {"HOME": home, "XDG_CONFIG_HOME": home, "LC_ALL": "C"}
    environment["GIT_OPTIONAL_LOCKS"] = "0"  # do not write another user's index
    done = subprocess.run(
        ["git", "-C", str(root), *arguments],
        env=environment,
        capture_output=True,
        check=True,
        encoding="utf-8",
        errors="surrogateescape",
        timeout=GIT_TIMEOUT_S,
    )
    return done.stdout.strip()


def is_other(version: dict, other: dict) -> bool:
    """Return whether two versions are different code: other sources or other packages."""
    return any(version[key] != other[key] for key in ("source_hash", "versions"))


def extended(code: list[dict], **position: int) -> list[dict]:
    """Return the versions that made a job's result so far, with the running one from `position` on.

    Args:
        code: the earlier versions, each with the position from which it ran.
        position: from_epoch and from_step (both count what is completed), or from_layer.
    """
    if code and {key: code[-1].get(key) for key in running()} == running():
        return code
    return [*code, {**running(), **position}]


def check_resumed(spec: dict, code: list[dict], policy: str) -> str | None:
    """Return a warning if the checkpoint of the spec's job was made by other code; None if it was not.

    Args:
        code: the versions that the checkpoint names.
        policy: the profile's `other_code`.

    Raises CodeError if the policy is "refuse" and the code is another.
    """
    before, now = code[-1], running()
    if not is_other(before, now):
        return None
    made = f"The checkpoint of {spec['run']} was made by {describe(before, [now])}"
    if policy == REFUSE:
        raise CodeError(
            f"{made}, but {describe(now, [before])} runs now, which `other_code: refuse` in the "
            "profile forbids; bring the earlier code back, or go on with "
            f"--set-resources {spec['kind']}:other_code=warn, which flags the row in the tables."
        )
    return f"{made}; it goes on under {describe(now, [before])}."


def check_ranks(ranks: list[dict]) -> None:
    """Raise CodeError unless all processes of a job run the same code."""
    first = ranks[0]
    for rank, version in enumerate(ranks):
        if is_other(version, first):
            raise CodeError(
                f"Rank {rank} runs {describe(version, [first])}, but rank 0 runs {describe(first, [version])}: the "
                "code was changed while the processes started; start snakemake again."
            )


def describe(version: dict, others: list[dict]) -> str:
    """Return a version for people: its commit, the hash of its sources, and the packages in which it differs from one
    of the others."""
    if version["commit"] is None:
        name = f"an unknown commit ({version['reason']})"
    else:
        name = f"commit {version['commit'][:10]}"
    details = []
    if version["dirty"]:
        details.append("with uncommitted changes")
    if version["source_hash"]:
        details.append(f"source {version['source_hash'][:8]}")
    for package, number in (version["versions"] or {}).items():
        known = [other["versions"].get(package) for other in others if other["versions"]]
        if any(other_number != number for other_number in known):
            details.append(f"{package} {number}")
    return f"{name} ({', '.join(details)})" if details else name


def summary(code: list[dict]) -> dict:
    """Return a record's {"commit", "dirty", "reason", "code"} for the versions that made it.

    `commit` is the last version's, or "mixed" if the versions are different code.
    """
    last = code[-1]
    if not any(is_other(version, last) for version in code):
        return {"commit": last["commit"], "dirty": last["dirty"], "reason": last["reason"], "code": code}
    each = {version["dirty"] for version in code}
    if True in each:
        dirty = True
    elif None in each:
        dirty = None  # unknown
    else:
        dirty = False
    return {"commit": MIXED, "dirty": dirty, "reason": None, "code": code}


def unknown_reason(known: dict) -> str | None:
    """Return why the commit is unknown in a record's provenance; None if it is known."""
    if known.get("commit") is not None:
        return None
    return known.get("reason") or UNREPORTED


def spans(known: dict) -> str | None:
    """Return which code made which part, from a record's provenance; None if it was the same code throughout."""
    if known.get("commit") != MIXED:
        return None
    code = known["code"]
    return "; ".join(f"from {_position(version)} on {describe(version, code)}" for version in code)


def _position(version: dict) -> str:
    """Return from where on a version made the result, for people."""
    if "from_layer" in version:
        return f"the search's layer {version['from_layer'] + 1}"  # a search begins at the last layer
    epoch = f"epoch {version.get('from_epoch', 0) + 1}"
    return f"{epoch}, step {version['from_step'] + 1}" if version.get("from_step") else epoch


def flags(record: dict) -> list[str]:
    """Return what a table's reader should know of the code: an unknown commit, or several versions of it."""
    known = record.get("provenance", {})
    reason = unknown_reason(known)
    if reason:
        return [f"unknown commit: {reason}"]
    parts = spans(known)
    if parts:
        return [f"{record['spec']['run']} was made by several versions of the code: {parts}"]
    return []


def processor() -> str:
    """Return the name of this machine's processor, as the records of its jobs have it (`provenance.device`)."""
    name = ""
    if sys.platform == "darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        name = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    elif CPU_INFO.exists():
        for line in CPU_INFO.read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    return name or platform.processor() or platform.machine()
