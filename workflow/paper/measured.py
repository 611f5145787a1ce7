"""Compare the paper's speeds with a folder of measurements, and show its sweeps over batch sizes, as Markdown."""

from pathlib import Path

from workflow.campaign import benchmarks
from workflow.campaign.config import CLAIMS, Config, nearest
from workflow.paper import printed
from workflow.paper.sheet import Sheet
from workflow.storage import records, warnings


def paths_of(folder: Path, configuration: str, group: str = "*") -> list[Path]:
    """Return the records of a benchmark configuration, on any device.

    A configuration without a batch size means any.
    """
    return [
        path
        for device in benchmarks.DEVICES
        for name in (f"{device}-{configuration}.json", f"{device}-{configuration}-b*.json")
        for path in sorted((folder / "throughput").glob(f"{group}/{name}"))
    ]


def methods_at(folder: Path, group: str, configuration: str) -> dict[str, dict]:
    """Return the methods of a group's record by run, each with its `batch_size` and whether it was `warned` of.

    Raises RecordError where several records match, or the record is a sweep over batch sizes.
    """
    paths = paths_of(folder, configuration, group)
    if len(paths) > 1:
        raise records.RecordError(f"{paths[0]} and {paths[1].name} are both {configuration}: name one.")
    if not paths:
        return {}
    record = records.read(paths[0])
    if "batch_size" not in record["spec"]:
        raise records.RecordError(f"{paths[0]} is a sweep; name a configuration of one batch size.")
    return {method["run"]: method for method in with_conditions(record["results"], record["spec"]["batch_size"])}


def with_conditions(results: dict, batch_size: int) -> list[dict]:
    """Return the methods of one measurement, each with its batch size and whether it or the whole has warnings."""
    warned = bool(warnings.read(results))
    return [
        method | {"batch_size": batch_size, "warned": warned or bool(warnings.read(method))}
        for method in results["methods"]
    ]


def cell(method: dict | None, base: dict | None) -> list[str]:
    """Return batch size, images/s, speed-up with its interval, and the ceilings, as texts."""
    if method is None:
        return ["", "", "", ""]
    batch = str(method["batch_size"])
    obstacle = benchmarks.no_speed(method)
    if obstacle:
        return [batch, obstacle, "", ""]
    rate = f"{method['images_per_s']:.1f}"
    if method["warned"]:
        rate += " ?"
    if method.get("profile"):
        rate += " *"
    if method is base or method["speedup"] is None:
        return [batch, rate, "", ""]
    low, high = method["speedup_interval"]
    ceilings = method["ceilings"]
    speedup = f"**{method['speedup']:.2f}** ({low:.2f}-{high:.2f})"
    return [batch, rate, speedup, f"{ceilings['macs']:.2f} / {ceilings['roofline']:.2f}"]


def with_printed(config: Config, table: str, folder: Path, configurations: list[str]) -> Sheet:
    """Return one table: the paper's images/s and speed-up, and ours in every configuration.

    A table that the paper does not have lacks the groups that the paper's tables show.
    """
    known, names, rows = printed.by_run(config), printed.names(config, table), []
    shown_elsewhere = set()
    if table in config.items["ours"]:
        shown_elsewhere = {row["section"] for row in config.rows(CLAIMS)}
    for row in config.rows(table):
        if row["section"] in shown_elsewhere:
            continue
        dense = config.items["sections"][row["section"]][0]
        rate, base = (known.get(run, {}).get("throughput") for run in (row["run"], dense))
        cells = [*(str(row[name]) for name in names), f"{rate:.0f}" if rate else "-"]
        cells.append(f"{rate / base:.2f}" if row["run"] != dense and rate and base else "")
        timed = []
        for configuration in configurations:
            methods = methods_at(folder, row["section"], configuration)
            timed += cell(methods.get(row["run"]), methods.get(dense))
        if any(timed):
            rows.append([*cells, *timed])
    head = [*names, "paper, V100: images/s", "over the first"]
    for configuration in configurations:
        head += [f"{configuration}: batch", "images/s", "over the first", "ceiling: MACs / roofline"]
    return Sheet(head, rows, left=len(names))


def sweeps(folder: Path) -> list[Path]:
    """Return the records of sweeps over batch sizes."""
    return sorted((folder / "throughput").glob("*/*-sweep*.json"))


def over_batches(path: Path) -> Sheet:
    """Return one sweep: a row for each batch size and method, compared with the group's first model.

    Latency is that of single passes at batch 1, in milliseconds.
    """
    rows = []
    for size in records.read(path)["results"]["sizes"]:
        base, *others = with_conditions(size, size["batch_size"])
        for method in others:
            batch, rate, speedup, ceilings = cell(method, base)
            row = [method["run"], batch, cell(base, base)[1], rate, speedup, ceilings]
            rows.append([*row, latency(base), latency(method)])
    head = ["model", "batch", f"{base['run']}: images/s", "images/s", "over the first"]
    head += ["ceiling: MACs / roofline", f"{base['run']}: ms, p50 / p99", "ms, p50 / p99"]
    return Sheet(head, rows, left=1)


def latency(method: dict) -> str:
    """Return the median and the 99th percentile of a method's latency, where it has one."""
    milliseconds = method.get("latency_ms")
    return f"{milliseconds['p50']:.1f} / {milliseconds['p99']:.1f}" if milliseconds else ""


def legend(folder: Path) -> list[str]:
    """Say where the numbers come from, and what the marks mean."""
    measurements = [records.read(path) for path in sorted((folder / "throughput").glob("*/*.json"))]
    if not measurements:
        raise records.RecordError(f"{folder} has no throughput/<group>/<configuration>.json.")
    devices = sorted({record["results"]["device"] for record in measurements})
    commits = sorted({(record["provenance"]["commit"] or "unknown")[:7] for record in measurements})
    return [
        f"Timed on {', '.join(devices)}; commits {', '.join(commits)}. "
        "The 95 % interval of each speed-up is in brackets.",
        "?: measured with warnings, which the record gives; *: at an assumed profile, chosen so that "
        "MACs match a printed number (items.yaml, profiles).",
    ]


def texts(config: Config, folder: Path, configurations: list[str]) -> list[str]:
    """Return the folder's tables and sweeps with their headings, then the legend.

    Raises RecordError for a configuration without a record, and where there is nothing to show.
    """
    missing = [name for name in configurations if not paths_of(folder, name)]
    if missing:
        stems = [path.stem for path in (folder / "throughput").glob("*/*.json")]
        known = sorted({stem.partition("-")[2] for stem in stems})  # without the device
        raise records.RecordError(f"{folder} has no record at {', '.join(missing)}{nearest(missing[0], known)}")
    shown = []
    for table in config.items["tables"]:
        sheet = with_printed(config, table, folder, configurations)
        if sheet.rows:
            shown.append(f"### {table}\n\n{sheet.markdown()}")
    shown += [f"### {path.parent.name}, {path.stem}\n\n{over_batches(path).markdown()}" for path in sweeps(folder)]
    if not configurations and not shown:
        raise records.RecordError(
            f"{folder} has no sweep; name the configurations to show, such as --configurations fused-fp32."
        )
    return [*shown, *legend(folder)]
