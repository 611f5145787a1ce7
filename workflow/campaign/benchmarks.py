"""Benchmarks: which models are timed together, in which configuration, and how their records are called.

A benchmark configuration is a device, a mode, a precision and a batch size, or a sweep of batch sizes 1 to 1024:

    results/throughput/deit_small/cuda-paper-fp32-b256.json
    results/throughput/deit_small/cuda-compiled-bf16-sweep.json
    results/throughput/deit_small/cpu-fused-fp32-b32-channels_last.json
    results/training/deit_small/cuda-paper-fp16.json                      its batch sizes are the setting's

Standard library and yaml only: launchers import this.
"""

import functools
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

from workflow.campaign.config import Config, ConfigError
from workflow.campaign.specs import (
    EVALUATED,
    ROLES,
    data_of,
    host_of,
    model_of,
    recipe_of,
    reference,
    train_spec,
)
from workflow.storage import files

DEVICES = ("cpu", "cuda")
MODES = ("paper", "fused", "amp", "compiled")
TRAINING_MODES = ("paper", "fused")  # of a training step
PRECISIONS = ("fp32", "bf16", "fp16")
OFFTHESHELF = "offtheshelf"  # by which `batch_size_of` calls it among the sections
SWEEP = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]


def _named(modes: tuple[str, ...]) -> str:
    return (
        rf"(?P<device>{'|'.join(DEVICES)})-(?P<mode>{'|'.join(modes)})"
        rf"-(?P<precision>{'|'.join(PRECISIONS)})"
    )


THROUGHPUT = re.compile(rf"{_named(MODES)}-(?:b(?P<batch_size>[1-9][0-9]*)|sweep)(?P<layout>-channels_last)?")
TRAINING_COST = re.compile(_named(TRAINING_MODES))


class BenchmarkError(ValueError):
    """A configuration that can't be measured; the message says why and what to ask for."""


def name(configuration: dict) -> str:
    """Return what a record of throughput in the configuration is called."""
    size = f"b{configuration['batch_size']}" if "batch_size" in configuration else "sweep"
    layout = "-channels_last" if configuration["channels_last"] else ""
    return "{device}-{mode}-{precision}-".format(**configuration) + size + layout


def parse(text: str, rest: dict) -> dict:
    """Return the configuration called `text`; threads, rounds and what else no name says are those of `rest`.

    Raises BenchmarkError for a combination that nothing can run.
    """
    match = THROUGHPUT.fullmatch(text)
    if not match:
        raise BenchmarkError(
            f"{text} is no <device>-<mode>-<precision>-b<batch size> (or -sweep); modes are {', '.join(MODES)}, "
            f"precisions {', '.join(PRECISIONS)}."
        )
    named = match.groupdict()
    size = named.pop("batch_size")
    named["channels_last"] = named.pop("layout") is not None
    if size:
        named["batch_size"] = int(size)
    else:
        named["batch_sizes"] = SWEEP
    configuration = {key: value for key, value in rest.items() if key not in ("batch_size", "batch_sizes")}
    configuration |= named
    check(configuration)
    return configuration


def check(configuration: dict) -> None:
    """Raise BenchmarkError unless device, mode and precision go together."""
    mode, precision = configuration["mode"], configuration["precision"]
    if mode == "paper" and precision != "fp32":
        raise BenchmarkError(f"mode paper is fp32 (what a V100 did in 2021), not {precision}.")
    if mode == "amp" and precision == "fp32":
        raise BenchmarkError("mode amp is bf16 or fp16; in fp32 say mode fused.")
    if configuration["device"] == "cpu" and precision == "fp16":
        raise BenchmarkError("fp16 needs a GPU; say bf16 or fp32.")


def no_speed(method: dict) -> str | None:
    """Return why a record has no images/s of a model; None if it has."""
    return "out of memory" if method["out_of_memory"] else method.get("refused")


# -- throughput: images per second of a group's models, at the paper's size


def throughput_configuration(config: Config, setting: str, group: str) -> dict:
    """Return the configuration that the setting's tables show of a benchmark group."""
    values = config.settings[setting]["throughput"]
    configuration = {key: value for key, value in values.items() if key not in ("weights", "batch_size_of")}
    configuration["device"] = device_of(config, setting, values)
    configuration["batch_size"] = values["batch_size_of"].get(group, values["batch_size"])
    return configuration


def throughput_spec(config: Config, setting: str, group: str, configuration: dict, weights: str | None = None) -> dict:
    """Return the spec of one measurement: the group's models at the paper's size, in one configuration.

    Rows whose speed depends on weights have those of their training, on real images, or a declared profile, as
    `weights` or else the setting says.
    """
    trained = (weights or config.settings[setting]["throughput"]["weights"]) == "trained"
    models = []
    for row in config.items["sections"][group]:
        model = {"run": row, **_timed_model(config, setting, row)}
        profile = config.items["profiles"].get(row)
        if profile and trained:
            training = train_spec(config, setting, row)
            model |= training["model"] | {"weights": reference(training)}
        elif profile:
            key = "options" if "method" in model else "kwargs"
            model |= {key: model[key] | profile, "profile": "assumed"}
        models.append(model)
    spec = {"kind": "throughput", "section": group, "models": models, **configuration}
    if any("weights" in model for model in models):
        recipe = recipe_of(config, setting, config.items["sections"][group][0])
        shown = {key: recipe[key] for key in ("interpolation", "crop_pct")}
        spec["images"] = {"data": data_of(config, setting), **shown}
    return spec


def _timed_model(config: Config, setting: str, row: str) -> dict:
    """Return a row's model at the paper's size, or as it is if it is of the setting's own host."""
    return model_of(config, row, setting if config.is_of_host(row) else None)


def throughput_path(root: str, group: str, configuration: dict) -> str:
    """Return the path of the record of a group's throughput."""
    return f"{root}/throughput/{group}/{name(configuration)}.json"


# -- training cost: seconds and bytes of a training step


def training_cost_configuration(config: Config, setting: str) -> dict:
    """Return the configuration in which the setting measures training steps."""
    values = config.settings[setting]["training_cost"]
    return values | {"device": device_of(config, setting, values)}


def training_cost_spec(config: Config, setting: str, group: str, configuration: dict) -> dict:
    """Return the spec of the measurement of training steps: of the group's models that train from scratch, at the
    paper's size and with its recipe.

    `configuration` holds device, mode, precision, threads, rounds, batch_sizes and extrapolate_to (images), and
    memory_gib (of the GPU that is meant, or null).
    """
    models = []
    for row in config.items["sections"][group]:
        recipe = recipe_of(config, None, row) | {"device_batch": None}  # the batch sizes are the configuration's
        if "search" not in recipe and not any(role in config.runs[row] for role in ROLES):
            models.append({"run": row, "model": _timed_model(config, setting, row), "recipe": recipe})
    return {"kind": "training_cost", "section": group, "models": models, **configuration}


def training_cost_name(configuration: dict) -> str:
    """Return what a record of training steps in the configuration is called."""
    return "{device}-{mode}-{precision}".format(**configuration)


def parse_training_cost(text: str, rest: dict) -> dict:
    """Return the configuration of training steps called `text`; all that no name says is that of `rest`.

    Raises BenchmarkError for a text that names none.
    """
    match = TRAINING_COST.fullmatch(text)
    if not match:
        raise BenchmarkError(f"{text} is no <device>-<mode>-<precision> in which a model trains.")
    return rest | match.groupdict()


# -- off the shelf: methods on a trained dense model as it is


def offtheshelf_spec(config: Config, setting: str, host: str) -> dict:
    """Return the spec of the methods of items.yaml's `offtheshelf` on one of the setting's `hosts`.

    They are evaluated without a training, and timed against the host in the configuration of the setting's throughput.
    Raises KeyError for a model that is no host of the setting.
    """
    recipe = recipe_of(config, setting, host)
    models = [{"run": "dense", "method": None, "kwargs": {}}]
    for method, entry in config.items[OFFTHESHELF].items():
        for option in ("keep_ratio", "r"):
            for value in entry.get(option, []):
                models.append({"run": f"{method}-{value:g}", "method": method, "kwargs": {option: value}})
    return {
        "kind": OFFTHESHELF,
        **host_of(config, setting, host),
        "recipe": {key: recipe[key] for key in EVALUATED if key not in ("name", "threads")},
        "models": models,
        **throughput_configuration(config, setting, OFFTHESHELF),
    }


# -- the device of `auto`


def device_of(config: Config, setting: str, values: dict) -> str:
    """Return the device that a setting's `values` name; for "auto" the one that is kept for the setting.

    Before a start has kept one, "auto" is a GPU where this machine has one. Raises ConfigError.
    """
    if values["device"] != "auto":
        return values["device"]
    return kept_device(config, setting) or ("cuda" if gpu_is_here() else "cpu")


def kept_device(config: Config, setting: str) -> str | None:
    """Return the device that the setting's first start kept; None before it. Raises ConfigError."""
    path = device_file(config, setting)
    try:
        device = json.loads(path.read_text())["device"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        device = None
    if device not in DEVICES:
        raise ConfigError(
            f"{path} names no device, but the records of {setting} are called by it; write "
            '{"device": "cpu"} or {"device": "cuda"} there, or delete it, and the next start asks its machine.'
        )
    return device


def keep_device(config: Config, setting: str) -> None:
    """Keep the device of "auto" for the setting, unless one is kept or nothing of it is measured on "auto".

    So every later start finds its records, on whatever machine. Raises ConfigError and NotWritable.
    """
    scale = config.settings[setting]
    automatic = [values for values in (scale["throughput"], scale["training_cost"]) if values["device"] == "auto"]
    if automatic and kept_device(config, setting) is None:
        device = device_of(config, setting, automatic[0])
        files.write(device_file(config, setting), json.dumps({"device": device}) + "\n")


def device_file(config: Config, setting: str) -> Path:
    """Return where the device of "auto" is kept; to have it chosen anew, delete the file."""
    return Path(config.settings[setting]["results"], "device.json")


@functools.cache
def gpu_is_here() -> bool:
    """Return whether the driver lists a GPU that this process may see (no torch on the login node)."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "" or not shutil.which("nvidia-smi"):
        return False
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return listed.returncode == 0 and "GPU" in listed.stdout
