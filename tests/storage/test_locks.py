"""The lock goes with the process, however it ends."""

import errno
import fcntl
import os
import subprocess
import sys
import time

import pytest

from workflow.storage import locks

HOLD = """
import sys, time
from workflow.storage import locks
with locks.exclusive(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_holder_is_refused_and_told_who_holds_it(tmp_path):
    path = tmp_path / "lock"
    with locks.exclusive(path):
        assert locks.is_held(path)
        with pytest.raises(locks.Held, match="held by process"), locks.exclusive(path):
            pass
    assert not locks.is_held(path)


def test_kill_9_frees_it(tmp_path):
    path = tmp_path / "lock"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE)
    holder.stdout.readline()
    assert locks.is_held(path)
    holder.kill()
    holder.wait()
    with locks.exclusive(path):
        pass


def test_patience_waits_for_it(tmp_path):
    path = tmp_path / "lock"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE)
    holder.stdout.readline()
    started = time.monotonic()
    with pytest.raises(locks.Held), locks.exclusive(path, patience_s=0.5):
        pass
    assert time.monotonic() - started >= 0.5
    holder.kill()
    holder.wait()


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK])
def test_a_file_system_without_locks_is_one_sentence(tmp_path, monkeypatch, number):
    """Lustre mounted without `flock`."""

    def refuse(descriptor, how):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    (tmp_path / "lock").touch()
    with pytest.raises(locks.NoLocks, match=r"/lock: .*no file locks.*mounted with `flock`"):
        locks.is_held(tmp_path / "lock")
    with pytest.raises(locks.NoLocks), locks.exclusive(tmp_path / "lock"):
        pass


def test_a_lock_nobody_made_is_free(tmp_path):
    assert not locks.is_held(tmp_path / "none")
