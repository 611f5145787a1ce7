"""Dense prediction: scenes and their labels, features of the whole grid, equal MACs, the probe, and the job."""

from pathlib import Path

import pytest
import timm
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.testing import assert_close

from tests.analysis.small import SMALL
from tests.baselines.test_any_vit import attend, best, finish
from tests.models import hosts
from workflow.analysis import dense_prediction
from workflow.analysis.dense_prediction import HostError, MatchError
from workflow.campaign import specs
from workflow.data import loaders
from workflow.data.layout import DataError
from workflow.runtime.distributed import DistributedContext
from workflow.storage import records
from workflow.train import factory, macs, trainer

PLAN = {"side": 2, "empty": 1, "classes": 10, "train": 400, "val": 200}
CFG = {"input_size": (3, 16, 16), "mean": (0.5, 0.4, 0.3), "std": (0.25, 0.5, 0.2)}
CELL = (4, 4)  # patches
SIZE = (3, 32, 32)


@pytest.fixture
def source(config, site) -> loaders.ImageSource:
    """The small images: 40 of training and 20 of validation, of 10 classes."""
    recipe = {"interpolation": "bicubic", "crop_pct": 1.0}
    return loaders.ImageSource(
        specs.data_of(config, "demo"), site, recipe, CFG, DistributedContext(torch.device("cpu"))
    )


@pytest.fixture
def large(dense) -> nn.Module:
    return dense_prediction.enlarge(dense, 2)


# -- scenes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [10, 4])
def test_every_patch_has_the_label_of_the_image_that_covers_it(source, classes):
    scenes = dense_prediction.compose(source, "train", PLAN | {"classes": classes}, CELL)
    dataset = source.evaluation_set("train")
    mean, std = (torch.tensor(CFG[key]).view(3, 1, 1) for key in ("mean", "std"))
    indices = iter(scenes.chosen.indices)
    shown = [{int(cell): next(indices) for cell in cells} for cells in scenes.chosen.cells]  # by cell, of each scene
    assert len(scenes.images) == len(scenes.labels) == len(shown) == 4 * classes // 3
    for image, labels, by_cell in zip(scenes.images, scenes.labels, shown, strict=True):
        assert len(by_cell) == 3
        for patch, label in enumerate(labels.tolist()):
            row, column = divmod(patch, 8)
            cell = 2 * (row // 4) + column // 4
            pixels = image[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
            if cell not in by_cell:
                assert label == classes
                assert_close(pixels, (-mean / std).expand(3, 4, 4))
                continue
            whole, class_number = dataset[by_cell[cell]]
            whole = (torch.as_tensor(whole) / 255 - mean) / std
            top, left = 4 * (row % 4), 4 * (column % 4)
            assert scenes.classes[label] == dataset.reader.classes[class_number]
            assert_close(pixels, whole[:, top : top + 4, left : left + 4], rtol=0, atol=1e-5)
    assert len(scenes.classes) == classes


def test_no_image_is_shown_twice_in_either_split(source):
    pixels = []
    for split, images in (("train", 40), ("val", 20)):
        scenes = dense_prediction.compose(source, split, PLAN, CELL)
        assert len(set(scenes.chosen.indices)) == len(scenes.chosen.indices) == 3 * (images // 3)
        covered = scenes.labels.unflatten(1, (2, 4, 2, 4))[:, :, 0, :, 0].flatten(1) != 10
        cells = scenes.images.unflatten(3, (2, 16)).unflatten(2, (2, 16)).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
        pixels += [cell.numpy().tobytes() for cell in cells[covered]]
    assert len(set(pixels)) == len(pixels) == 39 + 18


def test_scenes_are_the_same_each_time_and_others_in_each_split(source):
    first, again = (dense_prediction.compose(source, "val", PLAN, CELL) for _ in range(2))
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.labels, again.labels)
    labels = [0, 1] * 30
    train, val = (dense_prediction.choose(labels, [0, 1], split, PLAN) for split in ("train", "val"))
    assert train.indices != val.indices
    assert {int(cell) for cell in train.cells.flatten()} == {0, 1, 2, 3}
    assert all(len(set(cells)) == 3 for cells in train.cells.tolist())


def test_there_are_as_many_scenes_as_asked_for_or_as_the_images_allow():
    labels = [0, 1, 2] * 40
    for asked, made in ((5, 5), (400, 26)):
        chosen = dense_prediction.choose(labels, [0, 2], "train", PLAN | {"train": asked})
        assert chosen.cells.shape == (made, 3)
        assert {labels[index] for index in chosen.indices} == {0, 2}
    with pytest.raises(DataError, match=r"val split has 5 images of the 1 classes .* two scenes need 6; add images"):
        dense_prediction.choose([0] * 5, [0], "val", PLAN)


def test_cells_may_be_oblong():
    labels = torch.tensor([[0, 1, 2, 3]])
    expected = [0, 0, 0, 1, 1, 1] * 2 + [2, 2, 2, 3, 3, 3] * 2
    assert dense_prediction.spread(labels, (2, 3)).tolist() == [expected]
    cells = torch.arange(4.0).view(1, 4, 1, 1, 1).expand(1, 4, 3, 2, 3)
    assert dense_prediction.assemble(cells)[0, 0].flatten().tolist() == expected


# -- the host -----------------------------------------------------------------------------------


def test_a_host_of_larger_images_has_its_weights_and_leaves_it_as_it_is(dense, batch):
    before, logits = {name: value.clone() for name, value in dense.state_dict().items()}, dense(batch)
    large = dense_prediction.enlarge(dense, 2)
    assert large.patch_embed.grid_size == (8, 8)
    assert large.pos_embed.shape[1] == 65
    for name, value in dense.state_dict().items():
        assert torch.equal(value, before[name])
        assert name == "pos_embed" or torch.equal(value, large.state_dict()[name])
    assert torch.equal(dense(batch), logits)
    same = dense_prediction.enlarge(dense, 1)
    assert_close(dense_prediction.last_features(same, batch), dense.forward_features(batch)[:, 1:])


def test_a_host_that_changed_is_refused(dense):
    weights = {name: value.clone() for name, value in dense.state_dict().items()}
    dense_prediction.check_weights(dense, weights)
    with torch.no_grad():
        dense.blocks[3].mlp.fc1.bias[0] += 1
        dense.pos_embed[0, 0, 0] += 1
    with pytest.raises(HostError, match=r"changed, .*here: blocks.3.mlp.fc1.bias, pos_embed\."):
        dense_prediction.check_weights(dense, weights)
    with pytest.raises(HostError, match=r"here: blocks.3.mlp.fc1.bias\."):
        dense_prediction.check_weights(dense, weights, resampled=("pos_embed",))


# -- features of the whole grid -----------------------------------------------------------------


def last_values(model, method: str, x: torch.Tensor, p: int) -> torch.Tensor:
    """The last values (N, C) of all patches of one image's tokens x (P + N, C), with EViT and Top-K, step by step."""
    values, patches = list(x[p:]), list(range(len(x) - p))  # of each token its patch, None of a fused one
    for index, block in enumerate(model.blocks):
        after, weights, _, _ = attend(block, x)
        keep = model.count_kept(index, len(patches), len(values))
        if keep < len(patches):
            scores = weights[:, 0, p:].mean(0)
            kept = best(scores.tolist(), keep)
            gone = [place for place in range(len(patches)) if place not in kept]
            fused = (scores[gone, None] * after[p:][gone]).sum(0, keepdim=True)
            after = torch.cat((after[:p], after[p:][kept], fused if method == "evit" else after[:0]))
            patches = [patches[place] for place in kept] + [None] * (method == "evit")
        x = finish(block, after)
        for place, patch in enumerate(patches):
            if patch is not None:
                values[patch] = x[p + place]
    return torch.stack(values)


def values_of_groups(model, x: torch.Tensor, p: int) -> torch.Tensor:
    """The value (N, C) of the token that each patch of one image's tokens x (P + N, C) is in, with ToMe."""
    groups = [[place] for place in range(len(x))]  # the initial tokens in each token
    for block, r in zip(model.blocks, model.merges, strict=True):
        x, _, keys, _ = attend(block, x, [len(group) for group in groups])
        keys = nn.functional.normalize(keys.mean(0), dim=1)
        first, second = range(p + 1, len(x), 2), range(p, len(x), 2)
        partner = {i: max(second, key=lambda j: float(keys[i] @ keys[j])) for i in first}
        merged = sorted(first, key=lambda i: -float(keys[i] @ keys[partner[i]]))[:r]
        tokens = []
        for i in [*range(p), *(i for i in first if i not in merged), *second]:
            tokens.append([i, *(j for j in merged if partner[j] == i)])
        sizes = torch.tensor([float(len(group)) for group in groups], dtype=x.dtype).unsqueeze(1)
        x = torch.stack([(sizes[members] * x[members]).sum(0) / sizes[members].sum() for members in tokens])
        groups = [[initial for i in members for initial in groups[i]] for members in tokens]
        x = finish(block, x)
    values = {initial: x[place] for place, group in enumerate(groups) for initial in group}
    return torch.stack([values[p + patch] for patch in range(len(values) - p)])


@pytest.mark.parametrize(
    ("method", "kwargs"), [("evit", {"keep_ratio": 0.6}), ("topk", {"keep_ratio": 0.6}), ("tome", {"r": [3, 3, 2]})]
)
def test_a_patch_that_is_gone_has_its_last_or_its_groups_value(method, kwargs):
    host = dense_prediction.enlarge(hosts.build("deit"), 1)
    model, batch = factory.reduced(host, method, kwargs), hosts.images(host)
    with torch.no_grad():
        features = dense_prediction.last_features(model, batch)
        embedded = host._pos_embed(host.patch_embed(batch))
        for image, tokens in enumerate(embedded):
            values = values_of_groups(model, tokens, 1) if method == "tome" else last_values(model, method, tokens, 1)
            assert_close(features[image], host.norm(values), rtol=0, atol=1e-9)
    assert (features - dense_prediction.last_features(host, batch)).abs().max() > 1e-4


def test_a_probe_on_embeddings_sees_a_patch_and_no_other(large):
    scene = torch.randn(1, *SIZE)
    changed = scene.clone()
    changed[..., :4, :4] += 1
    before, after = (dense_prediction.embeddings(large, images) for images in (scene, changed))
    assert before.shape == (1, 64, 24)
    assert not torch.equal(before[0, 0], after[0, 0])
    assert torch.equal(before[0, 1:], after[0, 1:])


# -- equal MACs ---------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["evit", "topk", "tome"])
def test_strengths_go_from_the_fewest_macs_to_those_of_the_host(large, method):
    strengths = dense_prediction.strengths_of(method, 64, 12)
    some = strengths[len(strengths) // 4 :: len(strengths) // 4]
    counts = [macs.count(factory.reduced(large, method, kwargs), SIZE) for kwargs in (*some, strengths[-1])]
    assert counts == sorted(counts)
    assert counts[-1] == macs.count(large, SIZE)


def test_merges_are_as_even_as_can_be():
    strengths = dense_prediction.strengths_of("tome", 16, 3)
    assert len(strengths) == 25
    assert strengths[-1] == {"r": [0, 0, 0]}
    assert strengths[-6] == {"r": [2, 2, 1]}
    assert strengths[0] == {"r": [8, 8, 8]}


@pytest.mark.parametrize("method", ["evit", "topk", "tome"])
def test_the_strength_is_the_nearest_of_all(method):
    host = timm.create_model("plain_deit_tiny_patch16_224", **SMALL | {"img_size": 32, "depth": 4}).eval()
    wanted = macs.count(factory.reduced(host, "evo", {"keep_ratio": 0.5}), SIZE)
    kwargs, counted = dense_prediction.match(host, method, wanted, SIZE)
    assert macs.count(factory.reduced(host, method, kwargs), SIZE) == counted
    assert abs(counted - wanted) <= 0.03 * wanted
    for strength in dense_prediction.strengths_of(method, 64, 4)[::12]:
        try:
            other = macs.count(factory.reduced(host, method, strength), SIZE)
        except factory.SpecError:  # it would leave no patch
            assert method == "topk"
        else:
            assert abs(counted - wanted) <= abs(other - wanted)


def test_macs_that_no_strength_has_are_refused(large, monkeypatch):
    monkeypatch.setattr(dense_prediction, "strengths_of", lambda *rest: [{"keep_ratio": 0.3}, {"keep_ratio": 1.0}])
    whole = macs.count(large, SIZE)
    with pytest.raises(MatchError, match=r"no strength has Evo-ViT's .* within 3 %; nearest is {'keep_ratio': 1.0}"):
        dense_prediction.match(large, "evit", round(0.9 * whole), SIZE)
    with pytest.raises(MatchError, match=r"nearest is {'keep_ratio': 0.3} with"):
        dense_prediction.match(large, "evit", 1000, SIZE)
    spec = {"keep_ratio": 0.5, "matched": ["evit"]}
    *_, (method, features) = dense_prediction.make_models(large, spec)
    assert features is None
    assert "no strength has" in method["refused"]


# -- the probe ----------------------------------------------------------------------------------


def test_the_probe_is_multinomial_logistic_regression():
    inputs = torch.randn(300, 5, dtype=torch.float64)
    labels = (inputs @ torch.randn(5, 4, dtype=torch.float64) + torch.randn(300, 4)).argmax(dim=1)
    layer, gradient = dense_prediction.fit(inputs, labels, 4)
    assert gradient <= dense_prediction.GRADIENT
    # scikit-learn sums the losses that are averaged here
    reference = LogisticRegression(C=1 / (300 * dense_prediction.PENALTY), tol=1e-8, max_iter=2000)
    reference.fit(inputs.numpy(), labels.numpy())
    with torch.no_grad():
        probabilities = layer(inputs).softmax(dim=1)
    assert_close(probabilities, torch.from_numpy(reference.predict_proba(inputs.numpy())), rtol=0, atol=5e-3)


def test_right_patches_are_counted_in_each_scene(monkeypatch):
    """Features that name the class let a probe be right everywhere but where a label was changed."""
    labels = torch.tensor([[0, 0, 1, 1], [2, 2, 0, 0], [1, 2, 1, 2]])
    images = nn.functional.one_hot(labels, 3).float()  # stands for images: the features are taken from it
    chosen = dense_prediction.Choice([], torch.zeros(3, 1))
    train = dense_prediction.Scenes(images, labels, ["a", "b"], chosen)
    wrong = labels.clone()
    wrong[0, 0], wrong[1, 1] = 1, 0  # an image's patch, and one of the background
    val = dense_prediction.Scenes(images, wrong, ["a", "b"], chosen)
    judged = dense_prediction.judge(lambda batch: batch, {"train": train, "val": val}, torch.device("cpu"))
    assert judged == {"right": [3, 3, 4], "right_with_image": [3, 2, 2], "converged": True}


# -- the job ------------------------------------------------------------------------------------


@pytest.fixture
def spec(config, site, tiny_spec) -> dict:
    """The demo's dense model after an epoch of training: 16 patches in an image, 64 in a scene."""
    training = tiny_spec("deit_tiny", epochs=1)
    folder = Path(site["root"]) / "runs" / "deit_tiny"
    records.write_json(folder / "train.json", trainer.run(training, site, folder / "attempts" / "1"))
    spec = specs.dense_prediction_spec(config, "demo", "deit_tiny")
    return spec | {"model": training["model"], "start": specs.reference(training)}


@pytest.mark.integration  # of a training and some tens of counted models
def test_the_job_tests_every_model_on_the_same_scenes_at_equal_macs(spec, site):
    folder = Path(site["root"]) / "dense_prediction" / "deit_tiny" / "attempts" / "1"
    record = dense_prediction.run(spec, site, folder)
    results = record["results"]
    assert (results["train_scenes"], results["scenes"], results["train_images"], results["val_images"]) == (
        13,
        6,
        39,
        18,
    )
    assert (results["resolution"], results["patches"], results["patches_with_image"]) == (32, 64, 48)
    by_run = {method["run"]: method for method in results["methods"]}
    assert list(by_run) == ["dense", "embedding", "evo", "evit", "topk", "tome"]
    for method in by_run.values():
        assert method["refused"] is None
        assert len(method["right"]) == len(method["right_with_image"]) == 6
        pairs = zip(method["right"], method["right_with_image"], strict=True)
        assert all(covered <= right <= covered + 16 for right, covered in pairs)
    for method in ("evit", "topk", "tome"):
        assert by_run[method]["macs_g"] == pytest.approx(by_run["evo"]["macs_g"], rel=0.03)
    assert by_run["embedding"]["macs_g"] < by_run["evo"]["macs_g"] < by_run["dense"]["macs_g"]
    assert "manifest" in record["provenance"]
    again = dense_prediction.run(spec, site, folder.with_name("2"))
    assert again["results"] == results
