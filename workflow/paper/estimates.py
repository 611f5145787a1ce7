"""Estimates for the paper's claims: how far one run is ahead of another, from records or as printed.

`Measured` answers from a setting's records, `Printed` from the paper's tables; both know `accuracy_gap` and
`speedup`. An answer is None where nothing is known.
"""

import math
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from workflow.campaign.config import CLAIMS, FILES, Config, ConfigError
from workflow.paper import printed, results
from workflow.paper.results import Records
from workflow.storage import warnings
from workflow.storage.warnings import Warning

BATCH = 256  # of the printed images/s
PRINTED_AT = ("paper", "cuda", BATCH)  # mode, device and batch size of the printed images/s
COVERED = {"wide_interval"}  # warnings of what the interval itself shows, so that it still decides an order
WARNED = "a measurement with warnings decides nothing"
THIS_MACHINE = "this machine"


@dataclass(frozen=True)
class Scale:
    """Where a number was measured; a verdict that rests on it holds there, and nowhere else.

    Attributes:
        name: what the images are called on which models were trained, or THIS_MACHINE for speeds and operations.
        reduced: whether a model was smaller than the paper's.
        seeds: the fewest seeds of a model; None where nothing was trained.
    """

    name: str
    reduced: bool = False
    seeds: int | None = None

    @property
    def is_the_papers(self) -> bool:
        """Whether models were trained as the paper's: at full size on ImageNet."""
        return self.name == results.IMAGES[printed.DATA] and not self.reduced

    def __str__(self) -> str:
        if self.seeds is None or self.is_the_papers:
            return self.name
        details = ["reduced model"] if self.reduced else []
        details.append("1 seed" if self.seeds == 1 else f"{self.seeds} seeds")
        return f"{self.name} ({', '.join(details)})"


def common_scale(scales: Iterable[Scale | None]) -> Scale | None:
    """Return the scale of a number that was computed from numbers of these scales, all of one setting."""
    known = [scale for scale in scales if scale is not None]
    if not known:
        return None
    seeds = [scale.seeds for scale in known if scale.seeds is not None]
    return Scale(known[0].name, any(scale.reduced for scale in known), min(seeds, default=None))


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval, and what it rests on.

    Attributes:
        n: how often it was measured, as sentences.
        records: the records behind it.
        scale: where it was measured; None for a printed number.
        notes: what people should know of it.
        excluded: reasons why it decides nothing.
        warnings: of the measurements; a percentage with warnings is too close to tell.
        conditions: how and on which device images/s were timed.
        as_printed: whether they were timed as the paper's were.
        text: what the ledger shows instead of the number.
    """

    value: float
    low: float
    high: float
    n: tuple[str, ...] = ()
    records: tuple[str, ...] = ()
    scale: Scale | None = None
    notes: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    warnings: tuple[Warning, ...] = ()
    conditions: str = ""
    as_printed: bool = True
    text: str = ""

    def __sub__(self, other: "Estimate") -> "Estimate":
        """Return the difference of two independent estimates: their errors add as squares."""
        value = self.value - other.value
        return Estimate(
            value,
            value - math.hypot(self.value - self.low, other.high - other.value),
            value + math.hypot(self.high - self.value, other.value - other.low),
            n=union(self.n, other.n),
            records=union(self.records, other.records),
            scale=common_scale((self.scale, other.scale)),
            notes=union(self.notes, other.notes),
            excluded=union(self.excluded, other.excluded),
            warnings=union(self.warnings, other.warnings),
            as_printed=self.as_printed and other.as_printed,
        )


def union(*groups: Iterable) -> tuple:
    """Return all items in their order, each once."""
    return tuple(dict.fromkeys(item for group in groups for item in group))


def exactly(value: float, **details) -> Estimate:
    """Return an estimate without an error."""
    return Estimate(value, value, value, **details)


def quotient(top: tuple[float, float, float], bottom: tuple[float, float, float]) -> tuple[float, float, float]:
    """Return (value, low, high) of the quotient of two such triples above 0: their relative errors add as squares."""
    value, low, high = top
    divisor, divisor_low, divisor_high = bottom
    down = math.hypot(math.log(value / low), math.log(divisor_high / divisor))
    up = math.hypot(math.log(high / value), math.log(divisor / divisor_low))
    ratio = value / divisor
    return ratio, ratio * math.exp(-down), ratio * math.exp(up)


def dense_of(config: Config, run: str) -> str:
    """Return the model that a run's speed-up refers to: the first of the first group that times both."""
    for models in config.items["sections"].values():
        if run in models[1:]:
            return models[0]
    raise ConfigError(f"{FILES['items']}: {run} is timed against no other model; put it into a section.")


def groups_with(config: Config, *runs: str) -> list[str]:
    """Return the benchmark groups that time all of these runs together, or raise ConfigError where there is none."""
    groups = [group for group, models in config.items["sections"].items() if set(runs) <= set(models)]
    if not groups:
        raise ConfigError(
            f"{FILES['items']}: no section times {' and '.join(runs)} together, whose speeds a claim compares; add one."
        )
    return groups


def margin(source: "Measured | Printed", by: str, run: str, other: str) -> Estimate | None:
    """Return how far a run is ahead of another.

    `by` is top1 (points), throughput (% more images/s), speedup (points of the speed-ups over each one's dense model)
    or top1_gap (points of the accuracies kept of each one's dense model).
    """
    if by == "top1":
        return source.accuracy_gap(run, other)
    if by == "throughput":
        return source.speedup(run, other)
    over_dense = source.speedup if by == "speedup" else source.accuracy_gap
    estimate = over_dense(run, dense_of(source.config, run))
    other_estimate = over_dense(other, dense_of(source.config, other))
    if estimate is None or other_estimate is None:
        return None
    difference = estimate - other_estimate
    if estimate.conditions != other_estimate.conditions:
        why = f"the speed-ups are not of one kind: {estimate.conditions}, and {other_estimate.conditions}"
        return replace(difference, excluded=union(difference.excluded, (why,)))
    return difference


class Printed:
    """What the paper's tables print; all tables that show a run print the same numbers of it."""

    def __init__(self, config: Config):
        self.config = config
        self.runs = printed.by_run(config)

    def accuracy_gap(self, run: str, other: str) -> Estimate | None:
        """Return how many points of top-1 a run is above another."""
        top1, other_top1 = (self.runs.get(name, {}).get("top1") for name in (run, other))
        return None if top1 is None or other_top1 is None else exactly(top1 - other_top1)

    def speedup(self, run: str, other: str) -> Estimate | None:
        """Return how many per cent faster a run is than another, by the printed images/s.

        Three printed percentages are not what the images/s give.
        """
        rate, other_rate = (self.runs.get(name, {}).get("throughput") for name in (run, other))
        return None if rate is None or other_rate is None else exactly(results.speedup_pct(rate, other_rate))


class Measured:
    """What a setting's records say.

    It reads the records of what the setting measures for its tables, for the figures whose rows claims compare, and
    only for the claims. A record that is missing raises RecordError; with `partial`, whatever exists is read.
    """

    def __init__(self, config: Config, root: str, partial: bool):
        self.config, self.partial = config, partial
        self.records = Records(config, root, partial)
        self.items = [*config.paper_tables, *config.items["claims"]["figures"], CLAIMS]

    def _requested(self, kind: str) -> Iterator[tuple[dict, dict]]:
        """Yield the rows whose groups the setting trains or times (`kind`) for an item, with the item's request."""
        for item in self.items:
            request = self.config.request(self.records.setting, item)
            for row in self.config.rows(item):
                if row["section"] in request[kind]:
                    yield row, request

    def _is_timed(self, group: str, training: bool = False) -> bool:
        """Return whether the setting times the group for some item, or (`training`) its training steps."""
        rows = [row for row, _ in self._requested("time") if row["section"] == group]
        return self.partial or any("batch_size" in row or not training for row in rows)

    # -- accuracy -------------------------------------------------------------------------------

    def _trained(self, run: str) -> list[dict]:
        """Return the records of a run's trainings, of the largest number of seeds that an item asks for."""
        if run not in self.config.runs:
            raise ConfigError(
                f"{FILES['runs']} has no row {run}, which a claim compares; restore it or drop the claim."
            )
        seeds = None
        if not self.partial:
            counts = [request["seeds"] for row, request in self._requested("train") if row["run"] == run]
            if not counts:
                return []
            seeds = None if None in counts else max(counts)
        return self.records.trained(run, seeds)

    def accuracy(self, run: str) -> Estimate | None:
        """Return a run's top-1 in %, over its seeds."""
        trained = self._trained(run)
        if not trained:
            return None
        accuracy = results.accuracy(trained, self.config)
        return Estimate(
            accuracy.top1,
            accuracy.low,
            accuracy.high,
            n=(f"{accuracy.seeds} seed{'s' if accuracy.seeds > 1 else ''}, {accuracy.val_images} images",),
            records=tuple(f"runs/{record['spec']['run']}" for record in trained),
            scale=self._scale_of(trained),
            notes=tuple(f"{run}: {flag}" for flag in accuracy.flags),
        )

    def _scale_of(self, trained: list[dict]) -> Scale:
        """Return the scale of records of one row's trainings, or of an analysis of such a training."""
        spec = trained[0]["spec"]
        images = spec["data"]["name"]
        reduced = results.describe_size(spec, self.config) != results.FULL_SIZE
        return Scale(results.IMAGES.get(images, images), reduced, len(trained))

    def accuracy_gap(self, run: str, other: str) -> Estimate | None:
        """Return how many points of top-1 a run is above another.

        It is over the same images and seeds where at least two seeds of both allow that; one pair of trainings would
        say nothing of how much trainings differ. Else the two accuracies count as independent.
        """
        accuracy, other_accuracy = self.accuracy(run), self.accuracy(other)
        if accuracy is None or other_accuracy is None:
            return None
        gap = accuracy - other_accuracy
        change = results.paired(self._trained(run), self._trained(other))
        if change is None or change.seeds < 2:
            return gap
        n = (f"{change.seeds} paired seeds, {change.val_images} images",)
        return replace(gap, value=change.points, low=change.low, high=change.high, n=n)

    # -- speed ----------------------------------------------------------------------------------

    def _timed(self, run: str, other: str) -> list[tuple[str, dict]]:
        """Return the groups that time both runs in interleaved rounds, with their records."""
        timed = []
        for group in groups_with(self.config, run, other):
            record = self.records.throughput(group) if self._is_timed(group) else None
            if record is not None:
                timed.append((group, record))
        return timed

    def speedup(self, run: str, other: str) -> Estimate | None:
        """Return how many per cent faster a run is than another in the same process.

        It is that of the first group in which neither of them, nor their dense model, ran out of memory.
        """
        for group, record in self._timed(run, other):
            method = results.method_of(record["results"], run)
            other_method = results.method_of(record["results"], other)
            if method.get("speedup") and other_method.get("speedup"):
                return _speedup(group, record, method, other_method)
        return None

    def macs_saved(self, run: str, other: str) -> Estimate | None:
        """Return how many per cent fewer operations a run needs than another."""
        timed = self._timed(run, other)
        if not timed:
            return None
        group, record = timed[0]
        macs, other_macs = (results.method_of(record["results"], name)["macs_g"] for name in (run, other))
        if macs is None or other_macs is None:  # out of memory, and dependent on weights
            return None
        return exactly(
            100 * (1 - macs / other_macs),
            n=("counted",),
            records=(f"throughput/{group}",),
            scale=Scale(THIS_MACHINE),
            notes=(f"{macs:.2f} and {other_macs:.2f} G MACs",),
        )

    # -- analyses of trained models -------------------------------------------------------------

    def curves(self, name: str, higher: tuple[str, int | None], lower: tuple[str, int | None]) -> Estimate | None:
        """Return how far one curve of an analysis is above another.

        Each end is a curve and its point, which counts from 1; None is the mean over all points. Raises ConfigError for
        a curve or a point that the analysis does not have.
        """
        record = self.records.curves(name)
        if record is None:
            return None
        curves, half_widths = record["results"]["curves"], record["results"]["half_widths"]
        for curve, point in (higher, lower):
            if curve not in curves or (point or 1) > len(curves[curve]):
                known = ", ".join(f"{curve} ({len(values)} points)" for curve, values in curves.items())
                raise ConfigError(
                    f"A claim names the curve {curve} at point {point or 1} of {name}, which has {known}."
                )
        value = _at(curves, higher) - _at(curves, lower)
        # both are of the same images, so their errors may add up in full
        half = _at(half_widths, higher) + _at(half_widths, lower)
        return Estimate(
            value,
            value - half,
            value + half,
            n=(f"{record['results']['images']} images",),
            records=(f"analyses/{name}",),
            scale=self._scale_of([record]),
        )

    # -- memory ---------------------------------------------------------------------------------

    def memory(self, run: str, other: str, batch_size: int) -> Estimate | None:
        """Return 1 where a training step of the run fits into memory and the other's does not, else -1."""
        group = groups_with(self.config, run, other)[0]
        record = self.records.training_cost(group) if self._is_timed(group, training=True) else None
        if record is None:
            return None
        steps = [results.training_step(record, name, batch_size) for name in (run, other)]
        if any(step.fits is None for step in steps):
            return None
        spec = record["spec"]
        excluded: tuple[str, ...] = ()
        if (spec["device"], spec["precision"]) != ("cuda", "fp16"):
            excluded = ("memory is judged where steps run as the paper's: on a GPU, with fp16",)
        counted = record["results"]["bytes_are"] == "counted"  # the same in each round
        return exactly(
            1.0 if steps[0].fits and not steps[1].fits else -1.0,
            n=("counted" if counted else f"{spec['rounds']} rounds",),
            records=(f"training/{group}",),
            scale=Scale(THIS_MACHINE),
            notes=(results.describe_memory(record),),
            excluded=excluded,
            text="; ".join(step.text for step in steps),
        )


def _speedup(group: str, record: dict, method: dict, other: dict) -> Estimate:
    """Return by how many per cent one method of a group's record is faster than another."""
    spec, measurement = record["spec"], record["results"]
    ratios = quotient(
        (method["speedup"], *method["speedup_interval"]),
        (other["speedup"], *other["speedup_interval"]),
    )
    warned = union(*(warnings.read(part) for part in (method, other, measurement)))
    conditions = "{device}: mode {mode}, {precision}, batch {batch_size}".format(
        **spec | {"device": measurement["device"]}
    )
    notes = [f"timed on {conditions}", *(f"warning: {warning.text}" for warning in warned)]
    if other is measurement["methods"][0]:
        ceilings = [100 * (method["ceilings"][name] - 1) for name in ("macs", "roofline")]
        notes.append("ceilings by MACs and roofline: {:.1f} and {:.1f} %".format(*ceilings))
    excluded = [
        f"{timed['run']} was timed at an assumed profile, chosen to match a printed number"
        for timed in (method, other)
        if timed.get("profile")
    ]
    if any(warning.code not in COVERED for warning in warned):
        excluded.append(WARNED)
    value, low, high = (results.speedup_pct(ratio, 1.0) for ratio in ratios)
    return Estimate(
        value,
        low,
        high,
        n=(f"{len(method['rounds'])} rounds",),
        records=(f"throughput/{group}",),
        scale=Scale(THIS_MACHINE),
        notes=tuple(notes),
        excluded=tuple(excluded),
        warnings=warned,
        conditions=conditions,
        as_printed=(spec["mode"], spec["device"], spec["batch_size"]) == PRINTED_AT,
    )


def _at(curves: dict[str, list[float]], end: tuple[str, int | None]) -> float:
    """Return a curve's value at a point, counted from 1, or its mean."""
    curve, point = end
    return statistics.mean(curves[curve]) if point is None else curves[curve][point - 1]
