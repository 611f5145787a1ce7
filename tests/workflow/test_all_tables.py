"""Tables 2 to 4 and the supplement's, and what holds of all of them."""

import pandas as pd
import pytest
import timm

import evovit  # noqa: F401 (registers its models)
from workflow.campaign import benchmarks, specs, targets
from workflow.paper import printed, readable, tables
from workflow.paper.columns import Records
from workflow.storage import records

ROOT = "results/demo"


@pytest.fixture
def empty(tmp_path, monkeypatch, config) -> Records:
    monkeypatch.chdir(tmp_path)
    return Records(config, ROOT, partial=True)


@pytest.mark.parametrize("table", printed.NAMES)
def test_without_records_every_printed_row_stands_and_nothing_else(table, empty):
    frame = tables.make(table, empty)
    assert len(frame) == len(printed.read(table))
    assert set(frame["source"]) == {"paper"}
    assert frame[["top1", "throughput", "macs_g"]].isna().to_numpy().all()
    assert "Nothing of it was measured" in readable.of_table(frame, printed.NAMES[table]).markdown()


def test_every_row_that_is_printed_with_numbers_can_be_measured(config):
    for table, names in printed.NAMES.items():
        ours = {printed.key(table, row) for row in config.items["tables"][table]}
        lines = printed.read(table).dropna(subset=["throughput"]).to_dict("records")
        assert {tuple(line[name] for name in names) for line in lines} <= ours


def test_printed_speed_ups_are_over_the_model_that_a_row_is_timed_with(empty):
    """Table 4 prints no dense row; Table 3 does, 2536 images/s."""
    table4 = tables.make("table4", empty).set_index("strategy")["speedup_pct_paper"]
    assert table4["last class attention"] == pytest.approx(100 * (1694 / 2536 - 1))
    table2 = tables.make("table2", empty).set_index(["model", "resolution"])
    evo = table2.loc["Evo-LeViT-256", 384]
    assert evo["speedup_pct_paper"] == pytest.approx(100 * (1285 / 906 - 1))
    assert evo["top1_gain_paper"] == pytest.approx(81.1 - 81.8)
    assert pd.isna(table2.loc["LeViT-256", 384]["speedup_pct_paper"])
    table1 = tables.make("table1", empty).set_index(["backbone", "method", "resolution"])
    slip = table1.loc["DeiT-B", "IA-RED2", 224]  # 42.9 is printed
    assert slip["speedup_pct_paper"] == pytest.approx(100 * (453 / 299 - 1))


def test_accuracies_that_the_paper_quotes_are_marked(empty):
    flags = tables.make("table2", empty).set_index("model")["flags"]
    assert set(flags[flags == tables.QUOTED].index) == {
        "PVTv2-B1", "PVTv2-B2", "PVTv2-B3", "CoaT-Lite Tiny", "CoaT-Lite Small", "PiT-Ti", "PiT-S",
        "PiT-B", "Swin-T",
    }  # fmt: skip


def test_evo_levits_have_the_printed_parameters(config):
    """As workflow.rst says: without the heads of training; 128 has 0.1 M more."""
    known = printed.by_run(config)
    for run in (row["run"] for row in config.items["tables"]["table2"]):
        if run.startswith("evo_levit"):
            wanted = specs.model_of(config, run)
            model = timm.create_model(wanted["name"], **wanted["kwargs"])
            assert parameters_m(model) == pytest.approx(known[run]["params_m"], abs=0.075), run


def parameters_m(module) -> float:
    return sum(p.numel() for p in module.parameters()) / 1e6


def cost(config, section: str, bytes_at: dict[str, dict[int, int]]) -> None:
    """The demo's record of training steps: bytes by run and batch size, on the line beyond 4."""
    point = benchmarks.training_cost_configuration(config, "demo")
    spec = benchmarks.training_cost_spec(config, "demo", section, point)
    limit = spec["memory_gib"] * 2**30
    methods = [
        {"run": run, "sizes": [],
         "extrapolated": [{"batch_size": size, "bytes": needed, "over_limit": needed > limit}
                          for size, needed in sizes.items()]}
        for run, sizes in bytes_at.items()
    ]  # fmt: skip
    results = {"device": "a CPU", "bytes_are": "counted", "methods": methods}
    path = benchmarks.training_cost_path(ROOT, section, point)
    records.write_json(path, records.make(spec, results, 0.0))


def test_the_supplements_table_says_what_ran_out_of_memory(config, empty):
    gib = 2**30
    sizes = {"deit_small_384": {64: 17 * gib, 128: 33 * gib},
             "evo_deit_small_384": {64: 11 * gib, 128: 21 * gib}}  # fmt: skip
    cost(config, "deit_small_384", sizes)
    frame = tables.make("tableS1", empty).set_index(["backbone", "method", "batch_size"])
    found = frame.loc["DeiT-S"][["out_of_memory", "out_of_memory_paper", "memory_gib"]]
    assert list(found.loc["Baseline", 128]) == [True, True, 33]
    assert list(found.loc["Baseline", 64]) == [False, False, 17]
    assert list(found.loc["Evo-ViT", 128]) == [False, False, 21]
    assert "on the line through batches of 2, 4" in frame.loc["DeiT-S", "Evo-ViT", 128]["source"]
    assert pd.isna(frame.loc["DeiT-B", "Baseline", 64]["out_of_memory"])
    text = readable.of_table(frame.reset_index(), printed.NAMES["tableS1"]).markdown()
    assert "out of memory, 33.0 GiB" in text


def test_an_accuracy_stands_where_the_batch_fits(config, empty):
    """The model is trained once, with batches that fit."""
    sizes = {"deit_small_384": {64: 17 * 2**30, 128: 33 * 2**30}, "evo_deit_small_384": {}}
    cost(config, "deit_small_384", sizes)
    spec = specs.train_spec(config, "demo", "deit_small_384")
    record = records.make(spec, {"top1": 90.0, "val_images": 599}, 0.0)
    records.write_json(f"{ROOT}/runs/deit_small_384/train.json", record)
    frame = tables.make("tableS1", empty).set_index(["backbone", "method", "batch_size"])
    fits, full = (frame.loc["DeiT-S", "Baseline", size] for size in (64, 128))
    assert (fits["top1"], fits["seeds"]) == (90.0, 1)
    assert full[["top1", "top1_low", "seeds"]].isna().all()
    assert "top1" not in full["source"]


@pytest.mark.parametrize("setting", ["imagenet", "demo"])
@pytest.mark.parametrize("table", printed.NAMES)
def test_a_table_asks_for_all_records_that_it_reads(table, setting, config, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    root, read = config.settings[setting]["results"], set()
    found = Records(config, root, partial=False)

    def note(path: str, spec: dict) -> dict | None:
        read.add(str(path))
        trained = {"top1": 90.0, "val_images": 100}
        return records.make(spec, trained, 0.0) if path.endswith("train.json") else None

    monkeypatch.setattr(found, "_read", note)
    tables.make(table, found)
    assert read == set(targets.item_records(config, root, table))
