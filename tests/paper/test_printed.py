"""What the paper prints; and that a table is added by its entry in items.yaml and its printed CSV alone."""

import copy
import dataclasses
import shutil
from pathlib import Path

import pandas as pd
import pytest

from tests.paper.ledger import compile_table
from workflow.campaign import schema, targets
from workflow.campaign.config import ConfigError
from workflow.paper import printed
from workflow.paper.results import Records


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A copy of results/paper to edit, in an empty tree."""
    copied = tmp_path / "results/paper"
    shutil.copytree(printed.FOLDER, copied)
    monkeypatch.setattr(printed, "FOLDER", copied)
    monkeypatch.chdir(tmp_path)
    return copied


@pytest.fixture
def with_table(config):
    """A function: the configuration with one more table."""

    def make(name: str, *rows: dict):
        items = copy.deepcopy(config.items)
        items["tables"] = {name: list(rows), **items["tables"]}
        return dataclasses.replace(config, items=items)

    return make


TEACHERS = (
    {"student": "DeiT-T", "teacher": "none", "run": "deit_tiny", "section": "deit_tiny"},
    {"student": "DeiT-T", "teacher": "DeiT-T", "run": "dynamic_deit_tiny", "section": "deit_tiny"},
)


def test_a_table_needs_its_rows_and_its_printed_csv_alone(with_table, folder):
    """Any name, any names of rows, any columns that are printed; measured in every setting."""
    config = with_table("teachers", *TEACHERS)
    (folder / "teachers.csv").write_text("teacher,student,top1\nnone,DeiT-T,72.2\nDeiT-S,DeiT-T,71.0\n")
    frame = compile_table("teachers", Records(config, "results/demo", partial=True))
    assert list(frame.columns[:3]) == ["student", "teacher", "top1"]
    assert frame["teacher"].tolist() == ["none", "DeiT-S"]
    assert frame["top1_paper"].tolist() == [72.2, 71.0]
    assert frame["speedup_pct_paper"].isna().all()
    for setting in config.settings.values():
        needed = targets.item_records(config, setting["results"], "teachers")
        assert f"{setting['results']}/runs/dynamic_deit_tiny/train.json" in needed
        assert any("/throughput/deit_tiny/" in path for path in needed)
        more_seeds = {Path(path).parent.name.removesuffix("-s1") for path in needed if "-s1/" in path}
        assert more_seeds <= setting.get("seeds", {}).keys()
    assert printed.label(config, "dynamic_deit_tiny") == "DeiT-T, DeiT-T"


def test_without_a_printed_csv_it_is_refused(with_table, folder):
    config = with_table("teachers", *TEACHERS)
    with pytest.raises(ConfigError, match=r"teachers.csv is missing"):
        printed.by_run(config)
    (folder / "teachers.csv").write_text("student,top1\nDeiT-T,72.2\n")
    with pytest.raises(ConfigError, match=r"teachers.csv lacks the column 'teacher', by which .* of teachers"):
        printed.by_run(config)


def test_the_order_of_tables_decides_nothing(config, folder):
    known = printed.by_run(config)
    reversed_tables = dict(reversed(config.items["tables"].items()))
    turned = dataclasses.replace(config, items=config.items | {"tables": reversed_tables})
    assert printed.by_run(turned) == known
    assert known["deit_tiny"] == {"source": "Table 1", "top1": 72.2, "throughput": 2536}


def test_two_tables_that_print_different_values_of_a_run_are_refused(config, folder):
    path = folder / "table3.csv"
    path.write_text(path.read_text().replace("baseline,DeiT-T,72.2", "baseline,DeiT-T,72.3"))
    with pytest.raises(ConfigError, match=r"table3.csv prints top1 72.3 of deit_tiny, but Table 1 prints 72.2"):
        printed.by_run(config)


def test_rows_may_be_called_by_any_keys(tmp_path, config):
    assert set(printed.names(config, "table3")) == {"strategy", "backbone"}
    assert set(printed.read(config, "table4")) >= {("average pooling", "DeiT-T")}
    frame = pd.read_csv(printed.FOLDER / "table4.csv")
    assert set(printed.names(config, "table4")) <= set(frame.columns)
    assert schema.load().items["tables"]
