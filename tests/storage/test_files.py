"""Two users of one group in one clone. Only root can become them, so others skip most of this."""

import os
import stat
import subprocess
import traceback
from pathlib import Path

import pytest

from workflow.launch import follow
from workflow.launch.progress import Log
from workflow.launch.slurm import Queue
from workflow.storage import files, locks, records
from workflow.storage.journal import Journal

FIRST, SECOND, GROUP = 54321, 54322, 54320  # without passwd entries, as in a container
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


def become(user: int, umask: int, function) -> str:
    """Run the function as the user, in a forked child; -> its result or error as text."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setresgid(GROUP, GROUP, GROUP)
            os.setresuid(user, user, user)
            os.umask(umask)
            text = str(function())
        except files.NotWritable as error:
            text = f"refused: {error}"
        except BaseException:
            text = traceback.format_exc()
        os.write(writing, text.encode())
        os._exit(0)
    os.close(writing)
    with open(reading) as answer:
        text = answer.read()
    os.waitpid(child, 0)
    return text


@pytest.fixture
def clone(tmp_path) -> Path:
    """A folder that the group may write, as `chmod g+rwXs` leaves it."""
    for above in (tmp_path, *tmp_path.parents):  # pytest makes its own folders for one user alone
        if not above.stat().st_mode & stat.S_IXOTH:
            above.chmod(0o755)
    folder = tmp_path / "clone"
    folder.mkdir()
    os.chown(folder, FIRST, GROUP)
    folder.chmod(0o2775)
    return folder


def write_all(clone: Path) -> str:
    """Write as a launcher, a job and snakemake do, also what somebody wrote before."""
    with locks.exclusive(clone / "results/x/.launcher"), locks.exclusive(clone / "snake.lock"):
        files.write(clone / "results/x/spec.json", "{}")
        records.write_json(clone / "results/x/attempts/1/job.json", {})
        journal = Journal(clone / "results/x/attempts/1/journal.jsonl")
        journal.write("note", text="x")
        journal.close()
        with Log(clone / "results/x/x.log", "x") as log:
            log.say("line")
    return "done"


@as_root
def test_both_write_with_a_umask_for_the_group(clone):
    for user in (FIRST, SECOND, FIRST):
        assert become(user, 0o002, lambda: write_all(clone)) == "done"
    assert become(SECOND, 0o002, lambda: files.check_folder(clone / "results/x")) == "None"
    for path in clone.rglob("*"):
        assert path.stat().st_mode & 0o060 == 0o060, path
        assert path.stat().st_gid == GROUP


@as_root
@pytest.mark.parametrize(
    "write",
    [
        lambda clone: locks.exclusive(clone / "snake.lock").__enter__(),
        lambda clone: files.write(clone / "results/x/spec.json", "other"),
        lambda clone: records.write_json(clone / "results/y/job.json", {}),
        lambda clone: files.check_folder(clone / "results/x/attempts"),
        lambda clone: files.check_writable(clone / "results/x/x.log"),
    ],
)
def test_without_rights_one_sentence_names_file_owner_and_remedy(clone, write):
    assert become(FIRST, 0o022, lambda: write_all(clone)) == "done"
    text = become(SECOND, 0o022, lambda: write(clone))
    assert text.startswith("refused: ")
    assert str(clone) in text
    assert f"belongs to user {FIRST}" in text
    assert "umask 002" in text
    assert "\n" not in text


@as_root
def test_who_may_only_read_can_ask_for_locks_and_jobs(clone):
    """`status` in somebody else's clone."""
    (clone / ".snakemake").mkdir()
    assert become(FIRST, 0o022, lambda: write_all(clone)) == "done"
    asked = []

    def ask(*command) -> tuple[str, str]:
        asked.append(command)
        return "7|RUNNING|None|n1|N/A", ""

    def look() -> list:
        queue = Queue(clone / ".snakemake", ask)
        states = [queue.status("7", 0.0).state for _ in range(3)]
        return [locks.is_held(clone / "snake.lock"), *states, len(asked)]

    (clone / ".snakemake").chmod(0o755)
    assert become(SECOND, 0o022, look) == "[False, 'RUNNING', 'RUNNING', 'RUNNING', 1]"
    with locks.exclusive(clone / "snake.lock"):
        assert become(SECOND, 0o022, look).startswith("[True")


@as_root
def test_another_users_job_can_not_be_ended_and_that_is_said(clone):
    attempt = clone / "results/x/attempts/1"
    assert become(FIRST, 0o002, lambda: write_all(clone)) == "done"
    other = subprocess.Popen(["sleep", "60"], start_new_session=True)
    job = {
        "launcher": "local",
        "job_id": str(other.pid),
        "session": other.pid,
        "host": os.uname().nodename,
        "started": follow.process_start(other.pid),
    }
    error = become(SECOND, 0o002, lambda: follow.cancel(job, attempt))
    other.kill()
    other.wait()
    assert error == f"it is user {FIRST}'s job"


def test_a_lock_follows_the_umask(tmp_path):
    before = os.umask(0o002)
    try:
        with locks.exclusive(tmp_path / "lock"):
            assert (tmp_path / "lock").stat().st_mode & 0o777 == 0o664
    finally:
        os.umask(before)
