"""What a training on Slurm survives: each death that Slurm, its daemons or a user can bring."""

import contextlib
import os
import signal
import time

import pytest

from tests.slurm.conftest import NOTICE_S, curve
from workflow import records

EPOCHS = 150


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, tiny_spec_of_module):
    """The curve of the same training, run here without any disturbance."""
    from workflow.node import train

    folder = tmp_path_factory.mktemp("undisturbed")
    spec, site = tiny_spec_of_module(folder, EPOCHS)
    train.run(spec, site, folder / "1")
    return curve(folder / "1/journal.jsonl")
