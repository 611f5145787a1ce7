"""Maps over patches: how they agree, computed another way."""

import numpy as np
import pytest
import torch

from workflow.analysis import maps


def test_correlations_are_numpys_with_the_own_and_the_other_images():
    attention, relevance = torch.rand(3, 4, 9), torch.rand(4, 9)
    own, others = maps.correlations(attention, relevance)
    assert own.shape == others.shape == (3, 4)
    for layer in range(3):
        found = np.corrcoef(attention[layer].double(), relevance.double())[:4, 4:]
        assert own[layer].tolist() == pytest.approx(np.diag(found))
        rest = found[~np.eye(4, dtype=bool)].reshape(4, 3).mean(axis=1)
        assert others[layer].tolist() == pytest.approx(rest)


def test_a_flat_map_agrees_with_nothing():
    own, others = maps.correlations(torch.ones(1, 2, 9), torch.rand(2, 9))
    assert own.abs().max() == others.abs().max() == 0


def test_evenness_is_of_patches_and_not_of_size():
    shapes = torch.tensor([[1.0, 1, 1, 1], [0.0, 0, 3, 0], [2.0, 2, 0, 0]])
    assert maps.evenness(shapes).tolist() == pytest.approx([1, 0, 0.5])
    assert maps.evenness(7 * shapes).tolist() == pytest.approx([1, 0, 0.5])


def test_what_is_shared_is_a_share_of_the_first():
    first, second = torch.tensor([1, 1, 0, 0]).bool(), torch.tensor([0, 1, 1, 1]).bool()
    assert maps.shared(first, second) == 0.5
    assert maps.shared(second, first).item() == pytest.approx(1 / 3)


def test_points_are_means_over_images_with_the_errors_of_means():
    found = maps.over_images({"a": torch.tensor([[1.0, 2, 3, 4], [5, 5, 5, 5]])})
    assert found["curves"] == {"a": [2.5, 5]}
    spread = np.std([1, 2, 3, 4], ddof=1)
    assert found["half_widths"]["a"] == pytest.approx([1.96 * spread / 2, 0])
