"""The launcher: what it says, waits for and finds again; nothing is submitted twice."""

import os
import signal
import time

import pytest

from tests.slurm.cluster import PATIENCE_S
from tests.slurm.conftest import again
from tests.tracking.conftest import COMMAND, expected, shown


def test_setup_lines_bring_the_images_to_the_nodes_disk(training, whole, tmp_path):
    """The settings name a path that only the node has; the login node has a link there."""
    scratch, setup = tmp_path / "scratch", tmp_path / "setup.sh"
    one = training(setup=str(setup))
    scratch.symlink_to(one.data)
    setup.write_text(f"rm {scratch} && cp -a {one.data} {scratch}\n")
    one.data = scratch
    one.launch()
    whole(one)
    assert scratch.is_dir()
    assert not scratch.is_symlink()


def test_setup_lines_that_fail_end_the_job_with_their_reason(training, tmp_path):
    setup = tmp_path / "setup.sh"
    setup.write_text("no-such-module load cuda\n")
    one = training(setup=str(setup))
    one.launch()
    code, output = one.end()
    assert code == 1
    assert "no-such-module: command not found" in output
    assert "setup.sh failed on this node" in output


def test_slurmctld_away_at_submission_and_while_it_runs(training, whole, cluster):
    cluster.kill("slurmctld")
    one = training()
    one.launch()
    one.wait(lambda: one.log.exists() and "Slurm takes no job now" in one.log.read_text())
    cluster.start_controller()
    one.wait_for_epochs()
    cluster.kill("slurmctld")
    time.sleep(35)  # so long that the launcher asked in vain
    cluster.start_controller()
    whole(one)
    assert one.submissions() == 1


def test_a_submit_limit_is_waited_for_and_then_it_says_where_the_job_is(training, whole):
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
    code, output = one.end()
    assert code == 0, output
    assert "QOSMaxSubmitJobPerUserLimit" in output
    assert f"slurm job {one.job_id}" in output
    assert str(one.attempt.folder / "logs") in output
    one.wait(lambda: one.state() == "COMPLETED")
    whole(one, output)


def test_kill_9_of_the_launcher(training, whole):
    one = training()
    one.launch()
    one.wait_for_epochs()
    noted = one.attempt.job()
    one.kill_launcher()
    one.launch()
    code, output = one.end()
    assert "re-attached" in output
    assert one.attempt.job() == noted
    assert code == 0
    whole(one, output)
    assert one.submissions() == 1


def test_mlflow_follows_a_job_that_was_left_to_its_end(training, whole, monkeypatch):
    """The launcher is killed, the job goes on, and a sync that a user started shows its end."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    one = training()
    one.launch()
    follower = one.begin([*COMMAND, str(one.folder), "--follow"])
    try:
        one.wait_for_epochs()
        one.kill_launcher()
        one.launcher = None
        assert not one.attempt.record.exists()
        output, _ = follower.communicate(timeout=PATIENCE_S)
    finally:
        follower.kill()
    assert "1 runs are in sqlite:///" in output
    run, points = shown(one.folder)["deit_tiny", "1"]
    assert run.info.status == "FINISHED"
    assert points.items() >= expected(one.attempt.folder).items()
    again(one)
    whole(one, "")
    assert one.submissions() == 1


def test_kill_9_of_the_launcher_before_it_noted_its_job(training, whole):
    one = training()
    one.launch()
    one.wait_for_epochs()
    submitted = one.job_id
    one.kill_launcher()
    (one.attempt.folder / "job.json").unlink()
    one.launch()
    whole(one)
    assert one.job_id == submitted
    assert one.submissions() == 1


@pytest.mark.parametrize("policy", ["leave", "cancel"])
def test_ctrl_c(training, whole, policy):
    one = training(on_interrupt=policy)
    one.launch()
    one.wait_for_epochs()
    os.killpg(one.launcher.pid, signal.SIGINT)
    code, output = one.end()
    assert code == 130
    assert ("goes on" if policy == "leave" else "is ended") in output
    again(one)
    whole(one, "")
    assert one.submissions() == (1 if policy == "leave" else 2)
