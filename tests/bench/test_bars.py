"""The speed bars: their command line, and whether they are met."""

import sys
from pathlib import Path

import pytest

from workflow.bench import __main__, bars


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--groups", "DeiT-X"], "'DeiT-X' is unknown; did you mean 'DeiT-"),
        (["--device", "cuda", "--groups", "LeViT-256"], "--groups 'LeViT-256' is unknown; "),
        (["--device", "cuda", "--precisions", "fp32"], "the bars of a GPU are in bf16"),
        (["--output", "bars"], "--output bars: name a file that ends in .csv"),
    ],
)
def test_what_the_bars_can_not_be_asked(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench", "bars", *arguments])
    with pytest.raises(SystemExit):
        __main__.main()
    assert message in capsys.readouterr().err


def test_a_bar_of_passes_shorter_than_their_launches_is_measured_as_a_graph(monkeypatch, tmp_path):
    specs = []

    def run(spec: dict, site: dict, folder: Path) -> dict:
        specs.append(spec)
        models = spec["models"]
        methods = [{"run": model["run"], "out_of_memory": True} for model in models]
        return {"results": {"methods": methods}}

    monkeypatch.setattr(bars.process, "run", run)
    for group in ("DeiT-T, compiled", "DeiT-S, compiled"):
        bars.measure("cuda", group, "bf16", 5, tmp_path)
    assert [spec["cuda_graphs"] for spec in specs] == [256, 16]
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
