"""What is looked up before any training."""

import pytest

from workflow.campaign import specs
from workflow.train import preflight


def test_timm_knows_what_the_recipes_name(config):
    for setting in config.settings:
        named = specs.preflight_spec(config, setting)["recipes"]
        assert "adamw" in named["optimizer"]
        assert preflight.unknown_names(named) == []


@pytest.mark.parametrize(
    ("key", "name"),
    [("optimizer", "adamww"), ("auto_augment", "rnad-m9"), ("auto_augment", "rand-m9-foo1")],
)
def test_a_name_that_timm_does_not_know_is_said_before_any_training(key, name):
    (message,) = preflight.unknown_names({key: [name]})
    assert message.startswith(f"timm makes no {key} of {name!r} here (")
    assert "correct it in workflow/config/" in message
