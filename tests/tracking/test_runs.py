"""What MLflow shows of searches and evaluations, described without MLflow."""

from dataclasses import replace
from pathlib import Path

import pytest

from workflow.campaign import benchmarks, specs
from workflow.storage import records
from workflow.storage.journal import Journal
from workflow.tracking import runs, sync


@pytest.fixture
def described(tmp_path, config):
    """A function: what is shown of one finished attempt below a root."""

    def describe(folder: str, spec: dict, results: dict, *events: dict):
        attempt = tmp_path / "results/demo/runs" / folder / "attempts" / "1"
        specs.write_spec(attempt / "spec.json", spec)
        journal = Journal(attempt / "journal.jsonl")
        for event in events:
            journal.write(**event)
        records.write_json(attempt / "record.json", records.make(spec, results, 0.0))
        (attempt.parent.parent / f"{spec['kind']}.log").touch()
        disk = sync.Results(tmp_path)
        (source,) = disk.attempts()
        return disk.describe(source)

    return describe


def test_a_search_shows_patches_and_error_of_each_layer(described, config):
    spec = specs.search_spec(config, "demo", "ps_deit_tiny")
    events = [
        {"event": "layer", "layer": layer, "layers": 3, "metrics": {"patches": n, "error": e}}
        for layer, n, e in ((2, 4, 0.25), (1, 9, 0.125))
    ]
    results = {"counts": [9, 4, 0], "macs_g": 0.5, "images": 12}
    run = described("ps_deit_tiny/search", spec, results, *events, events[0])
    assert run.name == "ps_deit_tiny/search"
    assert run.status == "FINISHED"
    assert run.tags["table1"] == "yes"
    assert run.tags["method"] == "PS-ViT"
    assert run.params["recipe.task_args.epsilon"] == "0.01"
    assert run.params["start.run"] == "deit_tiny"
    points = {(metric.key, metric.step): metric.value for metric in run.metrics}
    assert points["patches", 2] == 4
    assert points["error", 1] == 0.125
    assert points["kept.layer_1", 0] == 9
    assert points["macs_g", 0] == 0.5
    assert len(run.metrics) == len(points)  # the layer that was written twice is sent once
    assert {path.name for path in run.artifacts} == {"spec.json", "record.json", "search.log"}


def test_an_evaluation_is_a_run_of_its_name(described, config):
    checkpoint = {"file": "deit.pth", "sha256": "0" * 64}
    spec = specs.evaluate_spec(config, "demo", "deit_tiny", checkpoint)
    run = described("deit_tiny", spec, {"top1": 72.25, "top5": 91.0, "val_loss": 1.5})
    assert run.name == "deit_tiny"
    assert run.tags["kind"] == "evaluate"
    assert run.tags.items() >= {"table1": "yes", "table3": "yes"}.items()  # it takes the place of a training
    assert run.params["checkpoint.file"] == "deit.pth"
    points = {metric.key: metric.value for metric in run.metrics}
    assert points["final_top1"] == 72.25


def test_weights_that_others_published_are_of_their_table(config):
    spec = specs.evaluation_spec(config, "imagenet", "timm_deit_tiny")
    assert runs.item_tags(config, spec) == {"published": "yes"}
    assert runs.item_tags(config, spec | {"setting": "demo"}) == {}  # which has no such table


def test_methods_off_the_shelf_show_accuracy_and_speed(described, config):
    spec = benchmarks.offtheshelf_spec(config, "demo", "deit_tiny")
    timed = {"run": "evo-0.5", "top1": 90.5, "changed": 7, "images_per_s": 20.0, "speedup": 1.5}
    refused = {"run": "topk-0.3", "refused": "too few patches"}
    methods = [{**method, "out_of_memory": False} for method in (timed, refused)]
    run = described("../offtheshelf/deit_tiny", spec, {"methods": methods, "val_images": 599})
    assert run.name == "offtheshelf/deit_tiny"
    assert run.tags["offtheshelf"] == "yes"
    assert "table1" not in run.tags
    points = {metric.key: metric.value for metric in run.metrics}
    assert points["top1.evo-0.5"] == 90.5
    assert points["changed.evo-0.5"] == 7
    assert points["speedup_pct.evo-0.5"] == 50.0
    assert "top1.topk-0.3" not in points
    assert "--forcerun results/demo/offtheshelf/deit_tiny.json" in run.tags[runs.NOTE]


def test_dense_prediction_shows_right_patches_and_macs(described, config):
    spec = specs.dense_prediction_spec(config, "demo", "deit_tiny")
    tested = {"run": "evo", "right": [3, 4], "macs_g": 0.5, "refused": None}
    refused = {"run": "topk", "macs_g": None, "refused": "no strength has these MACs"}
    results = {"methods": [tested, refused], "val_images": 6, "scenes": 2, "patches": 4}
    run = described("../dense_prediction/deit_tiny", spec, results)
    assert run.tags["dense"] == "yes"
    points = {metric.key: metric.value for metric in run.metrics}
    assert points["patches_right_pct.evo"] == 87.5
    assert points["macs_g.evo"] == 0.5
    assert "patches_right_pct.topk" not in points
    assert "macs_g.topk" not in points


def test_a_runs_page_says_what_how_where_how_long_and_how_to_make_it_again(described, config):
    spec = specs.train_spec(config, "demo", "dynamic_deit_tiny")
    note = described("dynamic_deit_tiny", spec, {"top1": 95.5, "val_images": 599}).tags[runs.NOTE]
    for messages in (
        "**Training** in the setting `demo`",
        "`dynamic_deit_tiny_patch16_224` (embed_dim=48, img_size=24",
        "data: digits, 10 classes", "recipe: `dynamicvit` (epochs 8", "starts from `deit_tiny`",
        "result: top-1 95.50 % on 599 images", "- device: ", "- how long: ",
        "    snakemake results/demo/runs/dynamic_deit_tiny/train.json --profile demo --forcerun "
        "results/demo/runs/dynamic_deit_tiny/train.json",
    ):  # fmt: skip
        assert messages in note


def test_a_page_says_by_which_method_a_host_is_reduced(uncommented):
    config = replace(uncommented)
    config.classes["mydata"] = 3  # of images that are not there
    spec = specs.train_spec(config, "mydata", "host-tome")
    note = runs.page(config, "mydata", Path("results/mydata/runs/host-tome"), spec, None)
    assert "- model: `vit_tiny_patch16_224.augreg_in21k_ft_in1k` (drop_path_rate=0.1, num_classes=3)" in note
    assert "- reduced by: `tome` (r=13)" in note
    assert "- starts from `host`" in note


def test_the_command_names_the_record_of_every_kind_of_job(config):
    for folder, record in (
        ("results/runs/a", "results/runs/a/train.json"),
        ("results/runs/a/search", "results/runs/a/search.json"),
        ("results/throughput/a/cpu-x.5", "results/throughput/a/cpu-x.5.json"),
    ):
        command = runs.command(config, "imagenet", Path(folder))
        assert command == f"snakemake {record} --profile slurm --forcerun {record}"


def test_figures_and_claims_are_shown_beside_tables(tmp_path, config):
    folder = tmp_path / "results/demo"
    folder.mkdir(parents=True)
    for name in ("table1.csv", "table1.md", "table1.partial.md", "claims.csv", "claims.html",
                 "pareto.png", "pareto.svg", "pareto.csv", "odd.png"):  # fmt: skip
        (folder / name).write_text("a,b\n1,2\n")
    disk = sync.Results(tmp_path)
    shown = {run.name: run for run in map(disk.describe, disk.items())}
    assert {name: run.tags["kind"] for name, run in shown.items()} == {
        "table1": "table", "claims": "claims", "pareto": "figure",
    }  # fmt: skip
    files = {name: [path.name for path in run.artifacts] for name, run in shown.items()}
    assert files == {"table1": ["table1.csv", "table1.md"], "claims": ["claims.csv", "claims.html"],
                     "pareto": ["pareto.png", "pareto.svg", "pareto.csv"]}  # fmt: skip
    assert shown["table1"].tags["table1"] == "yes"
    note = shown["pareto"].tags[runs.NOTE]
    assert "`snakemake --profile demo results/demo/pareto.png`" in note
    assert "Trained for it: deit_tiny, " in note


def test_a_run_without_a_record_shows_the_code_of_its_last_start(tmp_path, config):
    attempt = tmp_path / "results/demo/runs/deit_tiny/attempts/1"
    specs.write_spec(attempt / "spec.json", specs.train_spec(config, "demo", "deit_tiny"))
    log = Journal(attempt / "journal.jsonl")
    known = {"commit": "a" * 40, "dirty": False, "reason": None}
    unknown = {"commit": None, "dirty": None, "reason": "git is not installed where it ran"}
    for code in (known, unknown):
        log.write("start", epochs=20, epoch=0, step=0, code=code)
    disk = sync.Results(tmp_path)
    (source,) = disk.attempts()
    tags = disk.describe(source).tags
    assert (tags["commit"], tags["dirty"]) == ("unknown", "unknown")
    assert tags["commit_reason"] == unknown["reason"]


def test_mlflows_own_columns_say_command_user_and_commit(described, config):
    spec = specs.train_spec(config, "demo", "deit_tiny")
    run = described("deit_tiny", spec, {"top1": 95.5, "weights": {"path": "attempts/1/weights.pt", "sha256": "ab"}})
    made_by = run.tags["mlflow.source.name"]
    assert made_by.startswith("snakemake results/demo/runs/deit_tiny/train.json --profile demo")
    assert run.tags["mlflow.user"] == Path(__file__).owner()
    assert run.tags["weights"] == "results/demo/runs/deit_tiny/attempts/1/weights.pt"
    assert run.tags["weights_sha256"] == "ab"


def test_a_run_names_the_images_that_it_used(config):
    record = {"kind": "train", "spec": specs.train_spec(config, "demo", "deit_tiny"), "provenance": {"manifest": "d3"}}
    assert runs.datasets_of(record) == [
        runs.Dataset("digits", "d3", "train", "training"),
        runs.Dataset("digits", "d3", "val", "validation"),
    ]
    assert runs.datasets_of(record | {"kind": "evaluate"}) == [runs.Dataset("digits", "d3", "val", "validation")]
    assert runs.datasets_of(record | {"provenance": {}}) == []
