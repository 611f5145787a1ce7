"""What MLflow shows of searches and evaluations, described without MLflow."""

import pytest

from workflow import records, runs
from workflow.journal import Journal
from workflow.login.mirror_sources import Results


@pytest.fixture
def described(tmp_path, config):
    """A function: what is shown of one finished attempt below a root."""

    def describe(folder: str, spec: dict, results: dict, *events: dict):
        attempt = tmp_path / "results/demo/runs" / folder / "attempts" / "1"
        runs.write_spec(attempt / "spec.json", spec)
        journal = Journal(attempt / "journal.jsonl")
        for event in events:
            journal.write(**event)
        records.write_json(attempt / "record.json", records.make(spec, results, 0.0))
        (attempt.parent.parent / f"{spec['kind']}.log").touch()
        found = Results(tmp_path)
        (source,) = found.attempts()
        return found.describe(source)

    return describe


def test_a_search_shows_patches_and_error_of_each_layer(described, config):
    spec = runs.search_spec(config, "demo", "ps_deit_tiny")
    events = [
        {"event": "layer", "layer": layer, "layers": 3, "metrics": {"patches": n, "error": e}}
        for layer, n, e in ((2, 4, 0.25), (1, 9, 0.125))
    ]
    results = {"counts": [9, 4, 0], "macs_g": 0.5, "images": 12}
    content = described("ps_deit_tiny/search", spec, results, *events, events[0])
    assert content.name == "ps_deit_tiny/search"
    assert content.status == "FINISHED"
    assert content.tags["table"] == "1"
    assert content.tags["method"] == "PS-ViT"
    assert content.params["recipe.task_args.epsilon"] == "0.01"
    assert content.params["start.run"] == "deit_tiny"
    points = {(point.key, point.step): point.value for point in content.points}
    assert points["patches", 2] == 4
    assert points["error", 1] == 0.125
    assert points["kept.layer_1", 0] == 9
    assert points["macs_g", 0] == 0.5
    assert len(content.points) == len(points)  # the layer that stands twice is sent once
    assert {path.name for path in content.artifacts} == {"spec.json", "record.json", "search.log"}


def test_an_evaluation_is_a_run_of_its_name(described, config):
    checkpoint = {"file": "deit.pth", "sha256": "0" * 64}
    spec = runs.evaluate_spec(config, "demo", "deit_tiny", checkpoint)
    content = described("deit_tiny", spec, {"top1": 72.25, "top5": 91.0, "val_loss": 1.5})
    assert content.name == "deit_tiny"
    assert content.tags["kind"] == "evaluate"
    assert content.params["checkpoint.file"] == "deit.pth"
    points = {point.key: point.value for point in content.points}
    assert points["final_top1"] == 72.25
