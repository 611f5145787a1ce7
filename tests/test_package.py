"""What `pip install .` gives: evovit and baselines as a library, and nothing of the workflow."""

import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest

import evovit

ROOT = Path(__file__).parent.parent
LIBRARY = ("evovit", "baselines")
THREE_LINES = """
import timm, evovit, baselines
model = timm.create_model(
    "deit_tiny_patch16_224", pretrained=False, img_size=32, patch_size=8, embed_dim=24, num_heads=2
).eval()
fast = evovit.from_timm(model, keep_ratio=0.7)
merging = baselines.from_timm(model, "tome", r=2)
dense = evovit.to_dense(fast)
assert type(dense) is type(model)
print(evovit.__file__, baselines.__file__, sep="\\n")
"""
TOOLS = ("pip", "setuptools")
pytestmark = [
    pytest.mark.integration,  # pip takes seconds
    pytest.mark.skipif(not all(map(importlib.util.find_spec, TOOLS)), reason="needs pip and setuptools"),
]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    """The wheel, built without a network from a copy of the sources, where pip leaves its files."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in (*LIBRARY, "workflow", "benchmarks", "tests"):
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__", "golden"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "Snakefile"):
        shutil.copy(ROOT / name, folder / "source")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "--wheel-dir", str(folder), str(folder / "source")], check=True)
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


@pytest.fixture(scope="module")
def metadata(wheel) -> Message:
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    return Parser().parsestr(wheel.read(name).decode())


def test_it_holds_the_models_with_their_types_and_nothing_else(wheel):
    sources = {str(path.relative_to(ROOT)) for name in LIBRARY for path in (ROOT / name).rglob("*.py")}
    held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert held == sources | {f"{name}/py.typed" for name in LIBRARY}


def test_it_requires_torch_and_timm_only(metadata):
    """What the workflow needs is an extra, and the developers' tools build on that."""
    required = metadata.get_all("Requires-Dist")
    assert [line for line in required if "extra ==" not in line] == ["torch>=2.7", "timm>=1.0.31"]
    assert metadata.get_all("Provides-Extra") == ["workflow", "dev"]
    assert 'evovit-bench[workflow]; extra == "dev"' in required


def test_its_version_is_that_of_the_package(metadata):
    assert metadata["Version"] == evovit.__version__


def test_it_works_in_another_folder(wheel, tmp_path):
    """README's three lines and the command line, with the files of the wheel."""
    wheel.extractall(tmp_path / "installed")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()

    def python(*arguments: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(tmp_path / "installed")}
        command = [sys.executable, *arguments]
        return subprocess.run(
            command, cwd=elsewhere, env=environment, check=True, capture_output=True, text=True
        ).stdout

    assert all(path.startswith(str(tmp_path / "installed")) for path in python("-c", THREE_LINES).splitlines())
    assert python("-m", "evovit", "--help").startswith("usage: python -m evovit ")
