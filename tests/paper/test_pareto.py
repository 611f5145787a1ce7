"""Accuracy against throughput: what is drawn of it, and labels that say which point they name."""

import math

import pandas as pd
import pytest
from matplotlib import pyplot as plt

from workflow.paper import pareto, style
from workflow.paper.results import Accuracy, Speed
from workflow.paper.tables import Row
from workflow.storage.warnings import Warning

TIMED = {"device": "a CPU", "mode": "fused", "precision": "fp32", "batch_size": 32}


@pytest.fixture
def panel():
    style.apply()
    figure, panel = plt.subplots(figsize=(3, 3), layout="none")
    panel.set(xlim=(0, 10), ylim=(0, 10))
    figure.canvas.draw()
    yield panel
    plt.close(figure)


def arrows(panel) -> list:
    return [text for text in panel.texts if text.arrow_patch is not None]


def named(panel) -> dict:
    return {text.get_text(): text for text in panel.texts if text.get_text()}


def test_a_label_beside_its_point_needs_no_line(panel):
    pareto.place_labels(panel, [(5, 5, "DeiT-T", {})], [(5, 5)])
    assert arrows(panel) == []
    assert math.hypot(*named(panel)["DeiT-T"].get_position()) <= pareto.NEAR + 0.1


def test_a_label_further_off_has_a_line_to_its_point(panel):
    crowd = [(5 + i / 4, 5 + j / 4) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    pareto.place_labels(panel, [(5, 5, "DeiT-T", {"color": "C1"})], crowd)
    (line,) = arrows(panel)
    text = named(panel)["DeiT-T"]
    assert math.hypot(*text.get_position()) > pareto.NEAR + 1
    assert line.xy == text.xy == (5, 5)
    assert line.get_position() == text.get_position()


def test_accuracies_have_bars_and_speeds_their_conditions():
    models = [("DeiT-T", pareto.DENSE, 80.0, 100.0), ("DeiT-T", pareto.OURS, 79.0, 150.0)]
    frame = pd.DataFrame(models, columns=["model", "method", "top1", "throughput"])
    frame = frame.assign(top1_low=frame["top1"] - 3, top1_high=frame["top1"] + 3, seeds=1)
    frame = frame.assign(top1_paper=72.0, throughput_paper=[2536, 4027])
    speed = Speed(throughput=100.0, **TIMED)
    doubted = Speed(throughput=150.0, warnings=(Warning("throttled", "heat"),), **TIMED)
    untrained = Row(("DeiT-S",), speed=doubted)  # not in the figure
    rows = [Row(("DeiT-T",), accuracy=Accuracy(80.0), speed=one) for one in (speed, doubted)]
    figure = pareto.draw(frame, [*rows, untrained], "digits")
    printed, measured = figure.axes
    (bars,) = measured.containers
    assert not printed.containers
    (segments,) = bars.lines[2]
    heights = [sorted(segment[:, 1]) for segment in segments.get_segments()]
    assert heights == [pytest.approx([77, 83]), pytest.approx([76, 82])]
    title = measured.get_title()
    assert title.startswith("measured: digits, speed at full size; 95 % intervals, seeds: 1")
    assert title.endswith("a CPU, fused, fp32, batch 32\n1 of 2 speeds with warnings")
    (line,) = [text.get_text() for text in measured.texts if "differences" in text.get_text()]
    assert line == "on each dense model, differences are within the intervals"
    plt.close(figure)
