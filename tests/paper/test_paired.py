"""Changes of accuracy over the same images and seeds: the interval, the claims, the table of methods."""

import base64
import copy
import math
from dataclasses import replace

import numpy as np
import pytest

from tests.paper.ledger import compile_table, ledger
from workflow.campaign import kinds, specs
from workflow.paper import results, tables
from workflow.paper.results import Records
from workflow.storage import records

IMAGES = 500


def evaluated(right: np.ndarray, listing: str = "a") -> dict:
    """The results of a training with these right images."""
    packed = base64.b64encode(np.packbits(right.astype(bool))).decode()
    return {"top1": 100 * float(right.mean()), "val_images": len(right), "val_listing": listing, "right": packed}


def trained(*seeds: np.ndarray, **changes) -> list[dict]:
    """The records of a row's seeds, 0 and following, with these right images."""
    return [{"spec": {"seed": seed}, "results": evaluated(right, **changes)} for seed, right in enumerate(seeds)]


def draw(rng: np.random.Generator, share: float, images: int = IMAGES) -> np.ndarray:
    return (rng.random(images) < share).astype(int)


# -- records ------------------------------------------------------------------------------------


def test_seeds_are_compared_with_the_same_seed_of_the_other_row():
    rng = np.random.default_rng(0)
    row, other = [draw(rng, 0.8) for _ in range(3)], [draw(rng, 0.7) for _ in range(4)]
    change = results.paired(trained(*row), trained(*other))
    assert (change.seeds, change.val_images) == (3, IMAGES)
    of_seeds = [100 * (one.mean() - two.mean()) for one, two in zip(row, other, strict=False)]
    assert change.points == pytest.approx(np.mean(of_seeds))
    assert change.low < change.points < change.high


def test_what_is_missing_or_of_other_images_is_left_out():
    rng = np.random.default_rng(0)
    right = [draw(rng, 0.8) for _ in range(3)]
    row, other = trained(*right), trained(*right)
    assert results.paired(row, []) is None
    assert results.paired(row, trained(*right, listing="b")) is None
    del other[1]["results"]["right"]  # an older record
    assert results.paired(row, other).seeds == 2
    row[0]["results"]["val_listing"] = other[0]["results"]["val_listing"] = "b"  # its own images changed, of both rows
    assert results.paired(row, other).seeds == 1
    fewer = trained(*(one[:-1] for one in right))
    assert results.paired(row, fewer) is None


@pytest.mark.parametrize("images", [1, 8, 599])
def test_right_images_are_read_as_they_are_packed(images):
    right = draw(np.random.default_rng(images), 0.5, images)
    assert results.right_images(evaluated(right)).tolist() == right.tolist()


# -- the interval -------------------------------------------------------------------------------


def test_with_one_seed_it_is_that_of_the_images():
    changes = np.array([[1] * 10 + [-1] * 40 + [0] * 950])
    expected = results.paired_change(worse=40, better=10, images=1000)
    assert results.seed_paired_change(changes) == pytest.approx(expected)


def test_with_several_seeds_both_errors_count():
    agreeing = np.array([[1] * 10 + [-1] * 40 + [0] * 950] * 3)
    one = results.seed_paired_change(agreeing[:1])
    assert results.seed_paired_change(agreeing) == pytest.approx(one)  # no seed says anything new
    other_seeds = np.stack([agreeing[0], np.roll(agreeing[0], 100), np.roll(agreeing[0], 200)])
    assert results.seed_paired_change(other_seeds)[2] < one[2]  # other images, as many
    apart = np.array([[-1] * lost + [0] * (1000 - lost) for lost in (10, 30, 50)])
    change, _, high = results.seed_paired_change(apart)
    assert change == pytest.approx(-3)
    assert high - change > 4.3 * 2 / math.sqrt(3)  # Student's t of the seeds' own changes: -1, -3 and -5
    assert results.seed_paired_change(np.zeros((3, 599)))[2] > 0


def campaigns(count: int, seeds: int, of_images: float, of_seeds: float, images: int = 200) -> tuple[np.ndarray, float]:
    """Return the changes (count, seeds, images) of made-up campaigns, and the true change.

    Each has images and seeds of its own. An image is worse in 14 % of trainings and better in 10 %. In a share
    `of_images` of cases that is the image's own and the same in all trainings. A seed adds about `of_seeds` points to
    one share and takes them from the other.
    """
    rng = np.random.default_rng(0)
    of_all, of_each = rng.random((count, 1, images)), rng.random((count, seeds, images))
    drawn = np.where(rng.random((count, seeds, images)) < of_images, of_all, of_each)
    moved = of_seeds / 100 * rng.standard_normal((count, seeds, 1)).clip(-3, 3)
    return np.where(drawn < 0.14 - moved, -1, 0) + np.where(drawn > 0.9 - moved, 1, 0), 0.10 - 0.14


@pytest.mark.parametrize(
    ("seeds", "of_images", "of_seeds"), [(3, 0, 0), (3, 1, 0), (3, 1, 2), (3, 0.5, 1), (3, 0, 3), (2, 1, 2)]
)
def test_it_holds_the_true_change_in_at_least_95_of_100_campaigns(seeds, of_images, of_seeds):
    """Whether the images, the seeds, both or neither matter."""
    drawn, true = campaigns(1500, seeds, of_images, of_seeds)
    held = 0
    for changes in drawn:
        _, low, high = results.seed_paired_change(changes)
        held += low <= 100 * true <= high
    assert held / len(drawn) >= 0.94  # 95 % but for chance


# -- claims -------------------------------------------------------------------------------------


@pytest.fixture
def campaign(config, root):
    """A function that writes records of ImageNet: run -> right images, by seed; return the configuration."""
    runs = copy.deepcopy(config.runs)
    for run in ("evo_deit_small", "deit_small"):
        runs[run]["seeds"] = [0, 1, 2]
    config = replace(config, runs=runs)

    def write(evo: list[np.ndarray], dense: list[np.ndarray], old: bool = False):
        for row, of_seeds in (("evo_deit_small", evo), ("deit_small", dense)):
            for seed, right in enumerate(of_seeds):
                run = row if seed == 0 else f"{row}-s{seed}"
                values = evaluated(right)
                if old:
                    del values["right"], values["val_listing"]
                record = records.make(specs.train_spec(config, "imagenet", run), values, 0.0)
                records.write_json(f"results/runs/{run}/train.json", record)
        return ledger(config).loc["accuracy_of_deit_small"]

    return write


def test_a_claim_is_judged_by_the_same_images_and_seeds(campaign):
    rng = np.random.default_rng(0)
    dense = [draw(rng, 0.8, 5000) for _ in range(3)]
    evo = [np.where(rng.random(5000) < 0.01, 1 - right, right) for right in dense]
    row = campaign(evo, dense)
    change = results.paired(trained(*evo), trained(*dense))
    assert row["n"] == "3 paired seeds, 5000 images"
    assert row["ours"] == f"{change.points:.2f}"
    assert (row["ours_low"], row["ours_high"]) == pytest.approx((change.low, change.high))
    assert row["runs"].count("evo_deit_small") == 3
    before = campaign(evo, dense, old=True)
    assert before["n"] == "3 seeds, 5000 images"
    assert before["ours"] == row["ours"]
    assert before["ours_high"] - before["ours_low"] > 2 * (row["ours_high"] - row["ours_low"])


def test_one_pair_of_trainings_decides_a_claim_as_two_independent_ones(campaign):
    right = draw(np.random.default_rng(0), 0.8, 5000)
    row, old = campaign([right], [right]), campaign([right], [right], old=True)
    assert row["n"] == "1 seed, 5000 images"
    assert row["ours_low"] == old["ours_low"] < 0


# -- the table of methods -----------------------------------------------------------------------


@pytest.fixture
def methods(config, monkeypatch, tmp_path):
    """A function: the demo's records with two seeds of made-up trainings, by the control's and by others' accuracy."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(config.settings["demo"]["measure"]["methods"], "seeds", 2)
    monkeypatch.setitem(config.settings["demo"]["measure"]["methods"], "time", [])

    def reader(old: bool = False) -> Records:
        made = Records(config, "results/demo", partial=False)

        def read(record: kinds.Record) -> dict:
            rng = np.random.default_rng(record.spec["seed"])
            right = draw(rng, 0.9, 599)
            if record.spec["row"] != "deit_tiny-continued":
                right[: 10 + 2 * record.spec["seed"]] = 0
            values = evaluated(right)
            if old:
                del values["right"], values["val_listing"]
            return records.make(record.spec, values, 0.0)

        monkeypatch.setattr(made, "_read", read)
        return made

    return reader


def test_methods_are_compared_with_the_dense_model_that_was_trained_on(config, methods, shown_on_a_terminal):
    reader = methods()
    frame = compile_table("methods", reader)
    control, *others = [line for _, line in frame.iterrows()]
    assert control["run"] == "deit_tiny-continued"
    assert np.isnan(control["top1_gain"])
    for line in others:
        assert line["paired_seeds"] == line["seeds"] == 2
        assert line["top1_gain"] == pytest.approx(line["top1"] - control["top1"])
        assert line["top1_gain_low"] < line["top1_gain"] < line["top1_gain_high"]
    cell = tables.gain_cell(others[0])
    assert cell == "{top1_gain:.2f} ({top1_gain_low:.2f} to {top1_gain_high:.2f})".format(**others[0])
    rows = tables.rows_of("methods", reader)
    text = tables.sheet_of("methods", rows, frame, config).markdown()
    assert cell in text
    assert tables.PAIRED in text
    shown = shown_on_a_terminal("methods", frame)
    assert max(map(len, shown)) <= 100
    assert "over the dense" in "\n".join(shown)


def test_older_records_have_a_change_without_an_interval(config, methods, shown_on_a_terminal):
    reader = methods(old=True)
    frame = compile_table("methods", reader)
    line = frame.iloc[1]
    assert line["top1_gain"] == pytest.approx(line["top1"] - frame.iloc[0]["top1"])
    assert frame[["top1_gain_low", "top1_gain_high", "paired_seeds"]].isna().all(axis=None)
    assert tables.gain_cell(line) == f"{line['top1_gain']:.2f}"
    assert tables.PAIRED not in tables.sheet_of("methods", tables.rows_of("methods", reader), frame, config).markdown()
    of_older_code = frame.drop(columns=["top1_gain_low", "top1_gain_high", "paired_seeds"])
    assert f" {line['top1_gain']:.1f} " in " ".join([*shown_on_a_terminal("methods", of_older_code), ""])
