"""Deaths of the job, its node and its daemon: noticed in time, and nothing is lost."""

import os
import signal
import time

from tests.slurm.conftest import NOTICE_S, again, kill

STEPS = 40  # of an epoch, image by image


def test_scancel(training, whole, cluster):
    one = training()
    one.launch()
    one.wait_for_epochs()
    cluster.run("scancel", one.job_id)
    started = time.monotonic()
    code, output = one.end()
    assert time.monotonic() - started < NOTICE_S
    assert code == 1
    assert "asked to stop" in output or "was cancelled" in output
    assert one.submissions() == 1
    again(one)
    whole(one, "")
    assert one.submissions() == 2


def test_kill_9_of_the_task_amid_an_epoch(training, whole, cluster):
    """Steps are saved as they come, so that but the one under way is lost."""
    one = training(epochs=4, batch_size=1, checkpoint_minutes=0)
    one.launch()
    one.wait_for_epochs(1)
    one.wait(lambda: one.saved_step() % STEPS > 5)
    saved = one.saved_step()
    kill(cluster.processes(one.job_id))
    started = time.monotonic()
    code, output = one.end()
    assert time.monotonic() - started < NOTICE_S
    assert code == 1
    assert "ended as FAILED without a record" in output
    assert "last lines of rank 0" in output
    assert one.submissions() == 1
    saved = max(saved, one.saved_step())
    again(one)
    whole(one, "")
    assert [STEPS * start["epoch"] + start["step"] for start in one.starts()] == [0, saved]
    assert one.submissions() == 2


def test_out_of_memory_and_again_with_more(training, whole):
    one = training(mem_mb=1400)
    one.launch()
    one.wait_for_epochs()
    one.grows.touch()
    started = time.monotonic()
    code, output = one.end()
    assert time.monotonic() - started < NOTICE_S
    assert code == 1
    assert "needs more than 1400 MB of memory (mem_mb)" in output
    assert one.submissions() == 1
    one.resources["mem_mb"] = 3000
    again(one)
    whole(one, "")
    assert one.starts()[1]["epoch"] >= 3
    assert one.submissions() == 2


def test_node_death(training, whole, cluster):
    one = training()
    one.launch()
    one.wait_for_epochs()
    node = cluster.job(one.job_id)["NodeList"]
    cluster.kill(f"slurmd.{node}")
    kill(cluster.step_daemons(one.job_id))
    kill(cluster.processes(one.job_id))
    kill(cluster.processes(one.job_id, kind="bash", words="slurm_script"))
    kill(cluster.processes(one.job_id, kind="srun"))
    try:
        one.wait_for_requeue()
        assert cluster.job(one.job_id)["NodeList"] != node
        whole(one)
    finally:
        cluster.start_node(node)
        cluster.wait(lambda: cluster.idle() == 2)
    assert len(one.starts()) == 2
    assert one.submissions() == 1


def test_two_copies_after_the_death_of_slurmd_alone(training, whole, cluster):
    """Slurm starts a second copy while the first goes on: only one writes, to the end."""
    one = training()
    one.launch()
    one.wait_for_epochs()
    node = cluster.job(one.job_id)["NodeList"]
    first = cluster.processes(one.job_id)
    os.kill(first[0], signal.SIGSTOP)  # so that the first lives when the second comes
    cluster.kill(f"slurmd.{node}")
    try:
        one.wait_for_requeue()
        one.wait(lambda: len(cluster.processes(one.job_id)) > len(first))
        time.sleep(8)  # time enough for the second to write, if it would
        assert len(one.starts()) == 1
        os.kill(first[0], signal.SIGCONT)
        whole(one)
    finally:
        cluster.start_node(node)
        cluster.wait(lambda: cluster.idle() == 2)
    assert len(one.starts()) == 1
    assert one.submissions() == 1
