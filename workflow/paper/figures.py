"""From records to figures: `python -m workflow.paper.figures --root results/demo --output results/demo/pareto.png`
writes that PNG, the SVG, and the numbers as CSV.

A figure is drawn by the function of its name in the file of its name: figure2 in figure2.py, figure4a in figure4.py.
It takes a setting's records and returns the figure and, as a DataFrame, what it shows. A figure whose entry in
items.yaml has an `xlabel` is a sweep over one parameter (sweeps.py) and needs no function.
"""

import functools
import importlib
import importlib.util
import re
import sys
from collections.abc import Callable
from pathlib import Path

from workflow import command_line
from workflow.campaign.config import FILES, Config, ConfigError
from workflow.paper import style, sweeps
from workflow.paper.results import Records
from workflow.storage import files, records


def function_of(config: Config, figure: str) -> Callable:
    """Return the function that draws a figure. Raises ConfigError where there is none."""
    if "xlabel" in config.items["figures"].get(figure, {}):
        return functools.partial(sweeps.draw, figure)
    file = re.sub(r"(?<=\d)[a-z]$", "", figure)  # figure4a is in the file of Figure 4
    name = f"workflow.paper.{file}"
    if figure in config.items["figures"] and importlib.util.find_spec(name):
        function = getattr(importlib.import_module(name), figure, None)
        if function is not None:
            return function
    raise ConfigError(
        f"{FILES['items']}: nothing draws {figure}; write a function {figure}(records) in workflow/paper/{file}.py, or "
        "give a figure of one parameter an `xlabel`."
    )


def main() -> None:
    parser = command_line.parser(__doc__)
    parser.add_argument("--root", required=True, help="the setting's results folder")
    parser.add_argument("--output", required=True, type=Path, help="<figure>.png")
    arguments = parser.parse_args()
    style.apply()
    try:
        config = Config.load()
        draw = function_of(config, arguments.output.stem)
        figure, frame = draw(Records(config, arguments.root, partial=False))
    except (records.RecordError, ConfigError) as error:
        sys.exit(f"ERROR: {error}")
    style.save(figure, arguments.output)
    files.write(arguments.output.with_suffix(".csv"), frame.round(3).to_csv(index=False))


if __name__ == "__main__":
    command_line.run(main, in_clone=True)
