"""How fast the reduced models must be: speed-ups over their dense twins on two CPU threads.

    python -m workflow.node.speed_bars [--rounds 15] [--sections DeiT-S LeViT-256]

Prints every bar beside what this machine measures (224 px, batch 32, fused attention, interleaved,
glibc's allocator tuned) and ends with code 1 if one is missed. The bars are ratios measured on a
CPU with bf16 units; without those, bf16 tells less.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from workflow.node import throughput

# section: the dense model, then label, model, kwargs and the bars in fp32 and bf16
BARS = {
    "DeiT-S": [
        ("dense", "plain_deit_small_patch16_224", {}, None, None),
        ("Evo, stage, paper", "evo_deit_small_patch16_224", {}, 1.47, 1.30),
        ("Evo, stage, official", "evo_deit_small_patch16_224", {"variant": "official"}, 1.50, 1.34),
        ("Evo, layer, paper", "evo_deit_small_patch16_224", {"schedule": "layer"}, 1.43, 1.19),
        ("DynamicViT 0.7", "dynamic_deit_small_patch16_224", {}, 1.48, 1.36),
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


def measure(section: str, precision: str, rounds: int) -> list[dict]:
    """One entry per model of the section, dense first; see ``throughput.summarise``."""
    models = [
        {"run": label, "name": name, "kwargs": kwargs} for label, name, kwargs, *_ in BARS[section]
    ]
    spec = POINT | dict(section=section, precision=precision, rounds=rounds, models=models)
    with tempfile.TemporaryDirectory() as folder:
        return throughput.run(spec, {}, Path(folder))["results"]["methods"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15, help="of all models of a section")
    parser.add_argument("--sections", nargs="+", choices=BARS, default=list(BARS))
    parser.add_argument("--precisions", nargs="+", choices=("fp32", "bf16"),
                        default=["fp32", "bf16"])  # fmt: skip
    arguments = parser.parse_args()
    missed = False
    print(f"{'':32}{'':6}{'images/s':>9}{'speed-up':>9}  {'quartiles':13}{'bar':>5}")
    for section in arguments.sections:
        for precision in arguments.precisions:
            found = measure(section, precision, arguments.rounds)
            for (label, _, _, *bars), method in zip(BARS[section], found, strict=True):
                bar = bars[precision == "bf16"]
                low, high = method["speedup_quartiles"]
                below = bar is not None and method["speedup"] < bar
                missed |= below
                print(
                    f"{section + ' ' + label:32}{precision:6}{method['images_per_s']:9.1f}"
                    f"{method['speedup']:9.3f}  {low:.3f}-{high:.3f}  {bar or '':>5}"
                    f"{'  missed' if below else ''}",
                    flush=True,
                )
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
