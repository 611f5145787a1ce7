"""The order in which images are drawn, and the random numbers of each draw."""

import random

import numpy as np
import pytest
import torch

from workflow.data.sampling import EpochSampler, SeededDraws


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


def test_fewer_images_than_a_batch_are_drawn_again_until_it_is_full():
    (drawn,) = draws(size=5, batch=12)
    images = [image for _, image in drawn]
    assert len(images) == 12
    assert sorted(images[:5]) == sorted(images[5:10]) == list(range(5))
    assert len({seed for seed, _ in drawn}) == 12  # each draw has an augmentation of its own
    ranks = draws(size=5, batch=12, world=2)
    assert sorted(image for rank in ranks for _, image in rank) == sorted(images)
    (repeated,) = indices(size=5, batch=12, repeats=3)
    assert {repeated.count(index) for index in set(repeated)} == {3}
