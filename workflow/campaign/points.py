"""Points of measurement: device, mode, precision and batch size, and how files are called by them.

    results/throughput/deit_small/cuda-paper-fp32-b256.json
    results/throughput/deit_small/cuda-compiled-bf16-sweep.json           batch sizes 1 to 1024
    results/throughput/deit_small/cpu-fused-fp32-b32-channels_last.json

Standard library only.
"""

import functools
import os
import re
import shutil
import subprocess

DEVICES = ("cpu", "cuda")
MODES = ("paper", "fused", "amp", "compiled")
PRECISIONS = ("fp32", "bf16", "fp16")
SWEEP = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]
TRAINED_IN = ("paper", "fused")  # modes of a training step


def _where(modes: tuple[str, ...]) -> str:
    return (
        rf"(?P<device>{'|'.join(DEVICES)})-(?P<mode>{'|'.join(modes)})"
        rf"-(?P<precision>{'|'.join(PRECISIONS)})"
    )


THROUGHPUT = re.compile(rf"{_where(MODES)}-(?:b(?P<batch_size>[1-9][0-9]*)|sweep)(?P<layout>-channels_last)?")
TRAINING_COST = re.compile(_where(TRAINED_IN))


class PointError(ValueError):
    """A point that can't be measured; the message says why and what to ask for."""


def wildcard(pattern: re.Pattern) -> str:
    """The pattern for Snakemake, which wants no groups of ours."""
    return re.sub(r"\(\?P<\w+>", "(?:", pattern.pattern)


def name(point: dict) -> str:
    """What a record of throughput at the point is called."""
    size = f"b{point['batch_size']}" if "batch_size" in point else "sweep"
    layout = "-channels_last" if point["channels_last"] else ""
    return "{device}-{mode}-{precision}-".format(**point) + size + layout


def parse(text: str, rest: dict) -> dict:
    """The point called `text`; threads, rounds and what else no name says are those of `rest`.

    Raises PointError for a combination that nothing can run.
    """
    found = THROUGHPUT.fullmatch(text)
    if not found:
        raise PointError(f"{text} is no <device>-<mode>-<precision>-b<batch size> (or -sweep).")
    named = found.groupdict()
    size = named.pop("batch_size")
    named["channels_last"] = named.pop("layout") is not None
    named |= {"batch_size": int(size)} if size else {"batch_sizes": SWEEP}
    point = {k: v for k, v in rest.items() if k not in ("batch_size", "batch_sizes")} | named
    check(point)
    return point


def check(point: dict) -> None:
    """Raise PointError unless device, mode and precision go together."""
    device, mode, precision = point["device"], point["mode"], point["precision"]
    if mode == "paper" and precision != "fp32":
        raise PointError(f"mode paper is fp32 (what a V100 did in 2021), not {precision}.")
    if mode == "amp" and precision == "fp32":
        raise PointError("mode amp is bf16 or fp16; in fp32 say mode fused.")
    if device == "cpu" and precision == "fp16":
        raise PointError("fp16 needs a GPU; say bf16 or fp32.")


def no_speed(method: dict) -> str | None:
    """Why a record has no images/s of a model; None if it has."""
    return "out of memory" if method["out_of_memory"] else method.get("refused")


def resolve(values: dict, *without: str) -> dict:
    """A setting's point of measurement; device "auto" is this machine's."""
    point = {key: value for key, value in values.items() if key not in without}
    if point["device"] == "auto":
        point["device"] = "cuda" if gpu_is_here() else "cpu"
    return point


@functools.cache
def gpu_is_here() -> bool:
    """Whether the driver lists a GPU that this process may see (no torch on the login node)."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "" or not shutil.which("nvidia-smi"):
        return False
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return listed.returncode == 0 and "GPU" in listed.stdout
