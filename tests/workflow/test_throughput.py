"""Throughput: interleaved, summarised per round, with the allocator set before Python starts."""

import json
import os
import statistics
from pathlib import Path

import pytest
import timm
import torch

from tests.models import families
from workflow import records, runs
from workflow.layout import DataError
from workflow.node import device, fresh, macs, throughput, train
from workflow.node.checkpoints import WeightsError
from workflow.node.fresh import MeasurementError

SIZE = {"img_size": 32, "embed_dim": 24, "num_classes": 10}


def spec(**changes) -> dict:
    models = [
        {"run": "deit", "name": "plain_deit_tiny_patch16_224", "kwargs": SIZE},
        {"run": "evo", "name": "evo_deit_tiny_patch16_224", "kwargs": SIZE},
    ]
    point = {"device": "cpu", "mode": "fused", "precision": "fp32", "batch_size": 2}
    point |= {"threads": 1, "rounds": 5}
    return {"kind": "throughput", "section": "deit", "models": models, **point, **changes}


@pytest.fixture
def short_rounds(monkeypatch):
    monkeypatch.setattr(throughput, "ROUND_S", 0.01)


def test_the_job_measures_in_a_process_with_the_allocator_tuned(tmp_path, site):
    record = fresh.run(spec(), site, tmp_path)
    assert record["results"]["environment"]["allocator"] == fresh.ALLOCATOR
    assert record["results"]["environment"]["threads"] == 1
    assert os.environ.get("MALLOC_MMAP_THRESHOLD_") != "4000000000"  # not in this one
    first, second = record["results"]["methods"]
    assert len(first["rounds"]) == len(second["rounds"]) == 5
    assert first["speedup"] == 1
    assert second["images_per_s"] == statistics.median(second["rounds"])
    assert second["resolution"] == 32
    records.write_json(tmp_path / "r.json", record)
    assert records.read(tmp_path / "r.json")


def test_models_take_turns(short_rounds, monkeypatch):
    order = []
    time_passes = throughput.time_passes

    def noted(module, *rest):
        order.append(id(module))
        return time_passes(module, *rest)

    monkeypatch.setattr(throughput, "time_passes", noted)
    throughput.measure_section(spec())
    first, second = order[:2]
    assert order == [first, second] * 6  # a warm-up and five rounds


@pytest.mark.parametrize(("mode", "fused"), [("paper", False), ("fused", True)])
def test_the_papers_mode_is_unfused_everywhere(mode, fused):
    for model in spec()["models"]:
        module = throughput.prepare(model, spec(mode=mode), torch.device("cpu"))
        flags = {part.fused_attn for part in module.modules() if hasattr(part, "fused_attn")}
        assert flags == {fused}


def test_outputs_that_are_not_finite_are_no_measurement(short_rounds, monkeypatch):
    class Broken(torch.nn.Module):
        def forward(self, images):
            return images * float("nan")

    with pytest.raises(MeasurementError, match="not finite"):
        throughput.measure([Broken()], [torch.zeros(1, 3, 2, 2)], spec(), torch.device("cpu"))


def test_the_ratio_is_taken_within_rounds():
    found = throughput.summarise([2.0, 4.0, 6.0, 8.0, 10.0], [1.0, 2.0, 3.0, 4.0, 5.0])
    assert found["images_per_s"] == 6.0
    assert found["speedup"] == 2.0
    assert found["speedup_quartiles"] == [2.0, 2.0]


@pytest.fixture
def weighted(tiny_spec, site, short_rounds) -> dict:
    """A measurement of IA-RED2 and PS-ViT with trained weights, on real images."""
    models = []
    for run in ("deit_tiny", "ia_red2_deit_tiny", "ps_deit_tiny"):
        training = tiny_spec(run, epochs=1)
        training.pop("start", None)
        folder = Path(site["root"]) / "runs" / run / "attempts" / "1"
        records.write_json(folder.parent.parent / "train.json", train.run(training, site, folder))
        models.append({"run": run, **training["model"], "weights": runs.reference(training)})
    del models[0]["weights"]
    images = {"data": training["data"], "interpolation": "bicubic", "crop_pct": 1.0}
    return spec(models=models, images=images, batch_size=4)


def test_trained_weights_are_measured_on_named_images(weighted, site):
    found = throughput.measure_section(weighted, site)
    assert found["images"] == ["0/0.png", "2/1.png", "5/0.png", "7/1.png"]  # of 20, spread
    dense, interpreted, slim = found["methods"]
    assert [m["weights"] for m in found["methods"]] == ["random", "trained", "trained"]
    assert "macs_per_image" not in dense
    assert interpreted["macs_per_image"]["images"] == 4
    assert interpreted["macs_g"] == interpreted["macs_per_image"]["mean_g"]
    assert slim["macs_per_image"]["sd_g"] == 0  # the same for every image
    assert slim["macs_g"] == pytest.approx(dense["macs_g"])  # nothing was searched


def test_weights_that_are_not_there_are_no_measurement(weighted, site):
    with pytest.raises(MeasurementError, match="ia_red2_deit_tiny needs its trained weights"):
        throughput.measure_section(weighted)
    (Path(site["root"]) / "runs/ps_deit_tiny/train.json").unlink()
    with pytest.raises(WeightsError, match=r"ps_deit_tiny/train.json is missing"):
        throughput.measure_section(weighted, site)


def test_too_few_images_are_no_measurement(weighted, site):
    with pytest.raises(DataError, match="has 20 images, but a batch of 21"):
        throughput.measure_section(weighted | {"batch_size": 21}, site)


def test_macs_are_counted_image_by_image():
    """The first image keeps all patches and the second none, whoever stands beside it."""
    model, images, here = families.build("ia_red2_deit").eval(), families.images("ia_red2_deit"), {}

    def look(module, inputs):
        here["first"] = bool((inputs[0][0] == images[0]).all())

    model.register_forward_pre_hook(look)
    model.choose = lambda group, scores, kept: kept & here["first"]
    alone = [macs.per_image(model, image[None])["mean_g"] for image in images]
    assert alone[1] < 0.5 * alone[0]
    both = macs.per_image(model, images)
    assert both["mean_g"] == pytest.approx(sum(alone) / 2)
    assert both["sd_g"] == pytest.approx(abs(alone[0] - alone[1]) / 2**0.5)


def test_fp16_on_a_cpu_is_refused():
    with pytest.raises(MeasurementError, match="needs a GPU"):
        throughput.measure_section(spec(precision="fp16"))


def test_macs_are_those_of_the_literature():
    """1.254 G for DeiT-T at 224 px, whatever the attention the model uses to run."""
    model = timm.create_model("plain_deit_tiny_patch16_224").eval()
    assert macs.count(model, (3, 224, 224)) / 1e9 == pytest.approx(1.254, abs=5e-4)
    evo = timm.create_model("evo_deit_tiny_patch16_224").eval()
    assert macs.count(evo, (3, 224, 224)) / 1e9 == pytest.approx(0.822, abs=1e-3)


@pytest.mark.parametrize(
    ("capability", "arches", "served"),
    [
        ((7, 0), ["sm_70", "sm_80"], True),
        ((7, 0), ["sm_75", "sm_80"], False),
        ((8, 6), ["sm_80"], True),
        ((8, 0), ["sm_86"], False),
        ((12, 0), ["sm_80", "sm_90"], False),
        ((12, 0), ["sm_90", "compute_90"], True),
        ((9, 0), ["sm_90a"], True),
    ],
)
def test_which_gpus_a_torch_serves(capability, arches, served):
    assert device.served(capability, arches) == served


@pytest.mark.parametrize(
    ("capability", "arches", "lock"),
    [
        ((12, 0), ["sm_70", "sm_90"], "requirements-cuda13.lock"),
        ((7, 0), ["sm_75"], "requirements.lock"),
    ],
)
def test_an_unserved_gpu_is_answered_with_the_other_lock(capability, arches, lock, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: arches)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "A GPU")
    with pytest.raises(device.DeviceError, match=f"LOCK={lock}"):
        device.choose("auto")
    assert device.choose("cpu").type == "cpu"


def test_a_gpu_that_was_asked_for_and_is_not_there_is_an_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(device.DeviceError, match="torch sees no GPU"):
        device.choose("cuda")


def test_the_command_runs_where_only_torch_and_timm_are(tmp_path):
    """It may be carried to a bare GPU machine: nothing of the login node is imported."""
    import subprocess
    import sys

    (tmp_path / "spec.json").write_text(json.dumps(spec()))
    code = (
        "import runpy, sys\n"
        "for name in ('snakemake', 'submitit', 'mlflow', 'pandas', 'seaborn'):\n"
        "    sys.modules[name] = None\n"
        "sys.argv = ['throughput', '--spec', sys.argv[1], '--output', sys.argv[2]]\n"
        "runpy.run_module('workflow.node.fresh', run_name='__main__')\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "spec.json"), str(tmp_path / "r.json")]
    root = Path(__file__).parent.parent.parent
    environment = {**os.environ, **fresh.ALLOCATOR}
    subprocess.run(command, cwd=root, env=environment, check=True, capture_output=True)
    assert records.read(tmp_path / "r.json")["results"]["methods"]
