"""Kinds of images and folders through snakemake: what is counted, what is read, what is refused."""

import copy
import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import copy_project
from tests.integration.project import edit, leave_out_mlflow, snakemake
from workflow.storage import records

pytestmark = pytest.mark.integration
DEMO = ("--profile", "demo")
CLASSES = ("A", "a", "1", "01")
RUN = "runs/deit_tiny/train.json"


def make_images(root: Path, count: int = 8) -> None:
    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        for place, label in enumerate(CLASSES):
            folder = root / split / label
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = generator.integers(0, 40, (8, 8, 3), dtype=np.uint8) + 50 * place
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index}.png")


def unread_suffix(root):
    Image.new("RGB", (8, 8)).save(root / "val/a/x.gif")


def folder_in_a_class(root):
    (root / "train/a/.ipynb_checkpoints").mkdir()


def sixteen_bits(root):
    Image.fromarray(np.full((8, 8), 5000, np.uint16)).save(root / "val/A/x.png")


def too_many_pixels(root):
    Image.new("1", (20_000, 9_000)).save(root / "val/A/x.png")


def not_utf8(root):
    os.rename(os.fsencode(root / "val/A/0.png"), os.fsencode(root / "val/A") + b"/\xff.png")


def flat_tar(root):
    with tarfile.open(root / "flat.tar", "w") as tar:
        for path in (root / "val/A").iterdir():
            tar.add(path, path.name)


REFUSED = {  # a setting of its own for each: one start looks through all
    unread_suffix: "val/a/x.gif is not read as an image",
    folder_in_a_class: "train/a/.ipynb_checkpoints is a folder inside a class folder",
    sixteen_bits: "val/A/x.png: its mode I;16 has values",
    too_many_pixels: "val/A/x.png: Image size (180000000 pixels) exceeds limit",
    not_utf8: r"val/A/\xff.png has a name that is not UTF-8; rename it",
    flat_tar: "flat.tar is flat: its 2 images are in no class folders",
}
AT_ONCE = {  # what the login node sees ends snakemake before any job
    "train/.hidden": lambda path: path.mkdir(),
    "val/x.png": lambda path: path.touch(),
    "val/link": lambda path: path.symlink_to("link"),
}


def settings_for(root: Path, names) -> None:
    """A setting of the demo's size for each folder below images/."""

    def change(settings: dict) -> None:
        demo = settings["demo"]
        for name in names:
            made = settings[name] = copy.deepcopy(demo)
            made["results"] = f"results/{name}"
            made["data"] = {
                "name": "made", "root": f"$IMAGES/{name}", "train": "train", "val": "val",
                "num_classes": len(CLASSES), "workers": 0,
            }  # fmt: skip
            made["shrink"]["deit"].update(img_size=16, embed_dim=24)
            made["recipe"].update(epochs=2, warmup_epochs=1, batch_size=8)
            if name == "flat_tar":
                made["data"]["val"] = "flat.tar"

    edit(root, "settings", change)


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("kinds")
    copy_project(root)
    leave_out_mlflow(root)
    names = ["good", *(change.__name__ for change in REFUSED)]
    for name in names:
        make_images(root / "images" / name, 8 if name == "good" else 2)
    for change in REFUSED:
        change(root / "images" / change.__name__)
    settings_for(root, names)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IMAGES", str(root / "images"))
        yield root


def test_what_is_not_used_is_refused_by_its_path(project):
    targets = [f"results/{change.__name__}/data.json" for change in REFUSED]
    said = snakemake(project, *DEMO, "--keep-going", *targets, code=1)
    for change, sentence in REFUSED.items():
        assert sentence in said, change.__name__
        assert not (project / f"results/{change.__name__}/data.json").exists()
    assert "Traceback" not in said


def test_what_lies_beside_the_classes_ends_snakemake_at_once(project):
    for name, make in AT_ONCE.items():
        path = project / "images/good" / name
        make(path)
        said = snakemake(project, *DEMO, "results/good/data.json", code=1)
        assert f"images/good/{name} " in said
        path.rmdir() if name.endswith("hidden") else path.unlink()


def test_check_training_and_evaluation_read_the_same(project, monkeypatch):
    """Links, case-colliding names, a .webp and a file manager's file; then another class list.

    Training and evaluation have different hash seeds, which may change nothing.
    """
    root = project / "images/good"
    (root / "train/.DS_Store").touch()
    Image.new("RGB", (8, 8)).save(root / "val/01/x.webp")
    shutil.move(root / "train/a", project / "images/elsewhere")
    (root / "train/a").symlink_to(project / "images/elsewhere")
    monkeypatch.setenv("PYTHONHASHSEED", "1")
    snakemake(project, f"results/good/{RUN}", *DEMO)
    data = records.read(project / "results/good/data.json")["results"]
    assert data["classes"] == ["01", "1", "A", "a"]
    assert {split: found["images"] for split, found in data["splits"].items()} == {
        "train": 32,
        "val": 33,
    }
    record = records.read(project / "results/good" / RUN)
    assert record["results"]["val_images"] == 33
    assert record["provenance"]["classes"] == data["classes"]
    assert record["provenance"]["manifest"] == data["hash"]

    path = project / "results/good/runs/deit_tiny/attempts/1/weights.pt"
    given = {"run": "deit_tiny", "checkpoint": {"file": str(path), "sha256": records.sha256(path)}}
    evaluations = {"before": given, "again": given}
    edit(project, "settings", lambda c: c["good"].update(evaluations=evaluations))
    monkeypatch.setenv("PYTHONHASHSEED", "2")
    snakemake(project, "results/good/evaluations/before.json", *DEMO)
    evaluated = records.read(project / "results/good/evaluations/before.json")
    assert evaluated["results"]["top1"] == record["results"]["top1"]
    assert evaluated["results"]["val_images"] == 33
    assert evaluated["provenance"]["classes"] == data["classes"]

    for split in ("train", "val"):
        (root / split / "A").rename(root / split / "b")
    target = "results/good/evaluations/again.json"
    said = snakemake(project, target, *DEMO, code=1)
    assert "has changed since" in said
    assert "class 2 was 'A' then and is 'a' now" in said
    (project / "results/good/data.json").unlink()
    said = snakemake(project, target, *DEMO, code=1)
    assert "weights.pt (settings.yaml, good.evaluations.again) were trained with other" in said
    said = snakemake(project, "results/good/runs/dynamic_deit_tiny/train.json", *DEMO, code=1)
    assert "runs/deit_tiny/train.json were trained with other classes" in said
