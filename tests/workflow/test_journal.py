"""The journal survives kills; readers see whole lines only."""

from workflow import journal
from workflow.journal import Journal


def test_epochs_come_back_in_order_and_the_last_line_of_an_epoch_counts(tmp_path):
    path = tmp_path / "journal.jsonl"
    log = Journal(path)
    log.write("start", epochs=3, epoch=0)
    log.write("epoch", epoch=1, metrics={"top1": 10.0})
    log.write("epoch", epoch=2, metrics={"top1": 20.0})
    log.write("epoch", epoch=2, metrics={"top1": 21.0})
    assert journal.epochs(path) == [{"epoch": 1, "top1": 10.0}, {"epoch": 2, "top1": 21.0}]


def test_a_torn_line_is_left_unread_and_removed_by_the_next_writer(tmp_path):
    path = tmp_path / "journal.jsonl"
    Journal(path).write("epoch", epoch=1, metrics={"top1": 10.0})
    whole = path.read_bytes()
    for cut in range(1, len(whole)):
        path.write_bytes(whole + whole[:cut])
        assert len(list(journal.read(path))) == 1
        log = Journal(path)
        log.write("epoch", epoch=2, metrics={"top1": 20.0})
        log.close()
        assert [entry["epoch"] for entry in journal.epochs(path)] == [1, 2]


def test_reading_goes_on_from_an_offset(tmp_path):
    path = tmp_path / "journal.jsonl"
    log = Journal(path)
    log.write("note", text="a")
    ((_, offset),) = journal.read(path)
    log.write("note", text="b")
    ((event, _),) = journal.read(path, offset)
    assert event["text"] == "b"


def test_a_journal_that_is_not_there_yet_is_empty(tmp_path):
    assert journal.epochs(tmp_path / "none.jsonl") == []
