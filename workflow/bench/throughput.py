"""Measure throughput: models in interleaved rounds, in one process that has the device to itself.

The models of a benchmark group of items.yaml are timed together. The first is the baseline of the others' speed-ups and
is timed before and after each of them, A B A C A B A C ... A: what drifts, drifts under the baseline, too. Before a
model is timed, its outputs are compared with those of the same weights in fp32 with unfused attention.
"""

import time
import warnings
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from workflow.bench import modes, monitor, roofline, statistics
from workflow.bench.modes import Run, synchronise
from workflow.bench.process import MeasurementError, PartialResults, environment
from workflow.campaign import benchmarks
from workflow.data import loaders
from workflow.runtime import device as devices
from workflow.runtime.distributed import DistributedContext
from workflow.storage.warnings import read as read_warnings
from workflow.storage.warnings import to_json
from workflow.train import factory, macs

WARM_UP_PASSES = 2
HEAT_UP_S = {"cpu": 0.0, "cuda": 3.0}
LAUNCHES = 3
TIMING_S = 0.5  # a model's timing in a round is at least one pass and about this long
MOST_PASSES = 1000
MOST_ROUNDS = 2  # times as many as asked for, while a speed-up's interval is not narrow
# The largest `distance` of right outputs; the logits of another image are 1.4 away. Below fp32 other tokens are
# selected where scores nearly tie: with random weights all models were less than 0.15 away, except one with similar
# scores (a model says so by `near_ties`), which was 0.4 away.
TOLERANCE = {"fp32": 2e-3, "bf16": 0.3, "fp16": 0.3}
NEAR_TIES = 0.7


def measure_group(spec: dict, site: dict | None = None, folder: Path | None = None) -> dict:
    """Time a group's models at the spec's batch size, or at each of its `batch_sizes`.

    Each batch size is a partial result that is kept in `folder`. Returns the record's results.

    Raises:
        BenchmarkError: for a configuration that can't run.
        DeviceError: for a device or a precision that the machine does not have.
        MeasurementError: for outputs that are wrong.
    """
    benchmarks.check(spec)
    warnings.filterwarnings("ignore", message=".*(TF32|tf32|TensorFloat32).*")
    device = modes.set_up(spec)
    results: dict[str, Any] = {"device": devices.describe(device)}
    partial_results = PartialResults(folder, spec, results["device"])
    machine = partial_results.get("machine", partial(roofline.measure_machine, spec["precision"], device))
    results |= {"machine": machine, "environment": environment()}
    sizes = []
    for size in spec.get("batch_sizes") or [spec["batch_size"]]:
        measure = partial(measure_or_run_out, spec | {"batch_size": size}, site, device, machine)
        sizes.append(partial_results.get(f"b{size}", measure))
    results["kept_parts"] = partial_results.kept
    if "batch_sizes" in spec:
        return results | {"sizes": sizes}
    return results | sizes[0]


def measure_or_run_out(spec: dict, site: dict | None, device: torch.device, machine: dict) -> dict:
    """Return the results of `measure_batch_size`, or the note that nothing fits into memory."""
    torch.manual_seed(0)
    try:
        results = measure_batch_size(spec, site, device, machine)
    except RuntimeError as error:
        if not devices.is_out_of_memory(error):
            raise
        results = nothing_fits(spec)
    torch.compiler.reset()
    devices.free()
    return {"batch_size": spec["batch_size"], **results}


def measure_batch_size(spec: dict, site: dict | None, device: torch.device, machine: dict) -> dict:
    """Time every model of the group at one batch size.

    Returns the methods, what the monitor observed, and the warnings about all of them.
    """
    modules = [modes.make_model(model, device, site) for model in spec["models"]]
    inputs, names = make_inputs(modules, spec, site, device)
    with torch.inference_mode():
        methods = [describe(*described) for described in zip(spec["models"], modules, inputs, strict=True)]
    results = time_models(methods, modules, inputs, spec, machine)
    if names:
        results["images"] = names
    return results


def time_models(
    methods: list[dict],
    modules: list[nn.Module],
    inputs: list[Tensor],
    spec: dict,
    machine: dict,
    timing_s: float | None = None,
) -> dict:
    """Time modules on their images, at one batch size; each module is changed into the mode's format.

    `methods` are what is known of the models, and are completed; the first is the baseline. A model's timing in a round
    takes about `timing_s`, TIMING_S if None. Returns the methods, what the monitor observed, and the warnings about all
    of them.
    """
    device = inputs[0].device
    timed: list[TimedModel] = []
    with torch.inference_mode():
        for method, module, images in zip(methods, modules, inputs, strict=True):
            try:
                prepared = prepare(module, images, spec, timing_s)
            except modes.Refused as error:
                if method is methods[0]:
                    raise
                method["out_of_memory"] = False
                method["refused"] = str(error)
            except RuntimeError as error:
                if not devices.is_out_of_memory(error):
                    raise
                method["out_of_memory"] = True
            else:
                method |= prepared.method
                prepared.method = method
                timed.append(prepared)
            devices.free()  # here, where no error holds its frames and their tensors any more
        watch = time_in_rounds(timed, spec["rounds"], device)
    if not timed:
        return {"methods": methods, "warnings": []}
    summarise(timed, watch, methods[0], spec, machine)
    return {"methods": methods, **observations(timed, watch, device)}


def nothing_fits(spec: dict) -> dict:
    """Return the results for a group whose models do not fit into memory together."""
    methods = []
    for model in spec["models"]:
        module = factory.build_model(model, "meta").eval()
        image = torch.empty(1, 3, *factory.image_size(module), device="meta")
        methods.append(describe(model, module, image) | {"out_of_memory": True})
    return {"methods": methods, "warnings": []}


# -- models and images --------------------------------------------------------------------------


def make_inputs(
    modules: list[nn.Module], spec: dict, site: dict | None, device: torch.device
) -> tuple[list[Tensor], list[str] | None]:
    """Return each model's images (B, 3, H, W), and the names of the images.

    Models with trained weights get real images; the others get noise, which has no names.
    """
    names = None
    of_config: dict[tuple, Tensor] = {}
    inputs = []
    for module in modules:
        config = factory.data_config(module)
        key = (*config["input_size"], *config["mean"], *config["std"]) if "images" in spec else config["input_size"]
        if key not in of_config:
            if "images" in spec:
                images = spec["images"]
                source = loaders.ImageSource(images["data"], site, images, config, DistributedContext(device))
                of_config[key], names = source.timed(spec["batch_size"])
            else:
                of_config[key] = torch.randn(spec["batch_size"], *config["input_size"], device=device)
        inputs.append(of_config[key])
    return inputs, names


def describe(model: dict, module: nn.Module, images: Tensor) -> dict:
    """Return what is known of a model before it is timed.

    With trained weights its MACs are the mean over the timed images.
    """
    method = {
        "run": model["run"],
        "model": model["name"],
        "kwargs": model["kwargs"],
        "profile": model.get("profile"),
        "weights": "trained" if "weights" in model else "random",
        "resolution": images.shape[-1],
        "params_m": sum(p.numel() for p in module.parameters()) / 1e6,
    }
    if "weights" not in model:
        method["macs_g"] = macs.count(module, tuple(images.shape[1:])) / 1e9
    elif images.device.type == "meta":  # they depend on weights and images
        method["macs_g"] = None
    else:
        counts = macs.per_image(module, images)
        method["macs_g"] = counts["mean_g"]
        method["macs_per_image"] = counts
    return method


@dataclass
class TimedModel:
    """A model on its images, and what was measured of it so far."""

    run: Run
    images: Tensor
    method: dict = field(default_factory=dict)  # its entry in the record
    operations: list[tuple[str, int, int]] = field(default_factory=list)  # of a pass, for the roofline
    timing_s: float | None = None  # about how long its timing in a round is, TIMING_S if None
    passes: int = 1  # in its timing of a round
    rates: list[float] = field(default_factory=list)  # images per second, of each timing
    latencies: list[float] = field(default_factory=list)  # seconds, at batch 1: of each pass
    spans: list[tuple[float, float]] = field(default_factory=list)  # time.time() of its timings
    launch_s: float | None = None  # what the host takes to ask a GPU for one pass

    @property
    def device(self) -> torch.device:
        """Return the device of the images."""
        return self.images.device

    def warm_up(self) -> None:
        """Run a few passes, and decide how many make a timing of a round."""
        self.time_passes(WARM_UP_PASSES)
        if self.device.type == "cuda":
            self.launch_s = min(self.time_launch() for _ in range(LAUNCHES))
        seconds = self.time_passes(WARM_UP_PASSES) / WARM_UP_PASSES
        self.passes = min(MOST_PASSES, max(1, round((self.timing_s or TIMING_S) / seconds)))

    def time_once(self) -> None:
        """Time the model once, and keep its rate, its span and, at batch 1, each pass's latency."""
        began = time.time()
        if len(self.images) == 1:
            latencies = self.time_each()
            self.latencies += latencies
            seconds = sum(latencies)
        else:
            seconds = self.time_passes(self.passes)
        self.spans.append((began, time.time()))
        self.rates.append(self.passes * len(self.images) / seconds)

    def time_passes(self, passes: int) -> float:
        """Return the seconds of `passes` forward passes, from an idle device to an idle device.

        A GPU measures them by its own clock (events), so that a busy host does not count.
        """
        run = self.run
        images = self.images
        synchronise(self.device)
        if self.device.type == "cuda":
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            first.record()
            for _ in range(passes):
                run(images)
            last.record()
            synchronise(self.device)
            return first.elapsed_time(last) / 1000
        started = time.perf_counter()
        for _ in range(passes):
            run(images)
        return time.perf_counter() - started

    def time_each(self) -> list[float]:
        """Return the seconds of each pass of a timing, from asking for it to having its result."""
        device = self.device
        seconds = []
        for _ in range(self.passes):
            synchronise(device)
            started = time.perf_counter()
            self.run(self.images)
            synchronise(device)
            seconds.append(time.perf_counter() - started)
        return seconds

    def time_launch(self) -> float:
        """Return the seconds until an idle GPU has been asked for a pass, without its result."""
        synchronise(self.device)
        started = time.perf_counter()
        self.run(self.images)
        seconds = time.perf_counter() - started
        synchronise(self.device)
        return seconds


def prepare(module: nn.Module, images: Tensor, spec: dict, timing_s: float | None = None) -> TimedModel:
    """Return the model ready to be timed, for about `timing_s` (None: TIMING_S) in each round.

    Raises MeasurementError for outputs that are not the reference's, modes.Refused, torch.OutOfMemoryError.
    """
    reference = make_reference(module, images, spec)
    module, images = modes.cast(module, images, spec)
    operations = operations_of(modes.uncompiled(module, spec), images)
    run = modes.make_run(module, images, spec)
    method = {
        "check": None,
        "attention": roofline.attention_backends(operations),
        "cuda_graph": modes.wants_graph(spec),
    }
    if images.is_cuda:
        method["peak_memory_mib"] = peak_memory(run, module, images) / 2**20
    if method["cuda_graph"]:
        with modes.refused(module, "captured as a CUDA graph"):
            run = modes.CapturedPass(run, images)
        images = run.images
    if reference is not None:
        outputs = seeded(run, images)
        method["check"] = compare(outputs, reference, spec["precision"], module)
    model = TimedModel(run, images, method, operations, timing_s)
    model.warm_up()
    return model


def operations_of(run: Run, images: Tensor) -> list[tuple[str, int, int]]:
    """Return the operations of a pass of the uncompiled model, for the roofline.

    If memory runs out, which a compiled pass may avoid, the operations of half of the images are scaled.
    """
    try:
        return roofline.operations(run, images)
    except RuntimeError as error:
        if not devices.is_out_of_memory(error) or len(images) == 1:
            raise
    devices.free()
    half = images[: len(images) // 2]
    factor = len(images) / len(half)
    operations = operations_of(run, half)
    return [(name, round(factor * flops), round(factor * moved)) for name, flops, moved in operations]


def peak_memory(run: Run, module: nn.Module, images: Tensor) -> int:
    """Return the bytes of weights and images, and of what one more pass needs."""
    device = images.device
    synchronise(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run(images)
    synchronise(device)
    weights = sum(t.nbytes for t in (*module.parameters(), *module.buffers()))
    return torch.cuda.max_memory_allocated(device) - before + weights + images.nbytes


# -- outputs are checked ------------------------------------------------------------------------


def make_reference(module: nn.Module, images: Tensor, spec: dict) -> Tensor | None:
    """Return logits in fp32 with unfused attention, after a check that the mode's attention gives the same ones.

    Returns None if they need more memory than there is; the timed path may need less. Raises MeasurementError if the
    mode's attention gives others.
    """
    try:
        modes.set_attention(module, "paper")
        reference = seeded(module, images)
        modes.set_attention(module, spec["mode"])
        compare(seeded(module, images), reference, "fp32", module)
        return reference
    except RuntimeError as error:
        if not devices.is_out_of_memory(error):
            raise
    devices.free()
    return None


def seeded(run: Run, images: Tensor) -> Tensor:
    """Return logits in fp32; models that select at random select the same each time."""
    torch.manual_seed(0)
    return run(images).float().clone()


def compare(outputs: Tensor, reference: Tensor, precision: str, module: nn.Module) -> dict:
    """Return how far the outputs are from the reference's, for the record.

    Raises MeasurementError if the timed path does not compute what the module in fp32 does.
    """
    name = type(module).__name__
    if not outputs.isfinite().all():
        raise MeasurementError(f"{name} gives outputs that are not finite.")
    error = distance(outputs, reference)
    tolerance = TOLERANCE[precision]
    if precision != "fp32" and getattr(module, "near_ties", False):
        tolerance = NEAR_TIES
    if not error <= tolerance:
        raise MeasurementError(
            f"{name} gives other outputs, timed in {precision}, than in fp32 with unfused "
            f"attention: they are {error:.2g} apart, tolerance {tolerance:g}."
        )
    return {"distance": error, "tolerance": tolerance, "images": len(outputs)}


def distance(outputs: Tensor, reference: Tensor) -> float:
    """Return the median over the images of how far logits are from the reference's.

    The unit is how far the logits of an image are from those of the mean image.
    """
    typical = reference.mean(dim=0) if len(reference) > 1 else 0.0
    sizes = (reference - typical).norm(dim=1).clamp_min(torch.finfo(reference.dtype).tiny)
    return ((outputs - reference).norm(dim=1) / sizes).median().item()


# -- interleaved rounds -------------------------------------------------------------------------


def time_in_rounds(models: list[TimedModel], rounds: int, device: torch.device) -> monitor.Monitor:
    """Time the models in at least `rounds` rounds, the first being the baseline.

    Returns the monitor of the device, which observed it.
    """
    heat_up(models, device)
    with monitor.start_monitor(device) as watch:
        while models and not are_enough(models, rounds):
            time_round(models)
        if len(models) > 1:
            models[0].time_once()  # after the last of the others
    return watch


def heat_up(models: list[TimedModel], device: torch.device) -> None:
    """Run the models one after the other without timing them until a GPU's clock has settled."""
    until = time.perf_counter() + HEAT_UP_S[device.type]
    while models and time.perf_counter() < until:
        for model in models:
            model.time_passes(model.passes)


def are_enough(models: list[TimedModel], least: int) -> bool:
    """Return whether more rounds would add little."""
    done = len(models[-1].rates)
    if done < least:
        return False
    if done >= MOST_ROUNDS * least:
        return True
    others = zip(models[1:], baselines_of(models)[1:], strict=True)
    widths = [statistics.speedup(model.rates, baseline)["width"] for model, baseline in others]
    return all(width <= statistics.NARROW for width in widths)


def baselines_of(models: list[TimedModel]) -> list[list[float] | None]:
    """Return for each model the baseline's rates around its own; for the baseline itself None."""
    first, *others = models
    rates = first.rates
    if len(rates) != 1 + sum(len(model.rates) for model in others):  # not yet timed after the last
        rates = [*rates, rates[-1]]
    return [None, *(statistics.neighbours(rates, index, len(others)) for index in range(len(others)))]


def time_round(models: list[TimedModel]) -> None:
    """Time each model but the first once, and the first, the baseline, before each of them."""
    baseline, *others = models
    for model in others:
        baseline.time_once()
        model.time_once()
    if not others:
        baseline.time_once()


# -- results ------------------------------------------------------------------------------------


def summarise(models: list[TimedModel], watch: monitor.Monitor, baseline: dict, spec: dict, machine: dict) -> None:
    """Complete the methods of the timed models: rates, speed-ups and each speed-up's two ceilings.

    `baseline` is the method of the group's first model; if it ran out of memory, there is no speed-up.
    """
    fuses = spec["mode"] == "compiled"
    least_s = [roofline.seconds(model.operations, machine, fuses) for model in models]
    for model, rates, model_s in zip(models, baselines_of(models), least_s, strict=True):
        method = model.method
        method["out_of_memory"] = False
        method |= statistics.summarise(model.rates, rates)
        if models[0].method is baseline:
            method["ceilings"] = {
                "macs": baseline["macs_g"] / method["macs_g"],
                "roofline": least_s[0] / model_s,
            }
        else:
            method |= {"speedup": None, "speedup_interval": None, "speedup_quartiles": None, "warnings": []}
        power = watch.power_w(model.spans)
        method["images_per_joule"] = power and method["images_per_s"] / power
        method["launch_ms"] = model.launch_s and 1000 * model.launch_s
        method["latency_ms"] = statistics.percentiles(model.latencies) if model.latencies else None


def observations(models: list[TimedModel], watch: monitor.Monitor, device: torch.device) -> dict:
    """Return for the record the monitor's summary (`seen`) and the warnings about all models."""
    summary = watch.summary(span for model in models for span in model.spans)
    return {"seen": summary, "warnings": to_json(monitor.find_warnings(summary, device))}


def lines(results: dict) -> list[str]:
    """Return the results for people: a line for each model and each warning."""
    shown = []
    for of_size in results.get("sizes", [results]):
        batch = f"batch {of_size['batch_size']}"
        for method in of_size["methods"]:
            shown.append(f"{batch}  {method['run']:32}{line(method)}")
            shown += [f"    warning: {warning.text}" for warning in read_warnings(method)]
        shown += [f"    warning: {warning.text}" for warning in read_warnings(of_size)]
    return shown


def line(method: dict) -> str:
    """Return rate, speed-up with its interval and ceilings, and latency, or why there is no speed."""
    reason = benchmarks.no_speed(method)
    if reason:
        return reason
    text = f"{method['images_per_s']:9.1f} images/s"
    if method["speedup"] is not None:
        low, high = method["speedup_interval"]
        text += f"  x {method['speedup']:.3f} ({low:.3f}-{high:.3f})"
        text += "  ceilings: MACs {macs:.2f}, roofline {roofline:.2f}".format(**method["ceilings"])
    if method["latency_ms"]:
        text += "  ms p50 {p50:.2f} p90 {p90:.2f} p99 {p99:.2f}".format(**method["latency_ms"])
    return text
