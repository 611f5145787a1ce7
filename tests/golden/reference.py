"""Rebuilds the weights and inputs behind the reference numbers; see the README beside this."""

import json
import zlib
from pathlib import Path

import numpy as np
import torch

FOLDER = Path(__file__).parent
FOLDERS = {folder: json.loads((folder / "index.json").read_text()) for folder in (FOLDER, FOLDER / "baselines")}


def names(prefix):
    """Return the names of the cases that begin with the prefix."""
    return [name for index in FOLDERS.values() for name in index["cases"] if name.startswith(prefix)]


def case(name):
    """Return (description, arrays) of one case; the description gets its ``shapes`` table, if it has a model."""
    folder, index = next((folder, index) for folder, index in FOLDERS.items() if name in index["cases"])
    about = dict(index["cases"][name])
    if "shapes" in about:
        about["shapes"] = index["shapes"][about["shapes"]]
    return about, np.load(folder / f"{name}.npz")


def weights(shapes, dtype, prefix=""):
    """State dict in the authors' key names, with the counters that BatchNorm keeps."""
    state = {k: torch.from_numpy(_fill(k, s, prefix)).to(dtype) for k, s in shapes.items()}
    norms = [key.removesuffix("running_var") for key in state if key.endswith("running_var")]
    return state | {norm + "num_batches_tracked": torch.tensor(0) for norm in norms}


def images(about, dtype):
    """Inputs (B, 3, H, W)."""
    draw = np.random.default_rng(about["input_seed"]).standard_normal(about["input_shape"])
    return torch.from_numpy(draw.astype(np.float32)).to(dtype)


def _fill(key, shape, prefix):
    draw = np.random.default_rng(zlib.crc32((prefix + key).encode()))
    if key.endswith("running_var"):
        value = draw.uniform(0.5, 1.5, shape)
    elif key.endswith("running_mean"):
        value = 0.1 * draw.standard_normal(shape)
    elif key.endswith("learn_tradeoff"):
        value = 0.3 * draw.standard_normal(shape)
    elif key.endswith("attention_biases"):
        value = 0.5 * draw.standard_normal(shape)
    elif key.endswith(("pos_embed", "cls_token", "poss")):
        value = 0.2 * draw.standard_normal(shape)
    elif key.endswith("bias"):
        value = 0.02 * draw.standard_normal(shape)
    elif len(shape) == 1:
        value = 1.0 + 0.1 * draw.standard_normal(shape)
    else:
        value = draw.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
    return value.astype(np.float32)
