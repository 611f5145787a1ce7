"""Which device a job computes on, and whether the installed torch can serve it.

`python -m workflow.runtime.device` prints one sentence; it fails where a GPU is present that this
torch has no kernels for.
"""

import gc
import json
import platform
import subprocess
import sys
from pathlib import Path

import torch

from workflow import command_line

CPU_INFO = Path("/proc/cpuinfo")
# in messages that tell of too little memory without being torch.OutOfMemoryError
LACKING = ("out of memory", "can't allocate memory", "bad_alloc", "cublas_status_alloc_failed",
           "cudnn_status_alloc_failed")  # fmt: skip


class DeviceError(RuntimeError):
    """The device that was asked for can't be used; the message says why and what to do."""


def served(capability: tuple[int, int], arch_list: list[str]) -> bool:
    """Whether kernels of `arch_list` ("sm_70", "compute_90") run on a GPU of this capability.

    Machine code runs on the same major version from its minor upwards, PTX on everything newer.
    """
    for arch in arch_list:
        kind, _, digits = arch.partition("_")
        digits = digits.rstrip("af")
        major, minor = int(digits[:-1]), int(digits[-1])
        if kind == "sm" and major == capability[0] and minor <= capability[1]:
            return True
        if kind == "compute" and (major, minor) <= capability:
            return True
    return False


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error is one of memory, or the compiler's or a library's word for one."""
    while error is not None:
        said = str(error).lower()
        if isinstance(error, torch.OutOfMemoryError) or any(words in said for words in LACKING):
            return True
        error = getattr(error, "inner_exception", None) or error.__cause__
    return False


def free() -> None:
    """Give back what nothing holds any more."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def check_precision(precision: str | None, where: torch.device, instead: str) -> None:
    """Raise DeviceError, with what to do `instead`, for bf16 on a GPU without units for it: it
    would be emulated, and what is to be compiled would run uncompiled in silence."""
    if where.type == "cuda" and precision == "bf16" and not computes_bf16():
        raise DeviceError(
            f"{torch.cuda.get_device_name(where)} has no units for bf16 (Ampere and later have); {instead}."
        )


def computes_bf16() -> bool:
    """Whether the GPU has units for bf16."""
    return torch.cuda.is_bf16_supported(including_emulation=False)


def other_lock(capability: tuple[int, int]) -> str:
    """The lock file whose torch serves a GPU that the installed one doesn't."""
    return "requirements.lock" if capability < (7, 5) else "requirements-cuda13.lock"


def check_gpu(index: int = 0) -> None:
    """Raise DeviceError if a GPU is here and the installed torch has no kernels for it."""
    capability = torch.cuda.get_device_capability(index)
    arches = torch.cuda.get_arch_list()
    if not served(capability, arches):
        raise DeviceError(
            f"{torch.cuda.get_device_name(index)} has compute capability "
            f"{capability[0]}.{capability[1]}, and torch {torch.__version__} serves only "
            f"{' '.join(arches)}; install with `make setup LOCK={other_lock(capability)}`."
        )


def choose(wanted: str, local_rank: int = 0) -> torch.device:
    """The torch device for "auto", "cpu" or "cuda". Raises DeviceError where it can't be used."""
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise DeviceError(
            "The setting asks for device `cuda`, but torch sees no GPU on "
            f"{platform.node()}; run where there is one or set `device: cpu` in "
            "workflow/config/settings.yaml."
        )
    check_gpu(local_rank)
    return torch.device("cuda", local_rank)


def describe(device: torch.device) -> str:
    """The name that tables show: the GPU's, or the processor's with its cores."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    names = [
        line.partition(":")[2].strip()
        for line in (CPU_INFO.read_text().splitlines() if CPU_INFO.exists() else [])
        if line.startswith("model name")
    ]
    if sys.platform == "darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        told = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        names = [told.strip()] if told.strip() else []
    return names[0] if names else (platform.processor() or platform.machine())


def ask(wanted: str) -> dict:
    """{"device": its description, "bf16": whether it has units for it}, found by another process:
    to ask here would leave this one on the GPU. Raises DeviceError."""
    command = [sys.executable, "-m", __spec__.name, "--json", wanted]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise DeviceError(done.stderr.strip().splitlines()[-1])
    return json.loads(done.stdout)


def main() -> None:
    parser = command_line.parser(__doc__)
    parser.add_argument("--json", metavar="DEVICE", help="of this one, for programs")
    wanted = parser.parse_args().json
    try:
        device = choose(wanted or "auto")
    except DeviceError as error:
        sys.exit(str(error))
    if wanted:
        bf16 = device.type == "cpu" or computes_bf16()
        print(json.dumps({"device": describe(device), "bf16": bf16}))
        return
    print(f"torch {torch.__version__} computes on {device.type}: {describe(device)}")


if __name__ == "__main__":
    command_line.run(main)
