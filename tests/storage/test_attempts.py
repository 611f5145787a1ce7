"""Which attempt a launcher goes on with."""

import base64
import json
import os
from pathlib import Path

import pytest

from workflow.campaign import specs
from workflow.launch import follow, submit
from workflow.launch.slurm import Status
from workflow.launch.submit import LaunchError
from workflow.storage import attempts, records

SPEC = {"kind": "train", "run": "a", "seed": 0}
OUTPUT = Path("train.json")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A job's folder, in a working directory of its own (Snakemake's notes lie there)."""
    monkeypatch.chdir(tmp_path)
    specs.write_spec("job/spec.json", SPEC)
    return Path("job")


def choose(folder, spec=SPEC):
    return submit.choose_attempt(spec, folder, OUTPUT, say=lambda text: None)


def finish(attempt, spec=SPEC):
    record = {"kind": "train", "spec_hash": specs.spec_hash(spec), "spec": spec, "results": {}}
    records.write_json(attempt.record, record)


def snakemake_notes(output: Path, mtime: float) -> None:
    path = Path(".snakemake/metadata") / base64.urlsafe_b64encode(str(output).encode()).decode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{}")
    os.utime(path, (mtime, mtime))


def test_an_open_attempt_is_gone_on_with(folder):
    first = choose(folder)
    assert (first.number, choose(folder).number) == (1, 1)
    assert first.spec == SPEC


def test_a_changed_spec_opens_a_new_attempt_and_keeps_the_old(folder):
    first = choose(folder)
    second = choose(folder, SPEC | {"seed": 1})
    assert second.number == 2
    assert first.spec == SPEC


@pytest.mark.integration
def test_a_published_attempt_is_history_once_snakemake_noted_it(folder):
    attempt = choose(folder)
    finish(attempt)
    submit.publish(attempt, folder / "spec.json", OUTPUT)
    snakemake_notes(OUTPUT, attempt.published.stat().st_mtime + 1)
    assert choose(folder).number == 2


def test_a_record_that_snakemake_never_noted_is_published_again(folder):
    """Killed between publication and note, Snakemake deletes the output and asks anew."""
    attempt = choose(folder)
    finish(attempt)
    submit.publish(attempt, folder / "spec.json", OUTPUT)
    assert choose(folder).number == 1
    snakemake_notes(OUTPUT, attempt.published.stat().st_mtime - 100)  # of an earlier publication
    assert choose(folder).number == 1


def test_snakemakes_notes_lie_where_we_look(folder):
    """The one thing taken from Snakemake's inside, checked against it."""
    from snakemake.persistence.file import FilePersistence

    attempt = choose(folder)
    attempt.published.touch()
    for output in (Path("results/demo/runs/deit_tiny/train.json"), Path("a-b_c>?.json")):
        assert not attempts.is_over(output, attempt)
        path = FilePersistence._record_path(_Anything(), ".snakemake/metadata", str(output))
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text("{}")
        assert attempts.is_over(output, attempt)


class _Anything:
    def _fetch_max_len(self, subject):
        return 255


def test_a_record_of_another_spec_is_never_published(folder):
    attempt = choose(folder)
    finish(attempt)
    specs.write_spec(folder / "spec.json", SPEC | {"seed": 1})  # the YAML changed meanwhile
    with pytest.raises(LaunchError, match="nothing is published"):
        submit.publish(attempt, folder / "spec.json", OUTPUT)
    assert not OUTPUT.exists()
    assert not attempt.published.exists()


def test_attempts_are_numbered_as_numbers(folder):
    for number in (9, 10):
        specs.write_spec(folder / "attempts" / str(number) / "spec.json", SPEC)
    assert attempts.newest(folder).number == 10


def test_the_first_error_is_the_reason(folder):
    attempt = choose(folder)
    for rank, sentence in ((1, "the cause"), (0, "its consequence")):
        path = attempt.folder / f"error-rank{rank}.json"
        path.write_text(json.dumps({"rank": rank, "sentence": sentence, "traceback": ""}))
        os.utime(path, (100 - rank, 100 - rank))
    assert follow.why_failed(attempt, Status("FAILED"), say=print) == "the cause"
