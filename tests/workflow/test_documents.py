"""What README and its companions tell a user to type, and where they point, exists."""

import copy
import importlib.util
import inspect
import re
import shlex
from pathlib import Path

import pytest
import timm
import torch
import yaml

import baselines  # noqa: F401 (registers its models)
import evovit  # noqa: F401 (registers its models)
from baselines.dynamicvit import DynamicViTTask
from baselines.evit import EViTTask
from baselines.iared2 import IARED2Task
from baselines.levit import HardDistillationTask
from baselines.psvit import TopDownSearch
from baselines.svite import SViTETask
from evovit.task import AssistedDistillationTask, AssistedTokenTask
from workflow.campaign import targets
from workflow.storage import records

DOCUMENTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/gpu/README.md", "docs/any-vit.md",
             "docs/cluster.md", "docs/concepts.md", "docs/paper.md", "docs/switches.md", "docs/throughput.md",
             "docs/training.md", "docs/your-data.md")  # fmt: skip
NAMED = {"README.md": 5, "docs/paper.md": 15}  # the least number of targets
VALUED = {"--profile", "--report", "--set-resources"}  # options whose values are no targets
MODELS = ("evo_deit_tiny_patch16_224", "evo_levit_128s", "dynamic_deit_tiny_patch16_224",
          "svite_deit_tiny_patch16_224", "ia_red2_deit_tiny_patch16_224",
          "ps_deit_tiny_patch16_224", "pooled_deit_tiny_patch16_224", "evit_deit_tiny_patch16_224",
          "tome_deit_tiny_patch16_224", "topk_deit_tiny_patch16_224", "random_deit_tiny_patch16_224",
          "ats_deit_tiny_patch16_224", "dpcknn_deit_tiny_patch16_224")  # fmt: skip
TASKS = (AssistedTokenTask, AssistedDistillationTask, DynamicViTTask, EViTTask, SViTETask, IARED2Task,
         HardDistillationTask, TopDownSearch)  # fmt: skip
HANDED = {"self", "model", "args", "kwargs", "teacher", "images", "seed"}  # not by a user
SIZES = {"img_size", "in_chans", "num_classes", "embed_dim", "key_dim", "depth", "num_heads",
         "attn_ratio", "mlp_ratio", "act_layer", "global_pool", "drop_rate", "drop_path_rate",
         "device", "dtype"}  # fmt: skip  # timm's


def text_of(name: str) -> str:
    return (records.ROOT / name).read_text()


def commands(text: str) -> list[str]:
    """Indented lines and code within sentences that call a program."""
    lines = re.findall(r"^    (\S.*)$", text, re.MULTILINE) + re.findall(r"`([^`\n]+)`", text)
    return [line for line in lines if line.startswith(("snakemake ", "python -m "))]


def targets_of(command: str) -> list[str]:
    """The targets of a call of snakemake, also those of --forcerun."""
    words, found = iter(shlex.split(command, comments=True)[1:]), []
    for word in words:
        if word in VALUED:
            next(words)
        elif not word.startswith("-") and not re.match(r"\w+:\w+=", word):
            found.append(word)
    return found


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_target_that_is_named_can_be_made(document, uncommented):
    config = copy.deepcopy(uncommented)
    config.classes["mydata"] = 10  # of images that are not there
    named = [
        (command, target)
        for command in commands(text_of(document)) if command.startswith("snakemake ")
        for target in targets_of(command) if "..." not in target and "<" not in target
    ]  # fmt: skip
    assert len(named) >= NAMED.get(document, 0)
    for command, target in named:
        try:
            targets.spec_of(config, target)
        except targets.TargetError as error:
            pytest.fail(f"{command}: {error}")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_module_that_is_named_is_there(document):
    for module in re.findall(r"python -m ([\w.]+)", text_of(document)):
        assert importlib.util.find_spec(module), module


def anchors(text: str) -> set[str]:
    """As GitHub makes them of headings."""
    heads = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_link_leads_somewhere(document):
    text = text_of(document)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith("http"):
            continue
        path, _, anchor = link.partition("#")
        place = (records.ROOT / document).parent / path
        assert place.exists(), link
        if anchor:
            assert anchor in anchors(place.read_text() if path else text), link


def test_every_page_is_in_the_navigation_of_the_site():
    navigation = text_of("mkdocs.yml").partition("\nnav:\n")[2]
    patterns = ("*.md", "docs/**/*.md", "benchmarks/**/*.md", "results/measured/*/*.md")
    pages = [page for pattern in patterns for page in records.ROOT.glob(pattern)]
    assert [page for page in pages if f": {page.relative_to(records.ROOT)}\n" not in navigation] == []


def python_blocks(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_python_that_is_shown_compiles(document):
    for code in python_blocks(text_of(document)):
        compile(code, document, "exec")


@pytest.mark.parametrize("document", ["README.md", "docs/any-vit.md"])
def test_what_is_shown_of_any_vit_runs(document, monkeypatch):
    """With a small random model instead of the pretrained one, whose name must be timm's."""
    create_model = timm.create_model

    def create_small_model(name: str, pretrained: bool) -> torch.nn.Module:
        assert timm.models.get_pretrained_cfg(name)
        return create_model(name, img_size=32, patch_size=8, embed_dim=24, num_heads=2)

    monkeypatch.setattr(timm, "create_model", create_small_model)
    blocks = python_blocks(text_of(document))
    assert blocks
    shown: dict = {}
    for code in blocks:
        exec(code, shown)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(shown["dense"](images), shown["model"](images))
    assert not torch.equal(shown["fast"](images), shown["model"](images))


def keywords(function) -> set[str]:
    return set(inspect.signature(function).parameters) - HANDED - SIZES


def test_every_switch_is_documented():
    text = text_of("docs/switches.md")
    wanted = set()
    for name in MODELS:
        cls = type(timm.create_model(name))
        wanted |= keywords(cls.__init__) | keywords(getattr(cls, "configure", cls.__init__))
    for task in TASKS:
        wanted |= keywords(task.__init__)
    shapes = yaml.safe_load((Path(records.ROOT) / "workflow/config/schema.yaml").read_text())
    for block in ("throughput", "training_cost"):
        wanted |= set(shapes["$defs"][block]["properties"])
    assert [name for name in sorted(wanted) if f"`{name}`" not in text] == []
