"""A training that goes on under other code, or whose journal a crash has damaged."""

import shutil
from pathlib import Path

import pytest

from workflow.paper import results as paper_results
from workflow.storage import journal, provenance
from workflow.train import checkpoints, trainer
from workflow.train.trainer import Trainer

RUN = "deit_tiny"
PACKAGES = {"torch": "2.7.1"}
FIRST, SECOND, THIRD = (
    {"commit": letter * 40, "dirty": False, "reason": None, "source_hash": letter * 16,
     "versions": PACKAGES}
    for letter in "abc"
)  # fmt: skip
DOCUMENTS = FIRST | {"commit": "d" * 40}  # a commit that changed no source


class Killed(BaseException):
    pass


@pytest.fixture
def by(monkeypatch):
    """A function: from now on this version of the code runs."""
    return lambda version: monkeypatch.setattr(provenance, "running", lambda: version)


@pytest.fixture
def spec(tiny_spec):
    """Two steps an epoch, so that a training takes a second."""
    spec = tiny_spec(RUN, epochs=3, batch_size=20)
    spec["model"]["kwargs"]["depth"] = 2
    return spec


@pytest.fixture
def folder(site) -> Path:
    return Path(site["root"]) / "runs" / RUN / "attempts" / "1"


@pytest.fixture
def killed(site, folder, monkeypatch):
    """A function that trains and dies before this step of all; every step is saved."""
    step_of = Trainer.train_step

    def run(spec: dict, update: int) -> None:
        def killing(self, batches):
            if self.update == update:
                raise Killed
            step_of(self, batches)

        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "train_step", killing)
            patch.setattr(checkpoints.Checkpoints, "due", lambda self: True)
            with pytest.raises(Killed):
                trainer.run(spec, site, folder)

    return run


def notes(folder: Path) -> list[str]:
    events = [event for event, _ in journal.read(folder / "journal.jsonl")]
    return [event["text"] for event in events if event["event"] == "note"]


def positions(record: dict) -> list[tuple]:
    code = record["provenance"]["code"]
    return [(entry["commit"], entry["from_epoch"], entry["from_step"]) for entry in code]


def flags(record: dict, config) -> str:
    return "; ".join(paper_results.accuracy([record], config).flags)


# -- other code ----------------------------------------------------------------------------------


def test_every_version_is_named_with_its_epochs(spec, site, folder, killed, by, config):
    by(FIRST)
    killed(spec, 3)  # in the middle of epoch 2
    by(SECOND)
    killed(spec, 4)
    by(THIRD)
    record = trainer.run(spec, site, folder)
    assert record["provenance"]["commit"] == "mixed"
    assert positions(record) == [
        (FIRST["commit"], 0, 0), (SECOND["commit"], 1, 1), (THIRD["commit"], 2, 0),
    ]  # fmt: skip
    starts = [event for event, _ in journal.read(folder / "journal.jsonl")
              if event["event"] == "start"]  # fmt: skip
    assert [start["code"] for start in starts] == [FIRST, SECOND, THIRD]
    assert sum("goes on under" in note for note in notes(folder)) == 2
    for message in ("from epoch 1 on commit aaaaaaaaaa", "from epoch 2, step 2 on commit bbbbbbbbbb",
                 "from epoch 3 on commit cccccccccc"):  # fmt: skip
        assert message in flags(record, config)


def test_a_version_whose_work_was_lost_is_not_named(spec, site, folder, killed, by, monkeypatch):
    by(FIRST)
    killed(spec, 2)
    by(SECOND)
    with monkeypatch.context() as patch:  # it saves nothing before it is killed
        patch.setattr(checkpoints.Checkpoints, "save", lambda *arguments: None)
        killed(spec, 3)
    by(FIRST)
    record = trainer.run(spec, site, folder)
    assert record["provenance"]["commit"] == FIRST["commit"]
    assert positions(record) == [(FIRST["commit"], 0, 0)]


def test_a_commit_that_changes_no_source_is_listed_and_not_flagged(spec, site, folder, killed, by, config):
    by(FIRST)
    killed(spec, 2)
    by(DOCUMENTS)
    record = trainer.run(spec, site | {"other_code": "refuse"}, folder)
    assert record["provenance"]["commit"] == DOCUMENTS["commit"]
    assert positions(record) == [(FIRST["commit"], 0, 0), (DOCUMENTS["commit"], 1, 0)]
    assert notes(folder) == []
    assert flags(record, config) == ""


def test_refused_it_names_both_and_goes_on_under_the_first(spec, site, folder, killed, by):
    by(FIRST)
    killed(spec, 2)
    by(SECOND | {"dirty": True})
    with pytest.raises(provenance.CodeError) as raised:
        trainer.run(spec, site | {"other_code": "refuse"}, folder)
    message = str(raised.value)
    assert message.startswith(f"The checkpoint of {RUN} was made by commit aaaaaaaaaa (source aaaaaaaa)")
    assert "but commit bbbbbbbbbb (with uncommitted changes, source bbbbbbbb) runs now" in message
    assert "--set-resources train:other_code=warn" in message
    assert "\n" not in message
    by(FIRST | {"versions": {"torch": "2.8.0"}})
    with pytest.raises(provenance.CodeError, match=r"torch 2\.7\.1.*torch 2\.8\.0.* runs now"):
        trainer.run(spec, site | {"other_code": "refuse"}, folder)
    by(FIRST)
    record = trainer.run(spec, site | {"other_code": "refuse"}, folder)
    assert positions(record) == [(FIRST["commit"], 0, 0)]


def test_before_the_first_step_other_code_begins_anew(spec, site, folder, killed, by, config):
    """A mistake that ends a training at once is mended, and nothing was trained by it."""
    by(FIRST)
    killed(spec, 0)
    by(SECOND)
    record = trainer.run(spec, site | {"other_code": "refuse"}, folder)
    assert positions(record) == [(SECOND["commit"], 0, 0)]
    assert flags(record, config) == ""


# -- the journal ---------------------------------------------------------------------------------


def lines(folder: Path) -> list[bytes]:
    return (folder / "journal.jsonl").read_bytes().splitlines(keepends=True)


def epoch_line(content: list[bytes], epoch: int) -> int:
    return next(i for i, line in enumerate(content) if b'"epoch", ' in line
                and f'"epoch": {epoch}, "metrics"'.encode() in line)  # fmt: skip


def lose(folder: Path, replacement: bytes, epoch: int = 1) -> None:
    content = lines(folder)
    content[epoch_line(content, epoch)] = replacement
    (folder / "journal.jsonl").write_bytes(b"".join(content))


DAMAGES = {
    "gone": lambda folder: lose(folder, b""),
    "torn": lambda folder: lose(folder, b'{"event": "epoch", "time": 17.5, "epo\n'),
    "fused": lambda folder: lose(folder, b'{"event": "epoch", "ti{"event": "note"}\n'),
    "NUL": lambda folder: lose(folder, b"\0" * 4096 + b"\n"),
    "garbage": lambda folder: lose(folder, b"\xff\xfe\x00garbage\n3\nnull\n[]\n{}\n"),
    "without metrics": lambda folder: lose(folder, b'{"event": "epoch", "time": 1.5, "epoch": 1}\n'),
    "empty": lambda folder: (folder / "journal.jsonl").write_bytes(b""),
    "missing": lambda folder: (folder / "journal.jsonl").unlink(),
    "only NUL": lambda folder: (folder / "journal.jsonl").write_bytes(b"\0" * 4096),
}


def test_what_the_journal_lost_the_checkpoint_knows(spec, site, folder, killed, config):
    killed(spec, 4)  # after two epochs
    for number, (name, damage) in enumerate(DAMAGES.items(), 2):
        copy = folder.with_name(str(number))
        shutil.copytree(folder, copy)
        damage(copy)
        record = trainer.run(spec, site, copy)
        results = record["results"]
        restored = [1, 2] if name in ("empty", "missing", "only NUL") else [1]
        assert [entry["epoch"] for entry in results["history"]] == [1, 2, 3], name
        assert results["restored_epochs"] == restored, name
        assert results["train_s"] == pytest.approx(sum(e["train_s"] for e in results["history"]))
        assert journal.epochs(copy / "journal.jsonl") == results["history"]
        assert "restored from the checkpoint" in notes(copy)[0]
        assert "journal has lost epochs 1" in flags(record, config)


def test_a_line_that_is_lost_after_the_last_epoch_is_restored_too(spec, site, folder, config):
    whole = trainer.run(spec, site, folder)
    assert whole["results"]["restored_epochs"] == []
    assert flags(whole, config) == ""
    lose(folder, b"\0\n", epoch=3)
    record = trainer.run(spec, site, folder)
    assert record["results"]["restored_epochs"] == [3]
    assert record["results"]["history"] == whole["results"]["history"]


def test_an_epoch_that_stands_twice_counts_as_the_checkpoint_has_it(spec, site, folder, killed):
    killed(spec, 4)
    content = lines(folder)
    first = content[epoch_line(content, 1)]
    twice = first.replace(b'"top1": ', b'"top1": 1')  # another accuracy
    (folder / "journal.jsonl").write_bytes(b"".join([*content, first, twice]))
    record = trainer.run(spec, site, folder)
    assert [entry["epoch"] for entry in record["results"]["history"]] == [1, 2, 3]
    assert record["results"]["history"][0]["top1"] < 100
    assert record["results"]["restored_epochs"] == []


def test_a_left_out_step_is_counted_though_its_line_is_lost(spec, site, folder, killed, monkeypatch, config):
    forward_backward = Trainer.forward_backward

    def poison(self, images, target, part, parts):
        images = images * float("nan") if self.update == 1 else images
        return forward_backward(self, images, target, part, parts)

    monkeypatch.setattr(Trainer, "forward_backward", poison)
    killed(spec, 4)
    (folder / "journal.jsonl").unlink()
    record = trainer.run(spec, site, folder)
    (deviation,) = record["results"]["deviations"]
    assert deviation["update"] == 1
    assert "epoch 1, step 2" in deviation["text"]
    assert "1 training steps left out" in flags(record, config)
