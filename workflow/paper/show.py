"""Print a compiled table for people: `python -m workflow.paper.show results/demo/table1.csv`."""

import argparse
from pathlib import Path

import pandas as pd

ACCURACY = "top-1 %"
SPEED = "images/s"
GAIN = "speed-up %"
CEILING = "by MACs %"  # what fewer operations alone can give


def layout(frame: pd.DataFrame) -> pd.DataFrame:
    """The table's main columns under headings that say where each number comes from."""
    columns = {
        ("", "backbone"): frame["backbone"],
        ("", "method"): frame["method"],
        ("", "px"): frame["resolution"],
        ("trained here", ACCURACY): frame["top1"],
        ("timed here", SPEED): frame["throughput"],
        ("timed here", GAIN): frame["speedup_pct"],
        ("timed here", CEILING): frame["ceiling_macs_pct"],
        ("timed here", "GMACs"): frame["macs_g"],
        ("printed (V100)", ACCURACY): frame["top1_paper"],
        ("printed (V100)", SPEED): frame["throughput_paper"],
        ("printed (V100)", GAIN): frame["speedup_pct_paper"],
        ("", "flags"): frame["flags"].notna().map({True: "*", False: ""}),
    }
    return pd.DataFrame(columns)


def text(frame: pd.DataFrame) -> str:
    """The table and, below it, where its measured numbers come from."""
    shown = layout(frame).to_string(index=False, na_rep="-", float_format=lambda x: f"{x:.2f}")
    lines = [shown, ""]
    measured = frame[frame["source"] != "paper"]
    for source in dict.fromkeys(measured["source"]):
        lines.append(source)
    for device in dict.fromkeys(measured["device"].dropna()):
        row = measured[measured["device"] == device].iloc[0]
        lines.append(
            f"throughput on {device}: {row['precision']}, attention {row['mode']}, "
            f"batch {row['batch_size']:.0f}"
        )
    for _, row in frame[frame["flags"].notna()].iterrows():
        lines.append(f"* {row['backbone']} {row['method']} {row['resolution']} px: {row['flags']}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", type=Path)
    arguments = parser.parse_args()
    print(f"\n{text(pd.read_csv(arguments.table))}\n")
    print(f"The table: {arguments.table.resolve()}")
    print("Every run in MLflow: make ui, then http://127.0.0.1:5000")


if __name__ == "__main__":
    main()
