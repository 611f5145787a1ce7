"""Records of a setting are committed without their weights, and tables and claims are made of them."""

import argparse
import json
from pathlib import Path

import pandas as pd
import pytest

from workflow.campaign.config import ConfigError
from workflow.paper import __main__, committed
from workflow.storage import provenance, records

RUN = "runs/deit_tiny/train.json"
COMMITTED = Path("results/measured/cifar10")


def call(folder: str = "results/cifar10") -> int:
    arguments = argparse.Namespace(folder=Path(folder), root=COMMITTED.parent)
    with pytest.raises(SystemExit) as ended:
        __main__.import_records(arguments)
    return ended.value.code


def test_tables_and_claims_are_made_of_committed_records(config, root, trained, capsys):
    trained("cifar10", **{"deit_tiny": 72.0, "evo_deit_tiny": 71.0, "deit_tiny-keep0.9": 75.0})
    Path("results/cifar10/runs/deit_tiny/weights.pt").write_bytes(b"large")
    assert call() == 0
    assert capsys.readouterr().out.endswith("3 imported, 0 left\n")
    assert records.read(COMMITTED / RUN)["provenance"]["host"]
    files = sorted(path.name for path in COMMITTED.rglob("*") if path.is_file())
    assert files == ["README.md", *["train.json"] * 3]
    Path("results/cifar10").rename("gone")
    for item in ("table1", "claims"):
        __main__.make(argparse.Namespace(output=COMMITTED / f"{item}.csv"))
    ledger = pd.read_csv(COMMITTED / "claims.csv").set_index("id")
    assert ledger.loc["keeping_nine_tenths_beats_dense", "verdict"] == "confirmed"
    table = pd.read_csv(COMMITTED / "table1.csv").set_index("run")
    assert table.loc["evo_deit_tiny", "top1"] == 71.0


def test_a_folder_without_any_record_says_where_they_come_from(config, root, trained):
    for item in ("methods.csv", "table1.csv", "claims.csv", "figure6.png"):
        with pytest.raises(records.RecordError, match=rf"{COMMITTED} holds no record that .*import results/cifar10`"):
            __main__.make(argparse.Namespace(output=COMMITTED / item))
    assert not COMMITTED.exists()
    trained("cifar10", **{"deit_tiny-keep0.9": 75.0})  # which no row of `methods` has
    assert call() == 0
    __main__.make(argparse.Namespace(output=COMMITTED / "methods.csv"))
    assert pd.read_csv(COMMITTED / "methods.csv").empty
    assert "Nothing of it was measured." in (COMMITTED / "methods.md").read_text()
    __main__.print_table(argparse.Namespace(table=COMMITTED / "methods.csv"))


def test_a_committed_record_is_never_replaced(config, root, trained, capsys):
    trained("cifar10", deit_tiny=72.0)
    assert call() == 0
    assert call() == 0
    assert "there already" in capsys.readouterr().out
    trained("cifar10", deit_tiny=73.0)
    assert call() == 1
    assert "left: another record is there" in capsys.readouterr().out
    assert records.read(COMMITTED / RUN)["results"]["top1"] == 72.0


def test_a_record_of_another_spec_is_left(config, root, trained, capsys):
    trained("cifar10", deit_tiny=72.0)
    path = Path("results/cifar10", RUN)
    old = json.loads(path.read_text())
    old["spec"]["recipe"]["epochs"] = 50
    records.write_json(path, records.make(old["spec"], old["results"], 0.0))
    assert call() == 1
    assert "but workflow/config/ now says" in capsys.readouterr().out
    assert not (COMMITTED / RUN).exists()


def test_a_copy_s_record_gets_the_commit_of_the_same_sources(monkeypatch):
    copy = {"commit": None, "dirty": None, "reason": "no git clone", "source_hash": "1234", "versions": {}}
    record = {"provenance": {**provenance.summary([copy]), "host": "h"}}
    here = {"commit": "abc", "dirty": False, "reason": None, "source_hash": "1234", "versions": {}}
    monkeypatch.setattr(provenance, "running", lambda: here)
    known = committed.with_commit(record)["provenance"]
    assert (known["commit"], known["dirty"], known["reason"], known["code"]) == ("abc", False, None, [copy])
    for other in ({"source_hash": "5678"}, {"dirty": True}):
        monkeypatch.setattr(provenance, "running", lambda other=other: here | other)
        assert committed.with_commit(record) == record


def test_a_folder_of_no_setting_is_refused(root):
    with pytest.raises(ConfigError, match="results/cifar11 is the results folder of no setting"):
        call("results/cifar11")
    with pytest.raises(records.RecordError, match="results/cifar10 holds no record that tables"):
        call()
