"""Sweeps: a point changes one thing and is trained once; figures say mean and spread."""

import dataclasses

import pytest

import workflow.paper
from workflow.campaign import benchmarks, specs, targets
from workflow.campaign.config import ConfigError, run_name
from workflow.paper import __main__, figure6, results, sweeps
from workflow.paper.results import Records, interval
from workflow.storage import records
from workflow.storage.records import RecordError
from workflow.storage.warnings import Warning

REFERENCE = "deit_tiny-fast_updating"
PARAMETERS = {  # what a figure changes, and its value where the paper's own stands
    "figureS1a": ("keep_ratio", 0.5),
    "figureS1b": ("start_block", 4),
    "figureS1c": ("alpha", 0.5),
    "figureS1d": ("select_from", 0.0),
}


def choices(config, run: str) -> dict:
    """All that a row's spec says beside its name, in one level."""
    spec = specs.train_spec(config, "imagenet", run)
    task_args = spec["recipe"].pop("task_args", {})
    model = {"model": spec["model"]["name"], **spec["model"]["kwargs"]}
    return {**model, **spec["recipe"], **task_args, "seed": spec["seed"], "data": spec["data"]}


@pytest.mark.parametrize("figure", PARAMETERS)
def test_a_point_differs_from_the_papers_own_in_one_parameter(figure, config):
    parameter, chosen = PARAMETERS[figure]
    reference = choices(config, REFERENCE)
    assert parameter not in reference  # its default: the paper's
    for row in config.rows(figure):
        if isinstance(row["x"], str) or row["run"] == REFERENCE:
            continue
        point = choices(config, row["run"])
        value = point.pop(parameter)
        assert point == reference
        shift = {"start_block": 1, "select_from": 0}.get(parameter, 0)
        scale = 300 if parameter == "select_from" else 1
        assert value * scale + shift == pytest.approx(row["x"], abs=1e-3)
        assert str(row["x"]) in row["run"]
        assert value != chosen


def test_the_papers_own_point_is_one_run_in_all_of_them(config):
    for figure in PARAMETERS:
        content = config.items["figures"][figure]
        (row,) = [row for row in content["rows"] if row["x"] == content["chosen"]]
        assert row["run"] == REFERENCE
    wanted = {
        path for figure in PARAMETERS
        for path in targets.item_records(config, "results", figure) if path.endswith("train.json")
    }  # fmt: skip
    needed_specs = [targets.spec_of(config, path) for path in sorted(wanted)]
    alike = {str({k: v for k, v in one.items() if k not in ("run", "row")}) for one in needed_specs}
    assert len(alike) == len(needed_specs)  # nothing is trained twice


@pytest.mark.parametrize("patches", [196, 64, 36])  # ImageNet's, CIFAR-10's and the digits'
def test_architectures_have_as_many_placeholders_in_all(patches, config):
    sums = set()
    for row in config.rows("figure6"):
        kept = specs.model_of(config, row["run"])["kwargs"]["keep_ratio"]
        assert kept[:4] == [1, 1, 1, 1]
        sums.add(sum(patches - int(patches * ratio) for ratio in kept))
    assert sums == {8 * patches // 2}


@pytest.fixture
def demo(tmp_path, monkeypatch, config):
    """A function that writes a figure's records of the demo: seeds reach 90, 92 and 94 %."""
    monkeypatch.chdir(tmp_path)

    def write(figure: str) -> Records:
        if figure == "figureS1a":
            monkeypatch.setitem(config.settings["demo"]["measure"][figure], "seeds", 3)
        requested, spread = config.request("demo", figure), [90.0, 92.0, 94.0]
        for row in config.rows(figure):
            names = [run_name(row["run"], seed) for seed in config.seeds(row["run"])]
            for name, value in zip(names[: requested["seeds"]], spread, strict=False):
                spec = specs.train_spec(config, "demo", name)
                results = {"top1": value, "val_images": 599}
                record = records.make(spec, results, 0.0)
                records.write_json(f"results/demo/runs/{name}/train.json", record)
        for group in requested["time"]:
            configuration = benchmarks.throughput_configuration(config, "demo", group)
            spec = benchmarks.throughput_spec(config, "demo", group, configuration)
            methods = [
                {"run": model["run"], "images_per_s": 100.0 + i, "speedup": 1 + i / 100,
                 "speedup_interval": [1 + i / 200, 1 + i / 50], "macs_g": 1.0, "params_m": 5.0,
                 "resolution": 224, "weights": "random",
                 "ceilings": {}, "warnings": [], "out_of_memory": False}
                for i, model in enumerate(spec["models"])
            ]  # fmt: skip
            results = {"device": "a CPU", "methods": methods, "warnings": []}
            path = benchmarks.throughput_path("results/demo", group, configuration)
            records.write_json(path, records.make(spec, results, 0.0))
        return Records(config, "results/demo", partial=False)

    return write


def test_a_frame_has_mean_and_spread_over_the_seeds(demo):
    frame = sweeps.frame_of(sweeps.rows_of("figureS1a", demo("figureS1a"))).set_index("run")
    point = frame.loc["deit_tiny-keep0.9"]
    assert (point["top1"], point["top1_sd"], point["seeds"]) == (92.0, 2.0, 3)
    ends = point["top1_low"], point["top1_high"]
    assert ends == pytest.approx(interval([90.0, 92.0, 94.0], 599))
    assert (point["throughput"], point["top1_paper"]) == (107.0, 72.4)
    assert point["speedup_pct"] == pytest.approx(7)
    assert frame.loc["deit_tiny", "x"] == "dense"
    assert frame.index[frame["chosen"]].tolist() == [REFERENCE]
    printed = ["top1_paper", "throughput_paper", "source_paper"]
    assert frame.loc[REFERENCE, printed].tolist() == [72.0, 3610, "Table 3"]
    assert frame.loc["deit_tiny", printed].tolist() == [72.2, 2536, "Table 1"]
    assert point["source_paper"] == "the text on Fig. 1a"
    assert frame["source"].dropna().str.contains("on digits").all()
    assert frame.index[frame["source"].isna()].tolist() == ["evo_deit_tiny-keep1"]  # which the demo does not train here


def test_one_seed_is_as_sure_as_its_test_set_and_what_was_not_timed_has_no_speed(demo):
    frame = sweeps.frame_of(sweeps.rows_of("figureS1c", demo("figureS1c")))
    assert frame[["top1_sd", "throughput"]].isna().all(axis=None)
    trained = frame["x"].isin([0, 0.5, 0.9])  # the demo leaves out the values between
    assert frame["top1"].notna().tolist() == trained.tolist()
    frame = frame[trained]
    assert frame["top1"].eq(90).all()
    assert set(zip(frame["top1_low"], frame["top1_high"], strict=True)) == {interval([90.0], 599)}


def test_a_title_says_which_model_it_is_of_and_how_sure(demo, monkeypatch):
    reader = demo("figureS1a")
    rows = sweeps.rows_of("figureS1a", reader)
    assert sweeps.title(rows, reader) == (
        "DeiT-T, a reduced model at 24 px, width 48, trained on digits\n95 % intervals; seeds: 3; 599 validation images"
    )
    monkeypatch.setitem(reader.config.settings["demo"], "shrink", {})
    nothing = [dataclasses.replace(row, accuracy=results.NOT_TRAINED) for row in rows]
    assert sweeps.title(nothing, reader) == "DeiT-T trained on digits"


def test_what_speeds_were_timed_on_stands_above_them(demo):
    reader = demo("figureS1a")
    figure, _ = sweeps.draw("figureS1a", reader)
    assert figure.axes[1].get_title("left") == "a CPU, fused, fp32, batch 32"
    speeds = [row.speed for row in sweeps.rows_of("figureS1a", reader)]
    speeds[0] = dataclasses.replace(speeds[0], warnings=(Warning("throttled", "heat"),))
    remark = f"1 of {len(speeds) - 1} speeds with warnings"  # the control is not timed
    assert results.describe_timing(speeds) == ("a CPU, fused, fp32, batch 32", remark)
    assert results.describe_timing([results.NOT_TIMED]) == ("", "")


def test_a_figure_says_in_a_line_where_its_differences_may_be_chance(demo):
    figure, _ = sweeps.draw("figureS1c", demo("figureS1c"))
    (line,) = [text.get_text() for text in figure.axes[0].texts]
    assert line == "differences are within the intervals (1 seed, 599 images)"
    figure, _ = sweeps.draw("figureS1a", demo("figureS1a"))
    (line,) = [text.get_text() for text in figure.axes[0].texts]
    assert line == "differences are within the intervals (3 seeds, 599 images)"
    assert not figure.axes[1].texts


def test_one_seed_s_intervals_do_not_hold_chance_in_training():
    low = results.Accuracy(top1=90.0, low=89.0, high=91.0, seeds=1, val_images=599)
    high = dataclasses.replace(low, top1=95.0, low=94.0, high=96.0)
    assert results.describe_doubt([low, high]) == results.ONE_SEED
    assert results.describe_doubt([dataclasses.replace(one, seeds=3) for one in (low, high)]) == ""
    assert results.describe_doubt([low, results.NOT_TRAINED]) == ""
    assert results.describe_doubt([low, dataclasses.replace(high, low=90.9)]).startswith("differences are within")


def test_a_speed_up_has_its_interval(demo):
    figure, frame = sweeps.draw("figureS1a", demo("figureS1a"))
    (bars,) = figure.axes[1].containers
    (segments,) = bars.lines[2]
    heights = [sorted(segment[:, 1]) for segment in segments.get_segments()]
    points = frame[frame["x"] != "dense"].dropna(subset="speedup_pct").sort_values("x")  # the control is not timed
    expected = points[["speedup_pct_low", "speedup_pct_high"]].to_numpy().tolist()
    assert heights == [pytest.approx(ends) for ends in expected]


def test_a_missing_point_is_refused(demo, tmp_path):
    reader = demo("figure6")
    (tmp_path / "results/demo/runs/deit_small-keep_growing/train.json").unlink()
    with pytest.raises(RecordError, match=r"deit_small-keep_growing/train\.json is missing"):
        figure6.figure6(reader)


def test_printed_accuracies_are_drawn_beside_imagenets_alone(demo, config, monkeypatch):
    reader = demo("figureS1a")
    assert "printed" not in legend(__main__.function_of(config, "figureS1a")(reader))
    monkeypatch.setitem(config.settings["demo"]["data"], "name", "imagenet")
    config.records.clear()  # specs were derived before
    figure, _ = sweeps.draw("figureS1c", demo("figureS1c"))
    assert "printed" in legend((figure, None))


def legend(drawn) -> list[str]:
    (one,) = drawn[0].legends
    return [text.get_text() for text in one.get_texts()]


def test_every_figure_has_a_caption_a_target_and_a_function(config):
    assert set(config.items["figures"]) <= set(config.items["captions"])
    assert set(config.items["titles"]) == {*config.items["figures"], *config.tables}
    for name in config.items["figures"]:
        assert callable(__main__.function_of(config, name))
        for suffix in ("png", "svg", "csv"):
            assert targets.spec_of(config, f"results/demo/{name}.{suffix}") is None


def test_a_figure_needs_its_entry_and_one_function(config, monkeypatch, tmp_path):
    code = "def figure9(records):\n    return records.setting\n"
    (tmp_path / "figure9.py").write_text(code)
    monkeypatch.setattr(workflow.paper, "__path__", [*workflow.paper.__path__, str(tmp_path)])
    monkeypatch.setitem(config.items["figures"], "figure9", {"analyses": ["cka"]})
    assert __main__.function_of(config, "figure9")(Records(config, "results/demo", partial=False)) == "demo"
    assert targets.spec_of(config, "results/demo/figure9.png") is None
    assert "results/demo/analyses/cka.json" in targets.needed(config, "results/demo/figure9.png")
    assert "Analysed for it: deit_tiny" in targets.caption(config, "results/demo", "results/demo/figure9.png")


def test_a_figure_that_nothing_draws_is_refused(config, monkeypatch):
    monkeypatch.setitem(config.items["figures"], "figure7b", {"rows": []})
    with pytest.raises(ConfigError, match=r"write a function figure7b\(records\) in workflow/paper/figure7.py"):
        __main__.function_of(config, "figure7b")
    monkeypatch.setitem(config.items["figures"], "figure7b", {"rows": [], "xlabel": "temperature"})
    assert callable(__main__.function_of(config, "figure7b"))


def test_a_table_needs_the_seeds_it_asks_for_and_no_others(config):
    for table in config.items["tables"]:
        needed = targets.item_records(config, "results/demo", table)
        assert not [path for path in needed if "-s1/" in path or "-s2/" in path]
    needed = targets.item_records(config, "results/cifar10", "methods")  # with more of some rows
    assert "results/cifar10/runs/tome_deit_tiny-s2/train.json" in needed
    assert "results/cifar10/runs/ats_deit_tiny-s1/train.json" not in needed
    assert "results/demo/runs/deit_tiny/train.json" in targets.item_records(
        config, "results/demo", "table4"
    )  # which its rows are compared with
