"""``python -m evovit`` on images of noise, with random weights in a file: no network."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import evovit
from evovit import __main__ as command
from tests.models import hosts

NAME = "vit_tiny_patch16_224"


def weights(folder: Path, **kwargs) -> Path:
    """A checkpoint of a ViT for 64 px, that is 4 x 4 patches."""
    torch.save(timm.create_model(NAME, img_size=64, **kwargs).state_dict(), folder / "weights.pth")
    return folder / "weights.pth"


def photograph(path: Path, size=(90, 70)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def call(folder, images, *more, checkpoint=None, name=NAME):
    """Run the command line in this process on small images, with one round."""
    options = ["--model", name, "--img-size", "64", "--rounds", "1", "--batch-size", "2", "--device", "cpu"]
    given = [] if checkpoint is None else ["--checkpoint", str(checkpoint)]
    command.main([str(images), *options, "--output", str(folder / "drawn"), *given, *more])


def test_an_image(tmp_path, capsys):
    image = photograph(tmp_path / "cat.jpg")
    call(tmp_path, image, checkpoint=weights(tmp_path, num_classes=1000))
    shown = capsys.readouterr().out
    assert str(image) in shown
    lines = shown.splitlines()
    for title in ("dense", "reduced"):
        (line,) = [line for line in lines if line.startswith(f"  {title}")]
        assert line.count("%") == 3
        assert "class " not in line  # ImageNet's have names
    assert "keep_ratio=0.5" in shown
    assert re.search(r"medians of 1 interleaved rounds: .* in the same round [\d.]+ times as fast\.", shown)
    assert "The most probable" not in shown
    drawn = Image.open(tmp_path / "drawn/cat.jpg.tokens.png")
    assert drawn.size == (3 * 64 + 2 * command.GAP, 64 + command.TITLE_HEIGHT)  # the image, and two selections


def test_a_folder(tmp_path, capsys):
    folder = tmp_path / "photographs"
    for name in ("a.jpg", "b/c.png", "d.jpg"):
        photograph(folder / name)
    (folder / "broken.jpg").write_text("no image")
    (folder / "notes.txt").write_text("no image either")
    photograph(folder / "a.jpg.tokens.png")  # from a run before
    call(tmp_path, folder, "--schedule", "layer", checkpoint=weights(tmp_path, num_classes=5))
    shown = capsys.readouterr()
    assert "class 0" in shown.out or "class 1" in shown.out or "class 2" in shown.out
    assert " of 3 images." in shown.out
    assert f"{folder / 'broken.jpg'} is left out" in shown.err
    assert "4/4" in shown.err  # the progress bar
    drawn = sorted(str(path.relative_to(tmp_path / "drawn")) for path in (tmp_path / "drawn").rglob("*.png"))
    assert drawn == ["a.jpg.tokens.png", "b/c.png.tokens.png", "d.jpg.tokens.png"]
    assert Image.open(tmp_path / "drawn" / drawn[0]).width == 9 * 64 + 8 * command.GAP


def test_a_model_without_classes(tmp_path, capsys):
    image = photograph(tmp_path / "cat.png")
    call(tmp_path, image, "--keep-ratio", "1", checkpoint=weights(tmp_path, num_classes=0))
    assert "dense and reduced: 1.0000" in capsys.readouterr().out


def test_placeholders_are_faded():
    model = evovit.from_timm(hosts.build("augreg", torch.float32))
    image = torch.zeros(3, 32, 32)
    sheet = np.asarray(command.draw(model, image, [2], [torch.tensor([0, 5])]))[command.TITLE_HEIGHT :]
    whole, gap, panel = np.split(sheet, [32, 32 + command.GAP], axis=1)
    assert (gap == 255).all()
    patches = panel.reshape(4, 8, 4, 8, 3).transpose(0, 2, 1, 3, 4).reshape(16, 64, 3)
    own = whole.reshape(4, 8, 4, 8, 3).transpose(0, 2, 1, 3, 4).reshape(16, 64, 3)
    same = (patches == own).all(axis=(1, 2))
    assert np.flatnonzero(same).tolist() == [0, 5]
    assert (patches[~same] > own[~same]).all()


def test_speeds_are_of_batches_of_the_size_asked_for():
    batches = []
    model = hosts.build("augreg", torch.float32)
    model.register_forward_pre_hook(lambda module, given: batches.append(len(given[0])))
    speeds = command.measure(model, model, hosts.images(model, 3), 7, 2)
    assert batches == [7] * 6
    assert speeds.dense > 0
    assert speeds.speedup > 0


def test_what_is_wrong_is_said_in_a_sentence(tmp_path, monkeypatch):
    image, checkpoint = photograph(tmp_path / "cat.jpg"), weights(tmp_path, num_classes=5)
    with pytest.raises(SystemExit, match="does not exist"):
        call(tmp_path, tmp_path / "none.jpg", checkpoint=checkpoint)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit, match="has no image"):
        call(tmp_path, tmp_path / "empty", checkpoint=checkpoint)
    with pytest.raises(SystemExit, match="timm has no such model"):
        call(tmp_path, image, checkpoint=checkpoint, name="vit_large_as_life")
    with pytest.raises(SystemExit, match=r"keep_ratio=.* must lie in"):
        call(tmp_path, image, "--keep-ratio", "1.5", checkpoint=checkpoint)
    with pytest.raises(SystemExit, match="does not fit --model deit_small"):
        call(tmp_path, image, checkpoint=checkpoint, name="deit_small_patch16_224")
    with pytest.raises(SystemExit, match="is no file of weights"):
        call(tmp_path, image, checkpoint=image)
    with pytest.raises(SystemExit, match="can't be made of ResNet"):  # not how the weights differ
        call(tmp_path, image, checkpoint=checkpoint, name="resnet18")
    (tmp_path / "broken.jpg").write_text("no image")
    with pytest.raises(SystemExit, match="None of the files"):
        call(tmp_path, tmp_path / "broken.jpg", checkpoint=checkpoint)

    create = timm.create_model

    def offline(*arguments, pretrained=False, **kwargs):
        if pretrained:
            raise OSError("no network")
        return create(*arguments, **kwargs)

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(SystemExit, match=r"no network.*--checkpoint"):
        call(tmp_path, image)


@pytest.mark.integration
def test_the_program_itself(tmp_path):
    image, checkpoint = photograph(tmp_path / "cat.jpg"), weights(tmp_path, num_classes=5)
    options = ["--model", NAME, "--checkpoint", str(checkpoint), "--img-size", "64", "--rounds", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "evovit", str(image), *options, "--batch-size", "1", "--output", str(tmp_path)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "times as fast" in done.stdout
    assert (tmp_path / "cat.jpg.tokens.png").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["x.jpg", "--modle", NAME], "error: there is no option --modle; did you mean '--model'?"),
        (["x.jpg", "--model", NAME, "--schedule", "stages"], "invalid choice: 'stages'"),
    ],
)
def test_mistyped_options_are_refused(words, said, capsys):
    with pytest.raises(SystemExit):
        command.parse(words)
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "meant"),
    [("deit_smal_patch16_224.fb_in1k", "deit_small_patch16_224"), ("vit_tinyy", "vit_tiny_patch16_224")],
)
def test_a_mistyped_model_names_the_nearest(name, meant):
    with pytest.raises(ValueError, match=rf"no such model; did you mean '{meant}'"):
        command.build(name, None, None)
