"""What a job takes over from the shell, and what it does not."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from workflow import job_environment

ROOT = Path(__file__).parent.parent


CHANGES_RESULTS = """
WORLD_SIZE RANK LOCAL_RANK MASTER_ADDR TORCHELASTIC_RUN_ID GROUP_RANK OMPI_COMM_WORLD_RANK
OMP_NUM_THREADS MKL_CBWR KMP_AFFINITY OPENBLAS_CORETYPE ONEDNN_MAX_CPU_ISA DNNL_DEFAULT_FPMATH_MODE
ATEN_CPU_CAPABILITY NPY_DISABLE_CPU_FEATURES NVIDIA_TF32_OVERRIDE TORCH_ALLOW_TF32_CUBLAS_OVERRIDE
CUBLAS_WORKSPACE_CONFIG TORCH_COMPILE_DISABLE TORCHDYNAMO_DISABLE TORCHINDUCTOR_MAX_AUTOTUNE
TIMM_FUSED_ATTN PYTORCH_JIT PYTORCH_TUNABLEOP_ENABLED TRITON_INTERPRET CUDA_LAUNCH_BLOCKING
MALLOC_ARENA_MAX PYTHONOPTIMIZE PYTHONWARNINGS PYTHONINSPECT
"""
# the last ones are a job's own on its node
CHANGES_NONE = """
CUDA_VISIBLE_DEVICES NCCL_SOCKET_IFNAME TORCH_NCCL_BLOCKING_WAIT HF_HOME TORCHINDUCTOR_CACHE_DIR
TRITON_CACHE_DIR TORCH_HOME TORCH_LOGS TMPDIR KMP_DUPLICATE_LIB_OK PYTORCH_CUDA_ALLOC_CONF
PYTHONPATH LD_PRELOAD PATH GROUP_HOME SLURM_JOB_ID SUBMITIT_EXECUTOR
"""


@pytest.mark.parametrize("name", CHANGES_RESULTS.split())
def test_what_changes_a_result_is_removed(name):
    environ = {name: "given", "HOME": "/home/me"}
    assert job_environment.clean(environ) == [name]
    assert environ == {"HOME": "/home/me", **job_environment.SET}


@pytest.mark.parametrize("name", CHANGES_NONE.split())
def test_what_does_not_is_kept(name):
    assert job_environment.clean({name: "1"}) == []


def test_what_snakemake_sets_for_its_jobs_is_not_told_to_the_user():
    assert job_environment.clean({"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}) == []


def test_an_allocation_around_the_launcher_is_not_the_jobs():
    given = {"SLURM_JOB_ID": "7", "SBATCH_PARTITION": "gpu", "SUBMITIT_PREEMPT_SIGNAL": "KILL"}
    environ = given | {"SLURM_CONF": "/etc/slurm.conf", "SLURM_TMPDIR": "/local/7"}
    assert job_environment.leave_allocation(environ) == sorted(given)
    assert environ == {"SLURM_CONF": "/etc/slurm.conf", "SLURM_TMPDIR": "/local/7"}


def test_slurms_commands_answer_as_they_are_asked(monkeypatch):
    monkeypatch.setenv("SQUEUE_STATES", "PENDING")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm.conf")
    assert "SQUEUE_STATES" not in job_environment.for_slurm_commands()
    assert job_environment.for_slurm_commands()["SLURM_CONF"] == "/etc/slurm.conf"


@pytest.fixture
def temporary(monkeypatch):
    """A function: from now on TMPDIR is this folder."""

    def to(folder: Path) -> None:
        folder.mkdir(parents=True)
        monkeypatch.setenv("TMPDIR", str(folder))
        monkeypatch.setattr(tempfile, "tempdir", None)

    return to


def test_a_temporary_folder_holds_sockets_up_to_the_systems_limit(temporary):
    """The longest that stays and the shortest that does not, tried with a socket."""
    code = (
        "from multiprocessing.connection import Listener\n"
        "import multiprocessing.util, os\n"
        "Listener(os.path.join(multiprocessing.util.get_temp_dir(), 'listener-xxxxxxxx'))\n"
    )
    room = job_environment.SOCKET_PATH_BYTES - job_environment.SOCKET_NAME_BYTES
    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        for length, fits in ((room, True), (room + 1, False)):
            temporary(Path(short) / ("t" * (length - len(short) - 1)))
            assert len(os.environ["TMPDIR"]) == length
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
            assert (done.returncode == 0) == fits
            assert (job_environment.too_long_for_sockets() is None) == fits
        job_environment.shorten_temporary_folder()
        assert "TMPDIR" not in os.environ
        assert job_environment.too_long_for_sockets() is None


def test_where_every_temporary_folder_is_too_long_it_is_refused(temporary, tmp_path, monkeypatch):
    temporary(tmp_path / ("t" * 90))
    monkeypatch.setattr(job_environment, "SOCKET_PATH_BYTES", 34)
    with pytest.raises(job_environment.EnvironmentFault, match=r"t{90} is too long .* at most 2 characters"):
        job_environment.shorten_temporary_folder()


def test_a_users_matplotlib_draws_no_other_figure(tmp_path):
    """A notebook's backend, a matplotlibrc of one's own."""
    (tmp_path / "matplotlibrc").write_text("savefig.bbox: tight\nlines.antialiased: False\n")
    code = (
        "from workflow.paper import style\n"
        "import matplotlib as mpl\n"
        "style.apply()\n"
        "print(mpl.get_backend(), mpl.rcParams['savefig.bbox'], mpl.rcParams['lines.antialiased'])"
    )
    environ = {**os.environ, "MPLBACKEND": "nonsense", "MATPLOTLIBRC": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environ, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert done.stdout.lower().split() == ["agg", "none", "true"]
