"""Mistakes in the YAML: one sentence with file, key and the nearest valid name."""

import shutil

import pytest
import yaml

from workflow.campaign import schema
from workflow.campaign.config import FILES, ConfigError, read_yaml


@pytest.fixture
def files(tmp_path):
    """Copies of the configuration, and a function that edits one of them."""
    copies = {name: tmp_path / path.name for name, path in FILES.items()}
    for name, path in FILES.items():
        shutil.copy(path, copies[name])

    def edit(name, change):
        content = yaml.safe_load(copies[name].read_text())
        change(content)
        copies[name].write_text(yaml.safe_dump(content, sort_keys=False))
        return copies

    return edit


def test_the_tree_as_it_is_passes():
    assert schema.load().runs


CASES = {
    "unknown key": (
        "runs",
        lambda c: c["deit_tiny"].update(famly="deit"),
        r"runs.yaml: deit_tiny has an unknown key 'famly'; did you mean 'family'\?",
    ),
    "old keyword of a model": (
        "runs",
        lambda c: c["deit_tiny-alpha0"]["kwargs"].update(tradeoff=0.5),
        r"runs.yaml: deit_tiny-alpha0.kwargs.tradeoff is called alpha now; rename it",
    ),
    "old keyword of DynamicViT": (
        "runs",
        lambda c: c["dynamic_deit_tiny"].update(kwargs={"prune_blocks": [3, 6]}),
        r"runs.yaml: dynamic_deit_tiny.kwargs.prune_blocks is called reduction_blocks now; rename it",
    ),
    "old keyword of a task": (
        "settings",
        lambda c: c["demo"]["recipe"].update(task_args={"learn_tradeoff_from": 0.5}),
        r"settings.yaml: demo.recipe.task_args.learn_tradeoff_from is called learn_alpha_from now; rename it",
    ),
    "missing key": (
        "runs",
        lambda c: c["deit_tiny"].pop("model"),
        r"runs.yaml: deit_tiny lacks the key 'model'",
    ),
    "wrong type": (
        "runs",
        lambda c: c["deit_tiny"].update(overrides={"epochs": "ten"}),
        r"runs.yaml: deit_tiny.overrides.epochs is 'ten', but must be of type integer",
    ),
    "more seeds than there are": (
        "settings",
        lambda c: c["imagenet"]["measure"]["table3"].update(seeds=5),
        r"settings.yaml: imagenet.measure.table3.seeds is 5, but its rows have 3; ask for fewer",
    ),
    "more seeds of a row than it has": (
        "settings",
        lambda c: c["cifar10"]["seeds"].update(levit_teacher=2),
        r"settings.yaml: cifar10.seeds.levit_teacher is 2, but the row has 1; ask for fewer",
    ),
    "seeds of no row": (
        "settings",
        lambda c: c["cifar10"]["seeds"].update(evo_deit_tinny=2),
        r"settings.yaml: cifar10.seeds names 'evo_deit_tinny'; did you mean 'evo_deit_tiny'",
    ),
    "unknown task": (
        "recipes",
        lambda c: c["deit"].update(task="clasification"),
        r"recipes.yaml: deit.task names 'clasification'; did you mean 'classification'\?",
    ),
    "unknown search": (
        "settings",
        lambda c: c["demo"]["recipes"]["psvit"]["search"].update(task="ps_vit_serch"),
        r"settings.yaml: demo.recipes.psvit.search.task names 'ps_vit_serch'; did you mean 'ps_vit_search'\?",
    ),
    "unknown optimizer": (
        "runs",
        lambda c: c["deit_tiny"].update(overrides={"optimizer": "lookahead_adamq"}),
        r"runs.yaml: deit_tiny.overrides.optimizer names 'adamq'; did you mean 'adam",
    ),
    "unknown model": (
        "runs",
        lambda c: c["evo_deit_tiny"].update(model="evo_deit_tny_patch16_224"),
        r"runs.yaml: evo_deit_tiny.model names 'evo_deit_tny_patch16_224'; did you mean 'evo_deit_tiny_patch16_224'\?",
    ),
    "unknown recipe": (
        "runs",
        lambda c: c["deit_tiny"].update(recipe="diet"),
        r"runs.yaml: deit_tiny.recipe names 'diet'; did you mean 'deit'\?",
    ),
    "unknown teacher": (
        "runs",
        lambda c: c["dynamic_deit_tiny"].update(teacher="deit_tny"),
        r"dynamic_deit_tiny.teacher names 'deit_tny'; did you mean 'deit_tiny'\?",
    ),
    "the claims' figure that is none": (
        "items",
        lambda c: c["claims"]["figures"].append("figureS1z"),
        r"items.yaml: claims.figures names 'figureS1z'; did you mean 'figureS1",
    ),
    "a row that is called by other keys": (
        "items",
        lambda c: c["tables"]["table1"][3].update(metod=c["tables"]["table1"][3].pop("method")),
        r"tables.table1.3 has the keys backbone, .*metod, but the first row method, .*; all rows have the same",
    ),
    "circle": (
        "runs",
        lambda c: c["deit_tiny"].update(start="dynamic_deit_tiny"),
        r"a circle",
    ),
    "a seed called like a row": (
        "runs",
        lambda c: (
            c["deit_tiny"].update(seeds=[0, 1]),
            c.update({"deit_tiny-s1": c["deit_small"]}),
        ),
        r"both called 'deit_tiny-s1'",
    ),
    "a search on nothing": (
        "runs",
        lambda c: c["ps_deit_tiny"].pop("start"),
        r"runs.yaml: ps_deit_tiny lacks the key 'start': its recipe searches on a trained model",
    ),
    "unknown option": (
        "settings",
        lambda c: c["demo"]["throughput"].update(mode="fusd"),
        r"demo.throughput.mode is 'fusd'; did you mean 'fused'\?",
    ),
    "a configuration that can't be measured": (
        "settings",
        lambda c: c["demo"]["throughput"].update(mode="paper", precision="bf16"),
        r"settings.yaml: demo.throughput: mode paper is fp32",
    ),
    "unknown section": (
        "settings",
        lambda c: c["demo"]["measure"]["table1"].update(train=["deit_tny"]),
        r"demo.measure.table1 names 'deit_tny'; did you mean 'deit_tiny'\?",
    ),
    "incomplete recipe": (
        "recipes",
        lambda c: c["deit"].pop("lr"),
        r"lacks the key 'lr'",
    ),
    "recipe circle": (
        "recipes",
        lambda c: c["deit"].update(extends="evo_deit"),
        r"a circle",
    ),
    "point without its x": (
        "items",
        lambda c: c["figures"]["figureS1a"]["rows"][1].pop("x"),
        r"items.yaml: figures.figureS1a.rows.1 lacks the key 'x'\.$",
    ),
    "choice that is no point": (
        "items",
        lambda c: c["figures"]["figureS1b"].update(chosen=12),
        r"items.yaml: figures.figureS1b.chosen is 12, which is no row's x; choose among 2, 3",
    ),
    "an analysis of no run": (
        "items",
        lambda c: c["analyses"]["cka"].update(run="deit_tin"),
        r"analyses.cka.run names 'deit_tin'; did you mean 'deit_tiny'\?",
    ),
    "an analysis of nothing": (
        "items",
        lambda c: c["analyses"]["cka"].update(computes="ckaa"),
        r"analyses.cka.computes is 'ckaa'; did you mean 'cka'\?",
    ),
    "a figure of no analysis": (
        "items",
        lambda c: c["figures"]["figure4a"].update(analyses=["cak"]),
        r"figures.figure4a.analyses names 'cak'; did you mean 'cka'\?",
    ),
    "a snapshot after the end": (
        "runs",
        lambda c: c["deit_tiny"].update(snapshots=[1.5]),
        r"runs.yaml: deit_tiny.snapshots.0: 1.5 is greater than the maximum of 1",
    ),
    "unknown host": (
        "settings",
        lambda c: c["demo"]["hosts"].update(deit_tny="trained"),
        r"settings.yaml: demo.hosts names 'deit_tny'; did you mean 'deit_tiny'\?",
    ),
    "weights of a host that are none": (
        "settings",
        lambda c: c["demo"].update(hosts={"deit_tiny": "traind"}),
        r"settings.yaml: demo.hosts.deit_tiny is 'traind'; did you mean 'trained'\?",
    ),
    "no host": (
        "settings",
        lambda c: c["demo"].pop("hosts"),
        r"settings.yaml: demo lacks the key 'hosts'",
    ),
    "unknown method off the shelf": (
        "items",
        lambda c: c["offtheshelf"].update(svite={"method": "SViTE", "keep_ratio": [0.5]}),
        r"items.yaml: offtheshelf is 'svite'; did you mean 'evit'\?",
    ),
    "scenes without an image": (
        "items",
        lambda c: c["dense_prediction"]["scenes"].update(empty=4),
        r"items.yaml: dense_prediction.scenes.empty is 4 of 4 cells, so that no image is shown; lower it",
    ),
    "a method whose strength nothing chooses": (
        "items",
        lambda c: c["dense_prediction"]["matched"].append("ats"),
        r"items.yaml: dense_prediction.matched.3 is 'ats'",
    ),
    "row without a run": (
        "items",
        lambda c: c["tables"]["table1"][0].update(run="deit_tin"),
        r"tables.table1.0.run names 'deit_tin'; did you mean 'deit_tiny'\?",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_mistake_is_named(case, files):
    name, change, sentence = CASES[case]
    with pytest.raises(ConfigError, match=sentence):
        schema.load(files(name, change))


def test_all_names_that_code_registers_are_known():
    import timm.optim
    from timm.models import _registry

    from workflow.train import factory

    assert schema.registered("tasks") == set(factory.TASKS)
    assert schema.registered("models") >= set(_registry._model_entrypoints)
    assert schema.registered("optim") >= set(timm.optim.list_optimizers())


def test_bad_syntax_names_the_file(tmp_path, files):
    copies = files("runs", lambda content: None)
    copies["runs"].write_text("a: [1, 2\n")
    with pytest.raises(ConfigError, match=r"runs.yaml is no valid YAML"):
        schema.load(copies)


def test_a_name_given_twice_is_an_error_with_its_line(tmp_path):
    path = tmp_path / "runs.yaml"
    path.write_text("a: {b: 1}\nc: 2\na: {b: 3}\n")
    with pytest.raises(ConfigError, match=r"line 3: the name 'a' is given twice"):
        read_yaml(path)
