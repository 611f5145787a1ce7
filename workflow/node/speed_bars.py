"""How fast the reduced models must be: speed-ups over their dense twins on two CPU threads.

    python -m workflow.node.speed_bars [--rounds 15] [--sections DeiT-S LeViT-256] [--output x.csv]

Prints every bar beside what this machine measures (224 px, batch 32, fused attention, interleaved,
glibc's allocator tuned) and ends with code 1 if one is missed. The bars are ratios measured on a
CPU with bf16 units; without those, bf16 tells less.
"""

import argparse
import csv
import sys
import tempfile
from pathlib import Path

from workflow.campaign import Config
from workflow.node import fresh

# section: the dense model, then label, model, kwargs (a name: the profile that items.yaml declares
# for that row) and the bars in fp32 and bf16
BARS = {
    "DeiT-S": [
        ("dense", "plain_deit_small_patch16_224", {}, None, None),
        ("Evo, stage, paper", "evo_deit_small_patch16_224", {}, 1.47, 1.30),
        ("Evo, stage, official", "evo_deit_small_patch16_224", {"variant": "official"}, 1.50, 1.34),
        ("Evo, layer, paper", "evo_deit_small_patch16_224", {"schedule": "layer"}, 1.43, 1.19),
        ("DynamicViT 0.7", "dynamic_deit_small_patch16_224", {}, 1.48, 1.36),
        ("SViTE, deployed", "svite_deit_small_patch16_224", {}, 1.25, None),
        ("PS-ViT, assumed", "ps_deit_small_patch16_224", "ps_deit_small", 1.25, None),
        ("IA-RED2, assumed", "ia_red2_deit_small_patch16_224", "ia_red2_deit_small", 1.25, None),
    ],
    "DeiT-T": [
        ("dense", "plain_deit_tiny_patch16_224", {}, None, None),
        ("Evo, stage, paper", "evo_deit_tiny_patch16_224", {}, 1.41, 1.29),
    ],
    "LeViT-128S": [
        ("dense", "plain_levit_128s", {}, None, None),
        ("Evo, stage, paper", "evo_levit_128s", {}, 1.16, 1.14),
    ],
    "LeViT-256": [
        ("dense", "plain_levit_256", {}, None, None),
        ("Evo, stage, paper", "evo_levit_256", {}, 1.28, 1.22),
    ],
}
POINT = dict(kind="throughput", device="cpu", mode="fused", batch_size=32, threads=2)


FIELDS = ("section", "model", "precision", "images_per_s", "speedup", "low", "high", "bar", "met")


def measure(section: str, precision: str, rounds: int) -> list[dict]:
    """One row of FIELDS per model of the section, dense first; ``low`` and ``high`` are quartiles
    of the speed-up over the rounds."""
    profiles = Config.load().items["profiles"]
    models = [
        {
            "run": label,
            "name": name,
            "kwargs": profiles[kwargs] if isinstance(kwargs, str) else kwargs,
        }
        for label, name, kwargs, *_ in BARS[section]
    ]
    spec = POINT | dict(section=section, precision=precision, rounds=rounds, models=models)
    with tempfile.TemporaryDirectory() as folder:
        found = fresh.run(spec, {}, Path(folder))["results"]["methods"]
    rows = []
    for (label, _, _, *bars), method in zip(BARS[section], found, strict=True):
        bar = bars[precision == "bf16"]
        low, high = method["speedup_quartiles"]
        values = (method["images_per_s"], method["speedup"], low, high)
        met = "" if bar is None else method["speedup"] >= bar
        rounded = (round(value, 3) for value in values)
        rows.append(dict(zip(FIELDS, (section, label, precision, *rounded, bar, met), strict=True)))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15, help="of all models of a section")
    parser.add_argument("--sections", nargs="+", choices=BARS, default=list(BARS))
    parser.add_argument("--precisions", nargs="+", choices=("fp32", "bf16"),
                        default=["fp32", "bf16"])  # fmt: skip
    parser.add_argument("--output", type=Path, help="write the rows to this CSV too")
    arguments = parser.parse_args()
    rows = []
    for section in arguments.sections:
        for precision in arguments.precisions:
            rows += (new := measure(section, precision, arguments.rounds))
            for row in new:
                print(
                    f"{row['section']:11}{row['model']:21}{row['precision']:6}"
                    f"{row['images_per_s']:8.1f} images/s  x {row['speedup']:.3f} "
                    f"({row['low']:.3f}-{row['high']:.3f})"
                    + (f"  bar {row['bar']:.2f}" if row["bar"] else "")
                    + ("  missed" if row["met"] is False else ""),
                    flush=True,
                )
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        with arguments.output.open("w", newline="") as file:
            writer = csv.DictWriter(file, FIELDS)
            writer.writeheader()
            writer.writerows(rows)
    sys.exit(any(row["met"] is False for row in rows))


if __name__ == "__main__":
    main()
