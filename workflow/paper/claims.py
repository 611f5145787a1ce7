"""From records to the ledger of the paper's claims: `python -m workflow.paper.claims --root
results/demo --output results/demo/claims.csv` writes it, and the same as Markdown and as a page
beside it; from whatever records exist where it is called claims.partial.csv.

No verdict is written by hand. A printed number is confirmed where our whole interval lies within
the tolerance of it, and refuted where none of it does; an order where our whole interval lies
beyond the tolerance on one side, or the other. So the less is known, the less is decided. What
could not be decided says why: not run, on other data (accuracies are judged on ImageNet alone), on
another kind of device (percentages of images/s are judged in mode `paper` on a GPU alone, at the
paper's batch size; memory on a GPU in fp16 alone; who is faster, and MACs, anywhere), in a
measurement that is suspect, or too close to tell.
"""

import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd

from workflow import command_line
from workflow.campaign import statements
from workflow.campaign.config import Config, ConfigError
from workflow.campaign.statements import Statement
from workflow.paper import sheet
from workflow.paper.evidence import BATCH, Evidence, Printed, margin
from workflow.paper.found import Found, exactly, together
from workflow.storage import records

CONFIRMED, REFUTED, NOT_RUN = VERDICTS = ("confirmed", "refuted", "not run at this scale")
UNITS = {"speedup": "% images/s", "throughput": "% images/s", "macs_saved": "% MACs",
         "memory_fits": "", "curves": "", "seen": ""}  # fmt: skip
UNPRINTED = ("macs_saved", "memory_fits", "curves", "seen")  # no table holds what they compare
ROUNDING = 1e-9  # of sums of decimal fractions
OTHER_DEVICE = f"percentages of images/s are judged in mode paper on a GPU at batch {BATCH} alone"
DOUBTFUL = "a suspect measurement decides no percentage"
CLOSE = "too close to tell: more rounds, seeds or images would"
SLIP = "the printed numbers themselves do not say so"


def near(found: Found, printed: tuple[float, float], tolerance: float) -> str | None:
    """Whether the measured interval surely lies within the tolerance of the printed range, or
    surely outside; None: too close. Else the vaguest measurement would confirm the most."""
    low, high = printed[0] - tolerance - ROUNDING, printed[1] + tolerance + ROUNDING
    if found.high < low or found.low > high:
        return REFUTED
    return CONFIRMED if low <= found.low and found.high <= high else None


def ahead(found: Found, tolerance: float) -> str | None:
    """Whether the margin is surely beyond the tolerance, on its right side; None: too close."""
    if found.low > tolerance + ROUNDING:
        return CONFIRMED
    return REFUTED if found.high < -tolerance - ROUNDING else None


def measure(one: Statement, source, config: Config) -> Found | None:
    """The number that the claim is about, from records or as printed."""
    if one.kind == "curves":
        return source.curves(*one.curves)
    first = one.others[0]
    if one.kind == "memory_fits":
        return source.memory(one.run, first, one.batch_size)
    if one.kind == "macs_saved":
        return source.macs_saved(one.run, first)
    if one.kind == "speedup":
        return source.faster(one.run, first)
    if one.kind == "top1_gap":
        return source.gap(one.run, first)
    pairs = [(one.run, other) for other in one.others]
    if one.kind == "saturates":
        pairs = [(other, run) for run, other in pairs]
    margins = [margin(source, config, one.by, *pair) for pair in pairs]
    if None in margins:
        return None
    if len(margins) == 1:
        return margins[0]
    extreme = max if one.kind == "saturates" else min
    worst = extreme(margins, key=lambda found: found.value)
    named = pairs[margins.index(worst)][one.kind != "saturates"]
    # of the bounds, too: the nearest may be sure where another, less well measured, is not
    whole = {name: extreme(getattr(found, name) for found in margins) for name in ("low", "high")}
    whole |= {name: together(*(getattr(found, name) for found in margins))
              for name in ("n", "runs", "barred", "doubts")}  # fmt: skip
    return replace(worst, notes=(f"nearest: {named}", *worst.notes), **whole)


def printed_of(one: Statement, printed: Printed, config: Config) -> Found | None:
    if one.printed is not None or one.kind in UNPRINTED:
        return None
    return measure(one, printed, config)


def judge(one: Statement, found: Found | None, said: Found | None) -> tuple[str, list[str]]:
    """The verdict, and why there is none."""
    if one.kind == "seen":
        return NOT_RUN, [f"a picture, no number: look at {one.figure}"]
    if found is None:
        return NOT_RUN, ["not measured"]
    if found.barred:
        return NOT_RUN, list(found.barred)
    if one.kind == "memory_fits":
        return (CONFIRMED if found.value > 0 else REFUTED), []
    if one.kind in ("order", "best", "curves"):
        verdict = ahead(found, one.tolerance)
    elif one.kind == "saturates":
        verdict = near(found, (float("-inf"), 0.0), one.tolerance)
    else:
        if one.kind == "speedup" and (found.doubts or not found.as_printed):
            why = [DOUBTFUL] * bool(found.doubts) + [OTHER_DEVICE] * (not found.as_printed)
            return NOT_RUN, why
        wanted = one.printed or (said and range_of(one, said))
        if wanted is None:
            return NOT_RUN, ["the paper prints no number"]
        verdict = near(found, wanted, one.tolerance)
    return (verdict, []) if verdict else (NOT_RUN, [CLOSE])


def range_of(one: Statement, said: Found) -> tuple[float, float]:
    return said.value, float("inf") if one.at_least else said.value


def row_of(one: Statement, evidence: Evidence, printed: Printed) -> dict:
    """A line of the ledger."""
    config = evidence.config
    found = measure(one, evidence, config) if one.kind != "seen" else None
    said = printed_of(one, printed, config)
    verdict, why = judge(one, found, said)
    if said is not None and one.kind in ("order", "best") and said.value <= 0:
        why = [*why, SLIP]
    found = found or exactly(float("nan"))
    number, unit = not found.text, unit_of(one)
    digits = 2 if unit else 3  # correlations and shares have none, and are below 1
    return {
        "id": one.id,
        "where": one.where,
        "claim": one.says,
        "printed": shown(one, said),
        "ours": f"{found.value:.{digits}f}" if number and found.runs else found.text or None,
        "ours_low": found.low if number else None,
        "ours_high": found.high if number else None,
        "unit": unit,
        "n": "; ".join(found.n) or None,
        "tolerance": one.tolerance if one.kind not in ("memory_fits", "seen") else None,
        "verdict": verdict,
        "runs": ", ".join(found.runs) or None,
        "note": "; ".join([*why, *found.notes]) or None,
    }


def unit_of(one: Statement) -> str:
    """What the number of a claim counts; a difference of percentages is in points."""
    if one.kind in ("order", "best") and one.by == "speedup":
        return "points"
    return UNITS.get(one.by or one.kind, "points")


def shown(one: Statement, said: Found | None) -> str | None:
    if one.kind == "memory_fits":
        return "fits; out of memory"
    if one.printed is None:
        text = None if said is None else f"{said.value:.1f}"
    else:
        low, high = one.printed
        text = f"{low:g}" if high in (low, float("inf")) else f"{low:g} to {high:g}"
    text = f"at least {text}" if text and one.at_least else text
    return f"{text} (implied)" if one.implied else text


def make(config: Config, root: str, partial: bool) -> pd.DataFrame:
    """The ledger: every claim, in the order of claims.yaml."""
    evidence, printed = Evidence(config, root, partial), Printed(config)
    return pd.DataFrame(row_of(one, evidence, printed) for one in statements.every(config))


def readable(frame: pd.DataFrame) -> sheet.Sheet:
    """The ledger for people; below it the remarks, each once."""
    remarks = list(dict.fromkeys(frame["note"].dropna()))
    lines = []
    for _, row in frame.iterrows():
        ours = row["ours"] if pd.notna(row["ours"]) else "-"
        if pd.notna(row["ours_low"]) and row["ours_low"] != row["ours_high"]:
            digits = 1 if row["unit"] else 3
            ours += " ({:.{d}f} to {:.{d}f})".format(*row[["ours_low", "ours_high"]], d=digits)
        note = "" if pd.isna(row["note"]) else str(remarks.index(row["note"]) + 1)
        printed, n, runs = ("-" if pd.isna(row[key]) else row[key] for key in ("printed", "n", "runs"))
        tolerance = "-" if pd.isna(row["tolerance"]) else f"{row['tolerance']:g}"
        lines.append([row["where"], row["claim"], printed, ours, row["unit"], tolerance, n,
                      row["verdict"], runs, note])  # fmt: skip
    counts = (f"{(frame['verdict'] == verdict).sum()} {verdict}" for verdict in VERDICTS)
    head = f"{len(frame)} claims: {', '.join(counts)}."
    names = [
        "where",
        "claim",
        "printed",
        "ours",
        "unit",
        "tolerance",
        "n",
        "verdict",
        "runs",
        "notes",
    ]
    return sheet.Sheet(names, lines, left=2, lead=head, notes=remarks)


def main() -> None:
    parser = command_line.parser(__doc__)
    parser.add_argument("--root", required=True, help="the setting's results folder")
    parser.add_argument("--output", required=True, type=Path, help="claims[.partial].csv")
    arguments = parser.parse_args()
    try:
        partial = arguments.output.name.endswith(".partial.csv")
        frame = make(Config.load(), arguments.root, partial).round(3)
    except (records.RecordError, ConfigError) as error:
        sys.exit(f"ERROR: {error}")
    sheet.write(arguments.output, frame, readable(frame))


if __name__ == "__main__":
    command_line.run(main, in_clone=True)
