"""Make the paper's tables, figures and ledger of claims from records, and show them.

    python -m workflow.paper make results/demo/table1.csv
    python -m workflow.paper print results/demo/table1.csv
    python -m workflow.paper cards results/demo
    python -m workflow.paper compare results/measured/<device> --configurations fused-fp32 fused-bf16
    python -m workflow.paper missing --setting cifar10
    python -m workflow.paper import results/cifar10

`make` is what snakemake's rules call. A table and the ledger are written as CSV, Markdown and an HTML page, a figure as
PNG, SVG and the CSV of its numbers. A name that ends in .partial.csv is made from whatever records exist, and so is
everything in a folder of committed records (results/measured/cifar10/table1.csv). `cards` writes the page of every
trained model anew, which snakemake does when it ends. `missing` lists which records a setting lacks, what decides most
claims per hour first. `import` copies records that tables and claims need to results/measured/<setting>/, without
weights.
"""

import argparse
import functools
import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from workflow import command_line
from workflow.campaign.config import CLAIMS, FILES, MEASURED, Config, ConfigError, nearest
from workflow.campaign.kinds import KINDS
from workflow.paper import sheet
from workflow.paper.results import Records
from workflow.storage import files, records


def main() -> None:
    """Run the command that the command line names."""
    parser = command_line.parser(__doc__, prog="python -m workflow.paper")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, purpose: str, function: Callable) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=purpose, description=f"{purpose}.")
        command.set_defaults(main=function)
        return command

    making = add("make", "Make a table, a figure or the ledger of claims", make)
    making.add_argument("output", type=Path, help="its CSV, or a figure's PNG, in the setting's results folder")
    printing = add("print", "Print a table that was made", print_table)
    printing.add_argument("table", type=Path, help="its CSV")
    carding = add("cards", "Write the model card of every training anew", write_cards)
    carding.add_argument("root", type=Path, help="a setting's results folder")
    comparing = add("compare", "Show a folder of measurements and the paper's speeds, as Markdown", compare)
    comparing.add_argument("folder", type=Path)
    comparing.add_argument("--configurations", nargs="+", default=[], metavar="MODE-PRECISION[-bN]")
    listing = add("missing", "List which records a setting lacks, and what to make next", list_missing)
    listing.add_argument("--setting", default="cifar10", help="of settings.yaml (cifar10)")
    listing.add_argument("--results", type=Path, help="folder with its results (its own), such as another clone's")
    listing.add_argument("--items", nargs="+", default=[], help="only what these tables and figures ask for")
    listing.add_argument("--kind", nargs="+", default=[], help="only records of these kinds: train, throughput, ...")
    importing = add("import", "Copy records to the committed ones of their setting", import_records)
    importing.add_argument("folder", type=Path, help="results of a setting, such as results/cifar10")
    importing.add_argument("--root", type=Path, default=Path(MEASURED), help=f"folder to import to ({MEASURED})")
    arguments = parser.parse_args()
    try:
        arguments.main(arguments)
    except (records.RecordError, ConfigError) as error:
        sys.exit(f"ERROR: {error}")


def make(arguments: argparse.Namespace) -> None:
    """Make the item that the file's name says, from the records of the folder that it is in."""
    output = arguments.output
    item, *partial = output.stem.split(".")
    config = Config.load()
    known = [*config.tables, *config.items["figures"], CLAIMS]
    if item not in known:
        raise ConfigError(f"{FILES['items']} has no {item}{nearest(item, known)}")
    committed = output.parent.is_relative_to(MEASURED)
    reader = Records(config, str(output.parent), partial=bool(partial) or committed)
    if committed and not any(output.parent.rglob("*.json")):
        results = config.settings[reader.setting]["results"]
        raise records.RecordError(
            f"{output.parent} holds no record that {item} needs; once {results} has some, "
            f"`python -m workflow.paper import {results}` copies them there."
        )
    if output.suffix == ".png":
        from workflow.paper import style  # seaborn and matplotlib, which tables don't need

        style.apply()
        figure, frame = function_of(config, item)(reader)
        style.save(figure, output)
        files.write(output.with_suffix(".csv"), frame.round(3).to_csv(index=False))
        return
    from workflow.paper import claims, tables

    if item in config.items["compiled"]:
        frame, shown = function_of(config, item)(reader)
        sheet.write(output, frame.round(3), shown)
    elif item == CLAIMS:
        frame = claims.make(config, reader.root, reader.partial).round(3)
        sheet.write(output, frame, claims.sheet_of(frame))
    else:
        rows = tables.rows_of(item, reader)
        frame = tables.frame_of(item, rows, config).round(3)
        sheet.write(output, frame, tables.sheet_of(item, rows, frame, config))


def function_of(config: Config, item: str) -> Callable:
    """Return the function that makes a figure or a compiled table of records.

    Of a figure it returns a matplotlib figure and a DataFrame of its numbers, of a table a DataFrame and a Sheet. It
    has the item's name, and is in the file of that name without a last letter: figure4a in figure4.py. A figure whose
    entry has an `xlabel` is a sweep over one parameter, and needs none. Raises ConfigError where there is none.
    """
    if "xlabel" in config.items["figures"].get(item, {}):
        from workflow.paper import sweeps

        return functools.partial(sweeps.draw, item)
    file = re.sub(r"(?<=\d)[a-z]$", "", item)
    name = f"workflow.paper.{file}"
    if item in (*config.items["figures"], *config.items["compiled"]) and importlib.util.find_spec(name):
        function = getattr(importlib.import_module(name), item, None)
        if function is not None:
            return function
    raise ConfigError(
        f"{FILES['items']}: nothing makes {item}; write a function {item}(records) in workflow/paper/{file}.py, or "
        "give a figure of one parameter an `xlabel`."
    )


def print_table(arguments: argparse.Namespace) -> None:
    """Print what a terminal has room for of a table that was made, and where the rest is."""
    path = arguments.table.with_suffix(".csv")
    item = path.name.split(".")[0]
    config = Config.load()
    known = [*config.tables, CLAIMS]
    if item not in known:
        raise ConfigError(f"{path} is no table{nearest(item, known)}")
    if not path.exists():
        raise records.RecordError(f"{path} was not made yet; ask snakemake for it by that name.")
    print(f"\n{brief_of(config, item, sheet.read(path)).terminal()}")
    print(f"All rows and columns: {os.path.relpath(path)} (.md, .html)")
    print("Every run in MLflow: make ui, then http://127.0.0.1:5000, Model training at the left")


def brief_of(config: Config, item: str, frame: pd.DataFrame) -> sheet.Sheet:
    """Return what a terminal shows of a table or the ledger, from its CSV."""
    from workflow.paper import claims, tables

    if item == CLAIMS:
        return claims.brief_of(frame)
    if item in config.items["compiled"]:
        return importlib.import_module(f"workflow.paper.{item}").brief_of(frame)
    return tables.brief_of(item, frame, config)


def write_cards(arguments: argparse.Namespace) -> None:
    """Write the card of each trained model in a results folder."""
    from workflow.paper import cards

    config = Config.load()
    setting = config.setting_of(str(arguments.root))
    paths = sorted(arguments.root.glob("runs/*/train.json"))
    count = sum(cards.write(config, setting, path) for path in paths)
    print(f"{count} model cards: {arguments.root}/runs/<run>/{cards.CARD}")


def compare(arguments: argparse.Namespace) -> None:
    """Print the measurements of a folder next to what the paper prints."""
    from workflow.paper import measured

    print("\n\n".join(measured.texts(Config.load(), arguments.folder, arguments.configurations)))


def list_missing(arguments: argparse.Namespace) -> None:
    """Print which records a setting's tables and claims ask for, the missing ones first."""
    from workflow.paper import missing

    config, setting = Config.load(), arguments.setting
    if setting not in config.settings:
        raise ConfigError(f"{FILES['settings']} has no {setting}{nearest(setting, config.settings)}")
    known = [*config.tables_of(setting), *config.figures_of(setting), *([CLAIMS] if config.has_claims(setting) else [])]
    for item in arguments.items:
        if item not in known:
            raise ConfigError(f"--items: {setting} has no {item}{nearest(item, known)}")
    known = [kind for kind in KINDS if kind not in missing.NOT_SHOWN]
    for kind in arguments.kind:
        if kind not in known:
            raise ConfigError(f"--kind: no table shows records of a kind {kind}{nearest(kind, known)}")
    folder = arguments.results or Path(config.settings[setting]["results"])
    needed = missing.needs(config, setting, folder, arguments.items)
    if arguments.kind:
        needed = [need for need in needed if need.kind in arguments.kind]
    print(missing.sheet_of(setting, needed).terminal())


def import_records(arguments: argparse.Namespace) -> None:
    """Copy the records of a setting's results that its tables, figures and claims need to the committed ones."""
    from workflow.paper import committed

    config, folder = Config.load(), arguments.folder
    names = {name: Path(setting["results"]) for name, setting in config.settings.items()}
    ends = [name for name, results in names.items() if folder.absolute().parts[-len(results.parts) :] == results.parts]
    if not ends:
        known = ", ".join(map(str, names.values()))
        raise ConfigError(f"{folder} is the results folder of no setting; known are {known}, here or in another clone.")
    importing = committed.Import(arguments.root)
    importing.take_results(config, ends[0], folder)
    print(f"{importing.imported} imported, {importing.left} left")
    sys.exit(importing.left > 0)


if __name__ == "__main__":
    command_line.run(main, in_clone=True)
