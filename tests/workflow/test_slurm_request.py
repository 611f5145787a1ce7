"""Resources as sbatch's options, and what is refused before anything is submitted."""

import pytest

from workflow.launch import slurm_request
from workflow.launch.slurm_request import RequestError

PARTITIONS = """\
PartitionName=gpu AllowGroups=ALL Default=YES MaxTime=1-00:00:00 TotalNodes=2
PartitionName=short AllowGroups=ALL Default=NO MaxTime=00:02:00 TotalNodes=2
PartitionName=long AllowGroups=ALL Default=NO MaxTime=UNLIMITED TotalNodes=2
"""


def asking(sbatch: str = ""):
    """A Slurm with these partitions that answers `sbatch --test-only` so."""

    def ask(*command: str) -> tuple[str, str]:
        return (PARTITIONS, "") if command[0] == "scontrol" else ("", sbatch)

    return ask


def test_gpus_are_shared_by_the_nodes_one_process_each():
    found = slurm_request.options({"runtime": 60, "nodes": 2, "gpus": 8, "mem_mb": 1000})
    assert found["gpus_per_node"] == 4
    assert found["ntasks_per_node"] == 4
    assert found["mem"] == "1000MB"
    assert "gres" not in found


def test_a_cluster_without_gpus_per_node_is_asked_by_gres():
    found = slurm_request.options({"runtime": 60, "nodes": 2, "gpus": 8, "gres": "gpu:v100"})
    assert found["gres"] == "gpu:v100:4"
    assert "gpus_per_node" not in found
    assert "gres" not in slurm_request.options({"runtime": 60, "gres": "gpu:v100"})


@pytest.mark.parametrize(
    ("resources", "words"),
    [
        ({"nodes": 3, "gpus": 8}, "gpus: 8 can't be shared equally by nodes: 3"),
        ({"gpus": 2, "tasks": 4}, "a process has one GPU"),
        ({"slurm_extra": "nice 10"}, "'nice' is no `--option=value`"),
        ({"slurm_partion": "gpu"}, "did you mean 'slurm_partition'?"),
        ({"setup": "nowhere.sh"}, "no file nowhere.sh"),
        ({"slurm_partition": "short"}, "partition short allows 2"),
        ({"slurm_partition": "short,gpu", "runtime": 2000}, "gpu allows 1440, partition short"),
        ({"runtime": 2000}, "partition gpu allows 1440"),
    ],
)
def test_what_can_never_run_is_one_sentence_with_its_remedy(resources, words):
    with pytest.raises(RequestError) as refused:
        slurm_request.check("train", {"runtime": 60, **resources}, asking())
    assert words in str(refused.value)
    assert "workflow/profiles/slurm/config.yaml" in str(refused.value)


def test_one_of_several_partitions_that_allows_the_time_is_enough():
    slurm_request.check("train", {"runtime": 60, "slurm_partition": "short,gpu"}, asking())
    slurm_request.check("train", {"runtime": 2000, "slurm_partition": "gpu,long"}, asking())


def test_a_job_may_be_requeued_where_slurm_would_not_by_itself():
    """At a time limit `scontrol requeue` puts it back, which JobRequeue=0 bars."""
    assert "--requeue" in slurm_request.flags(slurm_request.options({"runtime": 60}))
    given = slurm_request.options({"runtime": 60, "slurm_extra": "--no-requeue"})
    assert slurm_request.flags(given)[-1] == "--no-requeue"
    assert "--requeue" not in slurm_request.flags(given)


def test_slurms_own_refusal_is_passed_on_with_what_was_asked():
    ask = asking("sbatch: error: x\nallocation failure: Invalid feature specification")
    with pytest.raises(RequestError, match=r"--constraint=a100.*Invalid feature specification"):
        slurm_request.check("throughput", {"runtime": 60, "constraint": "a100"}, ask)


def test_without_sbatch_the_profile_is_the_wrong_one():
    with pytest.raises(RequestError, match="--profile demo"):
        slurm_request.check("train", {"runtime": 60}, asking("no sbatch here"))


def test_a_controller_that_is_away_refuses_nothing():
    ask = asking("allocation failure: Unable to contact slurm controller (connect failure)")
    slurm_request.check("train", {"runtime": 60, "slurm_partition": "long"}, ask)


@pytest.mark.parametrize(
    ("error", "temporary"),
    [
        ("sbatch: error: Batch job submission failed: Unable to contact slurm controller", True),
        ("sbatch: error: QOSMaxSubmitJobPerUserLimit", True),
        ("sbatch: error: AssocGrpSubmitJobsLimit", True),
        ("sbatch: error: QOSGrpSubmitJobsLimit", True),
        ("Socket timed out on send/recv operation", True),
        ("Slurm temporarily unable to accept job, sleeping and retrying", True),
        ("sbatch: error: invalid partition specified: nowhere", False),
        ("Requested node configuration is not available", False),
        ("sbatch: error: QOSMaxWallDurationPerJobLimit", False),
    ],
)
def test_what_is_worth_waiting_for(error, temporary):
    assert slurm_request.is_temporary(error) == temporary


@pytest.mark.parametrize(("limit", "minutes"), [("1-00:00:00", 1440), ("00:02:00", 2), ("2-12:30:00", 3630)])
def test_slurms_time_limits(limit, minutes):
    assert slurm_request.minutes(limit) == minutes
    assert slurm_request.minutes("UNLIMITED") > 10**5


def test_any_other_option_of_sbatch_is_passed_on():
    found = slurm_request.options({"runtime": 5, "slurm_extra": "--reservation=x --nice"})
    assert slurm_request.flags(found)[-2:] == ["--reservation=x", "--nice"]


def test_the_setup_file_is_sourced_and_its_failure_ends_the_job(tmp_path):
    path = tmp_path / "setup.sh"
    path.write_text("module load cuda\n")
    (line,) = slurm_request.setup_lines({"setup": str(path)})
    assert line.startswith(f"source {path} || ")
    assert "exit 1" in line


@pytest.mark.parametrize(("states", "refused"), [("idle\nidle", True), ("idle\ndrained", False)])
def test_nodes_that_are_away_for_now_are_waited_for(states, refused):
    """`sbatch --test-only` has the same words for them as for what no node will ever have."""

    def ask(*command: str) -> tuple[str, str]:
        if command[0] == "sinfo":
            return states, ""
        away = "allocation failure: Requested node configuration is not available"
        return (PARTITIONS, "") if command[0] == "scontrol" else ("", away)

    if refused:
        with pytest.raises(RequestError, match="node configuration is not available"):
            slurm_request.check("train", {"runtime": 60}, ask)
    else:
        slurm_request.check("train", {"runtime": 60}, ask)
