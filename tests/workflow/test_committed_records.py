"""The speeds that the documents show are those of the records under results/measured/."""

import csv
import re

import pytest

from workflow.analysis import probe
from workflow.bench import bars
from workflow.campaign import benchmarks
from workflow.paper import measured, printed
from workflow.storage import records

MEASURED = records.ROOT / "results" / "measured"
SPEEDS = records.ROOT / "docs" / "throughput.md"
USUAL_BATCH = {"nvidia-h200": 256, "intel-xeon-amx-2-threads": 32}


def generated() -> list[tuple[str, str]]:
    """The folders whose README shows what `workflow.paper compare` writes, and in which configurations."""
    said = [(path.parent.name, path.read_text()) for path in MEASURED.glob("*/README.md")]
    pattern = r"workflow\.paper compare results/measured/{} --configurations ([\w -]+)`"
    found = [(name, re.search(pattern.format(name), text)) for name, text in said]
    return [(name, match[1]) for name, match in found if match]


def test_every_folder_says_how_it_was_measured():
    assert all((folder / "README.md").exists() for folder in MEASURED.iterdir())
    assert len(generated()) == 2


@pytest.mark.parametrize(("name", "wanted"), generated())
def test_a_folders_readme_shows_what_its_records_say(config, name, wanted):
    text = (MEASURED / name / "README.md").read_text()
    for table in config.items["tables"]:
        sheet = measured.with_printed(config, table, MEASURED / name, wanted.split())
        assert not sheet.rows or sheet.markdown() in text, table
    assert all(line in text for line in measured.legend(MEASURED / name))


def shown_rows(device: str) -> tuple[list[str], list[list[str]]]:
    """Header and cells of the table of a device's speeds."""
    part = SPEEDS.read_text().rsplit(f"](../results/measured/{device}/README.md)", 1)[1]
    table = re.search(r"\n((?:\|[^\n]*\n)+)", part)[1]
    head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines())
    return head, rows


def row_called(config, model: str) -> dict:
    """The row of items.yaml that the table calls "DeiT-T PS-ViT", "Evo-LeViT-256, 384 px"."""
    name, *rest = model.split(", ")
    pixels = next((int(part.split()[0]) for part in rest if part.endswith("px")), 224)
    for table in ("table1", "table2", "tableS1"):
        for row in config.items["tables"][table]:
            called = row.get("model", f"{row.get('backbone')} {row.get('method')}")
            if (called, row["resolution"]) == (name, pixels):
                return row
    raise AssertionError(f"{model} is no row of Tables 1 and 2, or the supplement's")


def point_said(device: str, *cells: str) -> str:
    """mode-precision-bN, as the model's cell, the mode's and the column's name say."""
    words = ", ".join(cells).replace("`", "").split(", ")
    batch = next((word.split()[1] for word in words if word.startswith("batch ")), None)
    mode = next((word for word in words if word in benchmarks.MODES), "fused")
    precision = next((word for word in words if word in benchmarks.PRECISIONS), "fp32")
    return f"{mode}-{precision}-b{batch or USUAL_BATCH[device]}"


@pytest.mark.parametrize("device", USUAL_BATCH)
def test_speeds_are_shown_as_they_were_measured(config, device):
    (head, rows), known = shown_rows(device), printed.by_run(config)
    assert len(rows) >= 9
    first = 1 + head.index("paper, V100")
    columns = [place for place in range(first, len(head)) if "ceiling" not in head[place]]
    for cells in rows:
        row = row_called(config, cells[0])
        dense = config.items["sections"][row["section"]][0]
        for number, place in enumerate(columns):
            point = point_said(device, *cells[: first - 1], head[place])
            found = measured.methods_at(MEASURED / device, row["section"], point)
            if not cells[place]:
                assert not found, cells
                continue
            _, rate, speedup, limits = measured.cell(found[row["run"]], found[dense])
            shown, *marks = re.split(r" (?=[?*])", cells[place])
            assert (shown, cells[first + len(columns) + number]) == (speedup, limits), cells
            assert set(rate.split()[1:]) <= set(marks), cells  # the table may doubt more
        rates = [known.get(run, {}).get("throughput") for run in (row["run"], dense)]
        if cells[first - 1] not in ("", "-"):
            assert cells[first - 1] == f"{rates[0] / rates[1]:.2f}", cells


def test_readme_shows_some_of_these_speeds():
    rows = re.findall(r"^\|.*Evo-.*\*\*.*\|$", (records.ROOT / "README.md").read_text(), re.MULTILINE)
    assert len(rows) >= 5
    assert set(rows) <= set(SPEEDS.read_text().splitlines())


def test_sweeps_are_shown_as_they_were_measured():
    folder = MEASURED / "intel-xeon-amx-2-threads"
    part = SPEEDS.read_text().rsplit("### Batch sizes", 1)[1]
    head, _, *rows = (
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in re.search(r"\n((?:\|[^\n]*\n)+)", part)[1].splitlines()
    )
    *rows, ceilings = rows
    assert [int(cells[0]) for cells in rows] == benchmarks.SWEEP
    paths = measured.sweeps(folder / "sweeps")
    assert len(paths) == len(head) - 1
    assert all(text in (folder / "README.md").read_text() for text in measured.legend(folder / "sweeps"))
    for path in paths:
        sheet = measured.over_batches(path)
        assert path.stem.startswith("cpu-fused-")
        assert sheet.markdown() in (folder / "README.md").read_text()
        backbone = {"deit_tiny": "DeiT-T", "deit_small": "DeiT-S"}[path.parent.name]
        place = head.index(f"{backbone}, {records.read(path)['spec']['precision']}")
        found = [cells[4] + " ?" * ("?" in cells[3]) for cells in sheet.rows]
        assert [cells[place] for cells in rows] == found
        assert ceilings[place] == sheet.rows[-1][5]


def bar_cells(row: dict | None) -> list[str]:
    """A bar and what was measured, as they are shown."""
    if row is None:
        return ["", ""]
    shown = f"**{float(row['speedup']):.2f}**"
    if row["low"]:
        shown += f" ({float(row['low']):.2f}-{float(row['high']):.2f})"
    marks = " ?" * bool(row["warnings"]) + " missed" * (row["met"] == "False")
    return [row["bar"], shown + marks]


def test_the_bars_are_shown_as_they_were_measured():
    with (MEASURED / "intel-xeon-amx-2-threads/speed_bars.csv").open(newline="") as stream:
        rows = {(r["section"], r["model"].strip(), r["precision"]): r for r in csv.DictReader(stream)}
    shown = dict.fromkeys((section, model) for section, model, _ in rows if model != "dense")
    assert len(shown) > 10
    text = SPEEDS.read_text()
    for section, model in shown:
        cells = [cell for p in ("fp32", "bf16") for cell in bar_cells(rows.get((section, model, p)))]
        assert f"| {' | '.join([section, model, *cells])} |".replace("|  ", "| ") in text


def test_most_published_speedups_carry_no_warning():
    """A mark that nearly every speed-up carries warns nobody."""
    published = re.findall(r"\*\*[\d.]+\*\* \([\d.]+-[\d.]+\)(?: \*)?( \?)?", SPEEDS.read_text())
    assert len(published) > 100
    assert sum(map(bool, published)) < len(published) / 2


def test_the_bars_are_those_of_their_records():
    folder = MEASURED / "intel-xeon-amx-2-threads"
    with (folder / "speed_bars.csv").open(newline="") as stream:
        rows = {(r["section"], r["model"], r["precision"]): r for r in csv.DictReader(stream)}
    found = [records.read(path) for path in (folder / "speed_bars").glob("*.json")]
    shown = 0
    for record in found:
        spec = record["spec"]
        for method in record["results"]["methods"]:
            called = bars.EVO if method["run"] == "evo_deit_small" else method["run"]
            if row := rows.get((spec["section"], called, spec["precision"])):
                shown += 1
                assert float(row["speedup"]) == round(method["speedup"], 3)
    assert shown >= len(found) >= 10


def test_what_features_lose_is_shown_as_it_was_measured():
    paths = sorted(MEASURED.glob("*/any-vit/*.json"))
    assert paths
    shown = (records.ROOT / "docs/any-vit.md").read_text()
    for path in paths:
        assert probe.table(records.read(path)["results"]) in shown, path
