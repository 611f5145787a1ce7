"""What a job takes over from the shell that started it, and what it does not.

A result depends on its spec and on the installed software. A variable of the shell that would
change what is computed, compiled or drawn is removed before the job starts, by the launcher and
again on the node, where a site's own scripts may have set it. Standard library only.

What a job keeps although it seems similar, and why:

- CUDA_VISIBLE_DEVICES, CUDA_DEVICE_ORDER and the like say which device, not what it computes.
- NCCL_*, TORCH_NCCL_*, GLOO_* and USE_LIBUV describe the cluster's network.
- HF_*, TORCH_HOME, *_CACHE_DIR and compilers' paths name folders; what is loaded from there is checked.
- PYTORCH_CUDA_ALLOC_CONF may be what makes a training fit; records of measurements name it.
- LD_PRELOAD is what some sites need to start programs; records of measurements name it.
- PYTHONPATH and PYTHONUSERBASE may hold the installation; records name the packages' versions.
- PYTHONHASHSEED: nothing depends on the order of a set.
"""

import os
import sys
import tempfile
from collections.abc import MutableMapping
from fnmatch import fnmatchcase

PYTHON_SWITCHES = (
    "PYTHONOPTIMIZE PYTHONWARNINGS PYTHONINSPECT PYTHONDEVMODE PYTHONMALLOC PYTHONIOENCODING PYTHON_GIL PYTHON_JIT"
)
REMOVED = (
    # the launcher says how many processes a job has; these are another job's
    "WORLD_SIZE RANK LOCAL_RANK LOCAL_WORLD_SIZE NODE_RANK GROUP_RANK GROUP_WORLD_SIZE ROLE_RANK ROLE_WORLD_SIZE "
    "ROLE_NAME MASTER_ADDR MASTER_PORT TORCHELASTIC_* PET_* OMPI_* MPI_LOCAL* "
    # the spec says how many threads compute; the others change rounding and speed
    "OMP_* GOMP_* KMP_* MKL_* OPENBLAS_* GOTO_NUM_* BLIS_* VECLIB_* NUMEXPR_* "
    # they choose instructions, algorithms or number formats, and so a result's digits
    "ONEDNN_* DNNL_* MKLDNN_* DISABLE_DNNL_* ATEN_* NPY_* NVPL_* GLIBC_TUNABLES "
    "NVIDIA_TF32_OVERRIDE CUBLAS* CUDNN_* DISABLE_ADDMM_CUDA_LT "
    # they switch compilation, kernels or a model's layers
    "TORCH_* TORCHINDUCTOR_* TORCHDYNAMO_* PYTORCH_* INDUCTOR_* TRITON_* TIMM_* "
    # they slow a measurement down, or speed it up
    "CUDA_LAUNCH_BLOCKING CUDA_DEVICE_MAX_CONNECTIONS CUDA_FORCE_* CUDA_DISABLE_* MALLOC_* " + PYTHON_SWITCHES
    # they change how Python runs a job, down to ending it at a warning
)
THREADS = (
    "OMP_NUM_THREADS MKL_NUM_THREADS OPENBLAS_NUM_THREADS GOTO_NUM_THREADS NUMEXPR_NUM_THREADS VECLIB_MAXIMUM_THREADS"
)
SET = {
    **dict.fromkeys(THREADS.split(), "1"),  # until the job takes its spec's, as Snakemake does
    "PYTHONUTF8": "1",  # files are read as UTF-8 whatever the locale
}
KEPT = (  # although a pattern above matches
    # some installations don't start without them
    "KMP_DUPLICATE_LIB_OK MKL_THREADING_LAYER MKL_SERVICE_FORCE_INTEL TORCH_DEVICE_BACKEND_AUTOLOAD "
    "PYTORCH_NVML_BASED_CUDA_CHECK "
    # they name folders
    "TORCH_HOME TORCH_EXTENSIONS_DIR TORCH_CUDA_ARCH_LIST TRITON_HOME TRITON_*_PATH *_CACHE_DIR *_CACHE_PATH "
    # they only make torch say more
    "TORCH_LOGS TORCH_LOGS_OUT TORCH_TRACE TORCH_CPP_LOG_LEVEL TORCH_SHOW_* TORCH_DISTRIBUTED_DEBUG "
    # a network or a memory may ask for them
    "TORCH_NCCL_* TORCHINDUCTOR_COMPILE_THREADS PYTORCH_ALLOC_CONF PYTORCH_CUDA_ALLOC_CONF"
)
# An allocation or a job around the launcher is not the new job's; what remains says which Slurm it
# is, and where a node keeps temporary files.
OF_AN_ALLOCATION = "SLURM_* SLURMD_* SRUN_* SBATCH_* PMI_* PMIX_* SUBMITIT_*"
OF_THE_SITE = "SLURM_CONF SLURM_TMPDIR"
# They filter or rewrite what Slurm's commands answer.
OF_SLURM_COMMANDS = "SQUEUE_* SACCT_* SINFO_* SCANCEL_* SCONTROL_* SLURM_TIME_FORMAT"
SOCKET_PATH_BYTES = 103 if sys.platform == "darwin" else 107  # of an AF_UNIX address
SOCKET_NAME_BYTES = len("/pymp-xxxxxxxx/listener-xxxxxxxx")  # what multiprocessing appends


class EnvironmentFault(RuntimeError):
    """A job can't run in this environment; the message says why and what to do."""


def clean(environ: MutableMapping[str, str] = os.environ) -> list[str]:
    """Remove or set what would change a job's results. Return the names whose value is lost, sorted."""
    before = dict(environ)
    removed = _remove(environ, REMOVED, KEPT)
    environ.update(SET)
    return [name for name in removed if before[name] != environ.get(name)]


def leave_allocation(environ: MutableMapping[str, str] = os.environ) -> list[str]:
    """Remove what a Slurm allocation or a job around this process set. Return the names, sorted."""
    return _remove(environ, OF_AN_ALLOCATION, OF_THE_SITE)


def for_slurm_commands() -> dict[str, str]:
    """Return the environment in which squeue, scontrol and the like answer as they are asked."""
    environ = dict(os.environ)
    _remove(environ, OF_SLURM_COMMANDS)
    return environ


def for_mlflow() -> dict[str, str]:
    """Return the environment in which MLflow works: it needs its docstrings, and warns of much."""
    environ = dict(os.environ)
    _remove(environ, PYTHON_SWITCHES)
    return environ


def _remove(environ: MutableMapping[str, str], patterns: str, kept: str = "") -> list[str]:
    """Remove the variables whose names match, but for those kept. Return the names, sorted."""

    def matches(name: str, among: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in among.split())

    removed = sorted(name for name in environ if matches(name, patterns) and not matches(name, kept))
    for name in removed:
        del environ[name]
    return removed


def too_long_for_sockets() -> str | None:
    """Return the temporary folder if loader processes can't open their sockets in it, else None."""
    folder = tempfile.gettempdir()
    needed = len(os.fsencode(folder)) + SOCKET_NAME_BYTES
    return folder if needed > SOCKET_PATH_BYTES else None


def shorten_temporary_folder() -> None:
    """Take Python's default for temporary files where TMPDIR is too long for sockets.

    Raises EnvironmentFault if that is too long as well.
    """
    folder = too_long_for_sockets()
    if folder is None:
        return
    for name in ("TMPDIR", "TEMP", "TMP"):
        os.environ.pop(name, None)
    tempfile.tempdir = None  # asks again
    if too_long_for_sockets():
        raise EnvironmentFault(
            f"The temporary folder {folder} is too long for the sockets of loader processes; set "
            f"TMPDIR to one of at most {SOCKET_PATH_BYTES - SOCKET_NAME_BYTES} characters."
        )
