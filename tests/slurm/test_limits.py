"""Time limits and preemption: the training goes on, as often as it takes.

After each the metrics are those of a training that nothing disturbed, to the last bit.
"""

import pytest

from tests.slurm.conftest import NOTICE_S


def test_four_time_limits(training, whole, cluster):
    """Slurm's notice, by hand; submitit alone would stop at the third."""
    one = training()
    one.launch()
    for _ in range(4):
        one.wait_for_epochs()
        cluster.run("scancel", "--signal=USR2", one.job_id)
        one.wait_for_requeue()
    whole(one)
    assert len(one.starts()) == 5
    assert cluster.job(one.job_id)["Restarts"] == "4"
    assert one.submissions() == 1


def test_a_time_limit_by_itself(training, cluster):
    """Slurm's clock is coarse: its notice of a minute's limit may come any time in that minute."""
    one = training(epochs=5000, slurm_partition="short", runtime=1, signal_delay_s=5)
    one.launch()
    one.wait(lambda: cluster.job(one.job_id)["Restarts"] == "1")
    one.wait(lambda: one.state() == "PENDING")
    saved = one.attempt.progress()
    cluster.release(one.job_id)
    one.wait(lambda: len(one.starts()) == 2)
    again = one.starts()[-1]
    assert saved == f"step-{5 * again['epoch'] + again['step']:09d}.pt"  # and it went on from there


@pytest.fixture
def preempt(cluster):
    """A function that submits a job which takes both nodes from those below it; -> its id."""
    whole = ("--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null")
    return lambda: cluster.run("sbatch", "--parsable", *whole, "--wrap=sleep 5")


def test_preemption_with_notice(training, whole, cluster, preempt):
    one = training(slurm_partition="low", exclusive=1, constraint="v100")
    one.launch()
    one.wait_for_epochs()
    other = preempt()
    one.wait(lambda: one.state() == "PENDING")
    one.wait(lambda: cluster.job(other)["JobState"] == "COMPLETED")
    cluster.release(one.job_id)
    whole(one)
    assert len(one.starts()) == 2
    assert one.submissions() == 1


def test_preemption_without_the_user_signal(training, whole, cluster, preempt):
    """Slurm's default: SIGTERM alone, which submitit ignores. The training saves and ends before
    the grace does, so it is for the launcher to put it back."""
    with cluster.without("SlurmctldParameters=preempt_send_user_signal"):
        one = training(slurm_partition="low", exclusive=1)
        one.launch()
        one.wait_for_epochs()
        preempt()
        code, output = one.end()
    assert code == 0, output
    assert "it is submitted again" in output
    whole(one, output)
    assert len(one.starts()) == 2
    assert one.submissions() == 2


def test_preemption_that_cancels_without_notice(training, whole, preempt):
    """Slurm puts such a job back by no means; the launcher does."""
    one = training(slurm_partition="rude", exclusive=1)
    one.launch()
    one.wait_for_epochs()
    first = one.job_id
    preempt()
    one.wait(lambda: one.job_id != first, NOTICE_S)
    code, output = one.end()
    assert code == 0, output
    assert "ended as PREEMPTED" in output
    whole(one, output)
    assert one.submissions() == 2
