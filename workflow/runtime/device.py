"""Choose the device that a job computes on, and check that the installed torch has kernels for it.

`python -m workflow.runtime.device` prints one sentence; it fails if there is a GPU that this torch has no kernels for.
"""

import gc
import json
import platform
import subprocess
import sys

import torch

from workflow import command_line
from workflow.storage import provenance

# words of errors of memory that are no torch.OutOfMemoryError
OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "bad_alloc",
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
)


class DeviceError(RuntimeError):
    """The requested device can't be used; the message says why and what to do."""


def served(capability: tuple[int, int], arch_list: list[str]) -> bool:
    """Return whether kernels of `arch_list` ("sm_70", "compute_90") run on a GPU of this capability.

    Machine code runs on its major version from its minor version upwards, PTX on everything newer.
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
    """Return whether an error is, or was caused by, a lack of memory, of torch, a library or the compiler."""
    while error is not None:
        message = str(error).lower()
        if isinstance(error, torch.OutOfMemoryError) or any(words in message for words in OUT_OF_MEMORY):
            return True
        error = getattr(error, "inner_exception", None) or error.__cause__
    return False


def free() -> None:
    """Return unused memory to the device."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def check_precision(precision: str | None, device: torch.device, remedy: str) -> None:
    """Raise DeviceError, with the remedy, for fp16 on a CPU, and for bf16 on a GPU without units for it.

    Torch would emulate bf16 there, and silently not compile.
    """
    if device.type == "cpu" and precision == "fp16":
        raise DeviceError(f"fp16 needs a GPU; {remedy}.")
    if device.type == "cuda" and precision == "bf16" and not computes_bf16():
        raise DeviceError(
            f"{torch.cuda.get_device_name(device)} has no units for bf16 (Ampere and later have); {remedy}."
        )


def computes_bf16() -> bool:
    """Return whether the GPU has units for bf16."""
    return torch.cuda.is_bf16_supported(including_emulation=False)


def check_gpu(index: int = 0) -> None:
    """Raise DeviceError if the installed torch has no kernels for the GPU, with the lock file whose torch has."""
    capability = torch.cuda.get_device_capability(index)
    arches = torch.cuda.get_arch_list()
    if not served(capability, arches):
        lock = "requirements.lock" if capability < (7, 5) else "requirements-cuda13.lock"
        raise DeviceError(
            f"{torch.cuda.get_device_name(index)} has compute capability {capability[0]}.{capability[1]}, and torch "
            f"{torch.__version__} serves only {' '.join(arches)}; install with `make setup LOCK={lock}`."
        )


def choose(requested: str, local_rank: int = 0) -> torch.device:
    """Return the torch device for "auto", "cpu" or "cuda". Raises DeviceError if it can't be used."""
    if requested == "cpu" or (requested == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise DeviceError(
            f"The setting asks for device `cuda`, but torch sees no GPU on {platform.node()}; run where there is one "
            "or set `device: cpu` in workflow/config/settings.yaml."
        )
    check_gpu(local_rank)
    return torch.device("cuda", local_rank)


def describe(device: torch.device) -> str:
    """Return the name of the GPU or the processor, as tables show it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else provenance.processor()


def ask(requested: str) -> dict:
    """Return the device's name as "device", and as "bf16" whether it has units for bf16.

    Another process finds out, since a query here would keep this process on the GPU. Raises DeviceError.
    """
    command = [sys.executable, "-m", __spec__.name, "--json", requested]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise DeviceError(done.stderr.strip().splitlines()[-1])
    return json.loads(done.stdout)


def main() -> None:
    """Print the device, or its facts as JSON."""
    parser = command_line.parser(__doc__)
    parser.add_argument("--json", metavar="DEVICE", help="print the facts about this device as JSON")
    requested = parser.parse_args().json
    try:
        device = choose(requested or "auto")
    except DeviceError as error:
        sys.exit(str(error))
    if requested:
        bf16 = device.type == "cpu" or computes_bf16()
        print(json.dumps({"device": describe(device), "bf16": bf16}))
        return
    print(f"torch {torch.__version__} computes on {device.type}: {describe(device)}")


if __name__ == "__main__":
    command_line.run(main)
