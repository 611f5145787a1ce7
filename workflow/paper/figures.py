"""From records to figures: `python -m workflow.paper.figures --root results/demo --output
results/demo/pareto.png` writes that PNG, and beside it the SVG and the numbers as CSV.
"""

import sys
from functools import partial
from pathlib import Path

from workflow import command_line
from workflow.campaign.config import Config, ConfigError
from workflow.paper import (
    architectures,
    pareto,
    similarity_curves,
    style,
    sweeps,
    token_maps,
)
from workflow.paper.columns import Records
from workflow.storage import files, records

# each takes a setting's records and returns the figure and, as a DataFrame, what it shows
FIGURES = {
    "pareto": pareto.draw,
    "figure2": token_maps.figure2,
    "figure4a": similarity_curves.figure4a,
    "figure4b": similarity_curves.figure4b,
    "figure5": token_maps.figure5,
    "figure6": architectures.draw,
    **{name: partial(sweeps.draw, name) for name in sweeps.LABELS},
}


def main() -> None:
    parser = command_line.parser(__doc__)
    parser.add_argument("--root", required=True, help="the setting's results folder")
    parser.add_argument("--output", required=True, type=Path, help="<figure>.png")
    arguments = parser.parse_args()
    style.apply()
    try:
        found = Records(Config.load(), arguments.root, partial=False)
        figure, frame = FIGURES[arguments.output.stem](found)
    except (records.RecordError, ConfigError) as error:
        sys.exit(f"ERROR: {error}")
    style.save(figure, arguments.output)
    files.write(arguments.output.with_suffix(".csv"), frame.round(3).to_csv(index=False))


if __name__ == "__main__":
    command_line.run(main, in_clone=True)
