"""The paper's tables from records: measured and printed numbers in columns of their own.

A row of a table holds what was measured of a run and what the paper prints of it (`Row`); a column is declared
once, with its name, its value in a row and how people read it (`COLUMNS`).
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

import pandas as pd

from workflow.campaign.config import HOST, Config
from workflow.paper import printed, results, sheet
from workflow.paper.results import (
    NOT_COMPARED,
    NOT_STEPPED,
    NOT_TIMED,
    NOT_TRAINED,
    Accuracy,
    Change,
    Records,
    Speed,
    TrainingStep,
)

PERCENT_TOLERANCE = 0.15  # of a printed percentage from the printed images/s, in points
INTERVAL = "speed-up %\n(interval)"  # headings on a terminal
CEILINGS = "ceiling %: MACs / roofline"
OVER_DENSE = "over the dense: the dense model, or LeViT, with which a row is timed in interleaved rounds"
PAIRED = "its 95 % interval is over seeds and validation images that both have, with one seed over the images alone"
BRIEF_NAMES = {"resolution": "px"}  # of columns that name the rows, where a terminal has another heading
NOT_ON_A_TERMINAL = ("reduction", "needs_training")  # they say what a method is, not which row it is
FLAGGED = "*: the column `flags` of the CSV says what to know before trusting the row"
QUOTED = "the paper quotes the printed accuracy from the model's authors"


# -- rows -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """What was measured of a run, and what the paper prints of it and of the model that it is timed against."""

    names: tuple  # what the row is called
    run: str | None = None  # None: items.yaml does not have the row
    printed: dict | None = None  # None: the paper does not have the row
    printed_base: dict | None = None  # None for a model that others are timed against
    accuracy: Accuracy = NOT_TRAINED
    gain: Change = NOT_COMPARED  # of the accuracy over the dense model's
    recipe: str | None = None  # of its training
    epochs: str | None = None  # of its training, after those of the run that it starts from: "300+30"
    epoch_time: str | None = None
    speed: Speed = NOT_TIMED
    step: TrainingStep = NOT_STEPPED

    @property
    def is_measured(self) -> bool:
        return bool(self.accuracy.sources or self.step.sources or self.speed.sources)

    @property
    def source(self) -> str:
        """Where the row's numbers come from."""
        if not self.is_measured:
            return "paper"
        return f"measured ({'; '.join([*self.accuracy.sources, *self.step.sources, *self.speed.sources])})"

    @property
    def flags(self) -> str | None:
        """Say what a reader should know before trusting the row."""
        texts = []
        derived = self.printed_speedup_pct
        stated = self.of_print("speedup_pct")
        if derived is not None and stated is not None and abs(derived - stated) > PERCENT_TOLERANCE:
            texts.append(f"printed {stated} % but its img/s give {derived:.1f} %")
        elif self.of_print("quoted"):
            texts.append(QUOTED)
        texts += [*self.accuracy.flags, *self.step.flags, *self.speed.flags]
        return "; ".join(dict.fromkeys(texts)) or None

    def of_print(self, name: str):
        """Return a value that the paper prints in this row, or None."""
        return (self.printed or {}).get(name)

    @property
    def printed_speedup_pct(self) -> float | None:
        """The speed-up that follows from the printed images/s; some printed percentages differ from it."""
        rate, base = self.of_print("throughput"), (self.printed_base or {}).get("throughput")
        if rate is None or base is None:
            return None
        return results.speedup_pct(rate, base)

    @property
    def top1_delta(self) -> float | None:
        """By how many points top-1 is above the printed one; None for an accuracy on other data than the paper's."""
        if self.accuracy.data != printed.DATA:
            return None
        return difference(self.accuracy.top1, self.of_print("top1"))

    @property
    def printed_gain(self) -> float | None:
        return difference(self.of_print("top1"), (self.printed_base or {}).get("top1"))


def difference(value: float | None, other: float | None) -> float | None:
    """Return value - other where both are known."""
    return None if value is None or other is None else value - other


def rows_of(table: str, reader: Records) -> list[Row]:
    """Return every printed row in the paper's order, with what was measured of it, and the other measured rows.

    A measured row that the paper does not have comes after the row that items.yaml has before it.
    """
    config = reader.config
    names, lines, known = printed.names(config, table), printed.read(config, table), printed.by_run(config)
    entries = {tuple(entry[name] for name in names): entry for entry in config.rows(table, reader.setting)}
    rows = []
    for key, line in lines.items():
        if key not in entries:
            rows.append(Row(key, printed=line))
            continue
        entry = entries[key]
        dense = config.items["sections"][entry["section"]][0]
        base = known.get(dense) if entry["run"] != dense else None
        rows.append(replace(measured_row(key, entry, table, reader), printed=line, printed_base=base))
    end = 0  # of the rows up to the last one that was seen
    for key, entry in entries.items():
        if key in lines:
            end = 1 + [row.names for row in rows].index(key)
            continue
        row = measured_row(key, entry, table, reader)
        if row.is_measured:
            rows.insert(end, row)
            end += 1
    return rows


def measured_row(key: tuple, entry: dict, table: str, reader: Records) -> Row:
    """Return a row of items.yaml with what was trained and timed of its run, as far as the setting measures it for the
    table.
    """
    run, group = entry["run"], entry["section"]
    requested = reader.requested(table)
    row = Row(key, run)
    if group in requested["time"]:
        timed = reader.throughput(group)
        if reader.config.is_of_host(run):
            row = replace(row, speed=results.speed(timed, run, reader.config.settings[reader.setting][HOST]["model"]))
        else:
            row = replace(row, speed=results.speed(timed, run))
        if "batch_size" in entry:  # of a training
            step = results.training_step(reader.training_cost(group), run, entry["batch_size"])
            row = replace(row, step=step)
    # A model whose batch does not fit into memory was trained with smaller ones: that accuracy is another row's.
    if group in requested["train"] and not row.step.out_of_memory:
        trained = reader.trained(run, requested["seeds"])
        if trained:
            dense = reader.config.items["sections"][group][0]
            base_trained = reader.trained(dense, requested["seeds"]) if run != dense else []
            accuracy = results.accuracy(trained, reader.config)
            row = replace(
                row,
                accuracy=accuracy,
                gain=gain_of(trained, base_trained, reader.config),
                recipe=reader.config.runs[run]["recipe"],
                epochs=results.count_epochs(run, reader.setting, reader.config),
                epoch_time=results.describe_epoch_time(trained, base_trained),
            )
    return row


def gain_of(trained: list[dict], base_trained: list[dict], config: Config) -> Change:
    """Return how far a row is above its dense model, from their records.

    It is over the same images and seeds where their records allow that, else the difference of the means.
    """
    change = results.paired(trained, base_trained)
    if change is not None:
        return change
    accuracy, base_accuracy = (results.accuracy(contents, config) for contents in (trained, base_trained))
    return Change(difference(accuracy.top1, base_accuracy.top1))


# -- columns --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Column:
    """A column of the CSV and, where it has a heading, of the table for people.

    Attributes:
        value: takes a row.
        brief: its heading on a terminal, which has room for few columns.
        cell: takes a line of the CSV; without it the number is shown with `digits`.
        brief_cell: the same for a terminal, where that shows less.
        only_with: a column that must name the table's rows, or be printed, for this one to be shown.
        brief_with: a column that must name the table's rows for a terminal to show this one.
        compares: whether it shows what the paper prints; a table that the paper does not have lacks it.
    """

    name: str
    value: Callable[[Row], object]
    heading: str | None = None
    brief: str | None = None
    digits: int = 1
    cell: Callable[[pd.Series], str] | None = None
    brief_cell: Callable[[pd.Series], str] | None = None
    only_with: str | None = None
    brief_with: str | None = None
    compares: bool = False

    def show(self, line: pd.Series) -> str:
        return self.cell(line) if self.cell else number(line, self.name, self.digits)

    def show_brief(self, line: pd.Series) -> str:
        return self.brief_cell(line) if self.brief_cell else self.show(line)


def number(line: pd.Series, column: str, digits: int) -> str:
    if pd.isna(line[column]):
        return "-"
    return f"{round(line[column], digits) + 0.0:.{digits}f}"  # + 0.0 turns -0 into 0


def or_dash(value) -> str:
    return "-" if pd.isna(value) else str(value)


def change_cell(line: pd.Series, column: str, digits: int = 2) -> str:
    """Show a change of an accuracy in points with its 95 % interval."""
    if pd.isna(line[column]):
        return "-"
    low, high = (number(line, f"{column}_{end}", digits) for end in ("low", "high"))
    return f"{number(line, column, digits)} ({low} to {high})"


def accuracy_cell(line: pd.Series) -> str:
    """Show top-1 and, where it is the mean over several seeds, their number and spread."""
    top1 = number(line, "top1", 2)
    if pd.isna(line["seeds"]) or line["seeds"] == 1:
        return top1
    return f"{top1} (n={line['seeds']}, sd {line['top1_sd']:.2f})"


def gain_cell(line: pd.Series, digits: int = 2) -> str:
    """Show how far a row is above the dense model, with the interval if it is over images and seeds that both share."""
    if pd.isna(line.get("top1_gain_low")):  # CSVs of older code lack it
        return number(line, "top1_gain", digits)
    return change_cell(line, "top1_gain", digits)


def speedup_cell(line: pd.Series) -> str:
    """Show a speed-up in per cent with its 95 % interval."""
    if pd.isna(line["speedup_pct"]):
        return "-"
    return f"{line['speedup_pct']:.1f} ({number(line, 'speedup_pct_low', 0)} to {number(line, 'speedup_pct_high', 0)})"


def ceilings_cell(line: pd.Series) -> str:
    ceilings = [number(line, f"ceiling_{name}_pct", 1) for name in ("macs", "roofline")]
    return "-" if ceilings == ["-", "-"] else " / ".join(ceilings)


def parameters_cell(line: pd.Series) -> str:
    return f"{number(line, 'params_m', 1)} / {number(line, 'params_m_paper', 1)}"


def step_cell(line: pd.Series) -> str:
    """Show whether a training step fits into memory, and how much it needs where that is known."""
    text = fit(line["out_of_memory"])
    return text if pd.isna(line["memory_gib"]) else f"{text}, {line['memory_gib']:.1f} GiB"


def fit(out_of_memory) -> str:
    if pd.isna(out_of_memory):
        return "-"
    return "out of memory" if out_of_memory else "fits"


COLUMNS = [
    Column("top1", lambda row: row.accuracy.top1, "trained here: top-1 %", "top-1 %", cell=accuracy_cell),
    Column("top1_sd", lambda row: row.accuracy.sd),
    Column("top1_low", lambda row: row.accuracy.low),
    Column("top1_high", lambda row: row.accuracy.high),
    Column("best_top1", lambda row: row.accuracy.best, "best of its epochs"),
    Column("top1_paper", lambda row: row.of_print("top1"), "printed: top-1 %", compares=True),
    Column("top1_delta", lambda row: row.top1_delta, "top-1, here - printed", compares=True),
    Column(
        "top1_gain",
        lambda row: row.gain.points,
        "over the dense",
        "over the dense\n(interval)",
        cell=gain_cell,
        brief_cell=functools.partial(gain_cell, digits=1),
        brief_with="protocol",
    ),
    Column("top1_gain_low", lambda row: row.gain.low),
    Column("top1_gain_high", lambda row: row.gain.high),
    Column("paired_seeds", lambda row: row.gain.seeds),
    Column("top1_gain_paper", lambda row: row.printed_gain, "printed: over the dense", compares=True),
    Column("throughput", lambda row: row.speed.throughput, "timed here: images/s"),
    Column(
        "throughput_paper",
        lambda row: row.of_print("throughput"),
        "printed (V100): images/s",
        digits=0,
        compares=True,
    ),
    Column("speedup_pct", lambda row: row.speed.speedup_pct, "speed-up %", INTERVAL, cell=speedup_cell),
    Column("speedup_pct_low", lambda row: row.speed.speedup_pct_low),
    Column("speedup_pct_high", lambda row: row.speed.speedup_pct_high),
    Column(
        "ceiling_macs_pct",
        lambda row: row.speed.ceiling_macs_pct,
        "ceiling by MACs / roofline",
        CEILINGS,
        cell=ceilings_cell,
    ),
    Column("ceiling_roofline_pct", lambda row: row.speed.ceiling_roofline_pct),
    Column(
        "speedup_pct_paper",
        lambda row: row.printed_speedup_pct,
        "printed: speed-up %",
        "printed: speed-up %",
        compares=True,
    ),
    Column(
        "speedup_delta",
        lambda row: difference(row.speed.speedup_pct, row.printed_speedup_pct),
        "speed-up, here - printed",
        compares=True,
    ),
    Column("macs_g", lambda row: row.speed.macs_g, "G MACs", digits=2),
    Column("params_m", lambda row: row.speed.params_m),
    Column(
        "params_m_paper",
        lambda row: row.of_print("params_m"),
        "M parameters, here / printed",
        cell=parameters_cell,
        only_with="params_m",
    ),
    Column("out_of_memory", lambda row: row.step.out_of_memory, only_with="out_of_memory"),
    Column(
        "out_of_memory_paper",
        lambda row: row.of_print("out_of_memory"),
        "printed: a training step",
        cell=lambda line: fit(line["out_of_memory_paper"]),
        only_with="out_of_memory",
    ),
    Column(
        "memory_gib",
        lambda row: row.step.gib,
        "a training step",
        "a training step",
        cell=step_cell,
        only_with="out_of_memory",
    ),
    Column("resolution", lambda row: row.speed.resolution),
    Column("batch_size", lambda row: row.speed.batch_size),
    # where rows are called by the batch size of a training
    Column("timed_batch_size", lambda row: row.speed.batch_size, only_with="batch_size"),
    Column("precision", lambda row: row.speed.precision),
    Column("mode", lambda row: row.speed.mode),
    Column("device", lambda row: row.speed.device),
    Column("seeds", lambda row: row.accuracy.seeds),
    Column("recipe", lambda row: row.recipe, "recipe", cell=lambda line: or_dash(line["recipe"]), only_with="protocol"),
    Column("epochs", lambda row: row.epochs, "epochs", cell=lambda line: or_dash(line["epochs"])),
    Column("epoch_time", lambda row: row.epoch_time),
    Column("source", lambda row: row.source),
    Column("flags", lambda row: row.flags),
    Column("run", lambda row: row.run if row.is_measured else None),
]


def columns_of(table: str, config: Config) -> list[Column]:
    """Return a table's columns without those by which its rows are called."""
    names = printed.names(config, table)
    known = [*names, *printed.columns(config, table)]
    columns = []
    for column in COLUMNS:
        is_shown = column.only_with is None or column.only_with in known
        if column.name not in names and is_shown and not (column.compares and table in config.items["ours"]):
            columns.append(column)
    return columns


def frame_of(table: str, rows: list[Row], config: Config) -> pd.DataFrame:
    """Return the rows as the CSV has them."""
    names, columns = printed.names(config, table), columns_of(table, config)
    lines = [
        dict(zip(names, row.names, strict=True)) | {column.name: column.value(row) for column in columns}
        for row in rows
    ]
    frame = pd.DataFrame(lines, columns=[*names, *(column.name for column in columns)])
    return sheet.with_counts(frame)


# -- for people -----------------------------------------------------------------------------


def sheet_of(table: str, rows: list[Row], frame: pd.DataFrame, config: Config) -> sheet.Sheet:
    """Return the table for people; below it the sources of the measured numbers, and the flags as notes.

    A condition of the measurement is a column if it differs between rows.
    """
    names = printed.names(config, table)
    columns = [column for column in columns_of(table, config) if column.heading]
    batch = "timed_batch_size" if "timed_batch_size" in frame else "batch_size"
    varied = [name for name in ("device", "mode", "precision", batch) if frame[name].nunique() > 1]
    notes = list(dict.fromkeys(frame["flags"].dropna()))
    lines = []
    for _, line in frame.iterrows():
        cells = [str(line[name]) for name in names]
        cells += [column.show(line) for column in columns]
        cells += ["-" if pd.isna(line[name]) else str(line[name]) for name in varied]
        cells.append("" if pd.isna(line["flags"]) else str(notes.index(line["flags"]) + 1))
        lines.append(cells)
    head = [*names, *(column.heading for column in columns), *varied, "notes"]
    words = sum(isinstance(name, str) for name in rows[0].names) if rows else len(names)
    return sheet.Sheet(head, lines, left=words, remarks=remarks(rows), notes=notes)


def brief_of(table: str, frame: pd.DataFrame, config: Config) -> sheet.Sheet:
    """Return what a terminal shows of a table's CSV: the rows that were measured, with their most important columns."""
    names = [name for name in printed.names(config, table) if name not in NOT_ON_A_TERMINAL]
    columns = [column for column in columns_of(table, config) if column.brief and column.brief_with in (None, *names)]
    measured = frame[frame["run"].notna()]
    lines = []
    for _, line in measured.iterrows():
        cells = [str(line[name]) for name in names]
        cells[0] = marked(cells[0], line)
        lines.append([*cells, *(column.show_brief(line) for column in columns)])
    head = [BRIEF_NAMES.get(name, name.replace("_", " ")) for name in names]
    head += [column.brief for column in columns]
    words = sum(not pd.api.types.is_numeric_dtype(frame[name]) for name in names)
    texts = list(dict.fromkeys(measured["source"]))
    texts += conditions(measured, "timed_batch_size" if "timed_batch_size" in frame else "batch_size")
    return sheet.Sheet(head, lines, left=words, remarks=[*texts, *below(frame, measured)])


def marked(name: str, line: pd.Series) -> str:
    """Return the name of a line of the CSV, with a mark if the line has flags."""
    return name if pd.isna(line["flags"]) else f"{name}*"


def conditions(frame: pd.DataFrame, batch: str = "batch_size") -> list[str]:
    """Say on which devices and how the lines of a CSV were timed; `batch` is the column of the batch size."""
    columns = ["device", "mode", "precision", batch]
    timed = frame.dropna(subset=["throughput"])[columns].drop_duplicates()
    return [
        f"timed on {device}: mode {mode}, {precision}, batch {size}"
        for device, mode, precision, size in timed.itertuples(index=False)
    ]


def below(frame: pd.DataFrame, shown: pd.DataFrame) -> list[str]:
    """Return what a terminal says below a table: what its marks mean, and how many rows of the CSV it leaves out."""
    texts = [FLAGGED] if shown["flags"].notna().any() else []
    left_out = len(frame) - len(shown)
    if left_out:
        texts.append(f"rows without a measured number are left out: {left_out}")
    return texts


def remarks(rows: list[Row]) -> list[str]:
    """Say where measured numbers come from, and how the speeds were measured."""
    measured = [row for row in rows if row.is_measured]
    if not rows:  # of a table that the paper does not have
        return ["Nothing of it was measured."]
    if not measured:
        return ["Nothing of it was measured: all numbers are printed in the paper."]
    texts = list(dict.fromkeys(row.source for row in measured))
    if any(row.accuracy.top1 is not None for row in measured):
        texts.append("accuracies are of one seed where no n is given")
        if any(row.of_print("top1") for row in rows):
            texts.append(
                "printed: the best epoch's accuracy, as the authors' code has it; trained here: the last one's"
            )
            if any(row.accuracy.data not in (None, printed.DATA) for row in measured):
                texts.append("printed accuracies are on ImageNet, so none is compared with one on other data")
    is_paired = any(row.gain.seeds for row in measured)
    texts.append(f"{OVER_DENSE}; {PAIRED}" if is_paired else OVER_DENSE)
    speeds = [row.speed for row in measured if row.speed.throughput is not None]
    if speeds:
        texts.append(
            "speed-up: the median of the ratios to that model's speed just before and after each "
            "round, with its 95 % interval; not the quotient of the two images/s"
        )
    if any(row.printed for row in rows):
        texts.append("printed speed-up: as the printed images/s have it, which come from different papers")
    for device, mode, precision, size in dict.fromkeys(
        (speed.device, speed.mode, speed.precision, speed.batch_size) for speed in speeds
    ):
        texts.append(f"timed on {device}: mode {mode}, {precision}, batch {size}")
    return texts
