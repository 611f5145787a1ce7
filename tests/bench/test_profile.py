"""Where a pass spends its time."""

import torch

from workflow.bench import profile

SIZE = {"img_size": 32, "embed_dim": 24, "num_classes": 10}
CPU = torch.device("cpu")


def test_a_pass_by_its_operations(monkeypatch):
    monkeypatch.setattr(profile, "PASSES", 2)
    model = {"run": "evo", "name": "evo_deit_tiny_patch16_224", "kwargs": SIZE}
    spec = {"mode": "fused", "precision": "fp32", "channels_last": False, "cuda_graphs": 16}
    profiled = profile.profile_model(model, {**spec, "device": "cpu", "batch_size": 2}, CPU)
    _, calls = profiled.kernels["aten::addmm"]
    assert calls == 4 * 12 + 1  # the blocks' linear layers and the head
    spent = [ms for ms, _ in profiled.kernels.values()]
    assert spent == sorted(spent, reverse=True)
    assert profiled.busy_ms > 0


def test_what_is_not_shown_is_summed_up():
    profiled = profile.Profile(10.0, {"a": (4.0, 1.0), "b": (3.0, 2.0), "c": (1.0, 5.0)})
    head, first, rest = profile.lines("model", profiled, shown=1)
    assert "10.000 ms a pass, 2.000 ms of it idle" in head
    assert "4.000 ms  50.0 %" in first
    assert "4.000 ms  50.0 %  x7.0" in rest
    assert "(2 others)" in rest
