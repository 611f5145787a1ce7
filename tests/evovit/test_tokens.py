"""Each function of evovit.tokens, and its faster form, against the equation, written out with loops."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from evovit import tokens
from evovit.fast.deferred import DeferredScores
from evovit.scores import Scores

NEW_SCORES = {"plain": Scores(sums_heads=False, detached=True), "deferred": DeferredScores(sums_heads=False)}
both = pytest.mark.parametrize("form", NEW_SCORES)
SHAPES = st.tuples(st.integers(1, 3), st.integers(2, 12), st.integers(1, 3), st.integers(1, 4))
quick = settings(max_examples=25, deadline=None)


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def select(form, scores, k):
    """The selection of k tokens by scores (B, N)."""
    return NEW_SCORES[form].with_values(scores).select(k)


def problem(shape, seed, share, form="plain"):
    """Random scores, a selection by them and a token buffer of the shape (B, N, ...)."""
    batch, num_patches, heads, width = shape
    k = min(max(1, int(share * num_patches)), num_patches - 1)
    scores = normal(seed, batch, num_patches).abs() + 0.01
    return scores, select(form, scores, k), normal(seed + 1, batch, 1 + num_patches, heads * width)


@quick
@given(SHAPES, st.integers(0, 999))
def test_class_attention_is_equation_3(shape, seed):
    batch, length, heads, width = shape
    qkv = normal(seed, batch, length, 3, heads * width)  # keys as a strided view, as in the model
    query, keys = normal(seed + 1, batch, heads, width), qkv[:, :, 1]
    found = tokens.class_attention(query, keys, width**-0.5)
    for b in range(batch):
        for h in range(heads):
            own = keys[b, :, h * width : (h + 1) * width]
            products = [math.exp((own[j] @ query[b, h]) / math.sqrt(width)) for j in range(length)]
            expected = torch.tensor(products, dtype=torch.float64) / sum(products)
            assert_close(found[b, h], expected, rtol=1e-12, atol=1e-12)


@quick
@given(st.floats(0, 1), st.integers(0, 999))
def test_evolved_scores_are_equation_4(alpha, seed):
    previous, current = normal(seed, 2, 5), normal(seed + 1, 2, 5)
    found = tokens.evolve_scores(previous, current, alpha)
    assert_close(found, alpha * previous + (1 - alpha) * current, rtol=1e-12, atol=1e-14)
    assert tokens.evolve_scores(None, current, alpha) is current


@both
@quick
@given(SHAPES, st.integers(0, 999), st.floats(0, 1))
def test_representative_is_equation_5(form, shape, seed, share):
    scores, selection, buffer = problem(shape, seed, share, form)
    representative = selection.representative(buffer)
    for b in range(len(buffer)):
        ranked = sorted(range(scores.shape[1]), key=lambda j: -scores[b, j])
        placeholders = ranked[selection.kept.shape[1] :]
        total = sum(scores[b, j] for j in placeholders)
        expected = sum(scores[b, j] / total * buffer[b, 1 + j] for j in placeholders)
        assert_close(representative[b, 0], expected, rtol=1e-11, atol=1e-12)


@both
@quick
@given(SHAPES, st.integers(0, 999), st.floats(0, 1), st.booleans())
def test_put_back_is_equations_6_and_7(form, shape, seed, share, fast):
    _, selection, buffer = problem(shape, seed, share, form)
    before = buffer.clone()
    slow = selection.take(buffer)
    change = normal(seed + 2, *slow.shape)
    residual = normal(seed + 3, len(buffer), 1, buffer.shape[2]) if fast else None
    updated = selection.put_back(buffer, slow + change, residual)
    assert_close(updated, tokens.put_back(buffer, selection.kept, slow + change, residual), rtol=1e-12, atol=1e-12)
    for b in range(len(buffer)):
        expected = before[b].clone()
        informative = [0, *(1 + selection.kept[b]).tolist()]
        for j in range(len(expected)):
            if j in informative:
                expected[j] += change[b, informative.index(j)]
            elif fast:
                expected[j] += residual[b, 0]
        assert_close(updated[b], expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(buffer, before)


def test_low_precision_scores_are_float32_even_under_autocast():
    query, keys = normal(0, 1, 2, 4).bfloat16(), normal(1, 1, 9, 8).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = tokens.class_attention(query, keys, 0.5)
    exact = tokens.class_attention(query.double(), keys.double(), 0.5)
    assert found.dtype == torch.float32
    assert_close(found.double(), exact, rtol=0, atol=1e-6)


@both
def test_underflowing_weights_stay_finite(form):
    scores = torch.tensor([[1.0, 0.0, 0.0]])
    buffer = torch.ones(1, 4, 2)
    assert torch.equal(select(form, scores, 1).representative(buffer), torch.zeros(1, 1, 2))
