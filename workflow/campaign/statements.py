"""The paper's claims (claims.yaml) as single statements: a list in a computation makes one of each.

Standard library and yaml only: the schema's check asks here whom a claim speaks of.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from workflow.campaign.config import FILES, Config, ConfigError

SUBJECT = {"order": "better", "saturates": "at"}  # else it is `run` that a claim speaks of
WORDS = {
    "top1": "top-1 accuracy",
    "throughput": "throughput",
    "speedup": "speed-up over its dense model",
    "top1_gap": "accuracy kept of its dense model's",
}
PICTURED = ("seen", "curves")  # a figure's content, not a run beside others
TIMED = ("throughput", "speedup", "macs_saved", "memory_fits")  # which one record must hold


@dataclass(frozen=True)
class Statement:
    """One row of the ledger; `others` is what the run is compared with."""

    id: str
    where: str
    says: str
    kind: str
    run: str = ""
    others: tuple[str, ...] = ()
    by: str = ""
    printed: tuple[float, float] | None = None  # None: what the printed tables say
    implied: bool = False  # `printed` follows from the sentence, which has no number
    at_least: bool = False
    tolerance: float = 0.0
    batch_size: int | None = None
    figure: str | None = None
    curves: tuple[str, tuple, tuple] | None = None  # an analysis; higher, lower: (curve, point)


def listed(value) -> list:
    return value if isinstance(value, list) else [value]


def computation(entry: dict) -> tuple[str, dict]:
    ((kind, said),) = entry["compute"].items()
    return kind, said


def named(entry: dict) -> Iterator[tuple[str, str]]:
    """Where a claim names a run, and that name."""
    kind, said = computation(entry)
    if kind in PICTURED:
        return
    for key in (SUBJECT.get(kind, "run"), "over", "than", "of"):
        for name in listed(said.get(key, [])):
            if name != "dense" and not (key == "of" and isinstance(said[key], str)):
                yield f"{kind}.{key}", name


def item_of(entry: dict) -> tuple[str, str] | None:
    """Where a claim names a table or a figure, if any, and that name: to look at, or for the runs
    of its rows."""
    kind, said = computation(entry)
    if kind == "seen":
        return kind, said
    if kind == "curves":
        return None
    return (f"{kind}.of", said["of"]) if isinstance(said.get("of"), str) else None


def figures(config: Config) -> list[str]:
    """The figures with rows that claims compare and no table has; of those to look at the ledger
    reads nothing."""
    compared = {run for one in every(config) for run in (one.run, *one.others) if run}
    compared -= {row["run"] for table in config.items["tables"] for row in config.rows(table)}
    return [
        name for name in config.items["figures"]
        if any(row["run"] in compared for row in config.rows(name))
    ]  # fmt: skip


def analyses(config: Config) -> list[str]:
    """The looks into trained models whose curves claims compare."""
    return list(dict.fromkeys(one.curves[0] for one in every(config) if one.curves))


def dense(config: Config, run: str) -> str:
    """The model that a run's speed-up refers to: the first of the first section that times both."""
    for models in config.items["sections"].values():
        if run in models[1:]:
            return models[0]
    raise ConfigError(
        f"{FILES['claims']}: {run} is timed against no other model (items.yaml, sections); say over or than which run."
    )


def together(config: Config, *names: str) -> list[str]:
    """The sections in which all of these runs are timed in turns."""
    sections = config.items["sections"].items()
    return [section for section, models in sections if set(names) <= set(models)]


def every(config: Config) -> list[Statement]:
    """All claims of the campaign, in the order of the file."""
    return [one for name, entry in config.claims.items() for one in of_claim(config, name, entry)]


def of_claim(config: Config, name: str, entry: dict) -> list[Statement]:
    """A claim's statements. Raises ConfigError where its runs can't be compared as it wants."""
    kind, said = computation(entry)
    common = {
        "where": entry["where"],
        "kind": kind,
        "printed": interval(entry),
        "implied": "implied" in entry,
        "at_least": entry.get("at_least", False),
        "tolerance": float(entry.get("tolerance", 0.0)),
    }
    if kind == "seen":
        return [Statement(id=name, says=entry["says"], figure=said, **common)]
    if kind == "curves":
        if said["of"] not in config.items["analyses"]:
            raise ConfigError(
                f"{FILES['claims']}: {name}.compute.curves.of names {said['of']!r}; choose among "
                f"the analyses of items.yaml: {', '.join(config.items['analyses'])}."
            )
        ends = ((*listed(said[key]), None)[:2] for key in ("higher", "lower"))
        return [Statement(id=name, says=entry["says"], curves=(said["of"], *ends), **common)]
    subjects = listed(said[SUBJECT.get(kind, "run")])
    thans = listed(said["than"]) if kind == "order" else [None]
    bys = listed(said.get("by", "top1" if kind in ("best", "saturates") else kind))
    found = []
    for run, than, by in product(subjects, thans, bys):
        others = compared_with(config, kind, said, run, than)
        varied = ((run, subjects), (than, thans), (by, bys))
        parts = [one for one, among in varied if len(among) > 1]
        statement = Statement(
            id=".".join([name, *parts]),
            says=worded(config, entry["says"], run, others, by),
            run=run, others=tuple(others), by=by, batch_size=said.get("batch_size"), **common,
        )  # fmt: skip
        check(config, name, statement)
        found.append(statement)
    return found


def interval(entry: dict) -> tuple[float, float] | None:
    """The printed value as the range in which ours should lie."""
    stated = entry.get("printed", entry.get("implied"))
    if stated is None:
        return None
    low, high = (listed(stated) * 2)[:2]
    return float(low), float("inf") if entry.get("at_least") else float(high)  # more is no fault


def compared_with(config: Config, kind: str, said: dict, run: str, than: str | None) -> list[str]:
    if kind in ("best", "saturates"):
        among = said["of"]
        if isinstance(among, str):
            among = list(dict.fromkeys(row["run"] for row in config.rows(among)))
        if kind == "saturates":  # those that come after it
            return among[among.index(run) + 1 :] if run in among else []
        return [one for one in among if one != run]
    other = than or said.get("over", "dense")
    return [dense(config, run) if other == "dense" else other]


def check(config: Config, name: str, statement: Statement) -> None:
    """Raises ConfigError where nothing times together what the claim compares."""
    path = FILES["claims"].name
    if not statement.others:
        raise ConfigError(f"{path}: {name} compares {statement.run} with nothing; name other runs.")
    for other in statement.others:
        one_record = statement.by in TIMED[:1] or statement.kind in TIMED
        if one_record and not together(config, statement.run, other):
            raise ConfigError(
                f"{path}: {name} compares the speeds of {statement.run} and {other}, which no "
                "section of items.yaml times in turns; add one."
            )


def worded(config: Config, text: str, run: str, others: list[str], by: str) -> str:
    """The sentence with the names that tables give the models."""
    than = label(config, others[0]) if len(others) == 1 else "the others"
    text = text.replace("{run}", label(config, run)).replace("{than}", than)
    return text.replace("{by}", WORDS.get(by, by))


def label(config: Config, run: str) -> str:
    """What tables call a run; one that stands in none has its own name alone."""
    for rows in config.items["tables"].values():
        for row in rows:
            if row["run"] == run:
                large = row.get("resolution", 224) != 224
                return _name(row) + (f" at {row['resolution']} px" if large else "")
    return run


def _name(row: dict) -> str:
    if "model" in row:
        return row["model"]
    if "strategy" in row:
        return f"{row['backbone']} ({row['strategy']})"
    return row["backbone"] if row["method"] == "Baseline" else f"{row['method']} on {row['backbone']}"
