"""A small campaign on a handful of images, and a copy of the project: all real but the size."""

import copy
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.integration.project import edit, shorten_timings
from tests.template import with_template
from workflow.campaign import specs
from workflow.campaign.config import Config
from workflow.storage import records
from workflow.train import trainer

TRACKED = ("Snakefile", "environment.yml", "pyproject.toml", "workflow", "evovit", "baselines")


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Tiny models run fastest without splitting their work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session", autouse=True)
def compilers_cache(tmp_path_factory):
    """Inductor's files name each other by path, so the machine's must not learn of ours."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("inductor")))
        yield


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def loaded_config() -> Config:
    return Config.load()


@pytest.fixture
def config(loaded_config) -> Config:
    """The campaign's YAML, of which nothing was derived yet: a test may change a value for itself."""
    return replace(loaded_config)


@pytest.fixture(scope="session")
def uncommented(tmp_path_factory) -> Config:
    """The campaign's YAML with the template of a user's own setting in it; a test may change a copy."""
    return with_template(tmp_path_factory.mktemp("uncommented"))


@pytest.fixture
def images(tmp_path) -> Path:
    """An ImageFolder of 10 classes with 4 training and 2 validation images each."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        for label in range(10):
            folder = tmp_path / "images" / split / str(label)
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = generator.integers(0, 256, (8, 8), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    return tmp_path / "images"


@pytest.fixture
def site(tmp_path, images) -> dict:
    return {"root": str(tmp_path / "demo"), "data_root": str(images), "workers": 0, "device": "cpu"}


@pytest.fixture
def with_needed(tiny_spec, site):
    """A function: the spec, once the runs that it starts or learns from are trained."""

    def make(spec: dict) -> dict:
        for role in specs.ROLES:
            if role in spec:
                needed = with_needed_of(spec[role]["run"])
                spec[role] = specs.reference(needed)
        return spec

    def with_needed_of(run: str) -> dict:
        needed, folder = tiny_spec(run, epochs=1), Path(site["root"]) / "runs" / run
        if not (folder / "train.json").exists():
            record = trainer.run(needed, site, folder / "attempts" / "1")
            records.write_json(folder / "train.json", record)
        return needed

    return make


@pytest.fixture
def tiny_spec(config):
    """A function: the demo's spec of a run, shrunk to seconds."""

    small = {
        "deit": {"img_size": 16, "embed_dim": 24},
        "levit": {"embed_dim": [16, 24, 32], "num_heads": [1, 2, 2], "key_dim": 8},
    }

    def make(run: str, epochs: int = 2, **recipe) -> dict:
        spec = copy.deepcopy(specs.train_spec(config, "demo", run))
        families = [config.runs[spec["row"]]["family"]]
        families += [config.settings["demo"]["models"].get(spec["row"], {}).get("family")]
        spec["model"]["kwargs"] |= small[families[-1] or families[0]]
        spec["recipe"] |= {"epochs": epochs, "batch_size": 8, "warmup_epochs": 1, "threads": 1}
        spec["recipe"] |= recipe
        return spec

    return make


def copy_project(root: Path) -> None:
    """What a run of snakemake needs of the project, without results."""
    for name in TRACKED:
        source = records.ROOT / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, root / name)
    shutil.copytree(records.ROOT / "results/paper", root / "results/paper")
    for name in ("demo", "slurm"):
        (root / name).symlink_to(f"workflow/profiles/{name}")


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """A copy of the project whose demo takes seconds: two epochs, one small thing timed."""
    root = tmp_path_factory.mktemp("tree")
    copy_project(root)
    edit(root, "settings", lambda c: c["demo"]["recipe"].update(epochs=2, warmup_epochs=1))
    edit(root, "settings", lambda c: c["demo"]["recipes"]["dynamicvit"].update(epochs=2))
    edit(root, "settings", lambda c: c["demo"]["recipes"]["ia_red2"].update(epochs=2))
    edit(root, "settings", lambda c: c["demo"]["recipes"]["psvit"].update(epochs=2))
    edit(root, "settings", lambda c: c["demo"]["recipes"]["psvit_loose"].update(epochs=2))
    edit(root, "settings", lambda c: c["demo"]["throughput"].update(batch_size=1, rounds=5))
    edit(root, "settings", lambda c: c["demo"]["shrink"]["deit"].update(img_size=16))
    shorten_timings(root)
    return root
