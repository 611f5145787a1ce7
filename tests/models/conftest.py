"""Nothing is drawn in the tests of this folder, which compare passes with each other."""

import pytest

from baselines import topk
from tests.models import families


@pytest.fixture(autouse=True)
def no_draws(monkeypatch):
    """Random dropping ranks the patches alike in every pass; tests/baselines/test_topk.py tests what it draws."""
    monkeypatch.setattr(topk, "draw_scores", families.fixed_scores)
