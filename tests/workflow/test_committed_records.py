"""The speeds that the documents show are those of the records under results/measured/."""

import re

import pytest

from workflow import points, records
from workflow.paper import measured, printed

MEASURED = records.ROOT / "results" / "measured"
DEVICES = ("nvidia-h200", "amd-epyc-2-threads")
USUAL = {"nvidia-h200": ("fp32", 256), "amd-epyc-2-threads": ("fp32", 32)}


def generated() -> list[tuple[str, str]]:
    """The folders whose README shows what workflow.paper.measured writes, and at which points."""
    said = [(folder.name, (folder / "README.md").read_text()) for folder in MEASURED.iterdir()]
    pattern = r"workflow\.paper\.measured results/measured/{} --points ([\w -]+)`"
    found = [(name, re.search(pattern.format(name), text)) for name, text in said]
    return [(name, match[1]) for name, match in found if match]


def test_some_folder_is_shown_so():
    assert generated()


@pytest.mark.parametrize(("name", "wanted"), generated())
def test_a_folders_readme_shows_what_its_records_say(config, name, wanted):
    text = (MEASURED / name / "README.md").read_text()
    for table in measured.TABLES:
        sheet = measured.beside_printed(config, table, MEASURED / name, wanted.split())
        assert not sheet.rows or sheet.markdown() in text, table
    assert all(line in text for line in measured.legend(MEASURED / name))


def rows_of_readme(device: str) -> list[list[str]]:
    """The cells of README's table of a device's speeds."""
    text = (records.ROOT / "README.md").read_text()
    table = re.search(rf"results/measured/{device}/README.*?\n((?:\|[^\n]*\n)+)", text, re.DOTALL)[
        1
    ]
    lines = table.splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def row_called(config, model: str) -> dict:
    """The row of items.yaml that README calls "DeiT-T PS-ViT", "Evo-LeViT-256, 384 px"."""
    name, *rest = model.split(", ")
    pixels = next((int(part.split()[0]) for part in rest if part.endswith("px")), 224)
    for table in ("table1", "table2", "tableS1"):
        for row in config.items["tables"][table]:
            called = row.get("model", f"{row.get('backbone')} {row.get('method')}")
            if (called, row["resolution"]) == (name, pixels):
                return row
    raise AssertionError(f"{model} is no row of Tables 1 and 2")


def point_said(device: str, model: str, rest: list[str]) -> str:
    """mode-precision-bN, of the model's and the mode's cell."""
    words = ", ".join([model, *rest]).replace("`", "").split(", ")
    precision, batch = USUAL[device]
    batch = next((word.split()[1] for word in words if word.startswith("batch ")), batch)
    mode = next((word for word in words if word in points.MODES), "fused")
    precision = next((word for word in words if word in points.PRECISIONS), precision)
    return f"{mode}-{precision}-b{batch}"


@pytest.mark.parametrize("device", DEVICES)
def test_readme_shows_speeds_as_they_were_measured(config, device):
    rows, known = rows_of_readme(device), printed.by_run(config)
    assert len(rows) >= 9
    for model, *mode, paper, here, ceilings in rows:
        row = row_called(config, model)
        dense = config.items["sections"][row["section"]][0]
        found = measured.found_methods(
            MEASURED / device, row["section"], point_said(device, model, mode)
        )
        _, rate, speedup, limits = measured.cell(found[row["run"]], found[dense])
        shown, *marks = re.split(r" (?=[?*])", here)
        assert (shown, ceilings) == (speedup, limits), model
        assert set(rate.split()[1:]) <= set(marks), model  # README may doubt more
        rates = [known.get(run, {}).get("throughput") for run in (row["run"], dense)]
        if paper not in ("", "-"):
            assert paper == f"{rates[0] / rates[1]:.2f}", model
