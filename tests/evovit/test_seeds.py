"""A seed gives the weights that it always gave: recorded trainings are found by their seed."""

import pytest
import timm
import torch
from torch.testing import assert_close

import evovit  # noqa: F401 (registers its models)

WEIGHTS = {  # the first of each layer at 5244e83, whose models had class-token heads at once
    "evo_deit_tiny_patch16_224": {
        "blocks.11.mlp.fc2.weight": 0.0173329,
        "head.weight": 0.0200204,
        "head_cls.weight": -0.0609057,
    },
    "evo_levit_128s": {
        "stages.2.blocks.3.mlp.ln2.linear.weight": -0.0297739,
        "head.linear.weight": -0.000510647,
        "head_cls_dist.linear.weight": -0.0153254,
    },
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_seed_gives_the_same_weights_as_ever(name):
    torch.manual_seed(3)
    model = timm.create_model(name, num_classes=10)
    model.set_training_outputs(True)
    state_dict = model.state_dict()
    for key, value in WEIGHTS[name].items():
        assert_close(state_dict[key].flatten()[0].item(), value, rtol=1e-4, atol=0)
