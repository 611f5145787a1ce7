"""What a setting's records say of two runs: a margin with its interval, what it rests on, and what
bars it from deciding anything. `Printed` says the same of the paper's tables.
"""

import statistics
from collections.abc import Iterator
from dataclasses import replace

from workflow.campaign import statements
from workflow.campaign.config import CLAIMS, FILES, Config, ConfigError
from workflow.paper import printed
from workflow.paper.columns import Records, accuracy, speedup_pct
from workflow.paper.found import Found, exactly, quotient, together
from workflow.paper.training_costs import describe_steps, step_at

PRINTED_ON = "imagenet"  # the data that the printed accuracies are of
BATCH = 256  # of the printed images/s
PRINTED_AT = ("paper", "cuda", BATCH)  # mode and device, too
# what makes a measurement suspect and yet is in its interval, which decides an order
COVERED = ("is unsure", "the clock went", "the baseline went")
SUSPECT = "a suspect measurement decides nothing"


def margin(source, config: Config, by: str, run: str, other: str) -> Found | None:
    """How far a run is ahead of another, from what a source of gaps and speeds says."""
    if by in ("top1", "throughput"):
        return (source.gap if by == "top1" else source.faster)(run, other)
    over_dense = source.faster if by == "speedup" else source.gap
    one, two = (over_dense(name, statements.dense(config, name)) for name in (run, other))
    if one is None or two is None:
        return None
    if one.point != two.point:
        why = f"the speed-ups are not of one kind: {one.point}, and {two.point}"
        return replace(one - two, barred=together(one.barred, two.barred, (why,)))
    return one - two


class Printed:
    """The paper's tables by run; a run that several tables show is the same in all of them."""

    def __init__(self, config: Config):
        self.config, self.rows = config, printed.by_run(config)

    def _both(self, key: str, run: str, other: str) -> tuple | None:
        values = tuple(self.rows.get(name, {}).get(key) for name in (run, other))
        return None if None in values else values

    def gap(self, run: str, other: str) -> Found | None:
        both = self._both("top1", run, other)
        return both and exactly(both[0] - both[1])

    def faster(self, run: str, other: str) -> Found | None:
        """In per cent, of its images/s: three of its percentages are not what those give."""
        both = self._both("throughput", run, other)
        return both and exactly(speedup_pct(*both))


class Evidence:
    """The same from records: of what the setting measures for its tables, for the figures whose
    rows claims compare and for the claims alone (where it is missing, RecordError); `partial`: of
    whatever is there."""

    def __init__(self, config: Config, root: str, partial: bool):
        self.config, self.partial = config, partial
        self.records = Records(config, root, partial)
        self.setting = self.records.setting
        self.items = [*config.items["tables"], *statements.figures(config), CLAIMS]

    def _records(self, part: str, shows) -> tuple[Records | None, int | None]:
        """Who reads what belongs to an item's row in one of the sections that are trained
        (`part`: train) or timed, if the setting does so, and how many seeds."""
        if self.partial:
            return self.records, None
        seeds = [
            wanted["seeds"]
            for item in self.items
            for wanted in [self.config.wanted(self.setting, item)]
            if any(row["section"] in wanted[part] and shows(row) for row in self.config.rows(item))
        ]
        if not seeds:
            return None, None
        return self.records, None if None in seeds else max(seeds)

    # -- accuracy ---------------------------------------------------------------------------

    def accuracy(self, run: str) -> Found | None:
        reader, seeds = self._records("train", lambda row: row["run"] == run)
        records = reader.trained(run, seeds) if reader else []
        if not records:
            return None
        seen = accuracy(records, self.config)
        data, seeds = records[0]["spec"]["data"]["name"], seen["seeds"]
        n = f"{seeds} seed{'s' * (seeds > 1)}, {seen['val_images']} images"
        why = f"accuracy on {data}; accuracies are judged on ImageNet alone"
        return Found(
            seen["top1"], seen["top1_low"], seen["top1_high"], n=(n,),
            runs=tuple(f"runs/{record['spec']['run']}" for record in records),
            notes=tuple(f"{run}: {flag}" for flag in seen["flags"]),
            barred=() if data == PRINTED_ON else (why,),
        )  # fmt: skip

    def gap(self, run: str, other: str) -> Found | None:
        one, two = self.accuracy(run), self.accuracy(other)
        return None if one is None or two is None else one - two

    # -- speed ------------------------------------------------------------------------------

    def _timed(self, *names: str) -> Iterator[tuple[str, dict]]:
        """The sections in which all of them were timed in turns, and their records."""
        for section in statements.together(self.config, *names):
            reader, _ = self._records("time", lambda row, section=section: row["section"] == section)
            if reader and (record := reader.throughput(section)):
                yield section, record

    def faster(self, run: str, other: str) -> Found | None:
        """How many per cent more images/s, both in turns in one process: the first in which neither
        ran out of memory, nor their dense model."""
        for section, record in self._timed(run, other):
            one, two = (_method(record["results"], name) for name in (run, other))
            if one.get("speedup") and two.get("speedup"):
                return self._faster(section, record, one, two)
        return None

    def _faster(self, section: str, record: dict, one: dict, two: dict) -> Found:
        spec, results = record["spec"], record["results"]
        ratios = quotient(*((m["speedup"], *m["speedup_interval"]) for m in (one, two)))
        doubts = together(one["suspect"], two["suspect"], results["suspect"])
        assumed = [
            f"{method['run']} was timed at an assumed profile, chosen to match its printed speed"
            for method in (one, two) if method.get("profile")
        ]  # fmt: skip
        untrusted = any(not any(words in why for words in COVERED) for why in doubts)
        how = "mode {mode}, {precision}, batch {batch_size}".format(**spec)
        point = f"{results['device']}: {how}"
        notes = [f"timed on {point}", *(f"suspect: {why}" for why in doubts)]
        if two is results["methods"][0]:
            ceilings = (100 * (one["ceilings"][name] - 1) for name in ("macs", "roofline"))
            notes.append("ceilings by MACs and roofline: {:.1f} and {:.1f} %".format(*ceilings))
        return Found(
            *(speedup_pct(ratio, 1.0) for ratio in ratios),
            n=(f"{len(one['rounds'])} rounds",), runs=(f"throughput/{section}",),
            notes=tuple(notes), doubts=doubts, point=point,
            barred=(*assumed, *(SUSPECT,) * untrusted),
            as_printed=(spec["mode"], spec["device"], spec["batch_size"]) == PRINTED_AT,
        )  # fmt: skip

    def macs_saved(self, run: str, other: str) -> Found | None:
        if (found := next(self._timed(run, other), None)) is None:
            return None
        section, record = found
        one, two = (_method(record["results"], name)["macs_g"] for name in (run, other))
        if None in (one, two):  # out of memory, and dependent on weights
            return None
        notes = (f"{one:.2f} and {two:.2f} G MACs",)
        return exactly(100 * (1 - one / two), n=("counted",), runs=(f"throughput/{section}",),
                       notes=notes)  # fmt: skip

    # -- trained models looked into ---------------------------------------------------------

    def curves(self, name: str, higher: tuple, lower: tuple) -> Found | None:
        """How far one curve of an analysis lies above another, or one point of it above another's:
        (curve, point), counted from 1, or None for the mean over the points."""
        if (record := self.records.curves(name)) is None:
            return None
        spec, results = record["spec"], record["results"]
        curves, half_widths = results["curves"], results["half_widths"]
        for curve, point in (higher, lower):
            if curve not in curves or (point or 1) > len(curves[curve]):
                known = ", ".join(f"{one} ({len(values)} points)" for one, values in curves.items())
                raise ConfigError(f"{FILES['claims']}: {name} has no curve {curve} at point {point or 1}, but {known}.")

        def at(values: dict[str, list[float]], end: tuple) -> float:
            curve, point = end
            return statistics.mean(values[curve]) if point is None else values[curve][point - 1]

        value = at(curves, higher) - at(curves, lower)
        # both are of the same images, so their errors may add up in full
        half = at(half_widths, higher) + at(half_widths, lower)
        data = spec["data"]["name"]
        why = f"of a model trained on {data}; such curves are judged on ImageNet alone"
        return Found(
            value, value - half, value + half, n=(f"{results['images']} images",),
            runs=(f"analyses/{name}",), barred=() if data == PRINTED_ON else (why,),
        )  # fmt: skip

    # -- memory -----------------------------------------------------------------------------

    def memory(self, run: str, other: str, batch_size: int) -> Found | None:
        """1 where a step of the run fits into memory and the other's does not, else -1."""
        section = statements.together(self.config, run, other)[0]
        reader, _ = self._records("time", lambda row: row["section"] == section and "batch_size" in row)
        record = reader and reader.training_cost(section)
        steps = record and [step_at(record, name, batch_size) for name in (run, other)]
        if not steps or None in steps:
            return None
        (fits, _), (other_fits, _) = steps
        spec, needs = record["spec"], [_needs(*step) for step in steps]
        counted = record["results"]["bytes_are"] == "counted"  # the same in each round
        n = "counted" if counted else f"{spec['rounds']} rounds"
        gpu = spec["device"] == "cuda" and spec["precision"] == "fp16"
        why = "memory is judged where steps run as the paper's: on a GPU, with fp16"
        return exactly(
            1.0 if fits and not other_fits else -1.0, n=(n,),
            runs=(f"training/{section}",), notes=(describe_steps(record),),
            barred=() if gpu else (why,), text="; ".join(needs),
        )  # fmt: skip


def _method(results: dict, run: str) -> dict:
    return next(method for method in results["methods"] if method["run"] == run)


def _needs(fits: bool, needed: int | None) -> str:
    said = "fits" if fits else "out of memory"
    return said if needed is None else f"{needed / 2**30:.1f} GiB, {said}"
