"""Records: whole, of the expected spec, or an error that says what to do."""

import json
import os

import pytest

from workflow.campaign import specs
from workflow.storage import files, records
from workflow.storage.records import RecordError

SPEC = {"kind": "train", "seed": 0}


def write(path, spec=SPEC, **changes):
    record = {"kind": "train", "spec_hash": specs.spec_hash(spec), "spec": spec, "results": {}}
    records.write_json(path, record | changes)
    return path


def test_a_whole_record_is_read(tmp_path):
    path = write(tmp_path / "a" / "train.json")
    assert records.read(path, specs.spec_hash(SPEC))["spec"] == SPEC


def test_another_spec_is_refused(tmp_path):
    path = write(tmp_path / "train.json")
    with pytest.raises(RecordError, match="workflow/config/ now says"):
        records.read(path, specs.spec_hash(SPEC | {"seed": 1}))


def test_an_edited_spec_is_noticed(tmp_path):
    path = write(tmp_path / "train.json", spec_hash="0" * 16)
    with pytest.raises(RecordError, match="damaged"):
        records.read(path)


def test_a_record_cut_short_anywhere_is_damaged(tmp_path):
    path = write(tmp_path / "train.json")
    whole = path.read_bytes()
    for cut in range(len(whole) - 2):
        path.write_bytes(whole[:cut])
        with pytest.raises(RecordError, match="damaged"):
            records.read(path)


def test_a_missing_record_says_so(tmp_path):
    with pytest.raises(RecordError, match="is missing; ask snakemake"):
        records.read(tmp_path / "train.json")


def test_what_a_killed_process_left_beside_is_not_written_through(tmp_path):
    """It may be a link to a file that is to stay, and process numbers come again."""
    whole = tmp_path / "step-1.pt"
    whole.write_text("weights")
    os.link(whole, tmp_path / f".best.pt.{os.getpid()}")
    files.write(tmp_path / "best.pt", "others")
    assert whole.read_text() == "weights"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.pt", "step-1.pt"]


def test_a_failed_write_leaves_the_old_file_and_nothing_beside(tmp_path):
    path = write(tmp_path / "train.json")
    before = path.read_bytes()
    with pytest.raises(TypeError):
        records.write_json(path, {"no": object()})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_provenance_says_which_code_and_versions(tmp_path):
    record = records.make(SPEC, {"top1": 1.0}, started=0.0, device="cpu")
    json.dumps(record)
    assert record["provenance"]["versions"]["timm"]
    assert record["provenance"]["device"] == "cpu"
    assert record["spec_hash"] == specs.spec_hash(SPEC)
