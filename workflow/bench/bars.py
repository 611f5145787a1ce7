"""How fast the reduced models must be: speed-ups over their dense twins on two CPU threads, or on a
current NVIDIA GPU.

    python -m workflow.bench.bars [--sections DeiT-S LeViT-256] [--output x.csv]
    python -m workflow.bench.bars --device cuda

Prints every bar beside what this machine measures (224 px, interleaved, glibc's allocator tuned,
threads pinned) and ends with code 1 if one is missed. The CPU's bars are ratios measured on one
with bf16 units; without those, bf16 tells less.
"""

import csv
import re
import sys
import tempfile
from pathlib import Path

from workflow import command_line
from workflow.bench import by_hand, fresh
from workflow.campaign import points
from workflow.campaign.config import Config
from workflow.campaign.specs import recipe_of
from workflow.storage import records, warnings

S, T = "deit_small_patch16_224", "deit_tiny_patch16_224"
B = "deit_base_patch16_224"
EVO = "Evo, stage, paper"
# device: section: the mode, the batch size, the dense model, then label, model, kwargs (a name: the
# profile that items.yaml declares for that row) and the bars in fp32 and bf16
BARS = {
    "cpu": {
        "DeiT-S": ("fused", 32, f"plain_{S}", [
            (EVO, f"evo_{S}", {}, 1.50, 1.34),
            ("Evo, stage, official", f"evo_{S}", {"variant": "official"}, 1.50, 1.34),
            ("Evo, layer, paper", f"evo_{S}", {"schedule": "layer"}, 1.47, 1.25),
            ("DynamicViT 0.7", f"dynamic_{S}", {}, 1.51, 1.39),
            ("SViTE, deployed", f"svite_{S}", {}, 1.25, None),
            ("PS-ViT, assumed", f"ps_{S}", "ps_deit_small", 1.25, None),
            ("IA-RED2, assumed", f"ia_red2_{S}", "ia_red2_deit_small", 1.25, None),
        ]),
        "DeiT-S, compiled": ("compiled", 32, f"plain_{S}", [(EVO, f"evo_{S}", {}, 1.48, 1.45)]),
        "DeiT-T": ("fused", 32, f"plain_{T}", [(EVO, f"evo_{T}", {}, 1.44, 1.33)]),
        "LeViT-128S": ("fused", 32, "plain_levit_128s", [(EVO, "evo_levit_128s", {}, 1.16, 1.14)]),
        "LeViT-256": ("fused", 32, "plain_levit_256", [(EVO, "evo_levit_256", {}, 1.31, 1.25)]),
    },
    "cuda": {
        "DeiT-S, compiled": ("compiled", 256, f"plain_{S}", [(EVO, f"evo_{S}", {}, None, 1.42)]),
        "DeiT-B, compiled": ("compiled", 256, f"plain_{B}", [(EVO, f"evo_{B}", {}, None, 1.44)]),
        "DeiT-T, compiled": ("compiled", 256, f"plain_{T}", [(EVO, f"evo_{T}", {}, None, 1.32)]),
        "DeiT-S, batch 1": ("compiled", 1, f"plain_{S}", [(EVO, f"evo_{S}", {}, None, 1.00)]),
    },
}  # fmt: skip
# sections whose passes are replayed as a CUDA graph at their batch size: an H200 seemed to wait for
# the launches of Evo-DeiT-T's kernels (results/measured/nvidia-h200/)
GRAPHED = ("DeiT-T, compiled",)
# of a training step of DeiT-S, stage-wise, at batch 16: dense over Evo, and the bytes saved for the
# backward pass, Evo over dense
TRAINING = "DeiT-S, training step"
STEP_BARS, SAVED_BARS = {"fp32": 1.46, "bf16": 1.20}, {"fp32": 0.69, "bf16": 0.72}
POINTS = {
    "cpu": dict(device="cpu", channels_last=False, threads=2),
    "cuda": dict(device="cuda", channels_last=False, threads=8),
}
FIELDS = ("section", "model", "precision", "images_per_s", "speedup", "low", "high", "ceiling",
          "bar", "met", "warnings")  # fmt: skip


def measured(spec: dict, kept: Path | None) -> dict:
    """The results of a record, which is written into the folder `kept`, too."""
    with tempfile.TemporaryDirectory() as folder:
        record = fresh.run(spec, {}, Path(folder))
    if kept:
        name = "-".join([*re.findall(r"[a-z0-9]+", spec["section"].lower()), spec["precision"]])
        records.write_json(kept / f"{name}.json", record)
    return record["results"]


def measure(device: str, section: str, precision: str, kept: Path | None = None, **changes) -> list[dict]:
    """One row of FIELDS per model of the section, dense first; ``low`` and ``high`` bound the
    speed-up. `changes`: what else the point of measurement needs."""
    mode, batch_size, dense, rows = BARS[device][section]
    profiles = Config.load().items["profiles"]
    models = [("dense", dense, {}, None, None), *rows]
    named = [
        {"run": label, "name": name, "kwargs": profiles[kw] if isinstance(kw, str) else kw}
        for label, name, kw, *_ in models
    ]
    graphs = batch_size if section in GRAPHED else 16
    spec = POINTS[device] | dict(
        kind="throughput", section=section, mode=mode, precision=precision,
        batch_size=batch_size, models=named, **{"cuda_graphs": graphs} | changes,
    )  # fmt: skip
    found = measured(spec, kept)
    bar = {"fp32": -2, "bf16": -1}[precision]
    return [
        row_of(section, precision, method, model[bar], found)
        for model, method in zip(models, found["methods"], strict=True)
    ]


def row_of(section: str, precision: str, method: dict, bar: float | None, found: dict) -> dict:
    if (why := points.no_speed(method)) or method["speedup"] is None:
        why = why or "its dense model has no speed"
        row = dict.fromkeys(FIELDS, "") | {"section": section, "model": method["run"]}
        return row | {"precision": precision, "bar": bar, "met": False, "warnings": why}
    low, high = method["speedup_interval"]
    return {
        "section": section,
        "model": method["run"],
        "precision": precision,
        "images_per_s": round(method["images_per_s"], 2),
        "speedup": round(method["speedup"], 3),
        "low": round(low, 3),
        "high": round(high, 3),
        "ceiling": round(method["ceilings"]["macs"], 3),
        "bar": bar,
        "met": "" if bar is None else method["speedup"] >= bar,
        "warnings": texts(method, found),
    }


def texts(*results: dict) -> str:
    """Return the texts of the warnings of a method and of its record."""
    return "; ".join(warning.text for result in results for warning in warnings.read(result))


def measure_training(precision: str, rounds: int, kept: Path | None) -> list[dict]:
    """A row for the step's time, and one for the bytes saved, Evo over dense."""
    config = Config.load()
    models = [
        {"run": run, "model": {"name": name, "kwargs": {}}, "recipe": recipe_of(config, None, run)}
        for run, name in (("deit_small", f"plain_{S}"), ("evo_deit_small", f"evo_{S}"))
    ]
    spec = POINTS["cpu"] | dict(
        kind="training_speed", section=TRAINING, mode="fused", rounds=rounds, precision=precision,
        models=models, batch_size=16,
    )  # fmt: skip
    found = measured(spec, kept)
    dense, evo = found["methods"]
    ceiling = dense["macs_g"] / evo["macs_g"]
    low, high = evo["speedup_interval"]
    saved = evo["saved_bytes"] / dense["saved_bytes"]
    row = dict.fromkeys(FIELDS, "") | {"section": TRAINING, "precision": precision}
    bars = STEP_BARS[precision], SAVED_BARS[precision]
    return [
        row | {"model": EVO, "images_per_s": round(evo["images_per_s"], 2),
               "speedup": round(evo["speedup"], 3), "low": round(low, 3), "high": round(high, 3),
               "ceiling": round(ceiling, 3), "bar": bars[0], "met": evo["speedup"] >= bars[0],
               "warnings": texts(evo, found)},
        row | {"model": "  bytes saved, over dense", "speedup": round(saved, 3), "bar": bars[1],
               "met": saved <= bars[1]},
    ]  # fmt: skip


def line(row: dict) -> str:
    said = f"{row['section']:22}{row['model']:26}{row['precision']:6}{row['images_per_s']:>8}"
    if row["speedup"]:
        said += f"  x {row['speedup']:.3f}"
    if row["low"]:
        said += f" ({row['low']:.3f}-{row['high']:.3f})"
    if row["ceiling"]:
        said += f"  ceiling {row['ceiling']:.2f}"
    if row["bar"]:
        said += f"  bar {row['bar']:.2f}" + ("" if row["met"] else "  missed")
    return said + (f"  warning: {row['warnings']}" if row["warnings"] else "")


def write(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(rows)


def main() -> None:
    parser = command_line.parser(__doc__)
    parser.add_argument(
        "--rounds",
        type=int,
        default=15,
        help="at least; up to twice as many while a speed-up is unsure (15)",
    )
    parser.add_argument("--device", choices=tuple(BARS), default="cpu")
    parser.add_argument("--sections", nargs="+", help="only these")
    parser.add_argument("--precisions", nargs="+", choices=("fp32", "bf16"),
                        help="both on a CPU, bf16 on a GPU")  # fmt: skip
    parser.add_argument("--cuda-graphs", type=int, metavar="N",
                        help="replay batches of up to N images as CUDA graphs (16; DeiT-T's, "
                             "256)")  # fmt: skip
    parser.add_argument("--output", type=Path, metavar="X.CSV",
                        help="write the rows there, their records into folder X")  # fmt: skip
    arguments = parser.parse_args()
    on_cpu = arguments.device == "cpu"
    known = [*BARS[arguments.device], *([TRAINING] if on_cpu else [])]
    if unknown := sorted(set(arguments.sections or ()) - set(known)):
        parser.error(f"--sections {unknown[0]!r} is none of {known}")
    if arguments.output and arguments.output.suffix != ".csv":  # without, file and folder are one
        parser.error(f"--output {arguments.output}: name a file that ends in .csv")
    if arguments.rounds < by_hand.LEAST_ROUNDS:
        parser.error(by_hand.too_few(arguments.rounds))
    if not on_cpu and "fp32" in (arguments.precisions or ()):
        parser.error("--precisions fp32: the bars of a GPU are in bf16")
    changes = {"rounds": arguments.rounds, "cuda_graphs": arguments.cuda_graphs}
    changes = {key: value for key, value in changes.items() if value is not None}
    kept = arguments.output and arguments.output.with_suffix("")
    rows = []
    for section in arguments.sections or known:
        for precision in arguments.precisions or (["fp32", "bf16"] if on_cpu else ["bf16"]):
            try:
                if section == TRAINING:
                    new = measure_training(precision, arguments.rounds, kept)
                else:
                    new = measure(arguments.device, section, precision, kept, **changes)
            except fresh.MeasurementError as error:
                sys.exit(f"ERROR: {section}: {error}")
            rows += new
            print("\n".join(map(line, new)), flush=True)
            if arguments.output:  # each time: the next section may be killed
                write(arguments.output, rows)
    sys.exit(any(row["met"] is False for row in rows))


if __name__ == "__main__":
    command_line.run(main)
