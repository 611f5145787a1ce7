"""Which device a job computes on, and whether the installed torch can serve it.

`python -m workflow.node.device` prints one sentence; it fails where a GPU is present that this
torch has no kernels for.
"""

import platform
import sys
from pathlib import Path

import torch

CPU_INFO = Path("/proc/cpuinfo")


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
            f"{' '.join(arches)}; install with `make demo LOCK={other_lock(capability)}`."
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
    return names[0] if names else (platform.processor() or platform.machine())


def main() -> None:
    try:
        device = choose("auto")
    except DeviceError as error:
        sys.exit(str(error))
    print(f"torch {torch.__version__} computes on {device.type}: {describe(device)}")


if __name__ == "__main__":
    main()
