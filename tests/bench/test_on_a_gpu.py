"""The paths that a GPU alone takes: `pytest -k on_a_gpu` where there is one."""

import pytest
import torch

from workflow.bench import throughput
from workflow.campaign import benchmarks
from workflow.runtime import device

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
SIZE = {"img_size": 64, "embed_dim": 96, "num_heads": 3, "depth": 6}
LEVIT = {"img_size": 64, "num_classes": 10}
PAIRS = {
    "deit": [("plain_deit_tiny_patch16_224", SIZE), ("evo_deit_tiny_patch16_224", SIZE)],
    "levit": [("plain_levit_128s", LEVIT), ("evo_levit_128s", LEVIT)],
}


@pytest.mark.parametrize("mode", benchmarks.MODES)
@pytest.mark.parametrize("pair", PAIRS)
def test_every_mode_runs_with_graphs_and_without(pair, mode):
    half = "bf16" if device.computes_bf16() else "fp16"
    spec = {
        "kind": "throughput", "section": pair, "device": "cuda", "mode": mode,
        "precision": "fp32" if mode == "paper" else half, "channels_last": False,
        "cuda_graphs": 4, "threads": 2, "rounds": 5, "batch_sizes": [1, 2, 32],
        "models": [{"run": name, "name": name, "kwargs": kwargs} for name, kwargs in PAIRS[pair]],
    }  # fmt: skip
    for size in throughput.measure_group(spec)["sizes"]:
        for method in size["methods"]:
            assert benchmarks.no_speed(method) is None
            assert method["check"]["distance"] <= method["check"]["tolerance"]
            assert method["cuda_graph"] == (mode != "paper" and size["batch_size"] <= 4)
            assert method["peak_memory_mib"] > 0
            assert (method["latency_ms"] is None) == (size["batch_size"] > 1)
