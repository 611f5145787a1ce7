"""``python -m workflow.analysis.probe`` on a few images of noise, with random weights in a file."""

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import baselines
from workflow.analysis import probe
from workflow.storage import records

NAME = "vit_tiny_patch16_224"
SIZE = 64  # pixels, which are 4 x 4 patches


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Weights, and three classes of noise around a colour each: 5 training and 4 test images of a class."""
    folder = tmp_path_factory.mktemp("probe")
    torch.manual_seed(0)
    torch.save(timm.create_model(NAME, img_size=SIZE, num_classes=0).state_dict(), folder / "weights.pth")
    random = np.random.default_rng(0)
    for split, count in (("train", 5), ("test", 4)):
        for name, colour in (("a", 60), ("b", 120), ("c", 180)):
            (folder / "images" / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = (colour + random.integers(-40, 40, (40, 40, 3))).astype(np.uint8)
                Image.fromarray(pixels).save(folder / "images" / split / name / f"{number}.png")
    return folder


def call(folder, output, *more, images=None, name=NAME):
    """Run the command line, and return the record."""
    given = ["--checkpoint", str(folder / "weights.pth"), "--images", str(images or folder / "images")]
    options = ["--model", name, "--size", str(SIZE), "--batch-size", "6", "--device", "cpu", "--output", str(output)]
    probe.main([*given, *options, *more])
    return records.read(output)


def test_methods_that_keep_all_predict_as_the_dense_model_does(folder, tmp_path, capsys):
    results = call(folder, tmp_path / "probe.json", "--keep-ratios", "1", "--merges", "0")["results"]
    assert (results["train"], results["test"]) == (15, 12)
    assert results["dense"]["top1"] > 50  # colours are easy
    assert [line["method"] for line in results["methods"]] == list(probe.ALL_METHODS)
    for line in results["methods"]:
        assert line["top1"] == results["dense"]["top1"], line
        assert (line["changed"], line["change"], line["change_low"], line["change_high"]) == (0, 0, 0, 0)
        assert line["macs_g"] == pytest.approx(results["dense"]["macs_g"], rel=0.01), line  # ATS ranks nonetheless
    assert capsys.readouterr().out.count("\n| ") == 1 + len(probe.ALL_METHODS)


def test_a_call_goes_on_where_another_ended(folder, tmp_path, monkeypatch):
    computed = []
    features = probe.features

    def interrupted(model, split, options, device, title):
        if title == "tome 2":
            raise KeyboardInterrupt
        computed.append(title)
        return features(model, split, options, device, title)

    output = tmp_path / "probe.json"
    choice = ("--methods", "evo", "tome", "--keep-ratios", "0.5", "--merges", "2")
    monkeypatch.setattr(probe, "features", interrupted)
    with pytest.raises(KeyboardInterrupt):
        call(folder, output, *choice)
    first = records.read(output)["results"]["methods"]
    assert [(line["method"], line["strength"]) for line in first] == [("evo", 0.5)]
    assert first[0]["macs_g"] < records.read(output)["results"]["dense"]["macs_g"]

    monkeypatch.setattr(probe, "features", lambda *arguments: computed.append(arguments[-1]) or features(*arguments))
    record = call(folder, output, *choice)
    assert record["results"]["methods"][:1] == first
    call(folder, output, "--methods", "evo", "--keep-ratios", "0.5", "0.3")
    assert computed == ["dense, train", "dense, test", "evo 0.5", "tome 2", "evo 0.3"]
    again = call(folder, tmp_path / "again.json", "--methods", "evo", "tome", "--keep-ratios", "0.3", "--merges", "2")
    assert again["results"]["methods"][-1] in records.read(output)["results"]["methods"]  # whatever else was computed


@pytest.mark.parametrize(("method", "keywords"), [("tome", {"r": 2}), ("dpcknn", {"keep_ratio": 0.5})])
def test_a_merged_patch_counts_once_for_each_of_its_patches(folder, method, keywords):
    host = probe.load_host(NAME, folder / "weights.pth", SIZE).eval()
    model = baselines.from_timm(host, method, **keywords)
    images = torch.randn(2, 3, SIZE, SIZE)
    with torch.inference_mode():
        grid = model.forward_intermediates(images, [11], norm=True, intermediates_only=True, output_fmt="NLC")[0]
        tokens = model.forward_features(images)
    torch.testing.assert_close(tokens[:, 1:].mean(dim=1), grid.mean(dim=1))


def test_a_change_is_compared_image_by_image():
    labels = np.zeros(400, dtype=int)
    dense = np.array([0] * 300 + [1] * 100)
    classes = dense.copy()
    classes[:30] = 1  # worse
    classes[300:310] = 0  # better
    classes[310:315] = 2  # another wrong class
    line = probe.compare(labels, dense, classes)
    assert (line["worse"], line["better"], line["changed"]) == (30, 10, 45)
    assert line["top1"] == 70
    assert line["change"] == -5
    error = 100 * np.sqrt((40 - 20**2 / 400) / 400**2)  # of the mean of differences
    assert line["change_low"] == pytest.approx(-5 - 1.96 * error, abs=0.3)
    assert line["change_high"] == pytest.approx(-5 + 1.96 * error, abs=0.3)


def test_strengths_of_tome_follow_the_number_of_patches(folder, tmp_path):
    host = timm.create_model(NAME, img_size=112)  # 49 patches
    options = ["--model", NAME, "--images", ".", "--output", "a.json", "--methods", "tome", "evo"]
    chosen = probe.reductions(host, probe.parse(options))
    assert [c.strength for c in chosen if c.method == "tome"] == [1, 2, 3, 4]
    assert [c.title for c in chosen][:3] == ["tome 1", "evo 0.9", "tome 2"]
    chosen = probe.reductions(host, probe.parse([*options, "--merges", "2", "5"]))
    assert [c.keywords for c in chosen if c.method == "tome"] == [{"r": 2}, {"r": 5}]


def test_a_strength_that_a_method_refuses_is_left_out(folder, capsys):
    host = probe.load_host(NAME, folder / "weights.pth", SIZE)
    options = ["--model", NAME, "--images", ".", "--output", "a.json", "--methods", "evo", "topk", "--keep-ratios"]
    models = probe.reduced_models(host, probe.parse([*options, "0.5", "0.3"]))
    assert [reduction.title for reduction, _ in models] == ["evo 0.5", "topk 0.5", "evo 0.3"]
    assert "topk 0.3 is left out: keep_ratio 0.027 of 16 patches keeps none" in capsys.readouterr().err


def test_what_is_wrong_is_said_in_a_sentence(folder, tmp_path):
    output = tmp_path / "probe.json"
    with pytest.raises(SystemExit, match="needs the folders train/"):
        call(folder, output, images=tmp_path)
    with pytest.raises(SystemExit, match="give more images or a larger --train"):
        call(folder, output, "--train", "6")
    with pytest.raises(SystemExit, match=r"No method works .* must lie in"):
        call(folder, output, "--methods", "evo", "--keep-ratios", "1.5")
    with pytest.raises(SystemExit, match="timm has no such model"):
        call(folder, output, name="vit_large_as_life")
    with pytest.raises(SystemExit):
        call(folder, output, "--test", "0")
    assert not output.exists()
    output.write_text("{}")
    with pytest.raises(SystemExit, match="is no record of this model"):
        call(folder, output)
    (tmp_path / "train" / "a").mkdir(parents=True)
    (tmp_path / "val" / "b").mkdir(parents=True)
    for path in (tmp_path / "train/a/1.png", tmp_path / "val/b/1.png"):
        Image.new("RGB", (8, 8)).save(path)
    with pytest.raises(SystemExit, match="must have the same class folders"):
        call(folder, output, images=tmp_path)
