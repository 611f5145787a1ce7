"""Throughput: interleaved, summarised per round, with the allocator set before Python starts."""

import os
import statistics
from pathlib import Path

import pytest
import timm
import torch

from tests.bench.timed import breaking, out_of_memory, shorten, spec
from tests.models import families
from workflow.bench import modes, process, roofline, throughput
from workflow.bench.process import MeasurementError
from workflow.campaign import benchmarks, specs
from workflow.campaign.config import HOST
from workflow.storage import records
from workflow.train import macs, trainer
from workflow.train.checkpoints import WeightsError


@pytest.fixture(autouse=True)
def short_rounds(monkeypatch):
    shorten(monkeypatch)


@pytest.mark.integration  # of all of a measurement's time and rounds
def test_the_job_measures_in_a_process_with_allocator_and_processors_set(tmp_path, site):
    record = process.run(spec(), site, tmp_path)
    here = record["results"]["environment"]
    assert here["allocator"] == process.ALLOCATOR
    assert here["threads"] == len(here["processors"]) == 1
    assert os.environ.get("MALLOC_MMAP_THRESHOLD_") != "4000000000"  # not in this one
    first, second = record["results"]["methods"]
    assert 5 <= len(second["rounds"]) <= 5 * 2  # shorten() does not reach that process
    assert len(first["rounds"]) == len(second["rounds"]) + 1
    assert first["speedup"] == 1
    assert second["images_per_s"] == statistics.median(second["rounds"])
    assert second["speedup_interval"][0] <= second["speedup"] <= second["speedup_interval"][1]
    assert second["resolution"] == 32
    records.write_json(tmp_path / "r.json", record)
    assert records.read(tmp_path / "r.json")


def test_rounds_are_interleaved(monkeypatch):
    order = []
    time_passes = throughput.TimedModel.time_passes

    def noted(model, passes):
        order.append(id(model))
        return time_passes(model, passes)

    monkeypatch.setattr(throughput.TimedModel, "time_passes", noted)
    models = [*spec()["models"], {**spec()["models"][1], "run": "again"}]
    dense, *others = throughput.measure_group(spec(models=models))["methods"]
    first, second, third = order[0], order[2], order[4]
    warm_up = [first] * 2 + [second] * 2 + [third] * 2
    assert order == warm_up + [first, second, first, third] * 5 + [first]
    assert len(dense["rounds"]) == 11
    assert [len(other["rounds"]) for other in others] == [5, 5]


def test_each_speed_up_has_its_ceilings_and_its_check():
    dense, evo = throughput.measure_group(spec())["methods"]
    assert dense["ceilings"] == {"macs": 1, "roofline": 1}
    assert evo["ceilings"]["macs"] == pytest.approx(dense["macs_g"] / evo["macs_g"])
    assert evo["ceilings"]["roofline"] > 0
    assert evo["check"]["distance"] < 1e-4
    assert evo["attention"] == ["scaled_dot_product_flash_attention_for_cpu"]
    paper = throughput.measure_group(spec(mode="paper"))["methods"][1]
    assert paper["attention"] == ["products and softmax"]
    assert paper["check"]["distance"] == 0


@pytest.mark.integration
def test_at_batch_1_each_pass_counts():
    results = throughput.measure_group(spec(batch_size=1))
    latency = results["methods"][1]["latency_ms"]
    assert 0 < latency["p50"] <= latency["p90"] <= latency["p99"]
    assert throughput.measure_group(spec())["methods"][1]["latency_ms"] is None


@pytest.mark.integration
def test_a_sweep_measures_every_batch_size():
    whole = spec(batch_sizes=[1, 2])
    del whole["batch_size"]
    results = throughput.measure_group(whole)
    assert [size["batch_size"] for size in results["sizes"]] == [1, 2]
    assert all(len(size["methods"]) == 2 for size in results["sizes"])


def test_wrong_outputs_are_no_measurement(monkeypatch):
    breaking(monkeypatch, lambda run, images: run(images.flip(0)))
    with pytest.raises(MeasurementError, match="gives other outputs, timed in fp32"):
        throughput.measure_group(spec())


def test_outputs_that_are_not_finite_are_no_measurement(monkeypatch):
    breaking(monkeypatch, lambda run, images: run(images) * float("nan"))
    with pytest.raises(MeasurementError, match="not finite"):
        throughput.measure_group(spec())


@pytest.fixture
def weighted(tiny_spec, site) -> dict:
    """A measurement of IA-RED2 and PS-ViT with trained weights, on real images."""
    models = []
    for run in ("deit_tiny", "ia_red2_deit_tiny", "ps_deit_tiny"):
        training = tiny_spec(run, epochs=1)
        training.pop("start", None)
        folder = Path(site["root"]) / "runs" / run / "attempts" / "1"
        records.write_json(folder.parent.parent / "train.json", trainer.run(training, site, folder))
        models.append({"run": run, **training["model"], "weights": specs.reference(training)})
    del models[0]["weights"]
    images = {"data": training["data"], "interpolation": "bicubic", "crop_pct": 1.0}
    return spec(models=models, images=images, batch_size=4)


@pytest.mark.integration
def test_trained_weights_are_measured_on_named_images(weighted, site):
    results = throughput.measure_group(weighted, site)
    assert results["images"] == ["0/0.png", "2/1.png", "5/0.png", "7/1.png"]  # of 20, spread
    dense, interpreted, slim = results["methods"]
    assert [m["weights"] for m in results["methods"]] == ["random", "trained", "trained"]
    assert "macs_per_image" not in dense
    assert interpreted["macs_per_image"]["images"] == 4
    assert interpreted["macs_g"] == interpreted["macs_per_image"]["mean_g"]
    assert slim["macs_per_image"]["sd_g"] == 0  # the same for every image
    assert slim["macs_g"] == pytest.approx(dense["macs_g"])  # nothing was searched


def test_weights_that_are_not_there_are_no_measurement(weighted, site):
    with pytest.raises(MeasurementError, match="ia_red2_deit_tiny needs its trained weights"):
        throughput.measure_group(weighted)
    (Path(site["root"]) / "runs/ps_deit_tiny/train.json").unlink()
    with pytest.raises(WeightsError, match=r"ps_deit_tiny/train.json is missing"):
        throughput.measure_group(weighted, site)


def test_too_few_images_for_a_batch_come_again(weighted, site):
    models = [modes.make_model(model, torch.device("cpu"), site) for model in weighted["models"][:2]]
    inputs, names = throughput.make_inputs(models, weighted | {"batch_size": 23}, site, torch.device("cpu"))
    assert len(names) == len(inputs[0]) == 23
    assert names[20:] == names[:3]
    assert torch.equal(inputs[0][20:], inputs[0][:3])
    assert inputs[0] is inputs[1]  # models of the same size, mean and standard deviation


def test_each_model_gets_images_of_its_own_mean(weighted, site):
    models = [modes.make_model(model, torch.device("cpu"), site) for model in weighted["models"][:2]]
    models[1].pretrained_cfg = models[1].pretrained_cfg | {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    inputs, _ = throughput.make_inputs(models, weighted, site, torch.device("cpu"))
    assert inputs[0].shape == inputs[1].shape
    assert inputs[1].abs().max() <= 1 + 1e-6 < inputs[0].abs().max()


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


@pytest.mark.integration
def test_every_baseline_of_table_2_can_be_timed(config):
    baselines = [name for name, row in config.runs.items() if row["family"] == "other" and row["model"] != HOST]
    baselines.remove("levit_teacher")
    models = [{"run": row, **specs.model_of(config, row)} for row in baselines]
    results = throughput.measure_group(spec(models=models, batch_size=1))
    assert len(results["methods"]) == 9
    assert all(method["resolution"] == 224 for method in results["methods"])
    assert all(method["check"]["distance"] < 1e-3 for method in results["methods"])


def test_fp16_on_a_cpu_is_refused():
    with pytest.raises(benchmarks.BenchmarkError, match="needs a GPU"):
        throughput.measure_group(spec(precision="fp16"))


def test_macs_are_those_of_the_literature():
    """1.254 G for DeiT-T at 224 px, whatever the attention the model uses to run."""
    model = timm.create_model("plain_deit_tiny_patch16_224").eval()
    assert macs.count(model, (3, 224, 224)) / 1e9 == pytest.approx(1.254, abs=5e-4)
    evo = timm.create_model("evo_deit_tiny_patch16_224").eval()
    assert macs.count(evo, (3, 224, 224)) / 1e9 == pytest.approx(0.822, abs=1e-3)


def test_in_16_bits_a_model_whose_scores_are_alike_may_be_further_off():
    reference = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    module, outputs = torch.nn.Identity(), reference + torch.tensor([0.5, 0.0]) * 0.7071
    with pytest.raises(MeasurementError, match=r"0\.5 apart, tolerance 0\.3"):
        throughput.compare(outputs, reference, "bf16", module)
    module.near_ties = True
    assert throughput.compare(outputs, reference, "bf16", module)["tolerance"] == 0.7
    with pytest.raises(MeasurementError, match=r"tolerance 0\.002"):
        throughput.compare(outputs, reference, "fp32", module)


# -- models that a device or a mode can't run: recorded with the reason, and the others are timed ---


def refusing(*ignored):
    raise modes.Refused("EvoVisionTransformer can't be captured as a CUDA graph: it waits")


@pytest.mark.integration
def test_a_model_that_the_mode_refuses_leaves_the_others(monkeypatch):
    breaking(monkeypatch, refusing)
    dense, evo = throughput.measure_group(spec())["methods"]
    assert "can't be captured" in benchmarks.no_speed(evo) == evo["refused"]
    assert "images_per_s" not in evo
    assert benchmarks.no_speed(dense) is None
    assert throughput.line(evo) == evo["refused"]


def test_without_the_baseline_there_is_nothing_to_measure(monkeypatch):
    breaking(monkeypatch, refusing)
    models = spec()["models"]
    with pytest.raises(modes.Refused):
        throughput.measure_group(spec(models=models[::-1]))


def test_running_out_of_memory_is_a_result(monkeypatch):
    breaking(monkeypatch, out_of_memory)
    dense, evo = throughput.measure_group(spec())["methods"]
    assert evo["out_of_memory"]
    assert "images_per_s" not in evo
    assert not dense["out_of_memory"]
    assert len(dense["rounds"]) == 5


@pytest.mark.integration
def test_running_out_of_memory_amid_a_sweep_loses_nothing(monkeypatch):
    measure_batch_size = throughput.measure_batch_size

    def second_fails(configuration, *rest):
        return (out_of_memory if configuration["batch_size"] == 2 else measure_batch_size)(configuration, *rest)

    monkeypatch.setattr(throughput, "measure_batch_size", second_fails)
    whole = spec(batch_sizes=[1, 2])
    del whole["batch_size"]
    one, two = throughput.measure_group(whole)["sizes"]
    assert one["methods"][1]["images_per_s"] > 0
    assert [method["out_of_memory"] for method in two["methods"]] == [True, True]
    assert two["methods"][0]["macs_g"] == one["methods"][0]["macs_g"]


def test_what_could_not_be_checked_is_measured_and_says_so(monkeypatch):
    """The reference, in fp32 and unfused, may need memory that the timed path does not."""
    compare = throughput.compare

    def exact_fails(outputs, reference, precision, name):
        if precision == "fp32":
            out_of_memory(None, None)
        return compare(outputs, reference, precision, name)

    monkeypatch.setattr(throughput, "compare", exact_fails)
    evo = throughput.measure_group(spec(precision="bf16"))["methods"][1]
    assert evo["check"] is None
    assert not evo["out_of_memory"]


def test_without_a_baseline_there_is_no_speed_up(monkeypatch):
    breaking(monkeypatch, out_of_memory)
    turned = spec()
    turned["models"].reverse()
    evo, dense = throughput.measure_group(turned)["methods"]
    assert evo["out_of_memory"]
    assert dense["images_per_s"] > 0
    assert dense["speedup"] is None
    assert dense["warnings"] == []
    assert "ceilings" not in dense


def test_operations_of_too_large_a_batch_are_those_of_a_smaller_one(monkeypatch):
    whole = roofline.operations

    def small(run, images):
        return out_of_memory() if len(images) > 2 else whole(run, images)

    module, images = torch.nn.Linear(4, 3, bias=False), torch.ones(5, 4)
    ((name, flops, moved),) = whole(module, images)
    monkeypatch.setattr(roofline, "operations", small)
    ((again, scaled, more),) = throughput.operations_of(module, images)
    assert (again, scaled) == (name, flops)
    assert moved < more < 2.5 * moved  # the weights, which do not grow, were scaled, too
    with pytest.raises(torch.OutOfMemoryError):
        throughput.operations_of(lambda images: out_of_memory(), images[:1])
