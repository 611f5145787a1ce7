"""Tables: measured beside printed, never one for the other."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import timm

import evovit  # noqa: F401 (registers its models)
from tests.paper.ledger import compile_table
from workflow.campaign import benchmarks, kinds, specs, targets
from workflow.paper import __main__, printed, results, sheet, tables
from workflow.paper.results import Accuracy, Records, interval
from workflow.storage import records
from workflow.storage.records import RecordError

ROOT = "results/demo"
TABLES = ("table1", "table2", "table3", "table4", "tableS1")
ISSUE_COLUMNS = (
    "method backbone resolution top1 top1_sd top1_low top1_high best_top1 top1_paper top1_delta top1_gain "
    "top1_gain_low top1_gain_high paired_seeds top1_gain_paper throughput throughput_paper speedup_pct "
    "speedup_pct_low speedup_pct_high ceiling_macs_pct ceiling_roofline_pct speedup_pct_paper "
    "speedup_delta macs_g params_m batch_size precision "
    "mode device seeds epochs epoch_time source flags run"
)
NUMBERS = {"macs_g": 1.0, "params_m": 5.0, "resolution": 224, "weights": "random"}
NUMBERS |= {"speedup": 1.5, "speedup_interval": [1.4, 1.6], "warnings": []}
NUMBERS |= {"ceilings": {"macs": 1.55, "roofline": 1.6}, "out_of_memory": False}


@pytest.fixture
def demo(tmp_path, monkeypatch, config):
    """A function that writes the demo's records of these runs into an empty tree."""
    monkeypatch.chdir(tmp_path)
    root = "results/demo"

    def write(*names: str) -> None:
        for name in names:
            spec = specs.train_spec(config, "demo", name)
            results = {"top1": 96.123456, "val_images": 599}
            records.write_json(f"{root}/runs/{name}/train.json", records.make(spec, results, 0.0))

    return write


ALL = ("deit_tiny", "ps_deit_tiny", "ps_deit_tiny-published", "dynamic_deit_tiny", "svite_deit_tiny",
       "ia_red2_deit_tiny", "evo_deit_tiny")  # fmt: skip


def compiled(config, partial=False) -> pd.DataFrame:
    return compile_table("table1", Records(config, "results/demo", partial))


def markdown(table: str, reader: Records) -> str:
    """Return a table as people read it."""
    rows = tables.rows_of(table, reader)
    frame = tables.frame_of(table, rows, reader.config).round(3)
    return tables.sheet_of(table, rows, frame, reader.config).markdown()


def row(frame, backbone, method, resolution=224):
    match = (frame["backbone"] == backbone) & (frame["method"] == method)
    return frame[match & (frame["resolution"] == resolution)].iloc[0]


def test_columns_and_rows_are_those_of_the_paper(config, demo):
    demo(*ALL)
    frame = compiled(config, partial=True)
    assert " ".join(frame.columns) == ISSUE_COLUMNS
    assert len(frame) == 22
    methods = list(frame[frame["backbone"] == "DeiT-T"]["method"])
    # as items.yaml has them, whether they are printed or not
    assert methods == ["Baseline", "PS-ViT", "PS-ViT (published)", "DynamicViT", "SViTE", "Evo-ViT", "IA-RED2"]
    assert frame[frame["top1_paper"].notna()].shape[0] == 20  # printed; two rows of DeiT-T are ours


def test_what_was_not_measured_carries_the_printed_numbers_and_nothing_else(config, demo):
    demo(*ALL)
    measured = [c for c in ISSUE_COLUMNS.split() if not c.endswith("_paper")]
    measured = set(measured) - {"method", "backbone", "resolution", "source", "flags"}
    frame = compiled(config, partial=True)
    for backbone, name in (("DeiT-S", "PS-ViT"), ("DeiT-B", "IA-RED2")):
        quoted = row(frame, backbone, name)
        assert quoted["source"] == "paper"
        assert quoted[sorted(measured)].isna().all()
    evo = row(frame, "DeiT-T", "Evo-ViT")
    assert (evo["top1_paper"], evo["throughput_paper"]) == (72.0, 4027)
    assert evo["speedup_pct_paper"] == pytest.approx(58.8, abs=0.05)


def test_the_printed_percentages_that_do_not_follow_are_flagged(config, demo):
    frame = compiled(config, partial=True)
    flagged = frame[frame["flags"].notna()]
    assert [tuple(r) for r in flagged[["backbone", "method", "resolution"]].to_numpy()] == [
        ("DeiT-S", "PS-ViT", 224),
        ("DeiT-B", "IA-RED2", 224),
        ("DeiT-B", "IA-RED2", 384),
    ]


def test_steps_that_were_left_out_are_flagged(config, demo):
    demo(*ALL)
    path = "results/demo/runs/evo_deit_tiny/train.json"
    record = records.read(path)
    record["results"]["deviations"] = [{"update": 7, "time": 0.0, "text": "left out"}]
    records.write_json(path, record)
    flags = compiled(config, partial=True).set_index(["backbone", "method", "resolution"])["flags"]
    assert flags["DeiT-T", "Evo-ViT", 224] == "1 training steps left out, their loss not finite"


class TestWithThroughput:
    @pytest.fixture(autouse=True)
    def _written(self, demo, config):
        self.demo, self.config = demo, config
        demo(*ALL)
        configuration = benchmarks.throughput_configuration(config, "demo", "deit_tiny")
        spec = benchmarks.throughput_spec(config, "demo", "deit_tiny", configuration)
        rates = (100.0, 120.0, 160.0, 150.0, 140.0, 130.0, 152.5)
        methods = [{"run": name, "images_per_s": rate, **NUMBERS} for name, rate in zip(ALL, rates, strict=True)]
        record = records.make(spec, {"device": "a CPU", "methods": methods, "warnings": []}, 0.0)
        self.path = benchmarks.throughput_path("results/demo", "deit_tiny", configuration)
        records.write_json(self.path, record)

    def test_percentages_are_those_of_the_speed_ups_within_rounds(self):
        evo = row(compiled(self.config), "DeiT-T", "Evo-ViT")
        ends = evo[["speedup_pct", "speedup_pct_low", "speedup_pct_high"]].tolist()
        assert ends == pytest.approx([50, 40, 60])
        assert evo["device"] == "a CPU"
        assert evo["ceiling_macs_pct"] == pytest.approx(55)
        assert evo["ceiling_roofline_pct"] == pytest.approx(60)
        assert pd.isna(evo["top1_delta"])  # digits are not ImageNet
        assert pd.isna(row(compiled(self.config), "DeiT-T", "Baseline")["speedup_pct"])

    def test_the_source_says_which_model_each_number_is_of(self):
        source = row(compiled(self.config), "DeiT-T", "Evo-ViT")["source"]
        assert "top1: a reduced model at" in source
        assert "on digits, 599 validation images" in source
        assert "throughput, macs_g, params_m: the paper's model at full size" in source

    def test_macs_that_vary_are_a_mean_and_trained_weights_are_named(self):
        spread = {"mean_g": 1.0, "sd_g": 0.0312, "images": 256}
        self.change("ia_red2_deit_tiny", weights="trained", macs_per_image=spread)
        source = row(compiled(self.config), "DeiT-T", "IA-RED2")["source"]
        assert "the paper's model at full size, trained weights, 224 px" in source
        assert "macs_g: mean of 256 images, sd 0.031" in source

    def change(self, run: str | None, **values) -> None:
        """Write the measurement anew, with other values of a method or of the whole."""
        record = records.read(self.path)
        results = record["results"]
        changed = results if run is None else next(m for m in results["methods"] if m["run"] == run)
        changed.update(values)
        records.write_json(self.path, record)

    def test_warnings_of_a_measurement_are_flagged(self):
        self.change("evo_deit_tiny", warnings=[{"code": "wide_interval", "text": "speed-up 1.50: 1.40 to 1.60"}])
        self.change(None, warnings=[{"code": "throttled", "text": "throttled (heat) in 20 % of the time"}])
        frame = compiled(self.config)
        assert row(frame, "DeiT-T", "Evo-ViT")["flags"] == (
            "warning: speed-up 1.50: 1.40 to 1.60, throttled (heat) in 20 % of the time"
        )
        assert row(frame, "DeiT-T", "Baseline")["flags"] == "warning: throttled (heat) in 20 % of the time"

    def test_sentences_of_older_records_are_warnings_too(self):
        self.change("evo_deit_tiny", suspect=["speed-up 1.50 is unsure: 1.40 to 1.60"])
        flags = row(compiled(self.config), "DeiT-T", "Evo-ViT")["flags"]
        assert flags == "warning: speed-up 1.50 is unsure: 1.40 to 1.60"

    def test_out_of_memory_is_a_result(self):
        self.change("evo_deit_tiny", out_of_memory=True)
        evo = row(compiled(self.config), "DeiT-T", "Evo-ViT")
        assert evo["flags"] == "out of memory"
        assert pd.isna(evo["throughput"])
        assert pd.isna(evo["speedup_pct"])

    def test_a_record_of_an_old_spec_is_refused_and_partial_leaves_it_out(self):
        path = "results/demo/runs/evo_deit_tiny/train.json"
        record = records.read(path)
        spec = record["spec"] | {"seed": 7}
        records.write_json(path, record | {"spec": spec, "spec_hash": specs.spec_hash(spec)})
        with pytest.raises(RecordError, match="now says"):
            compiled(self.config)
        assert pd.isna(row(compiled(self.config, partial=True), "DeiT-T", "Evo-ViT")["top1"])

    def test_a_missing_record_is_refused(self):
        Path(self.path).unlink()
        with pytest.raises(RecordError, match="is missing"):
            compiled(self.config)

    def test_people_see_where_each_number_comes_from(self):
        text = markdown("table1", Records(self.config, ROOT, partial=False))
        assert "trained here: top-1 %" in text
        assert "timed here: images/s" in text
        assert "printed (V100): images/s" in text
        assert "- timed on a CPU: mode fused, fp32, batch 32" in text
        assert "| 50.0 (40 to 60) |" in text
        assert "- accuracies are of one seed where" in text
        assert "- printed: the best epoch's accuracy" in text
        assert "printed images/s have it, which come from different papers" in text
        assert ". printed 51.5 % but its img/s give 48.3 %" in text
        lines = [line for line in text.splitlines() if line.startswith("|")]
        assert len(lines) == 2 + 21
        assert len({line.count("|") for line in lines}) == 1


def test_accuracies_are_compared_with_printed_ones_on_the_same_data_only(config, trained):
    accuracies = {"deit_tiny": 72.5, "evo_deit_tiny": 71.9}
    for setting in ("imagenet", "demo"):
        trained(setting, **accuracies)
    on_imagenet = row(compile_table("table1", Records(config, "results", partial=True)), "DeiT-T", "Evo-ViT")
    assert on_imagenet["top1_delta"] == pytest.approx(71.9 - 72.0)
    assert on_imagenet["top1_gain"] == pytest.approx(71.9 - 72.5)
    on_digits = row(compile_table("table1", Records(config, ROOT, partial=True)), "DeiT-T", "Evo-ViT")
    assert pd.isna(on_digits["top1_delta"])
    assert on_digits["top1_gain"] == pytest.approx(71.9 - 72.5)  # over our own dense model
    said = "printed accuracies are on ImageNet, so none is compared"
    assert said in markdown("table1", Records(config, ROOT, partial=True))
    assert said not in markdown("table1", Records(config, "results", partial=True))


def trained_record(run: str, seconds: list[float], macs_g: float, **provenance) -> dict:
    results = {"history": [{"train_s": s} for s in seconds], "macs_g": macs_g}
    origin = {"device": "a GPU", "world_size": 8, **provenance}
    return {"spec": {"run": run}, "results": results, "provenance": origin}


def test_the_time_of_an_epoch_stands_beside_the_dense_ones_and_the_macs():
    dense, evo = trained_record("dense", [30, 30], 1.5), trained_record("evo", [26, 24], 1.0)
    assert results.describe_epoch_time([dense], [dense]) == "epochs of 30.0 s"
    text = results.describe_epoch_time([evo], [dense])
    assert text == "epochs of 25.0 s, the dense one's over this 1.20, its MACs over these 1.50"
    elsewhere = trained_record("evo", [26, 24], 1.0, device="another GPU")
    assert results.describe_epoch_time([elsewhere], [dense]) == "epochs of 25.0 s"
    given = {"spec": {}, "results": {"top1": 80.0}}
    assert results.describe_epoch_time([given], [dense]) is None
    assert results.describe_epoch_time([given, evo], [given]) == "epochs of 25.0 s"


@pytest.mark.parametrize(("top1", "mean", "spread"), [([80.0], 80.0, None), ([79.0, 80.0, 81.0], 80.0, 1.0)])
def test_seeds_give_mean_deviation_and_interval(config, top1, mean, spread):
    spec = specs.train_spec(config, "demo", "deit_tiny")
    trained = [{"spec": spec, "results": {"top1": one, "val_images": 400}} for one in top1]
    accuracy = results.accuracy(trained, config)
    assert (accuracy.top1, accuracy.sd, accuracy.seeds) == (mean, spread, len(top1))
    assert (accuracy.low, accuracy.high) == interval(top1, 400)


def test_of_seeds_of_which_one_is_given_it_is_said(config):
    spec = specs.train_spec(config, "demo", "deit_tiny")
    given = spec | {"kind": "evaluate", "checkpoint": {"file": "weights/mine.pth"}}
    trained = [{"spec": one, "results": {"top1": 80.0, "val_images": 9}} for one in (given, spec)]
    (source,) = results.accuracy(trained, config).sources
    of_one = results.describe_training(trained[1], config)
    assert source == f"top1: {results.describe_training(trained[0], config)}; {of_one}"
    assert "with the weights of mine.pth" in source


def test_seeds_are_a_count_and_people_read_it_where_it_is_more_than_one(config, demo):
    demo("deit_tiny")
    frame = compiled(config, partial=True)
    assert row(frame, "DeiT-T", "Baseline")["seeds"] == 1
    assert str(frame["seeds"].dtype) == "Int64"
    shown = row(frame, "DeiT-T", "Baseline")
    assert tables.accuracy_cell(shown) == "96.12"
    several = pd.Series({**shown, "seeds": 3, "top1_sd": 0.5})
    assert tables.accuracy_cell(several) == "96.12 (n=3, sd 0.50)"


def test_an_error_of_the_command_is_one_sentence():
    command = [sys.executable, "-m", "workflow.paper", "make", "results/none/table1.csv"]
    root = records.ROOT
    shown = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert shown.returncode == 1
    assert "no setting has `results: results/none`" in shown.stderr
    assert "Traceback" not in shown.stderr


def test_people_read_where_numbers_come_from_once():
    """How long an epoch took differs from row to row, and is a column of its own."""
    rows = [
        tables.Row(("DeiT-T",), accuracy=Accuracy(sources=("top1: digits",)), epoch_time=f"epochs of {seconds} s")
        for seconds in (4.8, 5.1)
    ]
    assert {row.source for row in rows} == {"measured (top1: digits)"}
    assert tables.remarks(rows)[0] == "measured (top1: digits)"
    assert len(tables.remarks(rows)) == 2


# -- on a terminal --------------------------------------------------------------------------

LONG_SPEED = results.Speed(
    throughput=12345.6, speedup_pct=63.4, speedup_pct_low=60.0, speedup_pct_high=67.0, ceiling_macs_pct=80.1,
    ceiling_roofline_pct=70.2, macs_g=17.5, params_m=86.5, resolution=384, batch_size=256, precision="fp32",
    mode="paper", device="an accelerator with a long name", sources=("throughput: the paper's model at full size",),
    flags=("profile=assumed",),
)  # fmt: skip
LONG_ACCURACY = Accuracy(81.2345, 0.123, 81.0, 81.5, 81.3, 3, 50000, "imagenet", ("top1: the paper's model",))
LONG_GAIN = results.Change(-1.234, -2.345, -0.123, 3, 50000)
LONG_STEP = results.TrainingStep(fits=False, bytes=133 * 2**30, sources=("memory: counted",))


@pytest.mark.parametrize("table", [*TABLES, "methods"])
def test_every_table_fits_into_a_terminal(table, config, shown_on_a_terminal):
    lines, known = printed.read(config, table), printed.names(config, table)
    step = LONG_STEP if table == "tableS1" else results.NOT_STEPPED
    seeds = 1 if table == "tableS1" else 3  # it has most columns
    accuracy = replace(LONG_ACCURACY, seeds=seeds)
    rows = []
    for entry in config.items["tables"][table]:
        key = tuple(entry[name] for name in known)
        row = tables.Row(key, entry["run"], lines.get(key), accuracy=accuracy, speed=LONG_SPEED, step=step)
        rows.append(replace(row, gain=LONG_GAIN))
    shown = shown_on_a_terminal(table, tables.frame_of(table, rows, config))
    assert max(map(len, shown)) <= sheet.WIDTH
    text = "\n".join(shown)
    assert text.count("*") == len(rows) + 1  # all have a flag; what the mark means is said once
    assert text.count("81.23") == text.count("63.4 (60 to 67)") == text.count("80.1 / 70.2") == len(rows)
    assert ("out of" in text) == (table == "tableS1")
    assert "- timed on an accelerator with a long name: mode paper, fp32, batch 256" in text
    assert "left out" not in text
    assert f"All rows and columns: results/demo/{table}.csv (.md, .html)" in shown


def test_a_terminal_shows_what_was_measured(config, demo, shown_on_a_terminal):
    demo("deit_tiny", "evo_deit_tiny")
    shown = shown_on_a_terminal("table1", compiled(config, partial=True))
    start = next(number for number, line in enumerate(shown) if line.startswith("Baseline"))
    assert [line.split() for line in shown[start : start + 3]] == [
        ["Baseline", "DeiT-T", "224", "96.12", "-"],
        ["Evo-ViT", "DeiT-T", "224", "96.12", "58.8"],  # printed
        [],
    ]
    assert "on digits, 599 validation images" in "\n".join(shown)
    assert "- rows without a measured number are left out: 18" in shown
    assert not any("DeiT-S" in line or "22.8" in line for line in shown)


def test_a_terminal_shows_nothing_of_a_table_that_was_not_measured(config, empty, shown_on_a_terminal):
    shown = shown_on_a_terminal("table1", compile_table("table1", empty))
    assert "- rows without a measured number are left out: 20" in shown
    assert not any("DeiT" in line for line in shown)


@pytest.mark.parametrize(
    ("path", "said"),
    [("results/demo/tabel1.csv", "did you mean 'table1'"), ("results/demo/table2.csv", "was not made yet")],
)
def test_a_table_that_is_not_there_is_refused_in_one_sentence(path, said, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["paper", "print", path])
    with pytest.raises(SystemExit, match=f"^ERROR: {path}.*{said}"):
        __main__.main()


# -- every table ----------------------------------------------------------------------------


@pytest.fixture
def empty(tmp_path, monkeypatch, config) -> Records:
    monkeypatch.chdir(tmp_path)
    return Records(config, ROOT, partial=True)


@pytest.mark.parametrize("table", TABLES)
def test_without_records_every_printed_row_stands_and_nothing_else(table, empty):
    frame = compile_table(table, empty)
    assert len(frame) == len(printed.read(empty.config, table))
    assert set(frame["source"]) == {"paper"}
    assert frame[["top1", "throughput", "macs_g"]].isna().to_numpy().all()
    assert "Nothing of it was measured" in markdown(table, empty)


@pytest.mark.parametrize(("table", "before"), [("table3", "baseline"), ("table4", None)])
def test_the_matched_control_stands_before_what_it_is_compared_with(table, before, demo, empty):
    demo("deit_tiny-matched")
    frame = compile_table(table, empty)
    assert len(frame) == 1 + len(printed.read(empty.config, table))
    place = list(frame["strategy"]).index("baseline (matched)")
    assert list(frame["strategy"])[:place] == ([before] if before else [])
    control = frame.iloc[place]
    assert control["top1"] == pytest.approx(96.123456)
    assert control[["top1_paper", "throughput_paper", "speedup_pct_paper"]].isna().all()


def test_every_row_that_is_printed_with_numbers_can_be_measured(config):
    assert set(config.items["tables"]) >= set(TABLES)
    for table in TABLES:
        names = printed.names(config, table)
        ours = {tuple(row[name] for name in names) for row in config.items["tables"][table]}
        lines = printed.read(config, table)
        assert {key for key, line in lines.items() if "throughput" in line} <= ours


def test_printed_speed_ups_are_over_the_model_that_a_row_is_timed_with(empty):
    """Table 4 prints no dense row; Table 3 does, 2536 images/s."""
    table4 = compile_table("table4", empty).set_index("strategy")["speedup_pct_paper"]
    assert table4["last class attention"] == pytest.approx(100 * (1694 / 2536 - 1))
    table2 = compile_table("table2", empty).set_index(["model", "resolution"])
    evo = table2.loc["Evo-LeViT-256", 384]
    assert evo["speedup_pct_paper"] == pytest.approx(100 * (1285 / 906 - 1))
    assert evo["top1_gain_paper"] == pytest.approx(81.1 - 81.8)
    assert pd.isna(table2.loc["LeViT-256", 384]["speedup_pct_paper"])
    table1 = compile_table("table1", empty).set_index(["backbone", "method", "resolution"])
    slip = table1.loc["DeiT-B", "IA-RED2", 224]  # 42.9 is printed
    assert slip["speedup_pct_paper"] == pytest.approx(100 * (453 / 299 - 1))


def test_accuracies_that_the_paper_quotes_are_marked(empty):
    flags = compile_table("table2", empty).set_index("model")["flags"]
    assert set(flags[flags == tables.QUOTED].index) == {
        "PVTv2-B1", "PVTv2-B2", "PVTv2-B3", "CoaT-Lite Tiny", "CoaT-Lite Small", "PiT-Ti", "PiT-S",
        "PiT-B", "Swin-T",
    }  # fmt: skip


def test_evo_levits_have_the_printed_parameters(config):
    """As workflow.rst says: without the heads of training; 128 has 0.1 M more."""
    known = printed.by_run(config)
    for run in (row["run"] for row in config.items["tables"]["table2"]):
        if run.startswith("evo_levit"):
            model_spec = specs.model_of(config, run)
            model = timm.create_model(model_spec["name"], **model_spec["kwargs"])
            assert parameters_m(model) == pytest.approx(known[run]["params_m"], abs=0.075), run


def parameters_m(module) -> float:
    return sum(p.numel() for p in module.parameters()) / 1e6


def cost(config, section: str, bytes_at: dict[str, dict[int, int]]) -> None:
    """The demo's record of training steps: bytes by run and batch size, on the line beyond 4."""
    configuration = benchmarks.training_cost_configuration(config, "demo")
    spec = benchmarks.training_cost_spec(config, "demo", section, configuration)
    limit = spec["memory_gib"] * 2**30
    methods = [
        {"run": run, "sizes": [],
         "extrapolated": [{"batch_size": size, "bytes": needed, "over_limit": needed > limit}
                          for size, needed in sizes.items()]}
        for run, sizes in bytes_at.items()
    ]  # fmt: skip
    results = {"device": "a CPU", "bytes_are": "counted", "methods": methods}
    path = f"{ROOT}/training/{section}/{benchmarks.training_cost_name(configuration)}.json"
    records.write_json(path, records.make(spec, results, 0.0))


def test_the_supplements_table_says_what_ran_out_of_memory(config, empty):
    gib = 2**30
    sizes = {"deit_small_384": {64: 17 * gib, 128: 33 * gib},
             "evo_deit_small_384": {64: 11 * gib, 128: 21 * gib}}  # fmt: skip
    cost(config, "deit_small_384", sizes)
    frame = compile_table("tableS1", empty).set_index(["backbone", "method", "batch_size"])
    memory = frame.loc["DeiT-S"][["out_of_memory", "out_of_memory_paper", "memory_gib"]]
    assert list(memory.loc["Baseline", 128]) == [True, True, 33]
    assert list(memory.loc["Baseline", 64]) == [False, False, 17]
    assert list(memory.loc["Evo-ViT", 128]) == [False, False, 21]
    assert "on the line through batches of 2, 4" in frame.loc["DeiT-S", "Evo-ViT", 128]["source"]
    assert pd.isna(frame.loc["DeiT-B", "Baseline", 64]["out_of_memory"])
    assert "out of memory, 33.0 GiB" in markdown("tableS1", empty)


def test_an_accuracy_stands_where_the_batch_fits(config, empty):
    """The model is trained once, with batches that fit."""
    sizes = {"deit_small_384": {64: 17 * 2**30, 128: 33 * 2**30}, "evo_deit_small_384": {}}
    cost(config, "deit_small_384", sizes)
    spec = specs.train_spec(config, "demo", "deit_small_384")
    record = records.make(spec, {"top1": 90.0, "val_images": 599}, 0.0)
    records.write_json(f"{ROOT}/runs/deit_small_384/train.json", record)
    frame = compile_table("tableS1", empty).set_index(["backbone", "method", "batch_size"])
    fits, full = (frame.loc["DeiT-S", "Baseline", size] for size in (64, 128))
    assert (fits["top1"], fits["seeds"]) == (90.0, 1)
    assert full[["top1", "top1_low", "seeds"]].isna().all()
    assert "top1" not in full["source"]


@pytest.mark.parametrize("setting", ["imagenet", "demo"])
@pytest.mark.parametrize("table", TABLES)
def test_a_table_asks_for_all_records_that_it_reads(table, setting, config, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    root, read = config.settings[setting]["results"], set()
    reader = Records(config, root, partial=False)

    def note(record: kinds.Record) -> dict | None:
        read.add(record.path)
        trained = {"top1": 90.0, "val_images": 100}
        return records.make(record.spec, trained, 0.0) if record.path.endswith("train.json") else None

    monkeypatch.setattr(reader, "_read", note)
    compile_table(table, reader)
    assert read == set(targets.item_records(config, root, table))
