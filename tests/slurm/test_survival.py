"""What a training on Slurm survives: each death that Slurm, its daemons or a user can bring.

After every one of them the metrics are those of a training that nothing disturbed, to the last bit.
"""

import contextlib
import os
import signal
import time

import pytest

from tests.slurm.conftest import EPOCHS, NOTICE_S, curve


@pytest.fixture
def whole(undisturbed):
    """A function that ends a training's test: it has its record, and the undisturbed curve."""

    def check(training, said: str | None = None) -> None:
        if said is None:
            code, said = training.end()
            assert code == 0, said
        assert training.attempt.number == 1
        assert curve(training.attempt.journal) == undisturbed(EPOCHS)
        assert training.output.exists()

    return check


def again(training) -> None:
    """A second start, which ends well."""
    training.launch()
    code, said = training.end()
    assert code == 0, said


def kill(pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_it_says_where_the_job_is_and_slurm_ran_it(training, whole, cluster):
    one = training()
    one.launch()
    code, said = one.end()
    assert code == 0, said
    assert f"slurm job {one.job_id}" in said
    assert str(one.attempt.folder / "logs") in said
    assert cluster.job(one.job_id)["JobState"] == "COMPLETED"
    whole(one, said)


def test_four_time_limits(training, whole, cluster):
    """Slurm's notice, by hand; submitit alone would stop at the third."""
    one = training()
    one.launch()
    for _ in range(4):
        one.wait_for_epochs(5)
        cluster.run("scancel", "--signal=USR2", one.job_id)
        one.wait_for_requeue()
    whole(one)
    assert len(one.starts()) == 5
    assert cluster.job(one.job_id)["Restarts"] == "4"
    assert len(cluster.jobs_named(one.attempt.job_name)) == 1


def test_a_time_limit_by_itself(training, cluster):
    """Slurm's clock is coarse: its notice of a minute's limit may come any time in that minute."""
    one = training(epochs=5000, slurm_partition="short", runtime=1, signal_delay_s=5)
    one.launch()
    one.wait(lambda: cluster.job(one.job_id)["Restarts"] == "1", 120)
    one.wait(lambda: one.state() == "PENDING")
    saved = one.attempt.progress()
    cluster.release(one.job_id)
    one.wait(lambda: len(one.starts()) == 2)
    again = one.starts()[-1]
    assert saved == f"step-{5 * again['epoch'] + again['step']:09d}.pt"  # and it went on from there


def test_preemption_with_notice(training, whole, cluster):
    one = training(slurm_partition="low", exclusive=1, constraint="v100")
    one.launch()
    one.wait_for_epochs(5)
    other = cluster.run("sbatch", "--parsable", "--partition=high", "--nodes=2", "--exclusive",
                        "--wrap=sleep 5")  # fmt: skip
    one.wait(lambda: one.state() == "PENDING", 60)
    one.wait(lambda: cluster.job(other)["JobState"] == "COMPLETED", 60)
    cluster.release(one.job_id)
    whole(one)
    assert len(one.starts()) == 2
    assert len(cluster.jobs_named(one.attempt.job_name)) == 1


def test_preemption_that_cancels_without_notice(training, whole, cluster):
    """Slurm puts such a job back by no means; the launcher does."""
    one = training(slurm_partition="rude", exclusive=1)
    one.launch()
    one.wait_for_epochs(5)
    first = one.job_id
    cluster.run("sbatch", "--parsable", "--partition=high", "--nodes=2", "--exclusive",
                "--wrap=sleep 5")  # fmt: skip
    one.wait(lambda: one.job_id != first, NOTICE_S)
    code, said = one.end()
    assert code == 0, said
    assert "ended as PREEMPTED" in said
    whole(one, said)


def test_scancel(training, whole, cluster):
    one = training()
    one.launch()
    one.wait_for_epochs(5)
    cluster.run("scancel", one.job_id)
    started = time.monotonic()
    code, said = one.end()
    assert time.monotonic() - started < NOTICE_S
    assert code == 1
    assert "asked to stop" in said or "was cancelled" in said
    assert len(cluster.jobs_named(one.attempt.job_name)) == 1
    again(one)
    whole(one, "")


def test_kill_9_of_the_task(training, whole, cluster):
    one = training()
    one.launch()
    one.wait_for_epochs(5)
    kill(cluster.processes(one.job_id))
    started = time.monotonic()
    code, said = one.end()
    assert time.monotonic() - started < NOTICE_S
    assert code == 1
    assert "ended as FAILED without a record" in said
    assert "last lines of rank 0" in said
    again(one)
    whole(one, "")


def test_out_of_memory(training):
    one = training(mem_mb=150)
    one.launch()
    code, said = one.end()
    assert code == 1
    assert "needs more than 150 MB of memory (mem_mb)" in said


def test_node_death(training, whole, cluster):
    one = training()
    one.launch()
    one.wait_for_epochs(5)
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
        cluster.wait(lambda: cluster.idle() == 2, 60)
    assert len(one.starts()) == 2
    assert len(cluster.jobs_named(one.attempt.job_name)) == 1


def test_two_copies_after_the_death_of_slurmd_alone(training, whole, cluster):
    """Slurm starts a second copy while the first goes on: only one writes, to the end."""
    one = training()
    one.launch()
    one.wait_for_epochs(5)
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
        cluster.wait(lambda: cluster.idle() == 2, 60)
    assert len(one.starts()) == 1


def test_slurmctld_away_at_submission_and_while_it_runs(training, whole, cluster):
    cluster.kill("slurmctld")
    one = training()
    one.launch()
    one.wait(lambda: one.log.exists() and "Slurm takes no job now" in one.log.read_text())
    cluster.start_controller()
    one.wait_for_epochs(5)
    cluster.kill("slurmctld")
    time.sleep(35)  # so long that the launcher asked in vain
    cluster.start_controller()
    whole(one)
    assert len(cluster.jobs_named(one.attempt.job_name)) == 1


def test_a_submit_limit_is_waited_for(training, whole, cluster):
    one = training()
    one.bin.mkdir()
    script = one.bin / "sbatch"
    script.write_text(
        "#!/bin/sh\n"
        f"test -e {one.bin}/full && exec /usr/bin/sbatch \"$@\"\n"
        f"touch {one.bin}/full\n"
        "echo 'sbatch: error: QOSMaxSubmitJobPerUserLimit' >&2; exit 1\n"
    )  # fmt: skip
    script.chmod(0o755)
    one.launch()
    code, said = one.end()
    assert "QOSMaxSubmitJobPerUserLimit" in said
    assert code == 0
    whole(one, said)


def test_kill_9_of_the_launcher(training, whole, cluster):
    one = training()
    one.launch()
    one.wait_for_epochs(5)
    noted = one.attempt.job()
    one.kill_launcher()
    one.launch()
    code, said = one.end()
    assert "re-attached" in said
    assert one.attempt.job() == noted
    assert code == 0
    whole(one, said)
    assert len(cluster.jobs_named(one.attempt.job_name)) == 1


def test_kill_9_of_the_launcher_before_it_noted_its_job(training, whole, cluster):
    one = training()
    one.launch()
    one.wait_for_epochs(5)
    submitted = one.job_id
    one.kill_launcher()
    (one.attempt.folder / "job.json").unlink()
    one.launch()
    whole(one)
    assert one.job_id == submitted
    assert len(cluster.jobs_named(one.attempt.job_name)) == 1


@pytest.mark.parametrize("policy", ["leave", "cancel"])
def test_ctrl_c(training, whole, cluster, policy):
    one = training(on_interrupt=policy)
    one.launch()
    one.wait_for_epochs(5)
    os.killpg(one.launcher.pid, signal.SIGINT)
    code, said = one.end(30)
    assert code == 130
    assert ("goes on" if policy == "leave" else "is ended") in said
    again(one)
    whole(one, "")
    assert len(cluster.jobs_named(one.attempt.job_name)) == (1 if policy == "leave" else 2)
