"""The paper's speeds beside those of a folder of measurements, then the folder's sweeps over batch
sizes, as Markdown:

python -m workflow.paper.measured results/measured/<device> --points fused-fp32 fused-bf16
"""

import sys
from pathlib import Path

from workflow import command_line
from workflow.campaign import benchmarks
from workflow.campaign.config import Config, ConfigError
from workflow.paper import printed
from workflow.paper.sheet import Sheet
from workflow.storage import records


def paths_of(folder: Path, point: str, section: str = "*") -> list[Path]:
    """The records at a point, on whichever device and, if the point names no batch size, of any."""
    return [
        path
        for device in benchmarks.DEVICES
        for name in (f"{device}-{point}.json", f"{device}-{point}-b*.json")
        for path in sorted((folder / "throughput").glob(f"{section}/{name}"))
    ]


def found_methods(folder: Path, section: str, point: str) -> dict[str, dict]:
    """The methods of the section's record at a point, by run, each with its batch size and the
    record's suspicions; a point without a batch size is that of the one record there is."""
    paths = paths_of(folder, point, section)
    if len(paths) > 1:
        raise records.RecordError(f"{paths[0]} and {paths[1].name} are both {point}: name one.")
    if not paths:
        return {}
    record = records.read(paths[0])
    if "batch_size" not in record["spec"]:
        raise records.RecordError(f"{paths[0]} is a sweep; name a point of one batch size.")
    also = {"batch_size": record["spec"]["batch_size"], "all": record["results"]["suspect"]}
    return {method["run"]: method | also for method in record["results"]["methods"]}


def cell(method: dict | None, base: dict | None) -> list[str]:
    """Batch size, images/s, speed-up with its interval, and the ceilings."""
    if method is None:
        return ["", "", "", ""]
    batch = str(method["batch_size"])
    if why := benchmarks.no_speed(method):
        return [batch, why, "", ""]
    doubt = " ?" if method.get("suspect") or method["all"] else ""
    doubt += " *" if method.get("profile") else ""
    rate = f"{method['images_per_s']:.1f}{doubt}"
    if method is base or method["speedup"] is None:
        return [batch, rate, "", ""]
    low, high = method["speedup_interval"]
    ceilings = method["ceilings"]
    return [batch, rate, f"**{method['speedup']:.2f}** ({low:.2f}-{high:.2f})",
            f"{ceilings['macs']:.2f} / {ceilings['roofline']:.2f}"]  # fmt: skip


def beside_printed(config: Config, table: str, folder: Path, wanted: list[str]) -> Sheet:
    """One table: the paper's images/s and speed-up, and ours at every point."""
    known, rows = printed.by_run(config), []
    for row in config.items["tables"][table]:
        names = [str(name) for name in printed.key(table, row)]
        dense = config.items["sections"][row["section"]][0]
        rate, base = (known.get(run, {}).get("throughput") for run in (row["run"], dense))
        shown = [*names, f"{rate:.0f}" if rate else "-"]
        same = row["run"] == dense or not (rate and base)
        shown.append("" if same else f"{rate / base:.2f}")
        for point in wanted:
            methods = found_methods(folder, row["section"], point)
            shown += cell(methods.get(row["run"]), methods.get(dense))
        if any(shown[len(names) + 2 :]):
            rows.append(shown)
    head = [*printed.NAMES[table], "paper, V100: images/s", "over the first"]
    for point in wanted:
        head += [f"{point}: batch", "images/s", "over the first", "ceiling: MACs / roofline"]
    return Sheet(head, rows, left=len(printed.NAMES[table]))


def sweeps(folder: Path) -> list[Path]:
    """The records of all batch sizes in turn."""
    return sorted((folder / "throughput").glob("*/*-sweep*.json"))


def over_batches(path: Path) -> Sheet:
    """One sweep: a row for each batch size and method, beside the section's first model; latency is
    of single passes at batch 1, in milliseconds."""
    rows = []
    for size in records.read(path)["results"]["sizes"]:
        base, *others = (
            method | {"batch_size": size["batch_size"], "all": size["suspect"]} for method in size["methods"]
        )
        for method in others:
            batch, rate, speedup, ceilings = cell(method, base)
            row = [method["run"], batch, cell(base, base)[1], rate, speedup, ceilings]
            rows.append([*row, latency(base), latency(method)])
    head = ["model", "batch", f"{base['run']}: images/s", "images/s", "over the first"]
    head += ["ceiling: MACs / roofline", f"{base['run']}: ms, p50 / p99", "ms, p50 / p99"]
    return Sheet(head, rows, left=1)


def latency(method: dict) -> str:
    found = method.get("latency_ms")
    return f"{found['p50']:.1f} / {found['p99']:.1f}" if found else ""


def legend(folder: Path) -> list[str]:
    """Where the numbers come from, and what the marks mean."""
    found = [records.read(path) for path in sorted((folder / "throughput").glob("*/*.json"))]
    if not found:
        raise records.RecordError(f"{folder} has no throughput/<section>/<point>.json.")
    devices = sorted({record["results"]["device"] for record in found})
    commits = sorted({(record["provenance"]["commit"] or "unknown")[:7] for record in found})
    return [
        f"Timed on {', '.join(devices)}; commits {', '.join(commits)}. Behind speed-ups stand their 95 % intervals.",
        "?: suspect, for reasons that the record gives; *: at an assumed profile, chosen so that "
        "MACs match the printed images/s.",
    ]


def main() -> None:
    parser = command_line.parser(__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--points", nargs="+", default=[], metavar="MODE-PRECISION[-bN]")
    try:
        config = Config.load()
    except ConfigError as error:
        sys.exit(f"ERROR: {error}")
    tables = list(config.items["tables"])
    parser.add_argument("--tables", nargs="+", choices=tables, default=tables)
    arguments = parser.parse_args()
    try:
        if missing := [name for name in arguments.points if not paths_of(arguments.folder, name)]:
            raise records.RecordError(f"{arguments.folder} has no record at {', '.join(missing)}.")
        for table in arguments.tables:
            sheet = beside_printed(config, table, arguments.folder, arguments.points)
            if sheet.rows:
                print(f"### {table}\n\n{sheet.markdown()}")
        swept = sweeps(arguments.folder)
        if not arguments.points and not swept:
            parser.error("--points: name those to show, such as fused-fp32; there is no sweep here")
        for path in swept:
            print(f"### {path.parent.name}, {path.stem}\n\n{over_batches(path).markdown()}")
        print("\n\n".join(legend(arguments.folder)))
    except records.RecordError as error:
        sys.exit(f"ERROR: {error}")


if __name__ == "__main__":
    command_line.run(main)
