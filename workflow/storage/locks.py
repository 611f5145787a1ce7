"""A lock that a dead process can't keep: the kernel drops it with the process, kill -9 included.

Nodes exclude each other only on a file system that shares its flocks: NFS does, and Lustre if it is mounted with
`flock`. With `localflock` each node has locks of its own, which can't be noticed here.
"""

import contextlib
import errno
import fcntl
import os
import time
from contextlib import contextmanager
from pathlib import Path

from workflow.storage import files

NOT_HERE = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


class Held(RuntimeError):
    """Another process holds the lock."""


class NoLocks(OSError):
    """The file system has no locks; the message says where and what to do."""


@contextmanager
def exclusive(path: str | Path, patience_s: float = 0.0, shared: bool = False):
    """Hold the lock on `path` inside the block.

    `shared` holders keep out exclusive ones, not each other. The file keeps the holder's process id and host, for
    whoever is refused. Raises Held if the lock is not free within `patience_s`, NotWritable if this user may not
    write the file, and NoLocks.
    """
    path = Path(path)
    files.check_writable(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)  # less what the umask forbids
    try:
        deadline = time.monotonic() + patience_s
        while not _take(descriptor, path, shared):
            if time.monotonic() >= deadline:
                raise Held(f"{path} is held by {path.read_text().strip() or 'another process'}")
            time.sleep(0.1)
        if not shared:
            with contextlib.suppress(OSError):  # on a full disk it is held without a name in it
                os.ftruncate(descriptor, 0)
                name = f"process {os.getpid()} on {os.uname().nodename}\n"
                os.pwrite(descriptor, name.encode(), 0)
        yield
    finally:
        os.close(descriptor)


def is_held(path: str | Path) -> bool:
    """Return whether a living process holds the lock exclusively. Asking shares the lock for an instant.

    A user who may only read the file can ask, too.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        return not _take(descriptor, path, shared=True)
    finally:
        os.close(descriptor)


def _take(descriptor: int, path: str | Path, shared: bool = False) -> bool:
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NOT_HERE:
            raise
        raise NoLocks(
            f"{path}: this file system has no file locks ({error.strerror}), without which two "
            "jobs could write one run; have it mounted with `flock` (Lustre), or work on another."
        ) from None
    return True
