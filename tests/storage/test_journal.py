"""The journal survives kills; readers see whole lines only."""

from workflow.launch import progress
from workflow.storage import journal
from workflow.storage.journal import Journal
from workflow.tracking import runs


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


DAMAGED = (
    b'{"event": "epoch", "time": 17.5, "epo\n',  # torn
    b'{"event": "epoch", "ti{"event": "note", "time": 1.0, "text": "a"}\n',  # half of one, another
    b"\0" * 4096 + b"\n",
    b"\xff\xfe\x00\x80 garbage\n",
    b"\n",
    b"3\nnull\n[]\n{}\n",
    b'{"event": ["epoch"], "time": 1.0}\n{"event": "epoch", "time": 1.0, "epoch": 2}\n',
    b'{"event": "epoch", "time": "now", "epoch": 1, "metrics": {}}\n',
)


def test_every_reader_passes_over_damaged_lines_wherever_they_are(tmp_path):
    path = tmp_path / "journal.jsonl"
    metrics = {"top1": 10.0, "loss": 1.0, "epoch_s": 2.0}
    log = Journal(path)
    log.write("epoch", epoch=1, metrics=metrics)
    log.write("deviation", update=3, text="The loss became nan.")
    log.write("epoch", epoch=2, metrics=metrics)
    whole = path.read_bytes().splitlines(keepends=True)
    for line in DAMAGED:
        path.write_bytes(line + line.join(whole) + line)
        assert [epoch["epoch"] for epoch in journal.epochs(path)] == [1, 2]
        assert [deviation["update"] for deviation in journal.deviations(path)] == [3]
        points, again = runs.metrics_of_journal(path)
        assert (len(points), again) == (6, [])
        *_, (_, offset) = journal.read(path)
        Journal(path).write("note", text="news")
        ((event, _),) = journal.read(path, offset)
        assert event["text"] == "news"
        follower = progress.Follower(tmp_path / "none.jsonl", {"recipe": {"epochs": 2}})
        follower.path = path
        assert [said[:9] for said in follower.news()] == [
            "epoch 1/2",
            "The loss ",
            "epoch 2/2",
            "news",
        ]


def test_zeros_before_a_whole_line_do_not_lose_it(tmp_path):
    """A power failure leaves them where a file had grown."""
    path = tmp_path / "journal.jsonl"
    Journal(path).write("note", text="a")
    path.write_bytes(b"\0" * 100 + path.read_bytes())
    assert [event["text"] for event, _ in journal.read(path)] == ["a"]
