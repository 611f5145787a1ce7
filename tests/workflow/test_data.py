"""Images: where they lie, whether they can be read, and in which order they come."""

import random

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.auto_augment import rand_augment_transform

from workflow.data import layout, loaders, readers
from workflow.data.layout import DataError
from workflow.data.sampling import EpochSampler, SeededDraws
from workflow.runtime.distributed import DistributedContext

CPU = DistributedContext(torch.device("cpu"))


def block(root, **changes) -> dict:
    return {"root": str(root), "train": "train", "val": "val", "num_classes": 10} | changes


def test_a_good_folder_passes(images):
    layout.check("demo", block(images))


def test_a_missing_folder_names_the_key_and_the_expected_layout(tmp_path):
    with pytest.raises(DataError, match=r"settings.yaml, imagenet.data.root: .*expected .*<class>"):
        layout.check("imagenet", block(tmp_path / "none"))


def test_a_missing_class_is_counted(images):
    (images / "train" / "3").rename(images / "three")
    with pytest.raises(DataError, match="holds 9 class folders, not 10"):
        layout.check("demo", block(images))


def test_the_flat_imagenet_validation_set_is_recognised(images):
    flat = images / "flat"
    flat.mkdir()
    for index in range(50_000):
        (flat / f"ILSVRC2012_val_{index:08d}.JPEG").touch()
    with pytest.raises(DataError, match=r"flat ImageNet validation set of 50,000 files.*move"):
        layout.check("imagenet", block(images, val="flat"))


def test_other_flat_folders_are_told_apart(images):
    (images / "flat").mkdir()
    (images / "flat" / "a.png").touch()
    with pytest.raises(DataError, match="no class folders but 1 files"):
        layout.check("demo", block(images, val="flat"))


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("damage", ["truncated", "empty", "text"])
def test_a_bad_image_is_an_error_with_its_path_never_the_next_image(images, split, damage):
    """timm's own dataset would take the next image, in validation too."""
    path = images / split / "4" / "1.png"
    whole = path.read_bytes()
    path.write_bytes({"truncated": whole[: len(whole) // 2], "empty": b"", "text": b"hello"}[damage])
    dataset = readers.open_split({}, {"data_root": images}, split, transform=lambda image: image)
    index = dataset.filenames(absolute=True).index(str(path))
    with pytest.raises(DataError, match=f"{split}/4/1.png can't be decoded"):
        dataset[index]


def test_the_recipes_augmentation_works_at_its_strongest(config):
    """Pillow 13 refused what timm's posterize asks for one time in a thousand."""
    for recipe in config.recipes.values():
        if name := recipe.get("auto_augment"):
            policy = rand_augment_transform(name.replace("m9-mstd0.5", "m10-mstd0"), {})
            for op in policy.ops:
                op.prob = 1.0
                assert op(Image.new("RGB", (32, 32), (200, 100, 50))).size == (32, 32)


def draws(epoch=0, repeats=1, world=1, size=50, batch=8, seed=0, first=0):
    """For each rank the (seed, image) of each of its draws."""
    ranks = []
    for rank in range(world):
        sampler = EpochSampler(size, batch, seed, repeats, rank, world)
        sampler.epoch, sampler.first = epoch, first
        ranks.append(list(sampler))
        assert len(ranks[-1]) == len(sampler)
    return ranks


def indices(*arguments, **options):
    return [[image for _, image in rank] for rank in draws(*arguments, **options)]


def test_an_epoch_draws_each_image_at_most_once_in_an_order_of_its_own():
    (first,), (again,), (second,) = indices(0), indices(0), indices(1)
    assert first == again
    assert first != second
    assert len(set(first)) == len(first) == 48  # whole batches of 8 only


def test_repeated_augmentation_draws_each_image_three_times():
    (drawn,) = indices(repeats=3)
    assert len(drawn) == 48
    assert {drawn.count(index) for index in set(drawn)} == {3}


def test_each_draw_has_random_numbers_of_its_own():
    (drawn,) = draws(repeats=3)
    assert len({seed for seed, _ in drawn}) == 48  # of an image's three draws too
    (other,) = draws(repeats=3, epoch=1)
    assert not {seed for seed, _ in drawn} & {seed for seed, _ in other}


@pytest.mark.parametrize("draw", [random.random, np.random.rand, lambda: torch.rand(1).item()])
def test_every_generator_that_transforms_use_is_seeded_for_each_image(draw):
    class Drawn:
        def __getitem__(self, index: int) -> float:
            return draw()

    images = SeededDraws(Drawn())
    first, other = images[5, 0], images[6, 0]
    assert images[5, 1] == first != other


def test_an_epoch_is_taken_up_at_any_step_by_any_number_of_processes():
    (whole,) = draws(repeats=3)
    for first in (0, 1, 5):
        assert draws(repeats=3, first=first) == [whole[8 * first :]]
        ranks = draws(repeats=3, first=first, world=4)
        assert [draw for step in zip(*ranks, strict=True) for draw in step] == whole[8 * first :]


def test_the_ranks_of_a_step_share_its_global_batch():
    (alone,), together = indices(), indices(world=2)
    for step in range(6):
        ours = {i for rank in together for i in rank[4 * step : 4 * step + 4]}
        assert ours == set(alone[8 * step : 8 * step + 8])


def test_too_few_images_for_a_batch_is_said():
    with pytest.raises(DataError, match="less than one global batch of 64"):
        EpochSampler(50, 64, 0, 1, 0, 1)


def test_each_validation_image_comes_once_whatever_the_number_of_processes(images, tiny_spec):
    spec = tiny_spec("deit_tiny")
    config = {"input_size": (3, 16, 16), "mean": (0.5,) * 3, "std": (0.5,) * 3}
    site = {"data_root": str(images), "workers": 0}
    for world in (1, 3):
        places = [DistributedContext(torch.device("cpu"), rank, world) for rank in range(world)]
        counts = [
            len(labels)
            for place in places
            for _, labels in loaders.eval_loader(spec["data"], site, spec["recipe"], config, place)
        ]
        assert sum(counts) == 20


@pytest.mark.parametrize(
    ("total", "most", "processes", "expected"),
    [(1024, None, 1, (1024, 1)), (1024, 128, 8, (128, 1)), (1024, 128, 1, (128, 8)),
     (1024, 128, 2, (128, 4)), (96, 36, 1, (32, 3)), (90, 40, 1, (30, 3))],
)  # fmt: skip
def test_fewer_gpus_accumulate_to_the_same_global_batch(total, most, processes, expected):
    recipe = {"batch_size": total, "device_batch": most, "mixup": 0.8, "cutmix": 0.0}
    assert loaders.split_batch(recipe, processes) == expected


@pytest.mark.parametrize(
    ("total", "processes", "sentence"),
    [(1024, 3, r"1024 = 3 x 341 \+ 1"), (10, 2, "gives each of 2 processes 5 images")],
)
def test_a_batch_that_the_processes_cannot_share_is_refused(total, processes, sentence):
    recipe = {"batch_size": total, "device_batch": None, "mixup": 0.8, "cutmix": 0.0}
    with pytest.raises(DataError, match=sentence):
        loaders.split_batch(recipe, processes)
