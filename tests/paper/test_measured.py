"""A folder of measurements as Markdown beside the paper's numbers."""

import sys

import pytest

from workflow.campaign import benchmarks
from workflow.paper import __main__, measured
from workflow.storage import records

METHOD = {"out_of_memory": False, "warnings": [], "speedup_interval": [1.29, 1.31]}
METHOD |= {"ceilings": {"macs": 1.28, "roofline": 1.27}}


@pytest.fixture
def write(config, tmp_path):
    """A function that writes a benchmark group's record, as a bench suite leaves it."""

    def make(section: str, name: str, speedups: list[float], **changes):
        configuration = benchmarks.parse(name, benchmarks.throughput_configuration(config, "demo", section))
        spec = benchmarks.throughput_spec(config, "demo", section, configuration, weights="assumed")
        methods = [
            METHOD | {"run": run, "images_per_s": 100 * speedup, "speedup": speedup, **changes}
            for run, speedup in zip(config.items["sections"][section], speedups, strict=True)
        ]
        path = tmp_path / "throughput" / section / f"{name}.json"
        records.write_json(path, records.make(spec, {"methods": methods, "warnings": []}, 0.0))

    return make


def shown(config, folder, configurations: list[str]) -> list[list[str]]:
    return measured.with_printed(config, "table2", folder, configurations).rows


def test_ours_stand_beside_the_papers(config, write, tmp_path):
    write("levit_256", "cpu-fused-fp32-b32", [1.0, 1.3])
    dense, evo = shown(config, tmp_path, ["fused-fp32"])
    assert dense == ["LeViT-256", "224", "3357", "", "32", "100.0", "", ""]
    assert evo == ["Evo-LeViT-256", "224", "4277", "1.27", "32", "130.0",
                   "**1.30** (1.29-1.31)", "1.28 / 1.27"]  # fmt: skip


def test_doubts_and_running_out_of_memory_are_said(config, write, tmp_path):
    write("levit_256", "cpu-fused-fp32-b32", [1.0, 1.3], warnings=[{"code": "throttled", "text": "heat"}])
    assert shown(config, tmp_path, ["fused-fp32"])[1][5] == "130.0 ?"
    write("levit_256", "cpu-fused-fp32-b32", [1.0, 1.3], out_of_memory=True)
    assert shown(config, tmp_path, ["fused-fp32"])[1][4:6] == ["32", "out of memory"]


def test_one_point_of_two_batch_sizes_must_be_named(config, write, tmp_path):
    for size in (8, 32):
        write("levit_256", f"cpu-fused-fp32-b{size}", [1.0, 1.3])
    with pytest.raises(records.RecordError, match="both fused-fp32: name one"):
        shown(config, tmp_path, ["fused-fp32"])
    assert shown(config, tmp_path, ["fused-fp32-b8"])[1][4] == "8"


def test_a_sweep_has_a_row_for_each_batch_size(config, write, tmp_path):
    write("levit_256", "cpu-fused-fp32-b1", [1.0, 0.9], latency_ms={"p50": 10.04, "p99": 20.0})
    write("levit_256", "cpu-fused-fp32-b32", [1.0, 1.3])
    one, many = (records.read(tmp_path / f"throughput/levit_256/cpu-fused-fp32-b{size}.json") for size in (1, 32))
    path = tmp_path / "throughput/levit_256/cpu-fused-fp32-sweep.json"
    sizes = [{"batch_size": 1, **one["results"]}, {"batch_size": 32, **many["results"]}]
    sizes[1]["suspect"] = ["it drifted"]  # of older code
    records.write_json(path, records.make(one["spec"], {"sizes": sizes}, 0.0))
    assert measured.sweeps(tmp_path) == [path]
    assert measured.over_batches(path).rows == [
        ["evo_levit_256", "1", "100.0", "90.0", "**0.90** (1.29-1.31)", "1.28 / 1.27",
         "10.0 / 20.0", "10.0 / 20.0"],
        ["evo_levit_256", "32", "100.0 ?", "130.0 ?", "**1.30** (1.29-1.31)", "1.28 / 1.27",
         "", ""],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (["--configurations", "fused-fp23"], "has no record at fused-fp23; did you mean 'fused-fp32"),
        ([], "has no sweep; name the configurations to show, such as --configurations fused-fp32"),
    ],
)
def test_points_that_are_not_there_are_said(write, tmp_path, monkeypatch, capsys, asked, message):
    write("levit_256", "cpu-fused-fp32-b32", [1.0, 1.3])
    monkeypatch.setattr(sys, "argv", ["paper", "compare", str(tmp_path), *asked])
    with pytest.raises(SystemExit) as ended:
        __main__.main()
    assert message in str(ended.value) + capsys.readouterr().err


def test_a_folder_without_records_is_no_table(tmp_path):
    with pytest.raises(records.RecordError, match="has no throughput/<group>"):
        measured.legend(tmp_path)
