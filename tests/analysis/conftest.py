"""A small dense vision transformer, and a batch of images for it."""

import pytest
import timm
import torch

from tests.analysis.small import SMALL


@pytest.fixture
def dense():
    return timm.create_model("plain_deit_tiny_patch16_224", **SMALL).eval()


@pytest.fixture
def batch():
    return torch.randn(3, 3, 16, 16)
