"""Show which records a setting's tables and claims lack, and in which order to make them.

What decides most claims per hour comes first; first seeds come before second ones, and a run after those that it starts
from.
"""

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from workflow.campaign import kinds, targets
from workflow.campaign.config import CLAIMS, MEASURED, Config
from workflow.launch.forecast import Forecast
from workflow.paper import claims
from workflow.paper.claims import CLOSE, NOT_RUN, Sources
from workflow.paper.estimates import Measured, Printed
from workflow.paper.results import Records
from workflow.paper.sheet import Sheet
from workflow.storage import provenance, records

NOT_SHOWN = ("data", "preflight", "fetch")  # kinds of jobs whose records no table shows
AT_LEAST = 1.0  # hours of a job whose hours are unknown, where jobs are put into an order
HERE = "results"  # the place whose weights other runs can start from


@dataclass(frozen=True)
class Need:
    """A record that tables or claims ask for.

    Attributes:
        target: its path, by which snakemake makes it.
        kind: of its job.
        place: "results" or "measured", where it is; None if it is missing.
        to_make: whether its job must run: it is missing, or its weights are, from which a missing run starts.
        hours: how long its job takes; None if nothing like it was measured on such a device.
        claims: how many undecided claims wait for it.
    """

    target: str
    kind: str
    place: str | None
    to_make: bool = False
    hours: float | None = None
    claims: int = 0


class Evidence(Records):
    """The records of a setting in its results and among the committed ones; it notes which are asked for and missing.

    Attributes:
        folders: where records are, by what the places are called.
        missing: targets of the records that were asked for and that neither place has.
    """

    def __init__(self, config: Config, setting: str, results: Path):
        super().__init__(config, config.settings[setting]["results"], partial=True)
        self.folders = {HERE: results, "measured": Path(MEASURED, setting)}
        self.missing: set[str] = set()

    def find(self, record: kinds.Record) -> tuple[str | None, dict | None]:
        """Return the place of a record and its content; (None, None) where it is missing or of another spec."""
        for place, folder in self.folders.items():
            try:
                return place, records.read(folder / Path(record.path).relative_to(self.root), record.hash)
            except records.RecordError:
                continue
        return None, None

    def _read(self, record: kinds.Record) -> dict | None:
        _, content = self.find(record)
        if content is None:
            self.missing.add(record.path)
        return content


def needs(config: Config, setting: str, results: Path, items: Sequence[str] = ()) -> list[Need]:
    """Return the records that items (or all tables and the claims) ask for: those to make in their order, then the
    others.
    """
    evidence = Evidence(config, setting, results)
    chain = _asked(evidence, items)
    asked = {path: config.records[path] for paths in chain.values() for path in paths}
    found = {path: evidence.find(record) for path, record in asked.items()}
    first = {path: [other for other in paths if found[other][0] != HERE] for path, paths in chain.items()}
    first = {path: paths for path, paths in first.items() if found[path][0] is None}
    waiting = {}
    for claim, lacked in _lacked(evidence).items():
        if lacked and lacked <= first.keys():
            waiting[claim] = {other for path in lacked for other in first[path]}
    durations = Durations(evidence, found)
    hours = {path: durations.hours(asked[path]) for paths in first.values() for path in paths}
    counts = Counter(path for paths in waiting.values() for path in paths)
    order = in_order({path: asked[path].spec.get("seed", 0) for path in asked}, first, waiting, hours)
    needed = []
    for path in order:
        needed.append(Need(path, asked[path].spec["kind"], found[path][0], True, hours[path], counts[path]))
    for path, (place, _) in found.items():
        if path not in hours:
            needed.append(Need(path, asked[path].spec["kind"], place))
    return needed


def _asked(evidence: Evidence, items: Sequence[str]) -> dict[str, list[str]]:
    """Return the records that the items show; each with those that its job needs, in the order of their jobs, and at
    last itself.
    """
    config, setting, root = evidence.config, evidence.setting, evidence.root
    ledger = [CLAIMS] if config.has_claims(setting) else []
    chain: dict[str, list[str]] = {}
    for item in items or (*config.tables_of(setting), *ledger):
        for path in targets.item_records(config, root, item):
            if path not in chain:
                needed = targets.needed(config, path)
                chain[path] = [other for other, spec in needed.items() if spec["kind"] not in NOT_SHOWN]
    present = {path for path in chain if evidence.find(config.records[path])[0] is not None}
    return {path: [path] if path in present else paths for path, paths in chain.items()}


def _lacked(evidence: Evidence) -> dict[str, set[str]]:
    """Return the missing records of each undecided claim."""
    config = evidence.config
    if not config.has_claims(evidence.setting):
        return {}
    measured = Measured(config, evidence.root, partial=False)
    measured.records = evidence
    sources, lacked = Sources(config, measured, Printed(config)), {}
    for claim in claims.all_claims(config):
        evidence.missing = set()
        if claim.judge(sources).verdict in (CLOSE, NOT_RUN):
            lacked[claim.id] = evidence.missing
    return lacked


# -- the order ------------------------------------------------------------------------------------


def in_order(
    seeds: dict[str, int],
    first: dict[str, list[str]],
    waiting: dict[str, set[str]],
    hours: dict[str, float | None],
) -> list[str]:
    """Return the records to make, in their order.

    Of each seed in turn: first what claims wait for, by the claims that an hour decides, then what only tables show.

    Args:
        seeds: of all records, by path.
        first: what each missing record needs that is to be made, in the order of the jobs, and at last itself.
        waiting: the records that each undecided claim lacks, with what these need.
        hours: of each record to make.
    """
    unknown = max([AT_LEAST, *(value for value in hours.values() if value is not None)])  # rather too long
    cost = {path: unknown if value is None else value for path, value in hours.items()}
    jobs = list(dict.fromkeys(path for paths in first.values() for path in paths))
    order: dict[str, None] = {}
    for seed in sorted({seeds[path] for path in jobs}):
        left = {claim: {path for path in paths if seeds[path] == seed} for claim, paths in waiting.items()}
        while any(left.values()):
            best = max(filter(None, left.values()), key=lambda paths: _claims_per_hour(paths, left, cost))
            order |= dict.fromkeys(path for path in jobs if path in best)
            left = {claim: paths - best for claim, paths in left.items()}
        order |= dict.fromkeys(path for path in jobs if seeds[path] == seed)
    return list(order)


def _claims_per_hour(paths: set[str], left: dict[str, set[str]], cost: dict[str, float]) -> float:
    """Return how many claims lack nothing more once these records are made, for each hour of their jobs."""
    decided = sum(bool(lacked) and lacked <= paths for lacked in left.values())
    return decided / max(sum(cost[path] for path in paths), 1e-9)


class Durations:
    """How long jobs of a setting take, in hours: from journals and records of its devices, the likest first.

    Its devices are those of its results, and the processor of this machine.

    Attributes:
        devices: their names, as records have them.
        walls: seconds of the whole job, by kind of job, those of benchmarks also by configuration.
        epochs: seconds of an epoch, by row.
    """

    def __init__(self, evidence: Evidence, found: dict[str, tuple[str | None, dict | None]]):
        self.evidence = evidence
        self.forecast = Forecast(evidence.config, str(evidence.folders[HERE]), evidence.setting)
        present = {path: record for path, (_, record) in found.items() if record is not None}
        own = [record["provenance"].get("device") for path, record in present.items() if found[path][0] == HERE]
        self.devices = {provenance.processor(), *filter(None, own)}
        self.walls: dict[tuple[str, str], list[float]] = {}
        self.epochs: dict[str, list[float]] = {}
        for path, record in present.items():
            if found[path][0] != HERE and not self._is_alike(record):
                continue
            self.walls.setdefault(_way(path, record["spec"]), []).append(record["provenance"]["wall_s"])
            epochs = [epoch["epoch_s"] for epoch in record["results"].get("history", []) if "epoch_s" in epoch]
            if epochs:
                self.epochs.setdefault(record["spec"]["row"], []).append(statistics.median(epochs))

    def hours(self, record: kinds.Record) -> float | None:
        """Return the hours that a record's job takes, or still takes; None if nothing like it was measured."""
        spec, relative = record.spec, Path(record.path).relative_to(self.evidence.root)
        if spec["kind"] != "train":
            walls = self.walls.get(_way(record.path, spec))
            if "section" in spec:  # its models have the paper's size, so other folders' records tell as much
                committed = [records.read(path) for path in Path(MEASURED).glob(f"*/{relative}")]
                walls = [other["provenance"]["wall_s"] for other in committed if self._is_alike(other)] or walls
            return statistics.median(walls) / 3600 if walls else None
        forecast = self.forecast.of_training(str(self.evidence.folders[HERE] / relative), spec).hours
        if forecast is not None:
            return forecast
        epochs = self.epochs.get(spec["row"]) or [epoch for row in self.epochs.values() for epoch in row]
        return statistics.median(epochs) * spec["recipe"]["epochs"] / 3600 if epochs else None

    def _is_alike(self, record: dict) -> bool:
        """Return whether a record was made on such a device as the setting's jobs run on."""
        return record["provenance"].get("device") in self.devices


def _way(path: str, spec: dict) -> tuple[str, str]:
    """Return what jobs have in common that take about as long: their kind, of benchmarks also the configuration."""
    return spec["kind"], Path(path).name if "section" in spec else ""


# -- for people -----------------------------------------------------------------------------------


def describe_hours(hours: list[float | None]) -> str:
    """Return a sentence with the hours of all jobs to run, and the number of jobs whose hours are unknown."""
    known = [value for value in hours if value is not None]
    unknown = len(hours) - len(known)
    if not hours:
        return ""
    if not known:
        return f" The hours of the {unknown} jobs to run are unknown."
    if not unknown:
        return f" The {len(known)} jobs to run take about {sum(known):.1f} hours."
    return (
        f" Of the {len(hours)} jobs to run, {len(known)} take about {sum(known):.1f} hours; the hours of the other "
        f"{unknown} are unknown."
    )


def sheet_of(setting: str, needed: list[Need]) -> Sheet:
    """Return the records for people, those to make first and in their order."""
    counts = Counter(need.place for need in needed)
    lead = f"{setting}: {len(needed)} records: {counts[HERE]} are in the results"
    lead += f", {counts['measured']} only in {MEASURED}/{setting}, and {counts[None]} are missing."
    lead += describe_hours([need.hours for need in needed if need.to_make])
    rows = []
    for need in needed:
        hour = "?" if need.hours is None else f"{need.hours:.2f}"
        to_make = [hour, str(need.claims)] if need.to_make else ["-", "-"]
        rows.append([need.target, need.place or "missing", *to_make])
    remarks = [
        "hours: of this job alone, by journals and records of such jobs on a device of the setting's results or on "
        f"this processor ({provenance.processor()})",
        f"?: there are none; in the order, such a job counts as long as the longest known, at least {AT_LEAST:g} hour",
        "claims: how many undecided ones wait for it; first seeds first, of these what decides most in an hour",
    ]
    if any(need.to_make and need.place for need in needed):
        remarks.append("a committed record has no weights: where a missing run starts from them, its job must run here")
    return Sheet(["target", "record", "hours", "claims"], rows, left=2, lead=lead, remarks=remarks)
