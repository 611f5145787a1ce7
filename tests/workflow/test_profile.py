"""Where a pass spends its time, and the bars' command line."""

import sys
from pathlib import Path

import pytest
import torch

from workflow.bench import bars, profile

SIZE = {"img_size": 32, "embed_dim": 24, "num_classes": 10}
CPU = torch.device("cpu")


def test_a_pass_by_its_operations(monkeypatch):
    monkeypatch.setattr(profile, "PASSES", 2)
    model = {"run": "evo", "name": "evo_deit_tiny_patch16_224", "kwargs": SIZE}
    spec = {"mode": "fused", "precision": "fp32", "channels_last": False, "cuda_graphs": 16}
    seen = profile.profile_model(model, {**spec, "device": "cpu", "batch_size": 2}, CPU)
    _, calls = seen.kernels["aten::addmm"]
    assert calls == 4 * 12 + 1  # the blocks' linear layers and the head
    spent = [ms for ms, _ in seen.kernels.values()]
    assert spent == sorted(spent, reverse=True)
    assert seen.busy_ms > 0


def test_what_is_not_shown_is_summed_up():
    seen = profile.Profile(10.0, {"a": (4.0, 1.0), "b": (3.0, 2.0), "c": (1.0, 5.0)})
    head, first, rest = profile.lines("model", seen, shown=1)
    assert "10.000 ms a pass, 2.000 ms of it idle" in head
    assert "4.000 ms  50.0 %" in first
    assert "4.000 ms  50.0 %  x7.0" in rest
    assert "(2 others)" in rest


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--sections", "DeiT-X"], "'DeiT-X' is none of ['DeiT-S', "),
        (["--device", "cuda", "--sections", "LeViT-256"], "'LeViT-256' is none of"),
        (["--device", "cuda", "--precisions", "fp32"], "the bars of a GPU are in bf16"),
        (["--output", "bars"], "--output bars: name a file that ends in .csv"),
    ],
)
def test_what_the_bars_can_not_be_asked(arguments, said, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["speed_bars", *arguments])
    with pytest.raises(SystemExit):
        bars.main()
    assert said in capsys.readouterr().err


def test_a_bar_of_passes_shorter_than_their_launches_is_measured_as_a_graph(monkeypatch, tmp_path):
    asked = []

    def run(spec: dict, site: dict, folder: Path) -> dict:
        asked.append(spec)
        models = spec["models"]
        return {"results": {"methods": [{"run": one["run"], "out_of_memory": True}
                                        for one in models]}}  # fmt: skip

    monkeypatch.setattr(bars.fresh, "run", run)
    for section, changes in (("DeiT-T, compiled", {}), ("DeiT-S, compiled", {}),
                             ("DeiT-T, compiled", {"cuda_graphs": 0})):  # fmt: skip
        bars.measure("cuda", section, "bf16", tmp_path, rounds=5, **changes)
    assert [spec["cuda_graphs"] for spec in asked] == [256, 16, 0]
    kept = [path.name for path in sorted(tmp_path.iterdir())]
    assert kept == ["deit-s-compiled-bf16.json", "deit-t-compiled-bf16.json"]


def test_a_bar_says_whether_it_is_met():
    method = {"run": "Evo", "images_per_s": 10.0, "speedup": 1.4, "speedup_interval": [1.39, 1.41],
              "ceilings": {"macs": 1.5}, "warnings": [], "out_of_memory": False}  # fmt: skip
    row = bars.row_of(
        "DeiT-S, compiled", "bf16", method, 1.42, {"warnings": [{"code": "throttled", "text": "power cap"}]}
    )
    assert row["met"] is False
    assert bars.line(row).endswith("bar 1.42  missed  warning: power cap")


def test_a_model_without_a_speed_misses_its_bar():
    method = {"run": "Evo", "out_of_memory": True}
    row = bars.row_of("DeiT-B, compiled", "bf16", method, 1.44, {"warnings": []})
    assert row["met"] is False
    assert bars.line(row).endswith("bar 1.44  missed  warning: out of memory")
