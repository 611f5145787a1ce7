"""A user's own images and model through snakemake, as docs/your-data.md says."""

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from PIL import Image

from tests.conftest import copy_project
from tests.integration.project import edit, leave_out_mlflow, shorten_timings, snakemake
from tests.template import uncomment
from workflow.storage import records

pytestmark = pytest.mark.integration
MODEL = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 4, "num_heads": 3}
CLASSES = ("cat", "dog", "emu")
METHODS = ("evo", "tome", "ats", "dpcknn")  # one of each kind; ATS is timed with its weights
TABLES = ("results/mydata/offtheshelf.csv", "results/mydata/methods.csv")


def make_images(root: Path) -> None:
    """Write six training and three validation images of each class, fewer than a batch."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 3)):
        for place, label in enumerate(CLASSES):
            folder = root / split / label
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = generator.integers(0, 60, (40, 40, 3)) + 60 * place
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index}.png")


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("own")
    copy_project(root)
    leave_out_mlflow(root)
    shorten_timings(root)
    uncomment(root / "workflow/config/settings.yaml")
    torch.manual_seed(0)
    weights = root / "vit.pth"
    torch.save(timm.create_model(MODEL, **SMALL).state_dict(), weights)  # of 1,000 classes

    def change(settings: dict) -> None:
        own = settings["mydata"]
        sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()
        own["host"] |= {"kwargs": SMALL, "checkpoint": {"file": str(weights), "sha256": sha256}}
        own["data"]["workers"] = 0
        own["recipe"] |= {"epochs": 1, "warmup_epochs": 0, "threads": 1}
        own["throughput"] |= {"device": "cpu", "batch_size": 12}

    def fewer_methods(items: dict) -> None:
        kept = {"host", "host-continued", *(f"host-{method}" for method in METHODS)}
        items["sections"]["methods_host"] = [row for row in items["sections"]["methods_host"] if row in kept]
        rows = items["tables"]["methods"]
        items["tables"]["methods"] = [row for row in rows if row["section"] != "methods_host" or row["run"] in kept]
        items["offtheshelf"] = {method: items["offtheshelf"][method] for method in METHODS}
        for entry in items["offtheshelf"].values():
            for option in {"keep_ratio", "r"} & set(entry):
                entry[option] = entry[option][1:2]

    edit(root, "settings", change)
    edit(root, "items", fewer_methods)
    return root


def test_1_a_folder_that_is_missing_is_one_sentence(project):
    said = snakemake(project, "--profile", "demo", *TABLES, code=1)
    assert "No folder data/mydata/train" in said
    assert "expected data/mydata/{train,val}/<class>/<image>" in said
    assert "Traceback" not in said


def test_2_the_host_is_fine_tuned_and_every_method_trained_from_it(project):
    make_images(project / "data/mydata")
    snakemake(project, "--profile", "demo", *TABLES)
    methods = pd.read_csv(project / TABLES[1])
    assert list(methods["run"]) == ["host", "host-continued", *(f"host-{method}" for method in METHODS)]
    assert set(methods["backbone"]) == {MODEL}
    assert methods[["top1", "throughput", "macs_g"]].notna().all(axis=None)
    shelf = pd.read_csv(project / TABLES[0])
    assert list(shelf["method"]) == ["dense", "Evo-ViT", "ToMe", "ATS", "DPC-KNN"]
    assert shelf[["top1", "throughput"]].notna().all(axis=None)
    assert shelf["top1"][0] == pytest.approx(methods["top1"][0], abs=1e-3)
    assert "fine-tuned from vit.pth without any reduction" in (project / TABLES[0]).with_suffix(".md").read_text()

    host = records.read(project / "results/mydata/runs/host/train.json")
    assert host["spec"]["model"]["kwargs"]["num_classes"] == len(CLASSES)
    tome = records.read(project / "results/mydata/runs/host-tome/train.json")
    path = project / "results/mydata/runs/host-tome" / tome["results"]["weights"]["path"]
    model = timm.create_model(MODEL, **SMALL, num_classes=len(CLASSES))
    model.load_state_dict(torch.load(path, weights_only=True))  # timm's keys
    journal = next((project / "results/mydata/runs/host/attempts/1").glob("journal.jsonl")).read_text()
    assert "18 images, fewer than a batch of 32" in journal
