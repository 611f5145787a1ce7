"""CKA, correlation of queries and maps: their properties, and values computed another way."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from workflow.analysis.similarity import (
    cka_with_error,
    correlation_with_mean,
    correlations,
    evenness,
    linear_cka,
    over_images,
    shared,
)


def rotation(size: int) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(size, size, dtype=torch.float64)).Q


@given(st.integers(3, 12), st.integers(1, 6), st.floats(0.1, 10), st.floats(-5, 5))
def test_features_are_like_themselves_rotated_scaled_and_shifted(images, channels, scale, shift):
    x = torch.randn(images, channels, dtype=torch.float64)
    assert linear_cka(x, x) == pytest.approx(1)
    assert linear_cka(x, scale * (x @ rotation(channels)) + shift) == pytest.approx(1)


@given(st.integers(3, 12), st.integers(1, 6), st.integers(1, 6))
def test_cka_is_symmetric_and_lies_between_0_and_1(images, first, second):
    x, y = torch.randn(images, first), torch.randn(images, second)
    assert 0 <= linear_cka(x, y) <= 1 + 1e-12
    assert linear_cka(x, y) == pytest.approx(linear_cka(y, x))


def test_cka_is_the_ratio_of_hsic_of_centred_gram_matrices():
    """Kornblith et al. 2019, Eqs. 2 and 3, literally."""
    x, y = torch.randn(7, 3).double().numpy(), torch.randn(7, 5).double().numpy()
    centring = np.eye(7) - 1 / 7
    k, h = x @ x.T, y @ y.T

    def hsic(a, b):
        return np.trace(a @ centring @ b @ centring) / (7 - 1) ** 2

    expected = hsic(k, h) / math.sqrt(hsic(k, k) * hsic(h, h))
    assert linear_cka(torch.tensor(x), torch.tensor(y)) == pytest.approx(expected)


def test_a_small_example_by_hand():
    """Centred columns (-1, 0, 1) and (1, -2, 1): orthogonal; with the first itself added, half."""
    x = torch.tensor([[-1.0], [0.0], [1.0]])
    orthogonal = torch.tensor([[1.0], [-2.0], [1.0]]) * math.sqrt(2 / 6)
    assert linear_cka(x, orthogonal) == pytest.approx(0)
    assert linear_cka(x, torch.cat((x, orthogonal), 1)) == pytest.approx(1 / math.sqrt(2))


def test_what_cka_is_not_defined_for_is_refused():
    with pytest.raises(ValueError, match="not of 3 and 4"):
        linear_cka(torch.randn(3, 2), torch.randn(4, 2))
    with pytest.raises(ValueError, match="the same for all images"):
        linear_cka(torch.ones(3, 2), torch.randn(3, 2))


def test_correlation_is_numpys():
    queries = torch.randn(2, 5, 8)
    values = correlation_with_mean(queries)
    for image, row in zip(queries.double().numpy(), values, strict=True):
        mean = image.mean(axis=0)
        assert row.tolist() == pytest.approx([np.corrcoef(one, mean)[0, 1] for one in image])


def test_a_constant_query_correlates_with_nothing():
    queries = torch.randn(1, 3, 4)
    queries[0, 1] = 2.0
    assert correlation_with_mean(queries)[0, 1] == 0


def test_the_error_of_cka_is_how_far_other_images_would_be_off():
    """The jackknife's, of 128 images, beside the spread over 60 sets of them."""
    torch.manual_seed(0)
    mixing = torch.randn(4, 3, dtype=torch.float64)

    def features() -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.randn(128, 4, dtype=torch.float64)
        return x, x @ mixing + torch.randn(128, 3, dtype=torch.float64)

    estimates = [cka_with_error(*features()) for _ in range(60)]
    spread = np.std([value for value, _ in estimates])
    assert np.mean([error for _, error in estimates]) == pytest.approx(spread, rel=0.3)
    x, y = features()
    assert cka_with_error(x, y)[0] == linear_cka(x, y)
    assert cka_with_error(x, x)[1] == pytest.approx(0, abs=1e-9)


# -- maps over patches --------------------------------------------------------------------------


def test_correlations_are_numpys_with_the_own_and_the_other_images():
    attention, relevance = torch.rand(3, 4, 9), torch.rand(4, 9)
    own, others = correlations(attention, relevance)
    assert own.shape == others.shape == (3, 4)
    for layer in range(3):
        matrix = np.corrcoef(attention[layer].double(), relevance.double())[:4, 4:]
        assert own[layer].tolist() == pytest.approx(np.diag(matrix))
        rest = matrix[~np.eye(4, dtype=bool)].reshape(4, 3).mean(axis=1)
        assert others[layer].tolist() == pytest.approx(rest)


def test_a_flat_map_agrees_with_nothing():
    own, others = correlations(torch.ones(1, 2, 9), torch.rand(2, 9))
    assert own.abs().max() == others.abs().max() == 0


def test_evenness_is_of_patches_and_not_of_size():
    shapes = torch.tensor([[1.0, 1, 1, 1], [0.0, 0, 3, 0], [2.0, 2, 0, 0]])
    assert evenness(shapes).tolist() == pytest.approx([1, 0, 0.5])
    assert evenness(7 * shapes).tolist() == pytest.approx([1, 0, 0.5])


def test_what_is_shared_is_a_share_of_the_first():
    first, second = torch.tensor([1, 1, 0, 0]).bool(), torch.tensor([0, 1, 1, 1]).bool()
    assert shared(first, second) == 0.5
    assert shared(second, first).item() == pytest.approx(1 / 3)


def test_points_are_means_over_images_with_the_errors_of_means():
    means = over_images({"a": torch.tensor([[1.0, 2, 3, 4], [5, 5, 5, 5]])})
    assert means["curves"] == {"a": [2.5, 5]}
    spread = np.std([1, 2, 3, 4], ddof=1)
    assert means["half_widths"]["a"] == pytest.approx([1.96 * spread / 2, 0])
